"""The chosen network: its figures, whether it meets its limits, and its blocks."""

from __future__ import annotations

import math
from typing import Any

from results.report.charts import capitalised, format_metric, signed, tile
from results.report.data import Baseline, ReportData, value
from results.report.words import (
    block_colours,
    block_title,
    objective_of,
    quality_of,
    spread,
    summarise,
)
from search_space.architecture import Architecture
from search_space.components import components
from search_space.metrics import ACCURACY, LATENCY, MACS, PARAMS, metric_named, title_of
from search_space.metrics import format_metric as plainly

SHOWN_DESIGNS = 3  # that beat the front, by name


def beaten_by(data: ReportData) -> list[Baseline]:
    """Known designs within all limits that are better than every network of the front, best first.

    What is better is decided by what the search was for.
    """
    judged = objective_of(data)
    if not all(judged in member.predicted for member in data.front):
        judged = data.quality
    sign = 1.0 if metric_named(judged).better == "smaller" else -1.0
    limits = [(name, 1, limit) for name, limit in data.targets.items()]
    limits += [(name, -1, limit) for name, limit in data.minima.items()]

    def within(baseline: Baseline, name: str, side: int, limit: float) -> bool:
        known = baseline.figure(name)
        return known is not None and side * (known - limit) <= 0

    reached = [sign * (value(m.predicted, judged) or 0.0) for m in data.front]
    better = [
        (sign * quality, baseline)
        for baseline in data.baselines
        if (quality := value(baseline.predicted, judged)) is not None
        and sign * quality < min(reached, default=-math.inf)
        and all(within(baseline, *limit) for limit in limits)
    ]
    return [baseline for _, baseline in sorted(better, key=lambda item: item[0])]


def beaten_note(data: ReportData) -> str | None:
    """A note on known designs that beat the front; None where there are none."""
    designs = beaten_by(data)
    if not designs:
        return None
    judged = objective_of(data) if objective_of(data) in designs[0].predicted else data.quality
    costs = [name for name in (*data.targets, *data.minima) if name in designs[0].predicted]

    def described(baseline: Baseline) -> str:
        figures = [plainly(name, baseline.figure(name)) for name in (judged, *costs[:1])]
        return f"{baseline.name} ({', '.join(figures)})"

    shown = ", ".join(map(described, designs[:SHOWN_DESIGNS]))
    if (more := len(designs) - SHOWN_DESIGNS) > 0:
        shown += f" and {more} more"
    which = "A known design within the limits has"
    if len(designs) > 1:
        which = f"{len(designs)} known designs within the limits have"
    fix = "The space that was searched lacks their like: search a larger one (`--space`)."
    if data.config.get("data"):
        fix = "Search longer (`--evaluations`), or take one of them."
    return f"{which} a better {title_of(judged)} than every network of the front: {shown}. {fix}"


def headline(data: ReportData) -> dict[str, Any] | None:
    """The chosen network in figures, and whether it meets its limits."""
    chosen, quality = data.chosen, quality_of(data)
    if chosen is None:
        return None
    verdicts = []
    for name, limit in data.targets.items():
        got, how = value(chosen.measured, name), "measured"
        if got is None:
            got, how = value(chosen.predicted, name), "predicted"
        if got is None:
            continue
        counted = f" ({how})" if name.partition("@")[0] == LATENCY else ""
        side = "below" if got <= limit else "above"
        text = (
            f"{capitalised(title_of(name))} {format_metric(name, got)}{counted}, "
            f"{100 * abs(got / limit - 1):.1f}\u00a0% {side} the limit of "
            f"{format_metric(name, limit)}"
        )
        verdicts.append({"met": got <= limit, "text": text})
    measured, predicted = value(chosen.measured, LATENCY), value(chosen.predicted, LATENCY)
    if measured is None:
        tiles = [tile("Latency, predicted", LATENCY, predicted, "not re-measured on the device")]
    else:
        notes = [spread(chosen.measured)]
        if predicted is not None:
            notes.append(f"predicted {format_metric(LATENCY, predicted)}")
        tiles = [tile("Latency, measured", LATENCY, measured, "; ".join(filter(None, notes)))]
    if (test := chosen.test_accuracy) is not None:
        title, note = "Test accuracy", ""
        if (before := chosen.test_accuracy_before) is not None:
            title += ", fine-tuned"
            note = f"{format_metric(ACCURACY, before)} with inherited weights, "
            note += f"{signed(100 * (test - before), 2)} points"
        tiles.append(tile(title, ACCURACY, test, note))
    reached = value(chosen.predicted, quality.metric)
    if reached is not None and (quality.metric != ACCURACY or test is None):
        title = capitalised(quality.full_name)
        tiles.append(tile(title, quality.metric, reached, quality.weights))
    for name, title, note in (
        (PARAMS, "Parameters", ""),
        (MACS, "MACs", "multiply-adds an image"),
    ):
        if (cost := value(chosen.predicted, name)) is not None:
            tiles.append(tile(title, name, cost, note))
    return {"tiles": tiles, "verdicts": verdicts, "stages": summarise(chosen.architecture)}


