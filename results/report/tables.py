"""The report's tables, worked out from the data; columns without any value are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.pareto import kendall_tau
from results.report.charts import Scale, format_metric, signed
from results.report.data import Metrics, RankRow, ReportData
from results.report.words import SAME_FOR_ALL, cheap_metrics, quality_of, spread, value
from search_space.metrics import ACCURACY, LATENCY, LOSS, title_of
from search_space.metrics import metrics as registered


@dataclass(frozen=True)
class Cell:
    """Text in a column of a table, and the number that it sorts by."""

    column: str
    sort: float | None
    text: str
    spread: str = ""


def _cell(column: str, metric: str, number: float | None, spread: str = "") -> Cell:
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
        rows.append(
            {
                "digest": m.digest,
                "chosen": data.chosen is not None and data.chosen.digest == m.digest,
                "order": measured if measured is not None else predicted or 0.0,
                "cells": [
                    _cell("latency, predicted", LATENCY, predicted),
                    _cell("latency, measured", LATENCY, measured, spread(m.measured)),
                    Cell(
                        "error", error, "–" if error is None else f"{signed(100 * error, 1)}\u00a0%"
                    ),
                    _cell(quality.noun, quality.metric, value(m.predicted, quality.metric)),
                    *_further(m.predicted, quality.metric),
                ],
            }
        )
    table = table_of("digest", sorted(rows, key=lambda row: float(row["order"])))
    treatment = quality.treatment
    if quality.metric == ACCURACY:
        both = "and loss are" if "loss" in table["columns"] else "is"
        treatment = f"Accuracy {both} on the validation split with inherited weights"
    checked = "error" in table["columns"]
    against = "; the error is the prediction's against the measurement" if checked else ""
    return {**table, "caption": f"Members of the front. {treatment}{against}."}


def _further(metrics: Metrics, quality: str) -> list[Cell]:
    """All metrics beside the quality and the latency, the registered ones first."""
    names = [m.name for m in registered() if m.name in metrics]
    names += [name for name in metrics if name not in names]
    skipped = {quality, LATENCY, *SAME_FOR_ALL}
    return [_cell(title_of(n), n, value(metrics, n)) for n in names if n not in skipped]


def baseline_table(data: ReportData) -> dict[str, Any] | None:
    """Baselines and, for comparison, the chosen network."""
    if not data.baselines:
        return None
    quality = quality_of(data)
    networks = [(b.name, b.note, b.metrics, b.measured, b.test_accuracy) for b in data.baselines]
    if data.chosen is not None:
        c = data.chosen
        networks.insert(0, (f"chosen: {c.digest}", "", c.predicted, c.measured, c.test_accuracy))
    rows = [
        {
            "name": name,
            "note": note,
            "chosen": data.chosen is not None and i == 0,
            "cells": [
                _cell("latency, predicted", LATENCY, value(metrics, LATENCY)),
                _cell("latency, measured", LATENCY, value(measured, LATENCY)),
                _cell(quality.full_name, quality.metric, value(metrics, quality.metric)),
                _cell("test accuracy", ACCURACY, test),
                *_further(metrics, quality.metric),
            ],
        }
        for i, (name, note, metrics, measured, test) in enumerate(networks)
    ]
    how = (
        "; below each name is how it was treated"
        if quality.metric == ACCURACY
        else f", {quality.judged} alike"
    )
    caption = f"Designs to compare with{how}. {quality.treatment}."
    return {**table_of("network", rows), "caption": caption}


def trial_table(data: ReportData) -> dict[str, Any] | None:
    """Trials of a fine-tuning with their hyper-parameters, as they were begun."""
    if not data.trials:
        return None
    names = list(dict.fromkeys(name for trial in data.trials for name in trial.hyperparameters))
    rows = [
        {
            "number": trial.number,
            "note": f"{trial.network}, {trial.status}" + (f": {trial.note}" if trial.note else ""),
            "chosen": trial.chosen,
            "cells": [
                Cell("epochs", trial.epochs, str(trial.epochs)),
                _cell("validation loss", LOSS, trial.validation_loss),
                _cell("validation accuracy", ACCURACY, trial.validation_accuracy),
                *(_cell(title_of(name), name, trial.hyperparameters.get(name)) for name in names),
            ],
        }
        for trial in data.trials
    ]
    caption = (
        "All trials, each with its network; loss and accuracy are on the validation split after "
        "its last epoch."
    )
    return {**table_of("trial", rows), "caption": caption}


def rank_tables(data: ReportData) -> list[dict[str, Any]]:
    """Kendall's taus as bars between -1 and 1, cheap metrics and predictors apart."""
    quality = quality_of(data)
    tables = []
    for kind, title, column in (
        ("metric", f"How {quality.ranked} ranks against each cheap metric", "metric"),
        ("predictor", "How well each predictor ranked", "predictor"),
    ):
        rows = []
        for row in (r for r in data.ranking if r.kind == kind):
            scale = Scale(-1.0, 1.0, 4.0, 196.0)
            rows.append(
                {
                    "name": title_of(row.name),
                    "against": title_of(row.against),
                    "n": row.n,
                    "tau": "–" if row.tau is None else signed(row.tau, 2),
                    "interval": ""
                    if row.low is None or row.high is None
                    else f"{signed(row.low, 2)} to {signed(row.high, 2)}",
                    "bar": None if row.tau is None else scale(row.tau),
                    "zero": scale(0.0),
                    "low": None if row.low is None else scale(row.low),
                    "high": None if row.high is None else scale(row.high),
                }
            )
        if rows:
            assumed = quality.noun if kind == "metric" else None  # what the title already says
            tables.append({"title": title, "column": column, "assumed": assumed, "rows": rows})
    return tables


def rank_rows(
    metrics: Sequence[Mapping[str, float]],
    names: Sequence[str] = (),
    *,
    against: str = ACCURACY,
    kind: str = "metric",
) -> tuple[RankRow, ...]:
    """Kendall's tau of each of ``names`` against ``against`` over evaluated architectures.

    Without ``names`` it is of every cheap metric that they have.
    ``metrics`` holds one mapping an architecture; those that lack one of the two are left out
    of that row.
    """
    nan = float("nan")
    names = names or cheap_metrics(metrics)
    rows = []
    for name in names:
        rank = kendall_tau(
            [m.get(name, nan) for m in metrics], [m.get(against, nan) for m in metrics]
        )
        rows.append(
            RankRow(
                name=name,
                against=against,
                tau=rank.tau,
                low=rank.low,
                high=rank.high,
                n=rank.n,
                kind=kind,
            )
        )
    return tuple(rows)
