"""``torch.compile`` with its default backend: C++ on CPUs, Triton on GPUs.

Compilation costs seconds per graph. A compiled call has a fixed cost, guards and wrapper, that a
network pays once: it is taken out as that of an empty network. Slopes over copies need three times
the compilation, and predicted networks worse (space ``digits`` on a CPU: 11 % error against 6 %).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import types
from functools import cache, partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from predictors.measuring.runtimes.base import Method, Run, Runtime
from predictors.tables.conditions import Conditions
from search_space.errors import UsageError


class Inductor(Runtime):
    """Networks compiled by ``torch.compile``."""

    method: ClassVar[Method] = "constant"

    def version(self) -> str:
        compiler = _compiler_version(_compiler())
        return f"torch {torch.__version__}" + (f", {compiler}" if compiler else "")

    def require(self, device_kind: str, precision: str = "fp32") -> None:
        super().require(device_kind, precision)
        if device_kind == "cpu" and _compiler() is None:
            raise UsageError(
                "runtime 'inductor' needs a C++ compiler on CPUs, and none of $CXX, g++ and "
                "clang++ is there. Install one, such as with: apt install g++"
            )
        if device_kind == "cuda" and importlib.util.find_spec("triton") is None:
            raise UsageError(
                "runtime 'inductor' needs the package 'triton' on GPUs, which is not installed. "
                "Install it with: pip install triton"
            )

    def prepare(self, module: nn.Module, images: Tensor, conditions: Conditions) -> Run:
        # caches are kept per code object and searched in order: a shared one would make calls
        # slower with every network, and beyond the recompile limit fall back to eager
        def forward(x: Tensor) -> object:
            return module(x)

        copied = types.FunctionType(
            forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__
        )
        with torch.inference_mode():
            module(images)  # modules make their constants in eager mode
            compiled = torch.compile(copied, fullgraph=True, dynamic=False)
            compiled(images)
        return partial(compiled, images)


def _compiler() -> str | None:
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@cache
def _compiler_version(path: str | None) -> str:
    """Such as ``g++ 13.3.0``; empty where there is no compiler."""
    if path is None:
        return ""
    try:
        command = [path, "-dumpfullversion", "-dumpversion"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        words = done.stdout.split()
    except (OSError, subprocess.SubprocessError):
        words = []
    return " ".join([os.path.basename(path), *words[:1]])