def block_picture(data: ReportData) -> dict[str, Any] | None:
    """The chosen network stage by stage; a box's extra height is its share of the latency."""
    if data.chosen is None:
        return None
    arch = Architecture.from_dict(data.chosen.architecture)
    latency = data.chosen.component_latency_ms
    total, largest = sum(latency.values()), max(latency.values(), default=0.0)
    measured = total > 0

    def box(at: str, kind: str, title: str, lines: list[str], colour: int | None) -> dict[str, Any]:
        taken = latency.get(at)
        shown = {"share": "", "latency": "", "extra": 0}
        if taken is not None and measured:
            shown = {
                "share": f"{100 * taken / total:.1f}\u00a0%",
                "latency": format_metric(LATENCY, taken),
                "extra": round(72 * taken / largest),
            }
        return {"path": at, "kind": kind, "title": title, "lines": lines, "colour": colour} | shown

    chain = {item.path: item.spec.as_dict() for item in components(arch)}
    sizes = arch.sizes
    names = [block.label for stage in arch.stages for block in stage.blocks if not block.skipped]
    colours = block_colours(names)
    stages = []
    for i, (stage, size) in enumerate(zip(arch.stages, sizes, strict=True)):
        boxes = []
        if i == 0:
            stem = chain["stem"]
            lines = [f"conv {stem['kernel']}×{stem['kernel']}", f"stride {stem['stride']}"]
            boxes.append(box("stem", "edge", "Stem", lines, None))
        if (spec := chain.get(at := f"stages.{i}.downsample")) is not None:
            lines = [spec["style"].replace("_", " "), f"{spec['dim']} → {spec['out_dim']}"]
            title = "Down 2×" if spec["stride"] > 1 else "Project"
            boxes.append(box(at, "edge", title, lines, None))
        for j, block in enumerate(stage.blocks):
            if block.skipped:
                continue
            lines = [_line(key, value) for key, value in block.traits.items() if _shown(value)]
            title = block_title(block.label)
            boxes.append(box(f"stages.{i}.blocks.{j}", "block", title, lines, colours[block.label]))
        if i == len(arch.stages) - 1:
            width = chain["head"].get("width")
            lines = ["pool", "linear"] if width is None else [f"conv {width}", "pool", "linear"]
            boxes.append(box("head", "edge", "Head", lines, None))
        taken = sum(latency.get(b["path"], 0.0) for b in boxes)
        stages.append(
            {
                "number": i + 1,
                "width": stage.width,
                "size": size,
                "depth": sum(not block.skipped for block in stage.blocks),
                "boxes": boxes,
                "share": f"{100 * taken / total:.0f}\u00a0%" if measured else "",
                # A drawing of the tensor: side by the map's size, thickness by the width.
                "side": round(14 + 22 * math.sqrt(size / sizes[0]), 1),
                "depth_px": round(4 + 22 * stage.width / max(arch.widths), 1),
            }
        )
    legend = [(block_title(name), colours[name], names.count(name)) for name in colours]
    return {
        "resolution": arch.resolution,
        "stages": stages,
        "legend": legend,
        "blocks": len(names),
        "has_latency": measured,
    }


def _shown(value: object) -> bool:
    """Whether a parameter says something here: not where it is off, nor as the name of a style."""
    return bool(value) and not isinstance(value, str)


def _line(key: str, value: object) -> str:
    """A parameter of a block in words."""
    if key == "mlp_ratio":
        return f"MLP ×{value:g}"
    factor = f"×{value:g}" if isinstance(value, float) else value
    return key.replace("_", " ") + ("" if value is True else f" {factor}")
