"""Rows with their results, as samplers keep them, and an archive of all that one was told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from results.pareto import non_dominated
from search.problem import Problem, Values
from search_space.stage_space import Genes

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """Rows and what is known of them.

    Args:
        genes: shape (n, genes).
        objectives: minimised, NaN where failed; shape (n, objectives).
        violations: 0 where all constraints are met; shape (n,).
    """

    genes: Genes
    objectives: Values
    violations: Values

    @classmethod
    def nothing(cls, problem: Problem) -> Judged:
        """No rows of a problem."""
        genes = np.zeros((0, problem.space.num_genes), dtype=np.int64)
        return cls(genes, np.zeros((0, len(problem.objectives))), np.zeros(0))

    def __len__(self) -> int:
        return len(self.genes)

    def __getitem__(self, which: Indices | slice | npt.NDArray[np.bool_]) -> Judged:
        return Judged(self.genes[which], self.objectives[which], self.violations[which])

    def __add__(self, other: Judged) -> Judged:
        return Judged(
            np.concatenate([self.genes, other.genes]),
            np.concatenate([self.objectives, other.objectives]),
            np.concatenate([self.violations, other.violations]),
        )


class Archive:
    """Distinct rows with their latest results, in the order first told.

    Attributes:
        front: indices of the feasible rows that no other one dominates, ascending; kept up to
            date, since to find them anew would take long after thousands of evaluations.
    """

    def __init__(self, problem: Problem) -> None:
        self.results = Judged.nothing(problem)
        self._position: dict[bytes, int] = {}
        self.front: Indices = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def evaluated(self) -> Indices:
        """Indices of rows with a result in every objective."""
        failed = np.isnan(self.results.objectives).any(axis=1)
        return np.flatnonzero(~failed & np.isfinite(self.results.violations))

    def tell(self, told: Judged) -> None:
        """Adds results, as in ``Sampler.tell``; a known row's result is replaced."""
        before = len(self)
        keys = row_keys(told.genes)
        rows = [self._position.setdefault(key, len(self._position)) for key in keys]
        latest = {row: i for i, row in enumerate(rows)}
        new = [latest[row] for row in range(before, len(self._position))]
        old = {row: i for row, i in latest.items() if row < before}
        self.results += told[np.array(new, dtype=np.int64)]
        for row, i in old.items():
            self.results.objectives[row] = told.objectives[i]
            self.results.violations[row] = told.violations[i]
        known = np.arange(len(self)) if old else np.r_[self.front, before : len(self)].astype(int)
        feasible = known[self.results.violations[known] <= 0]
        self.front = np.sort(feasible[non_dominated(self.results.objectives[feasible])])


def row_keys(genes: Genes) -> list[bytes]:
    """Gives each row, shape (n, genes), as something to look it up by."""
    return [row.tobytes() for row in np.ascontiguousarray(genes, dtype=np.int64)]
