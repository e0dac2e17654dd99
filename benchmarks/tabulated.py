"""Accuracies that were tabulated before, for every architecture of a part of a space."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from predictors.counts import counts
from search import Constraint, Objective, Problem
from search_space import Architecture, Genes, load_space

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tabulated:
    """A problem over a space all of whose architectures have a known accuracy.

    Args:
        problem: accuracy against MACs under the median of the table's MACs.
        rows: every architecture, shape (n, genes).
        accuracies: shape (n,).
    """

    problem: Problem
    rows: Genes
    accuracies: Values

    def __post_init__(self) -> None:
        index = {row.tobytes(): i for i, row in enumerate(self.rows)}
        object.__setattr__(self, "_index", index)

    def accuracy(self, genes: Genes) -> Values:
        """Shape (n, genes) to (n,); NaN where the table has none."""
        index: dict[bytes, int] = getattr(self, "_index")  # noqa: B009
        found = [index.get(np.ascontiguousarray(row).tobytes()) for row in genes]
        return np.array([np.nan if i is None else self.accuracies[i] for i in found])

    def objectives(self) -> tuple[Values, Values]:
        """Minimised objectives (n, 2) and violations (n,) of the whole table."""
        metrics = {"accuracy": self.accuracies, **self.problem.cheap_metrics(self.rows)}
        return self.problem.objective_values(metrics), self.problem.violation(metrics)


def read_table(path: Path, space_name: str, num_classes: int = 10) -> Tabulated:
    """Table from Parquet or JSON records with columns ``architecture`` (JSON) and ``accuracy``."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path)
    space = load_space(space_name)
    architectures = [
        Architecture.from_dict(json.loads(text) if isinstance(text, str) else text)
        for text in frame["architecture"]
    ]
    rows = space.encode(architectures)
    table = counts(space, num_classes)["macs"]
    problem = Problem(
        space,
        (Objective("accuracy", "maximize"), Objective("macs", "minimize")),
        (Constraint("macs", maximum=float(np.median(table.predict(rows)))),),
        {"macs": table},
    )
    return Tabulated(problem, rows, frame["accuracy"].to_numpy(dtype=np.float64))
