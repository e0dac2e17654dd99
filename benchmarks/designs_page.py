"""A page that compares designs of several methods at one size, in the look of a search's report.

Per case (a reference and a budget) it shows every design as a picture, its counts, scores and
latencies beside the reference's, and an engineer's judgement of it. All of it comes as plain data;
the page loads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results.files import atomic_write
from results.report.charts import Scale, format_metric, path, thousands
from results.report.chosen import block_picture
from results.report.data import Chosen, ReportData
from results.report.page import render_page
from results.report.words import COLOURS, block_title, moment, summarise
from search_space import Architecture

LATENCY_BOX = (52.0, 14.0, 560.0, 300.0)  # left, top, right, bottom of a 760×336 picture
_LABEL_GAP = 15.0
_TIE = 0.01  # latencies that are closer than this share a place
_BLOCK, _GAP, _STAGE_GAP = 13.0, 2.0, 9.0  # of the strips, in pixels
_TALL = 64.0  # of a strip's tallest block
_CAP = 3.0  # pixels of an MLP ratio of 1
_LABEL_ROOM = 32.0  # for the number below a single block
_RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, kw_only=True)
class Design:
    """One design and what was found of it.

    Args:
        key: of the method, which decides the colour; ``reference`` for the first.
        title, how: the method and what it did, in words.
        architecture: in plain form.
        figures: ``digest``, ``resolution``, ``widths``, ``depths``, ``num_params``, ``macs``,
            ``activations``, ``combined``, ``deepmad``, ``effectiveness``,
            ``effectiveness_by_stage``, ``launches``, ``latency_ms`` by device.
        component_latency_ms: on the device of the budget, by path.
        judgement: what is sensible and what is odd in it.
        judged: digest of the design that the judgement was written about.
    """

    key: str
    title: str
    how: str
    architecture: Mapping[str, Any]
    figures: Mapping[str, Any]
    component_latency_ms: Mapping[str, float] = field(default_factory=dict)
    judgement: str = ""
    judged: str = ""


@dataclass(frozen=True, kw_only=True)
class Aside:
    """The best by ``score`` where something was ``changed``; ``figures`` as of a design."""

    score: str
    changed: str
    figures: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """The designs of all methods for one budget; the first is the reference.

    Args:
        key: of the section.
        title, lead: of the section.
        limits: upper limits by metric; ``latency_ms@DEVICE`` for a latency.
        asides, asides_note: what the same methods design otherwise, and what follows from it.
    """

    key: str
    title: str
    lead: str
    limits: Mapping[str, float]
    designs: Sequence[Design]
    asides: Sequence[Aside] = ()
    asides_note: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A sentence or two in a few words."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table whose cells are text already; the first of a row is its head."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class DesignsPage:
    """What the page shows.

    Args:
        title, question: of the page.
        findings: what came out, by an engineer on ``judged_on``.
        notes: what a reader must know to judge the page.
        cases: one section each.
        devices: in the order of the charts.
        budget_device: whose latency is a budget.
        yardsticks: tables to measure the designs by.
        summary: facts for the head of the page, in order.
        facts: about the run, in order.
        command: that made it; created: ISO 8601 time.
    """

    title: str
    question: str
    findings: Sequence[Finding]
    judged_on: str
    notes: Sequence[str]
    cases: Sequence[Case]
    devices: Sequence[str]
    budget_device: str
    yardsticks: Sequence[TextTable] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    created: str = ""


def write_designs_page(target: Path, data: DesignsPage) -> None:
    """Replace the file ``target`` by the page, atomically."""
    atomic_write(target, render_designs_page(data))


def render_designs_page(data: DesignsPage) -> str:
    """The page as self-contained HTML."""
    return render_page(
        "designs.html.j2",
        Path(__file__).parent,
        data=data,
        created=moment(data.created),
        cases=[_case(data, case) for case in data.cases],
        legend=_legend(data),
    )


def _legend(data: DesignsPage) -> list[tuple[str, int]]:
    """Mixers of all designs with their colours."""
    return [(block_title(name), colour) for name, colour in _colours(data).items()]


def _colours(data: DesignsPage) -> dict[str, int]:
    """Colours of the mixers of all designs, in the order in which they appear."""
    names = [
        block.label
        for case in data.cases
        for design in case.designs
        for stage in Architecture.from_dict(design.architecture).stages
        for block in stage.blocks
    ]
    return {name: number % COLOURS for number, name in enumerate(dict.fromkeys(names))}


def _case(data: DesignsPage, case: Case) -> dict[str, Any]:
    reference = case.designs[0]
    widest = max(max(design.figures["widths"]) for design in case.designs)
    designs = [_design(data, case, design, reference, widest) for design in case.designs]
    return {
        "case": case,
        "designs": designs,
        "latency_rows": _latency_rows(data, case),
        "chart": latency_chart(data, case),
        "asides": [_aside(data, aside) for aside in case.asides],
    }


def _design(
    data: DesignsPage, case: Case, design: Design, reference: Design, widest: int
) -> dict[str, Any]:
    figures = design.figures
    own, other = (d.figures["latency_ms"][data.budget_device] for d in (design, reference))
    picture = block_picture(
        ReportData(
            run=design.title,
            chosen=Chosen(
                digest=figures["digest"],
                architecture=design.architecture,
                predicted={},
                component_latency_ms=design.component_latency_ms,
            ),
        )
    )
    return {
        "design": design,
        "shape": shape_text(figures),
        "over": [
            f"{_METRICS.get(metric, metric)} {times(value / limit)} its limit"
            for metric, limit in case.limits.items()
            if (value := _value(figures, metric)) > limit * (1 + 1e-9)
        ],
        "ratio": times(own / other),
        "cells": _cells(figures),
        "above": [
            metric
            for metric, limit in case.limits.items()
            if _value(figures, metric) > limit * (1 + 1e-9)
        ],
        "stages": summarise(design.architecture),
        "peak": _peak_stage(figures),
        "strip": strip(Architecture.from_dict(design.architecture), widest, _colours(data)),
        "blocks": picture,
        "stale": bool(design.judged) and design.judged != figures["digest"],
    }


_METRICS = {"num_params": "parameters", "macs": "MACs"}


def _value(figures: Mapping[str, Any], metric: str) -> float:
    name, _, device = metric.partition("@")
    return float(figures[name][device] if device else figures[name])


def _cells(figures: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Sort value and text of the columns of counts and scores."""
    return [
        *(
            (figures[m], format_metric(m, figures[m]))
            for m in ("num_params", "macs", "activations")
        ),
        (figures["launches"], str(figures["launches"])),
        (figures["combined"], format_metric("score", figures["combined"])),
        (figures["deepmad"], thousands(round(figures["deepmad"]))),
        (figures["effectiveness"], f"{figures['effectiveness']:.2f}"),
    ]


