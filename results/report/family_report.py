"""The report of a family of scaled networks: one HTML file in the look of a search's report.

It shows the members, the path that led to them, and what changed on the way. Everything is
drawn here as SVG from plain data; the page loads nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results.files import atomic_write
from results.report.charts import Scale, capitalised, fit_scale, format_metric, path, place_labels
from results.report.page import render_page
from results.report.words import moment, summarise
from search_space.metrics import LATENCY, MACS, metric_named, title_of

PATH_BOX = (64.0, 20.0, 744.0, 400.0)  # left, top, right, bottom of a 760×452 picture
CURVE_BOX = (56.0, 16.0, 428.0, 214.0)  # of a 520×262 picture
STEP = "step"
SCORE_TITLES = {
    "ntk_condition": "NTK condition number κ",
    "length_distortion": "expected length distortion",
    "deepmad": "entropy (DeepMAD)",
}
_LABEL_GAP = 15.0


@dataclass(frozen=True, kw_only=True)
class FamilyReport:
    """Data of a family's page.

    Args:
        name: of the family.
        method, rule: how it was made, the rule in a sentence.
        by: metric of the budgets: ``num_params``, ``macs``, ``activations`` or
            ``latency_ms@DEVICE``.
        limits: upper limits of further metrics.
        members: each with ``name``, ``budget``, ``index`` in the path, ``digest``, ``costs`` by
            metric, ``architecture`` in plain form, and ``file``; ``measured_ms`` by device where
            it was measured.
        path: steps from the seed on, each with ``digest``, ``change``, ``costs``, ``scores`` and
            ``architecture``.
        latencies: of each device, facts in words: where its figures come from, their error.
        summary: facts for the head of the page, in order.
        created: ISO 8601 time.
        notes: what a reader must know.
        command: that made it.
        settings: facts about the run, in order.
    """

    name: str
    method: str
    rule: str
    by: str
    limits: Mapping[str, float]
    members: Sequence[Mapping[str, Any]]
    path: Sequence[Mapping[str, Any]]
    latencies: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    notes: Sequence[str] = ()
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_family_report(target: Path, data: FamilyReport) -> None:
    """Replace the file ``target`` by the report, atomically."""
    atomic_write(target, render_family_report(data))


def render_family_report(data: FamilyReport) -> str:
    """The report as one self-contained HTML page."""
    return render_page(
        "family.html.j2",
        data=data,
        created=moment(data.created),
        tiles=_tiles(data),
        columns=_columns(data),
        rows=_rows(data),
        chart=path_chart(data),
        curves=growth_curves(data),
        stages=[(m["name"], m["file"], summarise(m["architecture"])) for m in data.members],
    )


def _metrics(data: FamilyReport) -> list[str]:
    return list(data.path[0]["costs"])


def _tiles(data: FamilyReport) -> list[dict[str, str]]:
    first, last = data.members[0], data.members[-1]
    seed = data.path[0]["costs"]
    tiles = [
        {
            "name": "Members",
            "value": str(len(data.members)),
            "note": f"on {len(data.path) - 1} steps from the seed",
        },
        {
            "name": capitalised(title_of(data.by)),
            "value": f"{format_metric(data.by, first['costs'][data.by])} to "
            f"{format_metric(data.by, last['costs'][data.by])}",
            "note": f"the seed has {format_metric(data.by, seed[data.by])}",
        },
    ]
    for metric, limit in data.limits.items():
        largest = max(member["costs"][metric] for member in data.members)
        tiles.append(
            {
                "name": f"{capitalised(title_of(metric))}, at most",
                "value": format_metric(metric, largest),
                "note": f"limit {format_metric(metric, limit)}",
            }
        )
    return tiles


def _measured_devices(data: FamilyReport) -> list[str]:
    return list(dict.fromkeys(d for m in data.members for d in m.get("measured_ms", {})))


def _columns(data: FamilyReport) -> list[str]:
    predicted = [f"{title_of(m)}, predicted" if "@" in m else title_of(m) for m in _metrics(data)]
    measured = [f"latency on {device}, measured" for device in _measured_devices(data)]
    return ["member", "of its budget", *predicted, *measured, "pixels", "widths", "depths"]


def _rows(data: FamilyReport) -> list[dict[str, Any]]:
    """Rows of the table of members; cells are (sort value, text)."""
    rows = []
    for member in data.members:
        costs, architecture = member["costs"], member["architecture"]
        share = costs[data.by] / member["budget"]
        widths = [stage["width"] for stage in architecture["stages"]]
        depths = [len(stage["blocks"]) for stage in architecture["stages"]]
        measured = member.get("measured_ms", {})
        rows.append(
            {
                "name": member["name"],
                "digest": member["digest"],
                "order": f"{member['budget']:030.6f}",  # the first column is sorted as text
                "cells": [
                    (share, f"{100 * share:.1f}\u00a0%"),
                    *((costs[m], format_metric(m, costs[m])) for m in _metrics(data)),
                    *(
                        (measured.get(d), format_metric(LATENCY, measured.get(d)))
                        for d in _measured_devices(data)
                    ),
                    (architecture["resolution"], str(architecture["resolution"])),
                    (widths[-1], "-".join(map(str, widths))),
                    (sum(depths), "-".join(map(str, depths))),
                ],
            }
        )
    return rows


# The path ----------------------------------------------------------------------------------------


def path_chart(data: FamilyReport) -> dict[str, Any]:
    """The budgets' metric along the path, against the step or another metric; members marked."""
    left, top, right, bottom = PATH_BOX
    values = [step["costs"][data.by] for step in data.path]
    budgets = [member["budget"] for member in data.members]
    y_scale = fit_scale([*values, *budgets], bottom, top, floor=0.0, pad=0.04)
    axes = [STEP, *(metric for metric in _metrics(data) if metric != data.by)]
    members: dict[int, list[str]] = {}
    for member in data.members:
        members.setdefault(member["index"], []).append(member["name"])

    def x_value(axis: str, index: int) -> float:
        return float(index) if axis == STEP else data.path[index]["costs"][axis]

    points: list[dict[str, Any]] = [
        {
            "y": y_scale(value),
            "x": {},
            "member": ", ".join(members.get(i, ())),
            "detail": _detail(data, i, members.get(i, [])),
        }
        for i, value in enumerate(values)
    ]
    views = []
    for axis in axes:
        xs = [x_value(axis, i) for i in range(len(data.path))]
        limit = data.limits.get(axis)
        scale = _step_scale(len(xs), left, right)
        if axis != STEP:
            within = [*xs, limit] if limit is not None else xs
            scale = fit_scale(within, left, right, floor=0.0)
        for point, x in zip(points, xs, strict=True):
            point["x"][axis] = scale(x)
        at = [(point["x"][axis], point["y"]) for point in points]
        named = [(*at[i], ", ".join(names)) for i, names in members.items()]
        views.append(
            {
                "metric": axis,
                "button": capitalised(axis if axis == STEP else title_of(axis)),
                "title": _axis_title(axis, scale),
                "ticks": _ticks(scale, axis),
                "line": path(at),
                "labels": place_labels(named, at, PATH_BOX),
                "limit": None
                if limit is None
                else {"x": scale(limit), "text": f"limit {format_metric(axis, limit)}"},
            }
        )
    return {
        "box": PATH_BOX,
        "axes": axes,
        "views": views,
        "points": points,
        "title": _axis_title(data.by, y_scale),
        "y_ticks": y_scale.ticks(data.by, 6),
        "budgets": [{"y": y_scale(b), "text": format_metric(data.by, b)} for b in budgets],
    }


