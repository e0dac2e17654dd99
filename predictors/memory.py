"""Peak memory of activations in inference, from runs of each component without storage.

The components run on the meta device while a dispatch mode keeps account of the storages that
are alive: allocated by an operator, freed when the last tensor on them goes, exactly as in eager
execution. A network's peak is the largest of its components' peaks, inputs included. Not in it:
weights, workspaces of kernels, and the stage inputs that eager execution keeps until the stage
ends (compiled runtimes free them after their last use).
"""

from __future__ import annotations

import itertools
import weakref
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from predictors.operators import DTYPES
from predictors.tables.additive import AdditiveTable
from search_space import ModuleSpec, SearchSpace
from search_space.components import input_shape
from supernet.network.templates import folded_template


class _Ledger(TorchDispatchMode):
    """Bytes of the storages that are alive, and their peak."""

    def __init__(self, module: nn.Module) -> None:
        """Weights and buffers of ``module`` are not counted."""
        super().__init__()
        self.alive = self.peak = 0
        tensors = itertools.chain(module.parameters(), module.buffers())
        self._seen = {tensor.untyped_storage()._cdata for tensor in tensors}

    def hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.hold(leaf)
        return result


@lru_cache(maxsize=16384)
def peak_elements(spec: ModuleSpec, in_size: int) -> int:
    """Counts the elements alive at once while a component runs on one image, input included."""
    module = folded_template(spec)
    images = torch.empty(input_shape(spec, in_size), device="meta")
    ledger = _Ledger(module)
    with torch.inference_mode():
        module(images)  # constants are made by the first call and stay
    with torch.inference_mode(), ledger:
        ledger.hold(images)
        module(images)
    return ledger.peak // images.element_size()


def peak_memory(
    space: SearchSpace, num_classes: int = 1000, *, batch_size: int = 1, precision: str = "fp32"
) -> AdditiveTable:
    """Builds the table of the peaks of live activations, whose ``predict`` gives bytes.

    ``batch_size`` images go through the network together, in ``precision`` (``fp32``, ``fp16`` or
    ``bf16``).
    """
    size = batch_size * DTYPES[precision].itemsize
    return AdditiveTable.build(
        space,
        num_classes,
        lambda spec, in_size: float(size * peak_elements(spec, in_size)),
        combine="max",
    )
