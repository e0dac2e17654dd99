"""Latencies of single networks, which need be of no common space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from predictors.devices import Target
from predictors.estimates.calibrate import predict_network
from predictors.measuring.bench import Limits
from predictors.measuring.remeasure import measure_networks
from predictors.tables.latency_table import LatencyTable, MissingLatencyError
from search_space import Architecture

if TYPE_CHECKING:
    from nas.cli.console import PhaseProgress

AT_ONCE = 24
"""Networks that are measured together, which all are in memory then."""
_LIMITS = Limits(min_rounds=10, max_rounds=30, min_seconds=2.0)


def network_latencies(
    architectures: Sequence[Architecture],
    target: Target,
    num_classes: int,
    *,
    seed: int = 0,
    progress: PhaseProgress | None = None,
) -> list[float | None]:
    """Finds milliseconds of a few networks on a device, in the order given.

    Where the device is at hand they are measured, interleaved; otherwise predicted by its table or
    datasheet, and None of those whose parts the table lacks.
    """
    if target.at_hand:
        options: dict[str, Any] = {"seed": seed, "limits": _LIMITS}
        if progress is not None:
            options["progress"] = progress.rounds
        found = measure_networks(architectures, num_classes, target.conditions, **options)
        return [one.latency_ms for one in found]
    table = LatencyTable(target.conditions, {}, {})
    if target.path.exists():
        table = LatencyTable.load(target.path)
    return [_predicted(table, architecture, num_classes) for architecture in architectures]


def _predicted(table: LatencyTable, architecture: Architecture, num_classes: int) -> float | None:
    try:
        return predict_network(table, architecture, num_classes)
    except MissingLatencyError:
        return None
