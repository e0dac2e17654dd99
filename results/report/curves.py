"""The report's smaller pictures: predicted against measured latency, and training."""

from __future__ import annotations

from typing import Any

import numpy as np

from results.pareto import kendall_tau
from results.report.charts import Scale, fit_scale, format_metric, line_chart, path
from results.report.data import LatencyCheck, ReportData, value
from search_space.metrics import ACCURACY, LATENCY, LOSS

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
    if not check.pairs:
        return view
    left, top, right, bottom = SCATTER_BOX
    values = [v for p in check.pairs for v in (p.predicted_ms, p.measured_ms)]
    x = fit_scale(values, left, right, floor=0.0)
    y = Scale(x.low, x.high, bottom, top, x.log)
    space = np.geomspace if x.log else np.linspace
    along = [float(v) for v in space(x.low, x.high, 41) if v > 0]
    band = [(x(v), y(1.1 * v)) for v in along] + [(x(v), y(0.9 * v)) for v in reversed(along)]
    view["plot"] = {
        "box": SCATTER_BOX,
        "x_ticks": x.ticks(LATENCY, 5),
        "y_ticks": y.ticks(LATENCY, 5),
        "band": path(band) + "Z",
        "log": x.log,
        "points": [
            {
                "x": x(p.measured_ms),
                "y": y(p.predicted_ms),
                "text": f"{p.digest} measured {format_metric(LATENCY, p.measured_ms)}, "
                f"predicted {format_metric(LATENCY, p.predicted_ms)}".strip(),
            }
            for p in check.pairs
        ],
    }
    return view


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
