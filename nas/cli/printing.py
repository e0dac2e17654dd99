"""Results as text tables on standard output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from results.report.chosen import beaten_note
from results.report.classes import unbalanced_note
from results.report.data import FrontMember, ReportData
from search_space.metrics import (
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


def print_result(data: ReportData, path: Path) -> None:
    """The front, the chosen network and where its files are."""
    chosen = data.chosen
    columns = [column for column in _columns() if any(column.value(m) for m in data.front)]
    if columns:
        click.echo(f"\n{'digest':12}" + "".join(f"  {c.head:>10}" for c in columns))
    for member in data.front:
        mark = " ← chosen" if chosen is not None and member.digest == chosen.digest else ""
        texts = (column.metric.format(column.value(member)) for column in columns)
        click.echo(f"{member.digest:12}" + "".join(f"  {text:>10}" for text in texts) + mark)
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
        click.echo(f"\nchosen {chosen.digest}: {', '.join(facts)}")
        for item in chosen.exports:
            click.echo(f"  {item.path}")
    for note in (unbalanced_note(data), beaten_note(data)):
        if note is not None:
            click.echo(f"note: {note}")
    click.echo(f"report: {path / 'report.html'}")


@dataclass(frozen=True)
class _Column:
    head: str
    metric: Metric
    measured: bool = False

    def value(self, member: FrontMember) -> float | None:
        return (member.measured if self.measured else member.predicted).get(self.metric.name)


def _columns() -> list[_Column]:
    """Columns: what tells networks apart, the latency twice, and what they cost."""
    columns = [_Column(m.short, m) for m in registered() if m.name != LATENCY]
    latency = metric_named(LATENCY)
    both = [_Column("predicted", latency), _Column("measured", latency, measured=True)]
    costs = [c for c in columns if c.metric.source == TABLE]
    return [*(c for c in columns if c not in costs), *both, *costs]


def print_network(described: Mapping[str, Any]) -> None:
    """A network of ``nas.workflows.show.describe``, a line per module, and its totals."""
    counted = [metric_named(name) for name in (PARAMS, MACS, ACTIVATIONS)]
    click.echo(
        f"{'module':22} {'what':44} {'input':>9} " + " ".join(f"{m.short:>11}" for m in counted)
    )
    for row in described["components"]:
        cells = " ".join(f"{m.format(row[m.name]):>11}" for m in counted)
        click.echo(f"{row['path']:22} {row['what']:44} {row['input']:>9} {cells}")
    totals = ", ".join(f"{m.format(described[m.name])} {m.title}" for m in counted)
    click.echo(
        f"\n{described['digest']} at {described['resolution']} px, "
        f"{described['num_classes']} classes: {totals}"
    )
    if LATENCY in described:
        click.echo(
            f"latency {format_metric(LATENCY, described[LATENCY])}, "
            f"{described['latency_provenance']}; {described['latency_conditions']}"
        )


def print_devices(known: Mapping[str, Any]) -> None:
    """Print the data of ``nas.workflows.known_devices.overview``."""
    click.echo("this machine")
    for name, identity in known["devices"].items():
        click.echo(f"  {name:14} {identity}")
    click.echo("\ntables")
    for item in known["tables"]:
        errors = ", ".join(f"{s} ±{e:.1%}" for s, e in item["expected_error"].items())
        origins = ", ".join(f"{n} {origin}" for origin, n in item["origins"].items())
        click.echo(f"  {item['name'] or '(unnamed)':14} {item['conditions']}")
        calibrated = "; calibrated" if item["calibrated"] else ""
        click.echo(f"  {'':14} {origins or 'no entries'}; {errors or 'no correction'}{calibrated}")
        click.echo(f"  {'':14} {item['path']}")
    if not known["tables"]:
        click.echo("  none yet; measure one with: nas profile --space NAME")
    click.echo("\nestimated from datasheets")
    for name, model in known["estimated"].items():
        click.echo(f"  {name:14} {model}")


def print_device(described: Mapping[str, Any]) -> None:
    """Print the data of ``nas.workflows.known_devices.describe_device``."""
    conditions = dict(described["conditions"])
    device = conditions.pop("device")
    click.echo(f"{described['name']}: {device['model']}, {described['provenance']}")
    for key, value in conditions.items():
        click.echo(f"  {key.replace('_', ' '):16} {value}")
    if described["path"] is not None:
        click.echo(f"  {'table':16} {described['path']}")
        kinds = ", ".join(f"{count} {kind}" for kind, count in described["kinds"].items())
        click.echo(f"  {'entries':16} {kinds or 'none'}")
        if described["created"]:
            click.echo(f"  {'measured':16} {described['created']}")
        for correction in described["corrections"]:
            click.echo(
                f"  {correction['space']:16} ±{correction['expected_error']:.1%}; "
                f"{correction['offset_ms']:.3g} ms + {correction['scale']:.4g} × sum, "
                f"{correction['checks']} networks, {correction['rounds']} rounds, "
                f"{correction['stopped']}"
            )
            for warning in correction["warnings"]:
                click.echo(f"  {'':16} warning: {warning}")
        calibration = described["calibration"]
        if calibration is not None:
            click.echo(
                f"  {'calibration':16} {calibration['offset_ms']:.3g} ms + "
                f"{calibration['scale']:.4g} × sum, from "
                f"{len(calibration['networks'])} networks: error "
                f"{calibration['error_before']:.1%} before, {calibration['error_after']:.1%} after"
            )
    elif described["kind"] == "local":
        click.echo("  no table yet; measure one with: nas profile")
    if described["kind"] == "datasheet":
        _print_expected_errors(described)
    rows = described.get("anchors", [])
    for held_out, title in _HELD_OUT.items():
        shown = [row for row in rows if row["held_out"] == held_out]
        if not shown:
            continue
        click.echo(f"\nerror against published figures, {title}")
        for row in shown:
            click.echo(
                f"  {row['device'][:10]:10} {row['implementation'][:24]:24} {row['precision']:5} "
                f"{row['mixer'][:16]:16} {row['n']:3} figures {row['mean_error']:7.1%}   "
                f"{row['source']}"
            )


def _print_expected_errors(described: Mapping[str, Any]) -> None:
    """Runtimes down, mixers across; below, what the figure of the device's runtime stands on."""
    rows = described["expected_error"]
    mixers = list(dict.fromkeys(row["mixer"] for row in rows))
    click.echo(f"\nexpected error, {described['conditions']['precision']}")
    click.echo(f"  {'':12}" + "".join(f"{mixer:>18}" for mixer in mixers))
    for runtime in dict.fromkeys(row["runtime"] for row in rows):
        cells = [row["error"] for row in rows if row["runtime"] == runtime]
        click.echo(f"  {runtime:12}" + "".join(f"{f'±{error:.0%}':>18}" for error in cells))
    reasons = {
        row["reason"] for row in rows if row["runtime"] == described["conditions"]["runtime"]
    }
    for reason in sorted(reasons):
        click.echo(f"  {described['conditions']['runtime']}: found by {reason}")


_HELD_OUT = {
    "figure": "each predicted from the others of its source",
    "device": "each device predicted from other devices",
    "mixer": "each mixer predicted from other mixers",
    "implementation": "each implementation's kernels predicted from another's",
}