def _peak_stage(figures: Mapping[str, Any]) -> int:
    """The stage, from 1, at whose end ρ is largest."""
    values = list(figures["effectiveness_by_stage"])
    return values.index(max(values)) + 1


def shape_text(figures: Mapping[str, Any]) -> str:
    """``224 px, 96-192-384-768 × 2-2-6-2``."""
    widths, depths = ("-".join(map(str, figures[key])) for key in ("widths", "depths"))
    return f"{figures['resolution']}\u00a0px, {widths} × {depths}"


def times(ratio: float) -> str:
    """``×1.52``."""
    return f"×{ratio:.2f}"


def _aside(data: DesignsPage, aside: Aside) -> dict[str, Any]:
    return {
        "score": aside.score,
        "changed": aside.changed,
        "shape": shape_text(aside.figures),
        "cells": [
            *_cells(aside.figures),
            (
                aside.figures["latency_ms"][data.budget_device],
                format_metric("latency_ms", aside.figures["latency_ms"][data.budget_device]),
            ),
        ],
    }


# Latencies ----------------------------------------------------------------------------------------


def ranks(case: Case, device: str) -> list[int]:
    """Place of each design by latency on a device, from 1: one more than are faster by 1 %."""
    values = [design.figures["latency_ms"][device] for design in case.designs]
    return [1 + sum(other < value * (1 - _TIE) for other in values) for value in values]


