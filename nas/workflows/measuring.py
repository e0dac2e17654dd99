"""Networks measured on the device, each in two sessions: the second checks the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from predictors.measuring.remeasure import Measurement, measure_networks
from predictors.tables.conditions import Conditions
from results.files import WRITTEN_AGAIN
from search_space import Architecture
from search_space.boundary import read_model
from search_space.metrics import LATENCY
from search_space.names import Digest


@dataclass(frozen=True)
class Measured:
    """Two measurements of one network: the second checks the first."""

    first: Measurement
    second: Measurement

    @property
    def metrics(self) -> dict[str, float]:
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
    """What ``to_json`` gave, nothing where there is no file; raises CorruptFileError."""
    try:
        stored = read_model(path, dict[Digest, tuple[Measurement, Measurement]], fix=WRITTEN_AGAIN)
    except FileNotFoundError:
        return {}
    return {digest: Measured(*pair) for digest, pair in stored.items()}
