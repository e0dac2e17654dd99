"""Static modules without weights, by specification: what the supernet calls, counts and declares.

A template lies on the meta device; it is called with slices of shared weights.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from search_space.components import ModuleSpec
from search_space.errors import UsageError
from supernet.network.axes import StaticModule, problem_of
from supernet.network.layers import fold_batch_norms
from supernet.network.modules import build_module
from supernet.network.norms import BatchNorm, has_batch_norms


@lru_cache(maxsize=16384)
def template(spec: ModuleSpec) -> StaticModule:
    """Builds the static module of ``spec`` without weights, for its declarations and its costs.

    Those of a module in int8 are the ones of its float twin.

    Raises:
        UsageError: It declares something else than it is.
    """
    with torch.device("meta"):
        module = build_module(spec.in_float).eval()
    problem = problem_of(module)
    if problem is not None:
        raise UsageError(f"{spec}: {problem}.")
    return module


@lru_cache(maxsize=16384)
def folded_template(spec: ModuleSpec) -> nn.Module:
    """The template of ``spec`` as it runs after training: with batch norms folded."""
    module = template(spec)
    return fold_batch_norms(copy.deepcopy(module)) if has_batch_norms(module) else module


class Template:
    """A static module that is called with other weights at each call.

    This is ``torch.func.functional_call`` without its checks for tied weights and names, which
    cost 8 µs per parameter, 1.5 % of a training step; the names are checked once, here.
    """

    def __init__(self, spec: ModuleSpec) -> None:
        with torch.device("meta"):
            self.module = build_module(spec)
        for part in self.module.modules():
            if isinstance(part, BatchNorm):  # no averages: a subnet normalises by its batch
                part.running_mean = part.running_var = None
        self.slots: list[tuple[dict[str, nn.Parameter | None], str]] = []
        for name in self.module.axes():
            holder, _, leaf = name.rpartition(".")
            self.slots.append((self.module.get_submodule(holder)._parameters, leaf))
        self.empty = [parameters[leaf] for parameters, leaf in self.slots]

    def __call__(
        self, weights: Sequence[Tensor], x: Tensor, training: bool, drop_path_rate: float
    ) -> Tensor:
        """The module's output; ``weights`` in the order of its ``axes()``."""
        if self.module.training != training:
            self.module.train(training)
        self.module.drop_path_rate = drop_path_rate
        self._set(weights)
        try:
            return self.module(x)
        finally:
            self._set(self.empty)

    def _set(self, weights: Sequence[Any]) -> None:
        for (parameters, leaf), weight in zip(self.slots, weights, strict=True):
            parameters[leaf] = weight


class _Templates(threading.local):
    """Templates of one thread: a call changes its template, which no other call may see."""

    def __init__(self) -> None:
        self.of = lru_cache(maxsize=16384)(Template)


TEMPLATES = _Templates()
