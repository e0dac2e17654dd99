"""Results as text tables on standard output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from results.report_data import ReportData
from search_space.units import format_count, format_latency


def print_result(data: ReportData, path: Path) -> None:
    """The front, the chosen network and where its files are."""
    chosen = data.chosen
    click.echo(
        f"\n{'digest':12}  {'accuracy':>8}  {'loss':>6}  {'predicted':>10}  {'measured':>10}  "
        f"{'params':>9}"
    )
    for member in data.front:
        mark = " ← chosen" if chosen is not None and member.digest == chosen.digest else ""
        predicted, measured = member.predicted, member.measured
        click.echo(
            f"{member.digest:12}  {predicted['accuracy']:8.2%}  {predicted['loss']:6.3f}  "
            f"{format_latency(predicted['latency_ms'] or 0):>10}  "
            f"{format_latency(measured['latency_ms'] or 0):>10}  "
            f"{format_count(predicted['num_params'] or 0):>9}{mark}"
        )
    if chosen is not None:
        latency = format_latency(chosen.measured["latency_ms"] or 0)
        click.echo(
            f"\nchosen {chosen.digest}: {latency} measured, test accuracy "
            f"{chosen.test_accuracy:.2%} (before fine-tuning {chosen.test_accuracy_before:.2%})"
        )
        for item in chosen.exports:
            click.echo(f"  {item.path}")
    click.echo(f"report: {path / 'report.html'}")


def print_network(described: Mapping[str, Any]) -> None:
    """A network of ``nas.show.describe``, a line per module, and its totals."""
    header = (
        f"{'module':22} {'what':44} {'input':>9} {'params':>10} {'MACs':>10} {'activations':>12}"
    )
    click.echo(header)
    for row in described["components"]:
        click.echo(
            f"{row['path']:22} {row['what']:44} {row['input']:>9} "
            f"{format_count(row['num_params']):>10} {format_count(row['macs']):>10} "
            f"{format_count(row['activations']):>12}"
        )
    click.echo(
        f"\n{described['digest']} at {described['resolution']} px, "
        f"{described['num_classes']} classes: "
        f"{format_count(described['num_params'])} parameters, "
        f"{format_count(described['macs'])} MACs, "
        f"{format_count(described['activations'])} activations"
    )
    if "latency_ms" in described:
        click.echo(
            f"latency {format_latency(described['latency_ms'])}, measured on "
            f"{described['latency_conditions']}"
        )
