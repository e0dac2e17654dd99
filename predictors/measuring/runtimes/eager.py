"""PyTorch without compilation: one kernel after another."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from predictors.measuring.runtimes.base import Method, Run, Runtime
from predictors.tables.conditions import Conditions


class Eager(Runtime):
    method: ClassVar[Method] = "direct"

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, module: nn.Module, images: Tensor, conditions: Conditions) -> Run:
        return partial(module, images)
