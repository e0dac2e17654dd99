"""Parameters, multiply-adds and activations of components and networks, as additive tables.

They are sums over the operators that a component launches (``operators``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from predictors.operators import operators
from predictors.tables.additive import AdditiveTable, entries
from search_space import Architecture, ModuleSpec, SearchSpace, components
from supernet.network.templates import template

COUNT_METRICS = ("num_params", "macs", "activations")


@dataclass(frozen=True)
class Counts:
    """Counts of one component, or of a network, for one image."""

    num_params: int
    macs: int
    activations: int


@lru_cache(maxsize=65536)
def count_entry(spec: ModuleSpec, in_size: int) -> Counts:
    """Counts one component with a square input of side ``in_size``."""
    num_params = sum(parameter.numel() for parameter in template(spec).parameters())
    launched = operators(spec, in_size)
    return Counts(
        num_params, sum(op.macs for op in launched), sum(op.activations for op in launched)
    )


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
