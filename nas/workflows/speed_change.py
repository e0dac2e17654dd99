"""Whether the machine's speed changed between its latency table and the measurement of a front.

A table is right for the speed that the machine had. Where other work, heat or a neighbour on the
same host changes that, all predictions are off by one factor, which is no fault of theirs; networks
that were measured on both occasions tell how large it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nas.workflows.measuring import Measured
from predictors.measuring.profile import check_architectures
from predictors.tables.correction import CheckNetwork
from predictors.tables.latency_table import LatencyTable
from results.journal import Evaluation
from search_space import Architecture, SearchSpace
from search_space.metrics import LATENCY

NOTICED = 0.05  # a change of less is within what a machine does from one minute to the next


def check_networks(table: LatencyTable, space: SearchSpace) -> dict[str, Architecture]:
    """Networks of ``space`` that were measured as wholes with ``table``, by digest."""
    known = {check.digest for check in _checks(table, space)}
    return {a.digest: a for a in check_architectures(space) if a.digest in known}


def speed_change(
    table: LatencyTable, space: SearchSpace, measured: Mapping[str, Measured]
) -> float | None:
    """Median of latency now over latency then; None where no network was measured twice."""
    ratios = [
        measured[check.digest].metrics[LATENCY] / check.measured_ms
        for check in _checks(table, space)
        if check.digest in measured
    ]
    return float(np.median(ratios)) if ratios else None


def _checks(table: LatencyTable, space: SearchSpace) -> Sequence[CheckNetwork]:
    correction = table.corrections.get(space.digest)
    return () if correction is None else correction.checks


def speed_note(
    change: float, front: Sequence[Evaluation], measured: Mapping[str, Measured]
) -> str | None:
    """What to tell a user of a change, and how far off the predictions are without it."""
    ratios = np.array(
        [
            evaluation.metrics[LATENCY] / measured[evaluation.digest].metrics[LATENCY]
            for evaluation in front
            if evaluation.digest in measured
        ]
    )
    if abs(change - 1) < NOTICED or not len(ratios):
        return None
    plain, same_speed = np.abs(ratios - 1).mean(), np.abs(ratios * change - 1).mean()
    return (
        f"The machine took {change:.2f} times as long when the front was measured as when its "
        "latency table was, by networks measured both times. Predictions are therefore off "
        f"by {plain:.0%} on average, and by {same_speed:.0%} at the table's speed."
    )
