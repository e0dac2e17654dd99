"""The chosen network: its figures, whether it meets its limits, and its blocks."""

from __future__ import annotations

import math
from typing import Any

from results.report.charts import capitalised, format_metric, signed
from results.report.data import Baseline, Metrics, ReportData
from results.report.words import mixer_style, quality_of, spread, summarise, value
from search_space.architecture import Architecture
from search_space.macro import BLOCK_TRANSITION
from search_space.metrics import ACCURACY, LATENCY, MACS, PARAMS, metric_named, title_of
from search_space.metrics import format_metric as plainly

SHOWN_DESIGNS = 3  # that beat the front, by name


def beaten_by(data: ReportData) -> list[Baseline]:
    """Known designs within all limits that are better than every network of the front, best first.

    What is better is decided by what the search was for.
    """
    front = data.front
    objective = data.config.get("search", {}).get("objective", data.quality)
    judged = objective if all(objective in m.predicted for m in front) else data.quality
    sign = 1.0 if metric_named(judged).better == "smaller" else -1.0

    limits = [(name, 1, limit) for name, limit in data.targets.items()]
    limits += [(name, -1, limit) for name, limit in data.minima.items()]

    def within(baseline: Baseline, name: str, side: int, limit: float) -> bool:
        known = value(baseline.measured, name) or value(baseline.metrics, name)
        return known is not None and side * (known - limit) <= 0

    reached = [sign * (value(m.predicted, judged) or 0.0) for m in front]
    better = [
        (sign * quality, baseline)
        for baseline in data.baselines
        if (quality := value(baseline.metrics, judged)) is not None
        and sign * quality < min(reached, default=math.inf)
        and all(within(baseline, *limit) for limit in limits)
    ]
    return [baseline for _, baseline in sorted(better, key=lambda item: item[0])] if front else []


def beaten_note(data: ReportData) -> str | None:
    """A note on known designs that beat the front; None where there are none."""
    designs = beaten_by(data)
    if not designs:
        return None
    objective = data.config.get("search", {}).get("objective", data.quality)
    judged = objective if objective in designs[0].metrics else data.quality
    costs = [name for name in (*data.targets, *data.minima) if name in designs[0].metrics]

    def described(baseline: Baseline) -> str:
        figures = [
            plainly(name, value(baseline.measured, name) or value(baseline.metrics, name))
            for name in (judged, *costs[:1])
        ]
        return f"{baseline.name} ({', '.join(figures)})"

    shown = ", ".join(map(described, designs[:SHOWN_DESIGNS]))
    more = len(designs) - SHOWN_DESIGNS
    one = len(designs) == 1
    fix = (
        "Search longer (`--evaluations`), or take one of them."
        if data.config.get("data")
        else "The space that was searched lacks their like: search a larger one (`--space`)."
    )
    return (
        f"{'A known design' if one else f'{len(designs)} known designs'} within the limits "
        f"{'has' if one else 'have'} a better {title_of(judged)} than every network of the front: "
        f"{shown}{f' and {more} more' if more > 0 else ''}. {fix}"
    )


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
        counted = how if name.partition("@")[0] == LATENCY else ""
        margin = abs(got / limit - 1)
        side = "below" if got <= limit else "above"
        text = (
            f"{capitalised(title_of(name))} {format_metric(name, got)}"
            f"{f' ({counted})' if counted else ''}, {100 * margin:.1f}\u00a0% {side} the limit of "
            f"{format_metric(name, limit)}"
        )
        verdicts.append({"met": got <= limit, "text": text})
    latency = value(chosen.measured, LATENCY)
    tiles = [
        {
            "name": "Latency" + (", measured" if latency is not None else ", predicted"),
            "value": format_metric(LATENCY, latency or value(chosen.predicted, LATENCY)),
            "note": _latency_note(chosen.measured, chosen.predicted),
        }
    ]
    if chosen.test_accuracy is not None:
        before = chosen.test_accuracy_before
        gain = f", {signed(100 * (chosen.test_accuracy - before), 2)} points" if before else ""
        tiles.append(
            {
                "name": "Test accuracy, fine-tuned" if before is not None else "Test accuracy",
                "value": format_metric(ACCURACY, chosen.test_accuracy),
                "note": f"{format_metric(ACCURACY, before)} with inherited weights{gain}"
                if before is not None
                else "",
            }
        )
    elif chosen.test_accuracy_before is not None:
        tiles.append(
            {
                "name": "Test accuracy, inherited weights",
                "value": format_metric(ACCURACY, chosen.test_accuracy_before),
                "note": "not fine-tuned",
            }
        )
    if quality.metric != ACCURACY or (
        chosen.test_accuracy is None and chosen.test_accuracy_before is None
    ):
        reached = value(chosen.predicted, quality.metric)
        if reached is not None:
            tiles.append(
                {
                    "name": capitalised(quality.full_name),
                    "value": format_metric(quality.metric, reached),
                    "note": quality.tile_note,
                }
            )
    for name, title in ((PARAMS, "Parameters"), (MACS, "MACs")):
        if value(chosen.predicted, name) is not None:
            note = "multiply-adds an image" if name == MACS else ""
            tiles.append(
                {"name": title, "value": format_metric(name, chosen.predicted[name]), "note": note}
            )
    return {"tiles": tiles, "verdicts": verdicts, "stages": summarise(chosen.architecture)}


