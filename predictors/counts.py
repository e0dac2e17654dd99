"""Parameters, multiply-adds and activations of components and networks, as additive tables.

A component is run once on the meta device, where tensors have shapes but no data, under a dispatch
mode that sees every operator: nothing here knows any mixer, so a new one needs no formula. One
multiply-add counts as 1 ("MACs"), and activations are the output elements of convolutions, linear
layers and matrix products, both as fvcore counts them with handles for attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from predictors.tables.additive import AdditiveTable, entries
from search_space import Architecture, ModuleSpec, SearchSpace, components
from search_space.components import input_shape
from supernet.network.modules import build_module
from supernet.network.supernet import template

COUNT_METRICS = ("num_params", "macs", "activations")
_aten = torch.ops.aten


@dataclass(frozen=True)
class Counts:
    """Counts of one component, or of a network, for one image."""

    num_params: int
    macs: int
    activations: int


@lru_cache(maxsize=65536)
def count_entry(spec: ModuleSpec, in_size: int) -> Counts:
    """Counts one component with a square input of side ``in_size``.

    A block is its mixer and what surrounds it, each run once for all blocks that share it.
    """
    module, shape = template(spec), input_shape(spec, in_size)
    num_params = sum(parameter.numel() for parameter in module.parameters())
    options = spec.as_dict()
    if "mixer" not in options:
        return Counts(num_params, *_run(module, shape))
    mixer = options.pop("mixer"), options.pop("params")

    def around() -> nn.Module:
        with torch.device("meta"):
            block = build_module(spec).eval()
        block.mixer = nn.Identity()
        return block

    inner = _shared((*mixer, *shape), lambda: module.mixer, shape)
    outer = _shared((*options.items(), module.inside_mlp, *shape), around, shape)
    return Counts(num_params, inner[0] + outer[0], inner[1] + outer[1])


_runs: dict[tuple[object, ...], tuple[int, int]] = {}


def _shared(
    key: tuple[object, ...], make: Callable[[], nn.Module], shape: Sequence[int]
) -> tuple[int, int]:
    if key not in _runs:
        _runs[key] = _run(make(), shape)
    return _runs[key]


def _run(module: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """Returns multiply-adds and activations of a module on the meta device."""
    counter = _Counter()
    # under inference mode composite operators, such as linear, are seen before they are split
    with torch.inference_mode(), counter:
        module(torch.empty(*shape, device="meta"))
    return counter.macs, counter.activations


class _Counter(TorchDispatchMode):
    """Counts the operators that run while it is active.

    Of operators that only need a shape the result is made without running them, which is what makes
    a space's thousand components a matter of seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = self.activations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet is _aten.linear:
            x, weight = args[:2]
            return self._count(x.new_empty(*x.shape[:-1], len(weight)), weight.shape[1])
        if packet is _aten.scaled_dot_product_attention:
            query, key, value = args[:3]
            self._count(query.new_empty(*query.shape[:-1], key.shape[-2]), query.shape[-1])
            return self._count(query.new_empty(*query.shape[:-1], value.shape[-1]), key.shape[-2])
        if packet in (_aten.layer_norm, _aten.group_norm):
            self.macs += 5 * args[0].numel()  # as fvcore counts, and so published figures
            return torch.empty_like(args[0])
        if packet in flop_registry:
            result = func(*args, **kwargs)
            self.macs += int(flop_registry[packet](*args, **kwargs, out_val=result)) // 2
            self.activations += tree_leaves(result)[0].numel()
            return result
        if torch.Tag.pointwise in func.tags:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            return tensors[0].new_empty(torch.broadcast_shapes(*(x.shape for x in tensors)))
        if not func.is_view:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)

    def _count(self, result: Tensor, macs_per_element: int) -> Tensor:
        self.macs += result.numel() * macs_per_element
        self.activations += result.numel()
        return result


def counts(space: SearchSpace, num_classes: int = 1000) -> dict[str, AdditiveTable]:
    """Builds the additive tables ``num_params``, ``macs`` and ``activations`` of ``space``."""
    known = {entry: count_entry(*entry) for entry in entries(space, num_classes)}

    def table(metric: str) -> AdditiveTable:
        return AdditiveTable.build(
            space, num_classes, lambda spec, size: float(getattr(known[spec, size], metric))
        )

    return {metric: table(metric) for metric in COUNT_METRICS}


def count_architecture(architecture: Architecture, num_classes: int = 1000) -> dict[str, int]:
    """Counts ``num_params``, ``macs`` and ``activations`` of any architecture, for one image."""
    parts = [count_entry(c.spec, c.in_size) for c in components(architecture, num_classes)]
    return {metric: sum(getattr(part, metric) for part in parts) for metric in COUNT_METRICS}
