"""The report's smaller pictures: predicted against measured latency, and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from results.pareto import kendall_tau
from results.report.charts import (
    Scale,
    capitalised,
    fit_scale,
    format_metric,
    line_chart,
    path,
)
from results.report.data import LatencyCheck, ReportData, value
from search_space.metrics import ACCURACY, LATENCY, LOSS, metric_named, title_of

SCATTER_BOX = (60.0, 16.0, 424.0, 380.0)  # left, top, right, bottom


def latency_errors(check: LatencyCheck) -> dict[str, float | None]:
    """Mean absolute percentage error, share within ±10 % and Kendall's tau of the pairs."""
    pairs = [(p.predicted_ms, p.measured_ms) for p in check.pairs if p.measured_ms > 0]
    if not pairs:
        return {"mape": None, "share_within_10": None, "kendall_tau": None}
    errors = [abs(predicted / measured - 1) for predicted, measured in pairs]
    tau = kendall_tau([p for p, _ in pairs], [m for _, m in pairs], resamples=2)
    return {
        "mape": sum(errors) / len(errors),
        "share_within_10": sum(e <= 0.1 for e in errors) / len(errors),
        "kendall_tau": tau.tau,
    }


def latency_chart(data: ReportData) -> dict[str, Any] | None:
    """Predicted against measured latency, with diagonal and band, and the errors in figures."""
    check = data.latency
    if check is None:
        return None
    errors = latency_errors(check)
    names = {
        "mape": ("mean abs. error", "{:.2%}"),
        "share_within_10": ("within ±10 %", "{:.2%}"),
        "kendall_tau": ("Kendall τ", "{:.2f}"),
    }
    tiles = []
    for key, (name, form) in names.items():
        floor, error = value(check.repeatability, key), errors[key]
        if error is not None:
            note = f"repeating itself: {_figure(form, floor)}" if floor is not None else ""
            tiles.append({"name": name, "value": _figure(form, error), "note": note})
    view: dict[str, Any] = {"tiles": tiles, "provenance": check.provenance, "plot": None}
    if check.pairs:
        points = [
            (
                p.measured_ms,
                p.predicted_ms,
                f"{p.digest} measured {format_metric(LATENCY, p.measured_ms)}, "
                f"predicted {format_metric(LATENCY, p.predicted_ms)}".strip(),
            )
            for p in check.pairs
        ]
        view["plot"] = scatter(LATENCY, "measured", "predicted", points, band=0.1)
    return view


def scatter(
    metric: str,
    across: str,
    up: str,
    points: Sequence[tuple[float, float, str]],
    *,
    band: float = 0.0,
) -> dict[str, Any]:
    """Two values of one metric against each other, with the diagonal.

    Args:
        metric: What both are.
        across: How the first came about, which lies on the horizontal axis.
        up: How the second did.
        points: First and second value, and the point's text.
        band: Relative error that is shaded.
    """
    left, top, right, bottom = SCATTER_BOX
    values = [v for x, y, _ in points for v in (x, y)]
    x = fit_scale(values, left, right, floor=0.0 if min(values) >= 0 else None)
    y = Scale(x.low, x.high, bottom, top, x.log)
    shade = ""
    if band:
        space = np.geomspace if x.log else np.linspace
        along = [float(v) for v in space(x.low, x.high, 41) if v > 0]
        edges = [(x(v), y((1 + band) * v)) for v in along]
        shade = path(edges + [(x(v), y((1 - band) * v)) for v in reversed(along)]) + "Z"
    axis = metric_named(metric).unit.axis
    unit = f" ({axis})" if axis else f" {title_of(metric)}"
    margin = f" and a band of plus and minus {band:.0%}" if band else ""
    return {
        "box": SCATTER_BOX,
        "clip": f"clip-{metric}",
        "label": f"{capitalised(up)} against {across} {title_of(metric)} of {len(points)} "
        f"networks, with the diagonal{margin}.",
        "x_title": f"{across}{unit}{', logarithmic' if x.log else ''}",
        "y_title": f"{up}{unit}",
        "x_ticks": x.ticks(metric, 5),
        "y_ticks": y.ticks(metric, 5),
        "band": shade,
        "points": [{"x": x(a), "y": y(b), "text": text} for a, b, text in points],
    }


def _figure(form: str, number: float) -> str:
    return form.format(number).replace("%", "\u00a0%").replace("-", "−")


def training_charts(data: ReportData) -> list[dict[str, Any]]:
    """Validation loss and accuracy over the epochs, of a network or a supernet's extremes."""
    charts = []
    for what, ceiling in ((LOSS, None), (ACCURACY, 1.0)):
        fields = {"network": what, "largest": f"{what}_largest", "smallest": f"{what}_smallest"}
        lines = {
            size: [(e.epoch, v) for e in data.training if (v := getattr(e, field)) is not None]
            for size, field in fields.items()
        }
        charts.append(
            line_chart(
                f"Validation {what}",
                "epoch",
                lines,
                what,
                floor=0.0,
                ceiling=ceiling,
                allow_log=False,
            )
        )
    return [chart for chart in charts if chart is not None]
