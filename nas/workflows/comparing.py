"""Two devices side by side: how differently they rank the architectures of a space."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from nas.cli.console import Console
from predictors.devices import Target, latency_table
from results.pareto import kendall_tau
from results.report.charts import fit_scale
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
                progress=lambda done, total, left: progress(done, total, "rounds", left),
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
    xs, ys = compared.latencies_ms
    x_scale = fit_scale(xs, left, right, floor=0.0)
    y_scale = fit_scale(ys, bottom, top, floor=0.0)
    dots = "".join(
        f'<circle cx="{x_scale(x):.1f}" cy="{y_scale(y):.1f}" r="2"/>'
        for x, y in zip(xs, ys, strict=True)
    )
    ticks = "".join(
        f'<line x1="{t.at:.1f}" y1="{top}" x2="{t.at:.1f}" y2="{bottom}"/>'
        f'<text x="{t.at:.1f}" y="{bottom + 18}" text-anchor="middle">{t.label}</text>'
        for t in x_scale.ticks(LATENCY, 7)
    ) + "".join(
        f'<line x1="{left}" y1="{t.at:.1f}" x2="{right}" y2="{t.at:.1f}"/>'
        f'<text x="{left - 8}" y="{t.at + 4:.1f}" text-anchor="end">{t.label}</text>'
        for t in y_scale.ticks(LATENCY, 7)
    )
    first, second = (escape(name) for name in compared.names)
    conditions = "".join(
        f"<li><b>{escape(name)}</b>: {escape(text)}</li>"
        for name, text in zip(compared.names, compared.conditions, strict=True)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{first} and {second}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 640px; margin: 2rem auto; }}
line {{ stroke: #e3e6ea; }} circle {{ fill: #2563eb; fill-opacity: .35; }}
text {{ font-size: 12px; fill: #475569; }}
</style></head><body>
<h1>{first} and {second} on {escape(compared.space)}</h1>
<p>{compared.count} random architectures, predicted on both devices: Kendall τ
{compared.tau}. Of the fastest tenth on {first}, {compared.shared_tenth:.0%} are in
the fastest tenth on {second}.</p>
<svg viewBox="0 0 600 490" role="img" aria-label="latency on both devices">{ticks}{dots}
<text x="{(left + right) / 2}" y="{bottom + 40}" text-anchor="middle">{first}, ms</text>
<text transform="translate(16 {(top + bottom) / 2}) rotate(-90)"
  text-anchor="middle">{second}, ms</text>
</svg><ul>{conditions}</ul></body></html>
""",
        "utf-8",
    )
