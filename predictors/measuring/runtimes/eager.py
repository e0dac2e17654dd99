"""PyTorch without compilation: kernels launched one by one, or by a CUDA graph."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from predictors.measuring.runtimes.base import Method, Run, Runtime
from predictors.tables.conditions import Conditions

_WARM_UP = 3  # before capture: libraries choose kernels and allocate workspaces
_FEWEST, _MOST = 4, 16  # copies: events resolve half a microsecond; graphs must stay small


class Eager(Runtime):
    """Kernels that the host launches one by one."""

    method: ClassVar[Method] = "direct"

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, module: nn.Module, images: Tensor, conditions: Conditions) -> Run:
        return partial(module, images)


class CudaGraph(Runtime):
    """Eager kernels, captured once in a CUDA graph and replayed: no launch overhead per kernel."""

    method: ClassVar[Method] = "slope"
    device_kinds = ("cuda",)

    def version(self) -> str:
        return f"torch {torch.__version__}, CUDA {torch.version.cuda}"

    def copies(self, weight_bytes: int, device: torch.device) -> int:
        """As many as overflow the second-level cache, within bounds."""
        properties = torch.cuda.get_device_properties(device)
        cache = int(getattr(properties, "L2_cache_size", 0))
        return min(max(math.ceil(cache / max(weight_bytes, 1)), _FEWEST), _MOST)

    def prepare(self, module: nn.Module, images: Tensor, conditions: Conditions) -> Run:
        stream = torch.cuda.Stream(images.device)
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.inference_mode(), torch.cuda.device(images.device):
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    module(images)
            torch.cuda.current_stream(images.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = module(images)

        def run() -> object:
            graph.replay()
            return output  # lives in the graph's memory: the next replay overwrites it

        return run
