"""The report's smaller pictures: predicted against measured latency, training, and time."""

from __future__ import annotations

import itertools
import math
from typing import Any

from results.pareto import kendall_tau
from results.report.charts import Scale, fit_scale, format_metric, path
from results.report.data import LatencyCheck, ReportData
from results.report.words import value
from search_space.metrics import LATENCY
from search_space.units import format_duration

# Plots within their pictures: left, top, right, bottom.
CURVE_BOX = (56.0, 16.0, 428.0, 214.0)
SCATTER_BOX = (60.0, 16.0, 424.0, 380.0)


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
    along = [x.low + (x.high - x.low) * i / 40 for i in range(41)]
    if x.log:
        along = [x.low * (x.high / x.low) ** (i / 40) for i in range(41)]
    along = [v for v in along if v > 0]
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
    """Validation loss and accuracy of the largest and the smallest subnet over the epochs."""
    left, top, right, bottom = CURVE_BOX
    charts = []
    for what, title in (("loss", "Validation loss"), ("accuracy", "Validation accuracy")):
        fields = {"network": what, "largest": f"{what}_largest", "smallest": f"{what}_smallest"}
        series = {
            size: [
                (e.epoch, v)
                for e in data.training
                if (v := getattr(e, field)) is not None and math.isfinite(v)
            ]
            for size, field in fields.items()
        }
        series = {size: values for size, values in series.items() if values}
        if not series:
            continue
        every = list(itertools.chain(*series.values()))
        epochs = [e for e, _ in every]
        x = Scale(min(epochs), max(max(epochs), min(epochs) + 1), left, right)
        ceiling = None if what == "loss" else 1.0
        values = [v for _, v in every]
        y = fit_scale(values, bottom, top, floor=0.0, ceiling=ceiling, allow_log=False)
        ends = {size: y(values[-1][1]) for size, values in series.items()}
        labels = dict(ends)
        if len(ends) == 2 and abs(ends["largest"] - ends["smallest"]) < 18:
            middle = sum(ends.values()) / 2
            upper = min(ends, key=lambda size: ends[size])
            labels = {size: middle + (-9 if size == upper else 9) for size in ends}
        charts.append(
            {
                "title": title,
                "box": CURVE_BOX,
                "x_ticks": [t for t in x.ticks("epoch", 6) if "." not in t.label],
                "y_ticks": y.ticks(what, 5),
                "lines": [
                    {
                        "name": size,
                        "style": "largest" if size == "network" else size,
                        "path": path([(x(e), y(v)) for e, v in values]),
                        "end": (x(values[-1][0]), y(values[-1][1])),
                        "label_y": labels[size] + 4,
                        "last": format_metric(what, values[-1][1]),
                    }
                    for size, values in series.items()
                ],
            }
        )
    return charts


def phase_bars(data: ReportData) -> dict[str, Any] | None:
    """Wall time of each phase, and its share of all."""
    if not data.phases:
        return None
    total = sum(phase.seconds for phase in data.phases)
    return {
        "total": format_duration(total),
        "rows": [
            {
                "name": phase.name,
                "note": phase.note,
                "time": format_duration(phase.seconds),
                "percent": round(100 * phase.seconds / total, 1) if total > 0 else 0.0,
            }
            for phase in data.phases
        ],
    }