def _axis_title(axis: str, scale: Scale) -> str:
    title = axis if axis == STEP else metric_named(axis).axis_title
    return f"{title}{', logarithmic' if scale.log else ''}"


def _step_scale(steps: int, left: float, right: float) -> Scale:
    return Scale(0.0, float(max(steps - 1, 1)), left, right)


def _ticks(scale: Scale, axis: str) -> list[Any]:
    ticks = scale.ticks(axis, 7)
    return [tick for tick in ticks if "." not in tick.label] if axis == STEP else ticks


def _detail(data: FamilyReport, index: int, names: Sequence[str]) -> dict[str, Any]:
    """Text of a step's tooltip."""
    step = data.path[index]
    role = "seed" if index == 0 else f"step {index}: {step['change']}"
    if names:
        role = f"member {', '.join(names)}; {role}"
    rows = [(title_of(m), format_metric(m, v)) for m, v in step["costs"].items()]
    rows += [(SCORE_TITLES.get(n, n), f"{v:.4g}") for n, v in step["scores"].items()]
    return {
        "title": step["digest"],
        "role": role,
        "rows": rows,
        "stages": summarise(step["architecture"]),
    }


# What changed on the way -------------------------------------------------------------------------


def growth_curves(data: FamilyReport) -> list[dict[str, Any]]:
    """Widths, depths, resolution and scores along the path; what never changes is left out."""
    shapes = [step["architecture"] for step in data.path]
    stages = range(len(shapes[0]["stages"]))
    widths = {f"stage {i + 1}": [float(s["stages"][i]["width"]) for s in shapes] for i in stages}
    depths = {
        f"stage {i + 1}": [float(len(s["stages"][i]["blocks"])) for s in shapes] for i in stages
    }
    changes = [("Width", widths), ("Blocks", depths)]
    changes.append(("Resolution (px)", {"": [float(s["resolution"]) for s in shapes]}))
    names = dict.fromkeys(itertools.chain(*(step["scores"] for step in data.path)))
    for name in names:
        values = [step["scores"].get(name, math.nan) for step in data.path]
        changes.append((capitalised(SCORE_TITLES.get(name, name)), {"": values}))
    return [
        _curve(data, title, lines)
        for title, lines in changes
        if any(len({v for v in values if math.isfinite(v)}) > 1 for values in lines.values())
    ]


def _curve(data: FamilyReport, title: str, lines: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    left, top, right, bottom = CURVE_BOX
    x = _step_scale(len(data.path), left, right)
    every = [v for v in itertools.chain(*lines.values()) if math.isfinite(v)]
    y = fit_scale(every, bottom, top, floor=0.0 if min(every) >= 0 else None)
    unit = MACS if max(map(abs, every)) >= 1e4 else "value"
    whole = all(v.is_integer() for v in every)
    drawn: list[dict[str, Any]] = []
    for number, (name, values) in enumerate(lines.items()):
        at = [(x(i), y(v)) for i, v in enumerate(values) if math.isfinite(v)]
        drawn.append({"name": name, "colour": number, "path": path(at), "end": at[-1]})
    label_y = -math.inf
    for line in sorted(drawn, key=lambda line: float(line["end"][1])):
        label_y = max(label_y + _LABEL_GAP, line["end"][1])
        line["label_y"] = label_y + 4
    return {
        "title": title,
        "box": CURVE_BOX,
        "x_ticks": _ticks(x, STEP),
        "y_ticks": [t for t in y.ticks(unit, 5) if not (whole and "." in t.label)],
        "lines": drawn,
        "members": sorted({x(member["index"]) for member in data.members}),
    }
