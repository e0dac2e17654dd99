"""The report's part on the trained network that a search began with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results.pareto import RankCorrelation, kendall_tau
from results.report.charts import format_metric, signed
from results.report.curves import scatter
from results.report.data import Baseline, Network, Phase, ReportData
from results.report.fates import fates_picture, fates_table
from results.report.inheritance import Inheritance, Step
from results.report.tables import Cell, cell, table_of
from search_space.metrics import ACCURACY, LATENCY, LOSS, MACS, PARAMS
from search_space.units import format_duration

ON_IMAGENET = "top-1 on ImageNet, published"
HERE = "accuracy on these images"


def parent_of(data: ReportData) -> Baseline | None:
    """The parent among the baselines; None in a report of another kind of search."""
    if data.inherited is None:
        return None
    named = (b for b in data.baselines if b.name == data.inherited.parent)
    return next(named, None)


def agreement(inherited: Inheritance) -> RankCorrelation:
    """Kendall's tau of predicted and real losses of the evaluated networks."""
    pairs = inherited.losses
    return kendall_tau([p.predicted for p in pairs], [p.real for p in pairs])


def agreement_words(inherited: Inheritance) -> str:
    """What the predicted losses are worth, in a sentence; empty where it is not known."""
    rank = agreement(inherited)
    if rank.tau is None:
        return ""
    interval = ""
    if rank.low is not None and rank.high is not None:
        interval = f" (95 %: {signed(rank.low, 2)} to {signed(rank.high, 2)})"
    return (
        f"predicted against real loss of {rank.n} networks: Kendall τ "
        f"{signed(rank.tau, 2)}{interval}"
    )


def parent_view(data: ReportData) -> dict[str, Any] | None:
    """All that the report says of the parent; None in a report of another kind of search."""
    inherited, parent = data.inherited, parent_of(data)
    if inherited is None:
        return None
    sides = (0, 0)
    if parent is not None and data.chosen is not None:
        architectures = (parent.architecture or {}, data.chosen.architecture or {})
        sides = (architectures[0].get("resolution", 0), architectures[1].get("resolution", 0))
    return {
        "name": inherited.parent,
        "lead": _lead(data, parent),
        "steps": _steps(data, inherited),
        "tried": _tried(data, inherited),
        "tried_lead": tried_words(data),
        "picture": fates_picture(inherited.blocks),
        "blocks": fates_table(inherited.blocks, inherited.resolution, sides),
        "losses": _losses(data, inherited),
        "zoo": _zoo(data, inherited),
        "zoo_note": "" if inherited.zoo is None else inherited.zoo.note,
        "zoo_source": "" if inherited.zoo is None else inherited.zoo.source,
    }


def _lead(data: ReportData, parent: Baseline | None) -> str:
    """The chosen network beside the parent, in a sentence."""
    chosen = data.chosen
    if parent is None or chosen is None:
        return ""
    if parent.digest == chosen.digest:
        return "The parent itself is what was chosen."
    both = all(LATENCY in network.measured for network in (parent, chosen))
    before, after = (
        n.figure(LATENCY) if both else n.predicted.get(LATENCY) for n in (parent, chosen)
    )
    words = []
    if before and after:
        words.append(
            f"takes {format_metric(LATENCY, after)} instead of the parent's "
            f"{format_metric(LATENCY, before)} ({signed(100 * (after / before - 1), 1)}\u00a0%, "
            f"{'measured' if both else 'predicted'})"
        )
    if parent.test_accuracy is not None and chosen.test_accuracy is not None:
        points = signed(100 * (chosen.test_accuracy - parent.test_accuracy), 2)
        words.append(
            f"has a test accuracy of {format_metric(ACCURACY, chosen.test_accuracy)} against "
            f"{format_metric(ACCURACY, parent.test_accuracy)} ({points} points)"
        )
    return f"The chosen network {' and '.join(words)}." if words else ""


def seconds_of(step: Step, phases: Sequence[Phase]) -> float | None:
    """What led to a network took, in a run of these phases; None where that is not known."""
    found = [phase.seconds for phase in phases if phase.name in step.phases]
    return sum(found) if found else None


