"""The report's central picture: what the run is judged by against cost, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from results.pareto import non_dominated
from results.report import charts
from results.report.data import Baseline, Metrics, Network, ReportData, value
from results.report.words import Quality, cheap_metrics, metric_rows, quality_of, summarise
from search_space.metrics import ACCURACY, LATENCY, SHARE, metric_named, title_of

MAX_DOTS = 4000
HIDDEN_SHARE = 0.1  # of the dots, those of least quality: a few failures would flatten the front
FRONT_BOX = (64.0, 20.0, 744.0, 400.0)  # left, top, right, bottom of the plot in a 760×452 picture


def front_chart(data: ReportData) -> dict[str, Any] | None:
    """Quality against each cost: dots, front, baselines, target; positions for every x axis."""
    quality = quality_of(data)
    bounded = metric_named(quality.metric).unit is SHARE

    def known(metrics: Metrics) -> bool:
        return value(metrics, quality.metric) is not None

    def reached(metrics: Metrics) -> float:
        return value(metrics, quality.metric) or 0.0

    front = [m for m in data.front if known(m.predicted)]
    in_front = {m.digest for m in front}
    dots = [p for p in data.evaluated if known(p.predicted) and p.digest not in in_front]
    named = [b for b in data.baselines if known(b.predicted)]
    total = len(dots) + len(front)
    if dots:
        kept = [reached(m.predicted) for m in front] + [reached(b.predicted) for b in named]
        ordered = sorted(reached(p.predicted) for p in dots)
        lowest = min([*kept, ordered[int(HIDDEN_SHARE * len(ordered))]])
        dots = [p for p in dots if reached(p.predicted) >= lowest]
    dropped = total - len(dots) - len(front)
    sampled = len(dots) > MAX_DOTS
    if sampled:  # evenly spaced in order of evaluation, so every phase is there
        dots = [dots[i * len(dots) // MAX_DOTS] for i in range(MAX_DOTS)]
    everything = [p.predicted for p in dots] + [m.predicted for m in front]
    axes = cheap_metrics(everything)
    if not axes:
        return None
    left, top, right, bottom = FRONT_BOX
    y_scale = charts.fit_scale(
        [reached(m) for m in [*everything, *(b.predicted for b in named)]],
        bottom,
        top,
        floor=0.0 if bounded else None,
        ceiling=1.0 if bounded else None,
        allow_log=False,
        pad=0.08,
    )
    chosen = data.chosen.digest if data.chosen else None
    points: list[dict[str, Any]] = [
        {
            "kind": "evaluated",
            "y": y_scale(reached(p.predicted)),
            "x": {a: value(p.predicted, a) for a in axes},
            "detail": _detail(p.digest, quality.judged, p.predicted, {}, p.architecture),
        }
        for p in dots
    ]
    # the chosen one last, so that no other covers it
    for m in sorted(front, key=lambda m: (m.digest == chosen, m.figure(axes[0]) or 0.0)):
        role = "chosen, on the front" if m.digest == chosen else "on the front"
        points.append(
            {
                "kind": "chosen" if m.digest == chosen else "front",
                "y": y_scale(reached(m.predicted)),
                "x": {a: m.figure(a) for a in axes},
                "detail": _detail(m.digest, role, m.predicted, m.measured, m.architecture),
            }
        )
    views = []
    for axis in axes:
        xs = [p["x"][axis] for p in points] + [b.figure(axis) for b in named]
        xs.append(data.targets.get(axis))
        scale = charts.fit_scale([x for x in xs if x is not None], left, right, floor=0.0)
        for point in points:
            x = point["x"][axis]
            point["x"][axis] = None if x is None else scale(x)
        views.append(_front_view(data, axis, scale, y_scale, points, front, named))
    details = [p["detail"] for p in points]
    for b in named:
        role = "baseline" + (f", {b.note}" if b.note else "")
        details.append(_detail(b.name, role, b.predicted, b.measured, b.architecture))
    counts = {
        "evaluated": total,
        "shown": len(points),
        "front": len(front),
        "dropped": dropped,
        "sampled": sampled,
    }
    measured = any(value(m.measured, LATENCY) is not None for m in front)
    # Members of the predicted front that another one beats in quality and measured latency.
    overtaken = measured and not non_dominated(_placed(points, axes[0])).all()
    return {
        "box": FRONT_BOX,
        "title": quality.axis,
        "label": f"{charts.capitalised(quality.noun)} against cost of {total} architectures, "
        f"{len(front)} of them on the front.",
        "views": views,
        "points": points,
        "details": details,
        "y_ticks": y_scale.ticks(quality.metric, 6),
        "counts": counts,
        "lead": _lead(data, quality, counts, axes[0], measured, overtaken),
    }


def _detail(
    title: str,
    role: str,
    predicted: Metrics,
    measured: Metrics,
    architecture: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Text of a point's tooltip."""
    rows, stages = metric_rows(predicted, measured), summarise(architecture)
    return {"title": title, "role": role, "rows": rows, "stages": stages}


