"""The report's central picture: accuracy against cost, and the table of the front beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from results.charts import (
    Scale,
    fit_scale,
    format_metric,
    metric_title,
    place_labels,
    signed,
    staircase,
)
from results.pareto import non_dominated
from results.report_data import Baseline, FrontMember, ReportData
from results.report_views import metric_rows, summarise, value

X_METRICS = ("latency_ms", "macs", "num_params")
MAX_DOTS = 4000
HIDDEN_SHARE = 0.1  # of the dots, those of least accuracy: a few failures would flatten the front
FRONT_BOX = (64.0, 20.0, 744.0, 400.0)  # left, top, right, bottom of the plot in a 760×452 picture


def _shown(member: FrontMember | Baseline, name: str) -> float | None:
    """The measured value where there is one, otherwise the predicted."""
    predicted = member.predicted if isinstance(member, FrontMember) else member.metrics
    measured = value(member.measured, name)
    return measured if measured is not None else value(predicted, name)


def front_chart(data: ReportData) -> dict[str, Any] | None:
    """Accuracy against each cost: dots, front, baselines, target; positions for every x axis."""
    front = [m for m in data.front if value(m.predicted, "accuracy") is not None]
    in_front = {m.digest for m in front}
    dots = [p for p in data.evaluated if value(p.metrics, "accuracy") is not None]
    dots = [p for p in dots if p.digest not in in_front]
    named = [b for b in data.baselines if value(b.metrics, "accuracy") is not None]
    total = len(dots) + len(front)
    kept = [m.predicted["accuracy"] or 0.0 for m in front]
    kept += [b.metrics["accuracy"] or 0.0 for b in named]
    if dots:
        reached = sorted(p.metrics["accuracy"] or 0.0 for p in dots)
        lowest = min([*kept, reached[int(HIDDEN_SHARE * len(reached))]])
        dots = [p for p in dots if (p.metrics["accuracy"] or 0.0) >= lowest]
    sampled = len(dots) > MAX_DOTS
    if sampled:  # evenly spaced in order of evaluation, so every phase is there
        dots = [dots[i * len(dots) // MAX_DOTS] for i in range(MAX_DOTS)]
    everything = [p.metrics for p in dots] + [m.predicted for m in front]
    axes = [x for x in X_METRICS if any(value(m, x) is not None for m in everything)]
    if not axes:
        return None
    left, top, right, bottom = FRONT_BOX
    accuracies = [m["accuracy"] or 0.0 for m in everything + [b.metrics for b in named]]
    y_scale = fit_scale(accuracies, bottom, top, floor=0.0, ceiling=1.0, allow_log=False, pad=0.08)

    points: list[dict[str, Any]] = [
        {
            "kind": "evaluated",
            "y": y_scale(p.metrics["accuracy"] or 0.0),
            "x": {a: value(p.metrics, a) for a in axes},
            "detail": {
                "title": p.digest,
                "role": "evaluated",
                "rows": metric_rows(p.metrics),
                "stages": summarise(p.architecture),
            },
        }
        for p in dots
    ]
    chosen = data.chosen.digest if data.chosen else None
    points += [
        {
            "kind": "chosen" if m.digest == chosen else "front",
            "y": y_scale(m.predicted["accuracy"] or 0.0),
            "x": {a: _shown(m, a) for a in axes},
            "detail": {
                "title": m.digest,
                "role": "chosen, on the front" if m.digest == chosen else "on the front",
                "rows": metric_rows(m.predicted, m.measured),
                "stages": summarise(m.architecture),
            },
        }
        for m in sorted(front, key=lambda m: _shown(m, axes[0]) or 0.0)
    ]
    views = []
    for axis in axes:
        xs = [p["x"][axis] for p in points] + [_shown(b, axis) for b in named]
        xs += [data.targets[axis]] if axis in data.targets else []
        scale = fit_scale([x for x in xs if x is not None], left, right, floor=0.0)
        for point in points:
            x = point["x"][axis]
            point["x"][axis] = None if x is None else scale(x)
        views.append(_front_view(data, axis, scale, y_scale, points, front, named))
    drawn = [
        (p["x"][axes[0]], p["y"])
        for p in points
        if p["kind"] != "evaluated" and p["x"][axes[0]] is not None
    ]
    details = [p["detail"] for p in points]
    for b in named:
        details.append(
            {
                "title": b.name,
                "role": "baseline" + (f", {b.note}" if b.note else ""),
                "rows": metric_rows(b.metrics, b.measured),
                "stages": summarise(b.architecture),
            }
        )
    return {
        "box": FRONT_BOX,
        "views": views,
        "points": points,
        "details": details,
        "y_ticks": y_scale.ticks("accuracy", 6),
        "counts": {
            "evaluated": total,
            "shown": len(points),
            "front": len(front),
            "sampled": sampled,
        },
        "objective": data.config.get("search", {}).get("objective", "accuracy"),
        # Members of the predicted front that another one beats in accuracy and measured latency.
        "overtaken": not non_dominated(drawn).all(),
        "measured": any(value(m.measured, "latency_ms") is not None for m in front),
    }


def _front_view(
    data: ReportData,
    axis: str,
    scale: Scale,
    y_scale: Scale,
    points: Sequence[Mapping[str, Any]],
    front: Sequence[FrontMember],
    named: Sequence[Baseline],
) -> dict[str, Any]:
    """What belongs to one x axis alone: ticks, staircase, target, tails, baselines."""
    placed = [
        (p["x"][axis], p["y"])
        for p in points
        if p["kind"] != "evaluated" and p["x"][axis] is not None
    ]
    best = non_dominated(placed)  # in SVG units both axes grow towards the worse
    steps = list(dict.fromkeys(p for p, keep in zip(placed, best, strict=True) if keep))
    tails = []
    for m in front if axis == "latency_ms" else ():
        predicted, measured = value(m.predicted, axis), value(m.measured, axis)
        if predicted is not None and measured is not None:
            y = y_scale(m.predicted["accuracy"] or 0.0)
            tails.append((scale(predicted), scale(measured), y))
    markers = []
    for i, b in enumerate(named):
        x = _shown(b, axis)
        if x is not None:
            y = y_scale(b.metrics["accuracy"] or 0.0)
            markers.append((scale(x), y, b.name, len(points) + i))
    labels = place_labels([m[:3] for m in markers], placed, FRONT_BOX)
    target = data.targets.get(axis)
    return {
        "metric": axis,
        "title": metric_title(axis),
        "button": {"latency_ms": "Latency", "macs": "MACs", "num_params": "Parameters"}[axis],
        "log": scale.log,
        "ticks": scale.ticks(axis, 7),
        "line": staircase(steps, FRONT_BOX[2]),
        "tails": tails,
        "target": None
        if target is None
        else {"x": scale(target), "text": f"limit {format_metric(axis, target)}"},
        "baselines": [
            {"x": x, "y": y, "name": name, "index": index, "label": label}
            for (x, y, name, index), label in zip(markers, labels, strict=True)
        ],
    }


def front_table(data: ReportData) -> list[dict[str, Any]]:
    """Rows of the front, fastest first; cells are (sort value, text)."""
    rows = []
    for m in data.front:
        predicted, measured = value(m.predicted, "latency_ms"), value(m.measured, "latency_ms")
        error = predicted / measured - 1 if predicted is not None and measured else None
        low, high = value(m.measured, "latency_low_ms"), value(m.measured, "latency_high_ms")
        spread = ""
        if low is not None and high is not None:
            low_text = format_metric("latency_ms", low).removesuffix("\u00a0ms")
            spread = f"{low_text} to {format_metric('latency_ms', high)}"
        accuracy, loss = value(m.predicted, "accuracy"), value(m.predicted, "loss")
        rows.append(
            {
                "digest": m.digest,
                "chosen": data.chosen is not None and data.chosen.digest == m.digest,
                "order": measured if measured is not None else predicted or 0.0,
                "spread": spread,
                "cells": [
                    (predicted, format_metric("latency_ms", predicted)),
                    (measured, format_metric("latency_ms", measured)),
                    (error, "–" if error is None else f"{signed(100 * error, 1)}\u00a0%"),
                    (accuracy, format_metric("accuracy", accuracy)),
                    (loss, format_metric("loss", loss)),
                    *(
                        (value(m.predicted, n), format_metric(n, value(m.predicted, n)))
                        for n in ("num_params", "macs")
                    ),
                ],
            }
        )
    return sorted(rows, key=lambda row: float(row["order"]))