def _steps(data: ReportData, inherited: Inheritance) -> dict[str, Any] | None:
    rows = []
    for step in inherited.steps:
        total = seconds_of(step, data.phases)
        cells = [
            cell("validation accuracy", ACCURACY, step.validation_accuracy),
            cell("test accuracy", ACCURACY, step.test_accuracy),
            Cell("took", total, "" if total is None else format_duration(total)),
        ]
        rows.append({"name": step.name, "note": ", ".join(step.phases), "cells": cells})
    return table_of("network", rows) if rows else None


def tried_words(data: ReportData) -> str:
    """Which of the networks that were tried is the parent, and why; empty where none were."""
    parent = parent_of(data)
    if data.inherited is None or parent is None or not data.inherited.tried:
        return ""
    count = len(data.inherited.tried)
    return f"Of {count} networks that were tried, {parent.name} was kept: {data.inherited.reason}."


def _tried(data: ReportData, inherited: Inheritance) -> dict[str, Any] | None:
    parent = parent_of(data)
    rows = []
    for one in inherited.tried:
        kept = parent is not None and one.digest == parent.digest
        cells = [
            cell("validation accuracy", ACCURACY, one.accuracy),
            cell("validation loss", LOSS, one.loss),
            cell("latency", LATENCY, one.latency_ms),
            cell("parameters", PARAMS, one.num_params),
            cell("MACs", MACS, one.macs),
            cell(ON_IMAGENET, ACCURACY, one.top1),
            Cell("took", one.seconds, format_duration(one.seconds)),
        ]
        how = "after the short training" if one.by_training else "with a classifier alone"
        rows.append({"name": Path(one.name).name, "note": how, "chosen": kept, "cells": cells})
    return table_of("network", rows) if rows else None


def _losses(data: ReportData, inherited: Inheritance) -> dict[str, Any] | None:
    pairs = inherited.losses
    if not pairs:
        return None
    rank = agreement(inherited)
    points = [
        (
            p.real,
            p.predicted,
            f"{p.digest} {format_metric(LOSS, p.real)}, predicted "
            f"{format_metric(LOSS, p.predicted)}",
        )
        for p in pairs
    ]
    error = sum(abs(p.predicted - p.real) for p in pairs) / len(pairs)
    tau = "–" if rank.tau is None else signed(rank.tau, 2)
    interval = ""
    if rank.low is not None and rank.high is not None:
        interval = f"95 %: {signed(rank.low, 2)} to {signed(rank.high, 2)}"
    return {
        "plot": scatter(LOSS, "real", "predicted", points),
        "tiles": [
            {"name": "Kendall τ", "value": tau, "note": interval},
            {"name": "mean abs. error", "value": format_metric(LOSS, error), "note": ""},
        ],
    }


def _zoo(data: ReportData, inherited: Inheritance) -> dict[str, Any] | None:
    """Published networks, the found front and the parent, by latency."""
    if inherited.zoo is None or not inherited.zoo.networks:
        return None
    rows: list[dict[str, Any]] = [
        {
            "name": network.name,
            "note": f"the zoo, {network.image_size} px; latency {network.origin}",
            "chosen": False,
            "cells": [
                cell("latency", LATENCY, network.latency_ms),
                cell(ON_IMAGENET, ACCURACY, network.top1),
                cell(HERE, ACCURACY, None),
                cell("parameters", PARAMS, network.num_params),
                cell("MACs", MACS, network.macs),
            ],
        }
        for network in inherited.zoo.networks
    ]
    ours: list[tuple[str, Network, float | None, str]] = [
        (
            member.digest,
            member,
            member.predicted.get(ACCURACY),
            "found; validation, before training",
        )
        for member in data.front
        if data.chosen is None or member.digest != data.chosen.digest
    ]
    if (parent := parent_of(data)) is not None:
        ours.append((parent.name, parent, parent.test_accuracy, "the parent; test"))
    if data.chosen is not None:
        ours.append((data.chosen.digest, data.chosen, data.chosen.test_accuracy, "chosen; test"))
    for name, network, accuracy, note in ours:
        cells = [
            cell("latency", LATENCY, network.figure(LATENCY)),
            cell(ON_IMAGENET, ACCURACY, None),
            cell(HERE, ACCURACY, accuracy),
            cell("parameters", PARAMS, network.figure(PARAMS)),
            cell("MACs", MACS, network.figure(MACS)),
        ]
        rows.append({"name": name, "note": note, "chosen": note[:6] == "chosen", "cells": cells})
    rows.sort(key=lambda row: row["cells"][0].sort or 0.0)
    return table_of("network", rows)
