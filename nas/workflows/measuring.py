"""Networks measured on the device, and whether its speed changed since its latency table.

Each network is measured in two sessions: the second checks the first. A table is right for the
speed that the machine had. Where other work, heat or a neighbour on the same host changes that, all
predictions are off by one factor, which is no fault of theirs; networks that were measured on both
occasions tell how large it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from predictors.measuring.profile import check_architectures
from predictors.measuring.remeasure import Measurement, measure_networks
from predictors.tables.conditions import Conditions
from predictors.tables.correction import CheckNetwork
from predictors.tables.latency_table import LatencyTable
from results.files import WRITTEN_AGAIN
from results.journal import Evaluation
from search_space import Architecture, SearchSpace
from search_space.boundary import read_model
from search_space.metrics import LATENCY
from search_space.names import Digest

NOTICED = 0.05  # a change of less is within what a machine does from one minute to the next


@dataclass(frozen=True)
class Measured:
    """Two measurements of one network: the second checks the first."""

    first: Measurement
    second: Measurement

    @property
    def metrics(self) -> dict[str, float]:
        """Mean latency of both, and the range of their repetitions, in milliseconds."""
        return {
            LATENCY: (self.first.latency_ms + self.second.latency_ms) / 2,
            "latency_low_ms": min(self.first.low_ms, self.second.low_ms),
            "latency_high_ms": max(self.first.high_ms, self.second.high_ms),
        }


def measure_twice(
    architectures: Mapping[str, Architecture],
    num_classes: int,
    conditions: Conditions,
    seed: int,
    progress: Callable[[float, float, str, float], None],
) -> dict[str, Measured]:
    """Both sessions for every network, by digest; ``progress`` as for a console's phase."""

    def session(which: int) -> list[Measurement]:
        def show(done: int, total: int, left: float) -> None:
            progress(done + which * total, 2 * total, "rounds", left + (1 - which) * left)

        return measure_networks(
            list(architectures.values()), num_classes, conditions, seed=seed + which, progress=show
        )

    pairs = zip(session(0), session(1), strict=True)
    return {d: Measured(*pair) for d, pair in zip(architectures, pairs, strict=True)}


def to_json(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Plain form; ``read_measured`` inverts it."""
    return {digest: [asdict(m.first), asdict(m.second)] for digest, m in measured.items()}


def read_measured(path: Path) -> dict[str, Measured]:
    """Measurements by digest from a file of ``to_json``; empty where there is none.

    Raises:
        CorruptFileError: The file is damaged.
    """
    try:
        stored = read_model(path, dict[Digest, tuple[Measurement, Measurement]], fix=WRITTEN_AGAIN)
    except FileNotFoundError:
        return {}
    return {digest: Measured(*pair) for digest, pair in stored.items()}


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
    """A note on a change of speed and how far off it makes predictions; None for a small one."""
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
