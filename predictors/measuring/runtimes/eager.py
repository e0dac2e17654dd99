"""PyTorch without compilation: kernels launched one by one, or by a CUDA graph."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from predictors.measuring.runtimes.base import Method, Run, Runtime
from predictors.tables.conditions import Conditions

_WARM_UP = 2  # before capture: libraries choose kernels and allocate workspaces


class Eager(Runtime):
    """Kernels that the host launches one by one."""

    method: ClassVar[Method] = "direct"

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, module: nn.Module, images: Tensor, conditions: Conditions) -> Run:
        return partial(module, images)


class CudaGraph(Runtime):
    """Eager kernels, captured once in a CUDA graph and replayed: no launch overhead per kernel.

    Graphs are replayed one after another and nobody keeps what they give, so all of a device share
    one pool of memory: thousands of them need no more than the largest.
    """

    method: ClassVar[Method] = "slope"
    device_kinds = ("cuda",)

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._latest: dict[torch.device, weakref.ref[torch.cuda.CUDAGraph]] = {}

    def version(self) -> str:
        return f"torch {torch.__version__}, CUDA {torch.version.cuda}"

    def prepare(self, module: nn.Module, images: Tensor, conditions: Conditions) -> Run:
        device = images.device
        with torch.inference_mode(), torch.cuda.device(device):
            # the workspaces of libraries belong to a stream, and blocks of the pool too
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            stream = self._streams[device]
            stream.wait_stream(torch.cuda.current_stream(device))
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    module(images)
                stream.synchronize()
                # not ``torch.cuda.graph``, which gives all cached memory back before each capture
                graph.capture_begin(self._pool(device))
                try:
                    module(images)
                finally:
                    graph.capture_end()
            torch.cuda.current_stream(device).wait_stream(stream)
        self._latest[device] = weakref.ref(graph)
        return partial(_replay, graph, (module, images))

    def _pool(self, device: torch.device) -> Any:
        """Finds the pool of the graphs that live; None, for a new one, where there are none."""
        latest = self._latest.get(device, lambda: None)()
        return None if latest is None else latest.pool()


def _replay(graph: torch.cuda.CUDAGraph, owners: object) -> None:
    """``owners``, module and images, must live as long as the graph reads them."""
    graph.replay()
