"""Results as text tables on standard output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.cli.options import columns
from results.report.chosen import beaten_note
from results.report.classes import unbalanced_note
from results.report.data import Network, ReportData
from results.report.parent import agreement_words, parent_of, tried_words
from search_space.metrics import (
    ACCURACY,
    ACTIVATIONS,
    BALANCED_ACCURACY,
    LATENCY,
    MACS,
    PARAMS,
    SCORE,
    TABLE,
    Metric,
    format_metric,
    metric_named,
)
from search_space.metrics import metrics as registered


def result_lines(data: ReportData, path: Path) -> Iterator[str]:
    """The front, the chosen network and where its files are."""
    chosen = data.chosen
    if data.front:
        shown = [c for c in _columns(data.front) if any(c.value(m) for m in data.front)]
        rows = [["digest", *(column.head for column in shown), ""]]
        parent = parent_of(data)
        for member in data.front:
            marks = []
            if chosen is not None and member.digest == chosen.digest:
                marks.append("chosen")
            if parent is not None and member.digest == parent.digest:
                marks.append(parent.name)
            texts = (column.metric.format(column.value(member)) for column in shown)
            rows.append([member.digest, *texts, f"← {', '.join(marks)}" if marks else ""])
        if parent is not None and all(m.digest != parent.digest for m in data.front):
            texts = (column.metric.format(column.value(parent)) for column in shown)
            rows.append([parent.name, *texts, "← began with"])
        yield ""
        yield from columns(rows, left=(0, -1))
    if chosen is not None:
        facts: list[str] = []
        for metrics, how in ((chosen.measured, "measured"), (chosen.predicted, "predicted")):
            if metrics.get(LATENCY) is not None and not facts:
                facts.append(f"{format_metric(LATENCY, metrics[LATENCY])} {how}")
        if chosen.test_accuracy is not None:
            facts.append(f"test accuracy {chosen.test_accuracy:.2%}")
        if chosen.test_accuracy_before is not None:
            facts[-1] += f" (before fine-tuning {chosen.test_accuracy_before:.2%})"
        if chosen.predicted.get(SCORE) is not None:
            facts.append(f"score {format_metric(SCORE, chosen.predicted[SCORE])}, untrained")
        quality: dict[str, Any] = chosen.quality.get("test", {})
        if quality.get(BALANCED_ACCURACY) is not None and unbalanced_note(data):
            balanced = format_metric(BALANCED_ACCURACY, quality[BALANCED_ACCURACY])
            facts.append(f"{balanced} with all classes counted alike")
        yield f"\nchosen {chosen.digest}: {', '.join(facts)}"
        yield from (f"  {item.path}" for item in chosen.exports)
    yield from _parent_lines(data)
    yield from (f"note: {note}" for note in (unbalanced_note(data), beaten_note(data)) if note)
    yield f"report: {path / 'report.html'}"


def _parent_lines(data: ReportData) -> Iterator[str]:
    """The network that the search began with, and what its quality table was worth."""
    parent = parent_of(data)
    if data.inherited is None or parent is None:
        return
    if parent.test_accuracy is not None:
        latency = format_metric(LATENCY, parent.figure(LATENCY))
        yield f"{parent.name}: {latency}, test accuracy {parent.test_accuracy:.2%}"
    if words := tried_words(data):
        yield words
        rows = [
            [
                Path(one.name).name,
                format_metric(ACCURACY, one.accuracy),
                format_metric(LATENCY, one.latency_ms),
                "← kept" if one.digest == parent.digest else "",
            ]
            for one in data.inherited.tried
        ]
        yield from columns(rows, left=(0, -1), indent="  ")
    if words := agreement_words(data.inherited):
        yield words


@dataclass(frozen=True)
class _Column:
    head: str
    metric: Metric
    measured: bool = False

    def value(self, member: Network) -> float | None:
        return (member.measured if self.measured else member.predicted).get(self.metric.name)


def _columns(front: Sequence[Network]) -> list[_Column]:
    """Columns: what tells networks apart, the latency twice, and what they cost."""
    names = [*(m.name for m in registered()), *(name for m in front for name in m.predicted)]
    metrics = [metric_named(name) for name in dict.fromkeys(names) if name != LATENCY]
    others = [_Column(m.short, m) for m in metrics]
    latency = metric_named(LATENCY)
    both = [_Column("predicted", latency), _Column("measured", latency, measured=True)]
    costs = [c for c in others if c.metric.source == TABLE]
    return [*(c for c in others if c not in costs), *both, *costs]


def network_lines(described: Mapping[str, Any]) -> Iterator[str]:
    """A network of ``nas.workflows.show.describe``, a line per module, and its totals."""
    counted = [metric_named(name) for name in (PARAMS, MACS, ACTIVATIONS)]
    rows = [["module", "what", "input", *(m.short for m in counted)]]
    for row in described["components"]:
        counts = (m.format(row[m.name]) for m in counted)
        rows.append([row["path"], row["what"], row["input"], *counts])
    yield from columns(rows, left=(0, 1))
    totals = ", ".join(f"{m.format(described[m.name])} {m.title}" for m in counted)
    yield (
        f"\n{described['digest']} at {described['resolution']} px, "
        f"{described['num_classes']} classes: {totals}"
    )
    if LATENCY in described:
        yield (
            f"latency {format_metric(LATENCY, described[LATENCY])}, "
            f"{described['latency_provenance']}; {described['latency_conditions']}"
        )


def devices_lines(known: Mapping[str, Any]) -> Iterator[str]:
    """The data of ``nas.workflows.known_devices.overview``."""
    yield "this machine"
    yield from (f"  {name:14} {identity}" for name, identity in known["devices"].items())
    yield "\ntables"
    for item in known["tables"]:
        errors = ", ".join(f"{s} ±{e:.1%}" for s, e in item["expected_error"].items())
        origins = ", ".join(f"{n} {origin}" for origin, n in item["origins"].items())
        yield f"  {item['name'] or '(unnamed)':14} {item['conditions']}"
        calibrated = "; calibrated" if item["calibrated"] else ""
        yield f"  {'':14} {origins or 'no entries'}; {errors or 'no correction'}{calibrated}"
        yield f"  {'':14} {item['path']}"
    if not known["tables"]:
        yield "  none yet; measure one with: nas profile --space NAME"
    yield "\nestimated from datasheets"
    yield from (f"  {name:14} {model}" for name, model in known["estimated"].items())


def device_lines(described: Mapping[str, Any]) -> Iterator[str]:
    """The data of ``nas.workflows.known_devices.describe_device``."""
    conditions = dict(described["conditions"])
    device = conditions.pop("device")
    yield f"{described['name']}: {device['model']}, {described['provenance']}"
    facts = {key.replace("_", " "): value for key, value in conditions.items()}
    if described["path"] is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in described["kinds"].items())
        facts |= {"table": described["path"], "entries": kinds or "none"}
        facts |= {"measured": described["created"]} if described["created"] else {}
    yield from (f"  {key:16} {value}" for key, value in facts.items())
    for correction in described.get("corrections", ()):
        yield (
            f"  {correction['space']:16} ±{correction['expected_error']:.1%}; "
            f"{correction['offset_ms']:.3g} ms + {correction['scale']:.4g} × sum, "
            f"{correction['checks']} networks, {correction['rounds']} rounds, "
            f"{correction['stopped']}"
        )
        yield from (f"  {'':16} warning: {warning}" for warning in correction["warnings"])
    if (calibration := described.get("calibration")) is not None:
        yield (
            f"  {'calibration':16} {calibration['offset_ms']:.3g} ms + "
            f"{calibration['scale']:.4g} × sum, from {len(calibration['networks'])} networks: "
            f"error {calibration['error_before']:.1%} before, {calibration['error_after']:.1%} "
            "after"
        )
    if described.get("int8"):
        yield from _int8(described)
    if described["path"] is None and described["kind"] == "local":
        yield "  no table yet; measure one with: nas profile"
    if described["kind"] == "datasheet":
        yield from _ranges(described["ranges"], described["name"])
        yield (
            f"\nmeasure these to know more: {', '.join(described['most_helpful'])}; then "
            f"nas calibrate --device {described['name']} --measured FILE.csv"
        )


def _int8(described: Mapping[str, Any]) -> Iterator[str]:
    """Kinds and widths of components that the table holds in both precisions."""
    yield "\nint8 takes, in terms of float"
    rows = [
        [
            gain["kind"],
            f"width {gain['width']}",
            f"{gain['ratio']:.2f}",
            f"{gain['low']:.2f} to {gain['high']:.2f}" if gain["pairs"] > 1 else "",
            f"of {gain['pairs']}",
            "pays" if gain["ratio"] < 1 else "does not pay",
        ]
        for gain in described["int8"]
    ]
    yield from columns(rows, left=(0, 1, 3, 4, -1), indent="  ")
    yield from (f"  warning: {warning}" for warning in described["int8_warnings"])


def _ranges(ranges: Sequence[Mapping[str, Any]], name: str) -> Iterator[str]:
    """Runtimes and batches, with the range of measured over estimated latency."""
    yield "\nfour in five networks take, in terms of the estimate"
    rows = [
        [
            row["runtime"],
            f"batch {row['batches']}",
            f"{row['low']:.2f} to {row['high']:.2f}" if row["promised"] else "nothing promised",
            f"{row['figures']} figures of {name}",
            row["reason"] if row["promised"] else "the host is timed; take cudagraph or tensorrt",
        ]
        for row in ranges
    ]
    yield from columns(rows, left=(0, 1, 2, 3, -1), indent="  ")