def _latency_rows(data: DesignsPage, case: Case) -> list[dict[str, Any]]:
    reference = case.designs[0].figures["latency_ms"]
    places = {device: ranks(case, device) for device in data.devices}
    return [
        {
            "design": design,
            "cells": [
                {
                    "value": design.figures["latency_ms"][device],
                    "text": format_metric("latency_ms", design.figures["latency_ms"][device]),
                    "ratio": times(design.figures["latency_ms"][device] / reference[device]),
                    "place": places[device][i],
                }
                for device in data.devices
            ],
        }
        for i, design in enumerate(case.designs)
    ]


def latency_chart(data: DesignsPage, case: Case) -> dict[str, Any]:
    """Latency over the reference's, a line a design, across the devices."""
    left, top, right, bottom = LATENCY_BOX
    reference = case.designs[0].figures["latency_ms"]
    ratios = [
        [design.figures["latency_ms"][d] / reference[d] for d in data.devices]
        for design in case.designs
    ]
    every = [ratio for row in ratios for ratio in row]
    y = Scale(min(every) / 1.08, max(every) * 1.08, bottom, top, log=True)
    step = (right - left) / max(len(data.devices) - 1, 1)
    x = [left + i * step for i in range(len(data.devices))]
    lines: list[dict[str, Any]] = [
        {
            "key": design.key,
            "title": design.title,
            "path": path(list(zip(x, map(y, row), strict=True))),
            "end": (x[-1], y(row[-1])),
            "points": [
                {"x": at, "y": y(value), "text": f"{design.title}, {device}: {times(value)}"}
                for at, value, device in zip(x, row, data.devices, strict=True)
            ],
        }
        for design, row in zip(case.designs, ratios, strict=True)
    ]
    ordered = sorted(lines, key=lambda line: float(line["end"][1]))
    wanted = [float(line["end"][1]) for line in ordered]
    for line, at in zip(ordered, spread(wanted, top, bottom), strict=True):
        line["label_y"] = at + 4
    return {
        "box": LATENCY_BOX,
        "lines": lines,
        "x_ticks": [{"at": at, "label": d} for at, d in zip(x, data.devices, strict=True)],
        "y_ticks": [
            {"at": y(ratio), "label": f"×{ratio:g}"}
            for ratio in _RATIOS
            if y.low <= ratio <= y.high
        ],
    }


def spread(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Ascending positions near ``wanted``, also ascending, a label's height apart."""
    placed: list[float] = []
    for at in wanted:
        placed.append(max(at, placed[-1] + _LABEL_GAP if placed else low))
    ceiling = high
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - _LABEL_GAP
    return placed


# Pictures -----------------------------------------------------------------------------------------


def strip(architecture: Architecture, widest: int, colours: Mapping[str, int]) -> dict[str, Any]:
    """A network in one line: a box a block, its height by the root of the width, a cap by MLP."""
    boxes: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    x, floor = 1.0, _TALL + 4 * _CAP + 4
    for stage in architecture.stages:
        begin, tall = x, round(_TALL * math.sqrt(stage.width / widest), 1)
        for block in stage.blocks:
            settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in block.traits.items())
            cap = round(_CAP * float(block["mlp_ratio"]), 1)
            boxes.append(
                {
                    "x": round(x, 1),
                    "y": round(floor - tall, 1),
                    "width": _BLOCK,
                    "height": tall,
                    "cap_y": round(floor - tall - cap - 1, 1),
                    "cap": cap,
                    "colour": colours[block.label],
                    "text": f"{block_title(block.label)} ({settings}), {stage.width} channels",
                }
            )
            x += _BLOCK + _GAP
        labels.append({"x": round((begin + x - _GAP) / 2, 1), "text": str(stage.width)})
        x += max(_STAGE_GAP, _LABEL_ROOM - (x - begin))
    return {
        "boxes": boxes,
        "labels": labels,
        "floor": round(floor, 1),
        "width": round(x),
        "height": round(floor + 18),
    }