def _latency_note(measured: Metrics, predicted: Metrics) -> str:
    parts = [text] if (text := spread(measured)) else []
    if value(measured, LATENCY) is None:
        parts.append("not re-measured on the device")
    elif value(predicted, LATENCY) is not None:
        parts.append(f"predicted {format_metric(LATENCY, predicted[LATENCY])}")
    return "; ".join(parts)


def block_picture(data: ReportData) -> dict[str, Any] | None:
    """The chosen network stage by stage; a box's extra height is its share of the latency."""
    if data.chosen is None:
        return None
    arch = Architecture.from_dict(data.chosen.architecture)
    latency = data.chosen.component_latency_ms
    total = sum(latency.values())
    largest = max(latency.values(), default=0.0)

    def box(at: str, kind: str, title: str, lines: list[str], colour: int | None) -> dict[str, Any]:
        taken = latency.get(at)
        return {
            "path": at,
            "kind": kind,
            "title": title,
            "lines": lines,
            "colour": colour,
            "share": f"{100 * taken / total:.1f}\u00a0%" if taken is not None and total > 0 else "",
            "latency": format_metric(LATENCY, taken) if taken is not None else "",
            "extra": round(72 * taken / largest) if taken is not None and largest > 0 else 0,
        }

    macro = arch.macro
    sizes = arch.sizes
    stages = []
    for i, (stage, size) in enumerate(zip(arch.stages, sizes, strict=True)):
        if i == 0:
            lines = [f"conv {macro.stem_kernel}×{macro.stem_kernel}", f"stride {macro.stem_stride}"]
            boxes = [box("stem", "edge", "Stem", lines, None)]
        elif macro.downsample == BLOCK_TRANSITION:
            boxes = []
        else:
            lines = [
                macro.downsample.replace("_", " "),
                f"{arch.stages[i - 1].width} → {stage.width}",
            ]
            boxes = [box(f"stages.{i}.downsample", "edge", "Down 2×", lines, None)]
        for j, block in enumerate(stage.blocks):
            name, colour = mixer_style(block.label)
            lines = [_line(key, value) for key, value in block.traits.items() if value is not False]
            boxes.append(box(f"stages.{i}.blocks.{j}", "block", name, lines, colour))
        if i == len(arch.stages) - 1:
            boxes.append(box("head", "edge", "Head", ["pool", "linear"], None))
        taken = sum(latency.get(b["path"], 0.0) for b in boxes)
        stages.append(
            {
                "number": i + 1,
                "width": stage.width,
                "size": size,
                "depth": stage.depth,
                "boxes": boxes,
                "share": f"{100 * taken / total:.0f}\u00a0%" if total > 0 else "",
                # A drawing of the tensor: side by the map's size, thickness by the width.
                "side": round(14 + 22 * math.sqrt(size / sizes[0]), 1),
                "depth_px": round(4 + 22 * stage.width / max(arch.widths), 1),
            }
        )
    names = [b.label for s in arch.stages for b in s.blocks]
    legend = [(*mixer_style(name), names.count(name)) for name in dict.fromkeys(names)]
    return {
        "resolution": arch.resolution,
        "stages": stages,
        "legend": legend,
        "blocks": len(names),
        "has_latency": total > 0,
    }


def _line(key: str, value: object) -> str:
    """A parameter of a block in words."""
    if key == "mlp_ratio":
        return f"MLP ×{value:g}"
    name = key.replace("_", " ")
    return (
        name
        if value is True
        else f"{name} {value:g}"
        if isinstance(value, float)
        else f"{name} {value}"
    )
