"""The report of a family of scaled networks: one HTML file in the look of a search's report.

It shows the members, the path that led to them, and what changed on the way. Everything is
drawn here as SVG from plain data; the page loads nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from results.report import charts
from results.report.front import FRONT_BOX
from results.report.page import render_page
from results.report.words import moment, summarise
from search_space.metrics import LATENCY, MACS, metric_named, title_of

SCORE_TITLES = {
    "ntk_condition": "NTK condition number κ",
    "length_distortion": "expected length distortion",
    "deepmad": "entropy (DeepMAD)",
}
Data = Mapping[str, Any]


def render_family_report(data: Data) -> str:
    """The report as one self-contained HTML page.

    Args:
        data: A family in plain form, with ``members`` (also with their ``file`` and their
            ``measured_ms`` by device), and beside it ``name``, ``created`` (ISO 8601),
            ``command``, and facts in order: ``summary``, ``settings``, ``latencies`` by device.
    """
    return render_page(
        "family.html.j2",
        data=data,
        created=moment(data["created"]),
        tiles=_tiles(data),
        columns=_columns(data),
        rows=_rows(data),
        chart=path_chart(data),
        curves=growth_curves(data),
        stages=[(m["name"], m["file"], summarise(m["architecture"])) for m in data["members"]],
    )


def _metrics(data: Data) -> list[str]:
    return list(data["path"][0]["costs"])


def _tiles(data: Data) -> list[dict[str, str]]:
    by, members = data["by"], data["members"]
    low, high = (charts.format_metric(by, members[i]["costs"][by]) for i in (0, -1))
    seed = charts.format_metric(by, data["path"][0]["costs"][by])
    steps = f"on {len(data['path']) - 1} steps from the seed"
    tiles = [
        {"name": "Members", "value": str(len(members)), "note": steps},
        {
            "name": charts.capitalised(title_of(by)),
            "value": f"{low} to {high}",
            "note": f"the seed has {seed}",
        },
    ]
    for metric, limit in data["limits"].items():
        largest = max(member["costs"][metric] for member in members)
        title = f"{charts.capitalised(title_of(metric))}, at most"
        tiles.append(
            charts.tile(title, metric, largest, f"limit {charts.format_metric(metric, limit)}")
        )
    return tiles


def _measured_devices(data: Data) -> list[str]:
    return list(dict.fromkeys(d for m in data["members"] for d in m.get("measured_ms", {})))


def _columns(data: Data) -> list[str]:
    predicted = [f"{title_of(m)}, predicted" if "@" in m else title_of(m) for m in _metrics(data)]
    measured = [f"latency on {device}, measured" for device in _measured_devices(data)]
    return ["member", "of its budget", *predicted, *measured, "pixels", "widths", "depths"]


def _rows(data: Data) -> list[dict[str, Any]]:
    """Rows of the table of members; cells are (sort value, text)."""
    rows = []
    for member in data["members"]:
        costs, architecture = member["costs"], member["architecture"]
        share = costs[data["by"]] / member["budget"]
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
                    *((costs[m], charts.format_metric(m, costs[m])) for m in _metrics(data)),
                    *(
                        (measured.get(d), charts.format_metric(LATENCY, measured.get(d)))
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


def path_chart(data: Data) -> dict[str, Any]:
    """The budgets' metric along the path, against the step or another metric; members marked."""
    left, top, right, bottom = FRONT_BOX
    by, steps = data["by"], data["path"]
    values = [step["costs"][by] for step in steps]
    budgets = [member["budget"] for member in data["members"]]
    y_scale = charts.fit_scale([*values, *budgets], bottom, top, floor=0.0, pad=0.04)
    members: dict[int, list[str]] = {}
    for member in data["members"]:
        members.setdefault(member["index"], []).append(member["name"])
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
    for axis in (charts.STEP, *(metric for metric in _metrics(data) if metric != by)):
        limit = data["limits"].get(axis)
        if axis == charts.STEP:
            xs = [float(i) for i in range(len(steps))]
            scale = charts.Scale(0.0, max(xs[-1], 1.0), left, right)
        else:
            xs = [step["costs"][axis] for step in steps]
            scale = charts.fit_scale(
                [*xs, *([] if limit is None else [limit])], left, right, floor=0.0
            )
        for point, x in zip(points, xs, strict=True):
            point["x"][axis] = scale(x)
        at = [(point["x"][axis], point["y"]) for point in points]
        named = [(*at[i], ", ".join(names)) for i, names in members.items()]
        labels = charts.place_labels(named, at, FRONT_BOX)
        views.append(
            {**charts.axis_view(axis, scale, limit), "line": charts.path(at), "labels": labels}
        )
    logarithmic = ", logarithmic" if y_scale.log else ""
    return {
        "box": FRONT_BOX,
        "axes": [view["metric"] for view in views],
        "views": views,
        "points": points,
        "title": metric_named(by).axis_title + logarithmic,
        "y_ticks": y_scale.ticks(by, 6),
        "budgets": [{"y": y_scale(b), "text": charts.format_metric(by, b)} for b in budgets],
    }


def _detail(data: Data, index: int, names: Sequence[str]) -> dict[str, Any]:
    """Text of a step's tooltip."""
    step = data["path"][index]
    role = "seed" if index == 0 else f"step {index}: {step['change']}"
    if names:
        role = f"member {', '.join(names)}; {role}"
    rows = [(title_of(m), charts.format_metric(m, v)) for m, v in step["costs"].items()]
    rows += [(SCORE_TITLES.get(n, n), f"{v:.4g}") for n, v in step["scores"].items()]
    stages = summarise(step["architecture"])
    return {"title": step["digest"], "role": role, "rows": rows, "stages": stages}


def growth_curves(data: Data) -> list[dict[str, Any]]:
    """Widths, depths, resolution and scores along the path; what never changes is left out."""
    shapes = [step["architecture"] for step in data["path"]]
    stages = range(len(shapes[0]["stages"]))
    changes: dict[str, dict[str, list[float]]] = {
        "Width": {f"stage {i + 1}": [s["stages"][i]["width"] for s in shapes] for i in stages},
        "Blocks": {
            f"stage {i + 1}": [len(s["stages"][i]["blocks"]) for s in shapes] for i in stages
        },
        "Resolution (px)": {"": [s["resolution"] for s in shapes]},
    }
    for name in dict.fromkeys(itertools.chain(*(step["scores"] for step in data["path"]))):
        values = [step["scores"].get(name, math.nan) for step in data["path"]]
        changes[charts.capitalised(SCORE_TITLES.get(name, name))] = {"": values}
    curves = []
    for title, lines in changes.items():
        known = {name: {v for v in line if math.isfinite(v)} for name, line in lines.items()}
        if max(map(len, known.values())) < 2:
            continue
        every = set[float]().union(*known.values())
        metric = MACS if max(map(abs, every)) >= 1e4 else "value"
        points = {name: list(enumerate(line)) for name, line in lines.items()}
        floor = 0.0 if min(every) >= 0 else None
        if (
            curve := charts.line_chart(title, charts.STEP, points, metric, floor=floor)
        ) is not None:
            curve["marks"] = sorted({curve["scale"](m["index"]) for m in data["members"]})
            curves.append(curve)
    return curves