def _lead(
    data: ReportData,
    quality: Quality,
    counts: Mapping[str, int],
    cost: str,
    measured: bool,
    overtaken: bool,
) -> str:
    """Sentences on how many architectures the chart shows, and how to read its points."""
    total, shown = counts["evaluated"], counts["shown"]
    seen = data.num_seen or total
    best = "."
    if counts["front"]:
        against = "predicted latency" if cost == LATENCY else title_of(cost)
        best = (
            f"; none of them beats one of the {counts['front']} on the front in both "
            f"{quality.compared} and {against}."
        )
    hidden = (
        f"without those of the lowest {quality.noun}, which would flatten the rest"
        if counts["dropped"]
        else ""
    )
    sample = "of the others an even sample" if hidden else "an even sample"
    drawn = ", and ".join(filter(None, [hidden, sample if counts["sampled"] else ""]))
    if quality.metric == ACCURACY:
        out_of = f" out of {charts.thousands(seen)} that were costed" if data.num_seen else ""
        text = f"{charts.thousands(total)} architectures were evaluated{out_of}{best}"
        text += f" {charts.thousands(shown)} are drawn: {drawn}." if shown < total else ""
    else:
        seen = max(seen, total)
        some = f", {charts.thousands(shown)} of them are shown" if shown < seen else ""
        text = f"{charts.thousands(seen)} architectures were {quality.judged}{some}{best}"
        text += f" They are shown {drawn}." if drawn else ""
    if measured:
        text += " Front points sit at their re-measured latency; the thin tail starts at the "
        text += "predicted one."
    if overtaken:
        text += f" Those below the line have a lower {quality.noun} than a faster one, by measured "
        text += "latency or by a few images." if quality.metric == ACCURACY else "latency."
    return text


def _front_view(
    data: ReportData,
    axis: str,
    scale: charts.Scale,
    y_scale: charts.Scale,
    points: Sequence[Mapping[str, Any]],
    front: Sequence[Network],
    named: Sequence[Baseline],
) -> dict[str, Any]:
    """Parts of one x axis alone: ticks, charts.staircase, limit, tails, baselines."""
    placed = _placed(points, axis)
    best = non_dominated(placed)  # in SVG units both axes grow towards the worse
    steps = list(dict.fromkeys(p for p, keep in zip(placed, best, strict=True) if keep))
    tails = []
    for m in front if axis == LATENCY else ():
        predicted, measured = value(m.predicted, axis), value(m.measured, axis)
        if predicted is not None and measured is not None:
            y = y_scale(value(m.predicted, data.quality) or 0.0)
            tails.append((scale(predicted), scale(measured), y))
    markers = [
        (scale(x), y_scale(value(b.predicted, data.quality) or 0.0), b.name, len(points) + i)
        for i, b in enumerate(named)
        if (x := b.figure(axis)) is not None
    ]
    labels = charts.place_labels([m[:3] for m in markers], placed, FRONT_BOX)
    return {
        **charts.axis_view(axis, scale, data.targets.get(axis)),
        "line": charts.staircase(steps, FRONT_BOX[2]),
        "tails": tails,
        "baselines": [
            {"x": x, "y": y, "name": name, "index": index, "label": label}
            for (x, y, name, index), label in zip(markers, labels, strict=True)
        ],
    }


def _placed(points: Sequence[Mapping[str, Any]], axis: str) -> list[tuple[float, float]]:
    """Places of the front's members that have a value on the axis."""
    front = (p for p in points if p["kind"] != "evaluated")
    return [(p["x"][axis], p["y"]) for p in front if p["x"][axis] is not None]
