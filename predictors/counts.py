"""Parameters, multiply-adds and activations in closed form, as additive tables.

Each static module states its own counts for an input size, so that a new mixer brings its
formula along; here they are only added up. One multiply-add counts as 1 ("MACs"), and
activations are the output elements of convolutions, linear layers and matrix products, both as
fvcore counts them with handles for attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from predictors.tables.additive import AdditiveTable, entries
from search_space import Architecture, ModuleSpec, SearchSpace, components
from supernet.network.axes import StaticModule
from supernet.network.modules import build_module

COUNT_METRICS = ("num_params", "macs", "activations")


@dataclass(frozen=True)
class Counts:
    """Counts of one component, or of a network, for one image."""

    num_params: int
    macs: int
    activations: int


@lru_cache(maxsize=8192)
def meta_module(spec: ModuleSpec) -> tuple[StaticModule, int]:
    """Module without storage, and its number of parameters."""
    with torch.device("meta"):
        module = build_module(spec)
    return module, sum(parameter.numel() for parameter in module.parameters())


def count_entry(spec: ModuleSpec, in_size: int) -> Counts:
    """Counts of one component with a square input of side ``in_size``."""
    module, num_params = meta_module(spec)
    return Counts(num_params, module.macs(in_size), module.activations(in_size))


def counts(space: SearchSpace, num_classes: int = 1000) -> dict[str, AdditiveTable]:
    """Additive tables ``num_params``, ``macs`` and ``activations`` of ``space``."""
    known = {entry: count_entry(*entry) for entry in entries(space, num_classes)}

    def table(metric: str) -> AdditiveTable:
        return AdditiveTable.build(
            space, num_classes, lambda spec, size: float(getattr(known[spec, size], metric))
        )

    return {metric: table(metric) for metric in COUNT_METRICS}


def count_architecture(architecture: Architecture, num_classes: int = 1000) -> dict[str, int]:
    """``num_params``, ``macs`` and ``activations`` of any architecture, for one image."""
    parts = [count_entry(c.spec, c.in_size) for c in components(architecture, num_classes)]
    return {metric: sum(getattr(part, metric) for part in parts) for metric in COUNT_METRICS}
