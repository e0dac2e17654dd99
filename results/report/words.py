"""Words of the report: for the metric a run is judged by, for figures, for architectures.

A run with data is judged by ``accuracy``; one without by a closed-form ``score`` of networks that
nobody trained, which must never be taken for an accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from results.report.charts import format_metric
from results.report.data import Metrics, ReportData
from search_space.architecture import Architecture
from search_space.metrics import ACCURACY, IMAGES, LATENCY, TABLE, metric_named, title_of
from search_space.metrics import metrics as registered

# Colours (--mixer-N in the style sheet) are Okabe and Ito's, told apart with any colour vision.
MIXERS = {
    "window_attention": ("Window attention", 0),
    "focal_modulation": ("Focal modulation", 1),
    "gnconv": ("gnConv", 2),
    "pooling": ("Pooling", 3),
    "depthwise_conv": ("Depthwise conv", 4),
}
SAME_FOR_ALL = (IMAGES,)  # of whatever is shown: nothing to tell networks apart by


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Words for the metric that a run is judged by.

    Args:
        metric: its name in all metrics.
        noun: how sentences and the front's table call it.
        article: of the noun.
        ranked: the same as the subject of a sentence.
        compared: what the front's members are best in.
        axis: title of the chart's axis.
        full_name: in the table of baselines and, capitalised, on a tile.
        tile_note: what the tile says of the weights.
        treatment: the sentence at a table that says with what weights it was found.
        judged: what was done to an architecture that has it.
        lowest: the architectures that have least of it.
        overtaken: what front members are that a faster one beats once measured.
        verified: what an export was compared with.
        floor, ceiling: between which all its values lie, if any.
    """

    metric: str
    noun: str
    article: str
    ranked: str
    compared: str
    axis: str
    full_name: str
    tile_note: str
    treatment: str
    judged: str
    lowest: str
    overtaken: str
    verified: str
    floor: float | None = None
    ceiling: float | None = None


def quality_of(data: ReportData) -> Quality:
    """The words for what ``data`` is judged by."""
    if data.quality == ACCURACY:
        return Quality(
            metric=ACCURACY,
            noun="accuracy",
            article="an",
            ranked=ACCURACY,
            compared=f"validation {data.config.get('search', {}).get('objective', 'accuracy')}",
            axis=data.quality_title or "validation accuracy, inherited weights",
            full_name="validation accuracy",
            tile_note="inherited weights; not tested",
            treatment="Validation accuracy is with inherited weights",
            judged="evaluated",
            lowest="the least accurate",
            overtaken="less accurate than a faster one, by measured latency or by a few images",
            verified="the supernet's subnet",
            floor=0.0,
            ceiling=1.0,
        )
    noun = title_of(data.quality)
    return Quality(
        metric=data.quality,
        noun=noun,
        article="an" if noun.startswith(("a", "e", "i", "o", "u")) else "a",
        ranked=f"the {noun}",
        compared=noun,
        axis=data.quality_title or noun,
        full_name=noun,
        tile_note="untrained network",
        treatment=f"The {noun} is of untrained networks",
        judged="scored",
        lowest=f"those of the lowest {noun}",
        overtaken=f"of a lower {noun} than a faster one, by measured latency",
        verified="the untrained network",
    )


def value(metrics: Metrics, name: str) -> float | None:
    """A metric, or None where it is missing or not finite."""
    known = metrics.get(name)
    return known if known is not None and math.isfinite(known) else None


def spread(measured: Metrics) -> str:
    """Range of a network's measured latencies; empty where it is not known."""
    low, high = value(measured, "latency_low_ms"), value(measured, "latency_high_ms")
    if low is None or high is None:
        return ""
    return f"{format_metric(LATENCY, low)} to {format_metric(LATENCY, high)}"


def cheap_metrics(everything: Iterable[Metrics]) -> list[str]:
    """Names of what was known beforehand of any of the networks, registered metrics first."""
    known = {name for metrics in everything for name in metrics if value(metrics, name) is not None}
    costs = [m.name for m in registered(TABLE)]
    others = known.difference(costs)
    names = [*costs, *sorted(n for n in others if metric_named(n).source == TABLE)]
    names.sort(key=lambda name: name.partition("@")[0] != LATENCY)
    return [name for name in names if name in known]


def moment(created: str) -> str:
    """An ISO 8601 time as people read it, in UTC where it names a zone; other text unchanged."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    if time.tzinfo is None:
        return f"{time:%Y-%m-%d %H:%M}"
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def mixer_style(name: str) -> tuple[str, int]:
    """Readable name and colour number of a mixer; mixers beyond the known share two colours."""
    return MIXERS.get(name, (name.replace("_", " ").capitalize(), 5 + sum(name.encode()) % 2))


def summarise(architecture: Mapping[str, Any] | None) -> list[str]:
    """One line a stage: width × depth, side of its feature map, and its mixers."""
    if architecture is None:
        return []
    arch = Architecture.from_dict(architecture)
    lines = []
    for stage, size in zip(arch.stages, arch.sizes, strict=True):
        names = [block.label for block in stage.blocks]
        mixers = ", ".join(
            f"{names.count(name)} {mixer_style(name)[0].lower()}" for name in dict.fromkeys(names)
        )
        lines.append(f"{stage.width} × {stage.depth} at {size}²: {mixers}")
    return lines


def metric_rows(metrics: Metrics, measured: Metrics | None = None) -> list[tuple[str, str]]:
    """Names and formatted values, the usual metrics first; a measured latency beside its own."""
    names = [m.name for m in registered() if m.name in metrics]
    names += [n for n in metrics if n not in (*names, *SAME_FOR_ALL)]
    rows = []
    for name in names:
        if value(metrics, name) is None:
            continue
        title = title_of(name)
        if name == LATENCY and measured and value(measured, name) is not None:
            rows.append(("latency, measured", format_metric(name, measured[name])))
            title = "latency, predicted"
        rows.append((title, format_metric(name, metrics[name])))
    return rows
