"""The report's tables, worked out from the data; columns without any value are left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.pareto import kendall_tau
from results.report.charts import format_metric, signed
from results.report.data import Metrics, Network, RankRow, ReportData, value
from results.report.words import cheap_metrics, known_names, quality_of, spread
from search_space.metrics import ACCURACY, LATENCY, LOSS, title_of


@dataclass(frozen=True)
class Cell:
    """Text in a column of a table, and the number that it sorts by."""

    column: str
    sort: float | None
    text: str
    spread: str = ""


def cell(column: str, metric: str, number: float | None, spread: str = "") -> Cell:
    return Cell(column, number, format_metric(metric, number), spread)


def table_of(first: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A table of at least one row, without the columns that hold a value in no row."""
    held = {cell.column for row in rows for cell in row["cells"] if cell.sort is not None}
    columns = [cell.column for cell in rows[0]["cells"] if cell.column in held]
    kept = [{**row, "cells": [c for c in row["cells"] if c.column in held]} for row in rows]
    return {"columns": [first, *columns], "rows": kept}


def front_table(data: ReportData) -> dict[str, Any] | None:
    """The front, fastest first."""
    if not data.front:
        return None
    quality = quality_of(data)
    rows = []
    for m in data.front:
        predicted, measured = value(m.predicted, LATENCY), value(m.measured, LATENCY)
        error = predicted / measured - 1 if predicted is not None and measured else None
        shown = "–" if error is None else f"{signed(100 * error, 1)}\u00a0%"
        cells = _figures(quality.noun, quality.metric, m.predicted, m.measured)
        cells.insert(2, Cell("error", error, shown))
        order = measured if measured is not None else predicted or 0.0
        rows.append(
            {"name": m.digest, "chosen": _is_chosen(data, m), "order": order, "cells": cells}
        )
    table = table_of("digest", sorted(rows, key=lambda row: float(row["order"])))
    treatment = quality.treatment
    if quality.metric == ACCURACY:
        both = "and loss are" if "loss" in table["columns"] else "is"
        treatment = f"Accuracy {both} on the validation split with inherited weights"
    checked = "error" in table["columns"]
    against = "; the error is the prediction's against the measurement" if checked else ""
    return {**table, "caption": f"Members of the front. {treatment}{against}."}


def _is_chosen(data: ReportData, member: Network) -> bool:
    return data.chosen is not None and data.chosen.digest == member.digest


def _figures(title: str, quality: str, predicted: Metrics, measured: Metrics) -> list[Cell]:
    """The latency twice, the quality, and all other metrics, the registered ones first."""
    others = (n for n in known_names(predicted) if n not in (quality, LATENCY))
    return [
        cell("latency, predicted", LATENCY, value(predicted, LATENCY)),
        cell("latency, measured", LATENCY, value(measured, LATENCY), spread(measured)),
        cell(title, quality, value(predicted, quality)),
        *(cell(title_of(name), name, value(predicted, name)) for name in others),
    ]


def baseline_table(data: ReportData) -> dict[str, Any] | None:
    """Baselines and, for comparison, the chosen network."""
    if not data.baselines:
        return None
    quality = quality_of(data)
    networks = [(b.name, b.note, b.predicted, b.measured, b.test_accuracy) for b in data.baselines]
    if (c := data.chosen) is not None:
        networks.insert(0, (f"chosen: {c.digest}", "", c.predicted, c.measured, c.test_accuracy))
    rows = []
    for i, (name, note, predicted, measured, test) in enumerate(networks):
        cells = _figures(quality.full_name, quality.metric, predicted, measured)
        cells.insert(3, cell("test accuracy", ACCURACY, test))
        rows.append(
            {"name": name, "note": note, "chosen": c is not None and i == 0, "cells": cells}
        )
    how = f", {quality.judged} alike"
    if quality.metric == ACCURACY:
        how = "; below each name is how it was treated"
    caption = f"Designs to compare with{how}. {quality.treatment}."
    return {**table_of("network", rows), "caption": caption}


def trial_table(data: ReportData) -> dict[str, Any] | None:
    """Trials of a fine-tuning with their hyper-parameters, as they were begun."""
    if not data.trials:
        return None
    names = list(dict.fromkeys(name for trial in data.trials for name in trial.hyperparameters))
    rows = [
        {
            "name": trial.number,
            "note": f"{trial.network}, {trial.status}" + (f": {trial.note}" if trial.note else ""),
            "chosen": trial.chosen,
            "cells": [
                Cell("epochs", trial.epochs, str(trial.epochs)),
                cell("validation loss", LOSS, trial.validation_loss),
                cell("validation accuracy", ACCURACY, trial.validation_accuracy),
                *(cell(title_of(name), name, trial.hyperparameters.get(name)) for name in names),
            ],
        }
        for trial in data.trials
    ]
    caption = (
        "All trials, each with its network; loss and accuracy are on the validation split after "
        "its last epoch."
    )
    return {**table_of("trial", rows), "caption": caption}


def rank_rows(
    metrics: Sequence[Mapping[str, float]], names: Sequence[str] = (), *, against: str = ACCURACY
) -> tuple[RankRow, ...]:
    """Kendall's tau of each of ``names`` against ``against`` over evaluated architectures.

    Without ``names`` it is of every cheap metric that they have.
    ``metrics`` holds one mapping an architecture; those that lack one of the two are left out
    of that row.
    """

    def column(name: str) -> list[float]:
        return [m.get(name, math.nan) for m in metrics]

    ranks = {n: kendall_tau(column(n), column(against)) for n in names or cheap_metrics(metrics)}
    return tuple(RankRow(name=name, **vars(rank)) for name, rank in ranks.items())
