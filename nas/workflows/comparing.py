"""Two devices side by side: how differently they rank the architectures of a space."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.cli.console import Console
from predictors.devices import Target, latency_table
from results.pareto import kendall_tau
from results.report.charts import fit_scale
from results.report.page import render_page
from search_space import SearchSpace
from search_space.metrics import LATENCY

COUNT = 2000
_BOX = (64.0, 20.0, 560.0, 440.0)


@dataclass(frozen=True)
class Comparison:
    """Latencies of the same architectures on two devices, in milliseconds.

    Args:
        names: What the devices are called.
        conditions: That their latencies hold under.
        space: Name of the space of the architectures.
        latencies_ms: Of each device, in the same order.
        kendall_tau: Of the two orders; None where one has no order.
        shared_tenth: Of the fastest tenth on the first, the share that is in the second's.
    """

    names: tuple[str, str]
    conditions: tuple[str, str]
    space: str
    latencies_ms: tuple[tuple[float, ...], tuple[float, ...]]
    kendall_tau: float | None
    shared_tenth: float

    @property
    def tau(self) -> str:
        """Kendall τ as text; it is undefined where all have the same latency on a device."""
        return "undefined" if self.kendall_tau is None else f"{self.kendall_tau:.3f}"

    @property
    def count(self) -> int:
        """Number of architectures."""
        return len(self.latencies_ms[0])

    @property
    def ranges(self) -> list[tuple[str, float, float]]:
        """Name, smallest and largest latency of each device."""
        return [
            (name, min(values), max(values))
            for name, values in zip(self.names, self.latencies_ms, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain form without the single latencies."""
        result = asdict(self)
        del result["latencies_ms"]
        return {**result, "count": self.count, "ranges_ms": [list(r[1:]) for r in self.ranges]}


def compare_devices(
    first: Target,
    second: Target,
    space: SearchSpace,
    num_classes: int,
    interpolate: bool,
    console: Console,
) -> Comparison:
    """Predictions of both devices for the same 2000 random architectures."""
    rows = space.sample(np.random.default_rng(0), COUNT)
    predicted = []
    for target in (first, second):
        with console.phase(f"latency table of {target.name}") as progress:
            table = latency_table(
                target,
                space,
                num_classes,
                interpolate=interpolate,
                progress=progress.rounds,
            )
        predicted.append(table.compile(space, num_classes).predict(rows))
    fastest = [
        set(np.argsort(values, kind="stable")[: COUNT // 10].tolist()) for values in predicted
    ]
    return Comparison(
        names=(first.name, second.name),
        conditions=(str(first.conditions), str(second.conditions)),
        space=space.name,
        latencies_ms=(tuple(predicted[0].tolist()), tuple(predicted[1].tolist())),
        kendall_tau=kendall_tau(*predicted, resamples=2).tau,
        shared_tenth=len(fastest[0] & fastest[1]) / len(fastest[0]),
    )


def write_scatter(path: Path, compared: Comparison) -> None:
    """One self-contained HTML page: a dot for each architecture, an axis for each device."""
    left, top, right, bottom = _BOX
    x = fit_scale(compared.latencies_ms[0], left, right, floor=0.0)
    y = fit_scale(compared.latencies_ms[1], bottom, top, floor=0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render_page(
        "devices.html.j2",
        box=_BOX,
        compared=compared,
        dots=[(x(a), y(b)) for a, b in zip(*compared.latencies_ms, strict=True)],
        x_ticks=x.ticks(LATENCY, 7),
        y_ticks=y.ticks(LATENCY, 7),
    )
    path.write_text(page, "utf-8")
