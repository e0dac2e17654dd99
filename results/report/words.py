"""Words of the report: for the metric a run is judged by, for figures, for architectures.

A run with data is judged by ``accuracy``; one without by a closed-form ``score`` of networks that
nobody trained, which must never be taken for an accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from results.report.charts import format_metric
from results.report.data import Metrics, ReportData, value
from search_space.architecture import Architecture
from search_space.metrics import ACCURACY, IMAGES, LATENCY, TABLE, metric_named, title_of
from search_space.metrics import metrics as registered

# Colours (--mixer-N in the style sheet) are Okabe and Ito's, told apart with any colour vision.
COLOURS = 7  # that the report has for blocks
SAME_FOR_ALL = (IMAGES,)  # of whatever is shown: nothing to tell networks apart by


@dataclass(frozen=True)
class Quality:
    """Words for the metric that a run is judged by.

    Args:
        metric: Its name in all metrics.
        noun: What sentences and the front's table call it.
        compared: What the front's members are best in.
        axis: Title of the chart's axis.
        full_name: Its name in the table of baselines and, capitalised, on a tile.
        judged: What was done to an architecture that has it.
        weights: With what weights it was found, as a tile says it.
        treatment: The same as a sentence at a table.
    """

    metric: str
    noun: str
    compared: str
    axis: str
    full_name: str
    judged: str
    weights: str
    treatment: str


def objective_of(data: ReportData) -> str:
    """Name of what the search was for: a metric on the validation images, or the score."""
    return str(data.config.get("search", {}).get("objective", data.quality))


def quality_of(data: ReportData) -> Quality:
    """The words for what ``data`` is judged by."""
    noun = title_of(data.quality)
    if data.quality != ACCURACY:
        treatment = f"The {noun} is of untrained networks"
        return Quality(
            data.quality, noun, noun, noun, noun, "scored", "untrained network", treatment
        )
    return Quality(
        ACCURACY,
        noun,
        compared=f"validation {objective_of(data)}",
        axis="validation accuracy, inherited weights",
        full_name="validation accuracy",
        judged="evaluated",
        weights="inherited weights; not tested",
        treatment="Validation accuracy is with inherited weights",
    )


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


def block_title(label: str) -> str:
    """What people call a mixer or a kind of block."""
    known = {"gnconv": "gnConv", "projection": "Linear map"}
    return known.get(label, label.replace("_", " ").replace("(", " (").capitalize())


def block_colours(labels: Iterable[str]) -> dict[str, int]:
    """Numbers of colours by what blocks are, in the order in which they are first met."""
    return {label: number % COLOURS for number, label in enumerate(dict.fromkeys(labels))}


def summarise(architecture: Mapping[str, Any] | None) -> list[str]:
    """One line a stage: width × depth, side of its feature map, and its mixers."""
    if architecture is None:
        return []
    arch = Architecture.from_dict(architecture)
    lines = []
    for stage, size in zip(arch.stages, arch.sizes, strict=True):
        names = [block.label for block in stage.blocks if not block.skipped]
        mixers = ", ".join(
            f"{names.count(name)} {block_title(name).lower()}" for name in dict.fromkeys(names)
        )
        lines.append(f"{stage.width} × {len(names)} at {size}²: {mixers or 'no blocks'}")
    return lines


def known_names(metrics: Metrics) -> list[str]:
    """Names of metrics that tell networks apart, the registered ones first."""
    names = dict.fromkeys([*(m.name for m in registered()), *metrics])
    return [name for name in names if name in metrics and name not in SAME_FOR_ALL]


def metric_rows(metrics: Metrics, measured: Metrics | None = None) -> list[tuple[str, str]]:
    """Names and formatted values, the usual metrics first; a measured latency beside its own."""
    rows = []
    for name in known_names(metrics):
        if value(metrics, name) is None:
            continue
        title = title_of(name)
        if name == LATENCY and measured and value(measured, name) is not None:
            rows.append(("latency, measured", format_metric(name, measured[name])))
            title = "latency, predicted"
        rows.append((title, format_metric(name, metrics[name])))
    return rows
