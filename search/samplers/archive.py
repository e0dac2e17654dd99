"""Archive of every result that a sampler was told, by row, and of their front."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from results.pareto import non_dominated
from search.problem import Problem, Values
from search_space.space import Genes

Indices = npt.NDArray[np.int64]


class Archive:
    """Distinct rows with their latest results, in the order first told.

    Arrays grow by doubling and the front is kept up to date, so that a ``tell`` costs the same
    after ten thousand evaluations as after ten.

    Attributes:
        front: indices of the feasible rows that no other one dominates, ascending.
    """

    def __init__(self, problem: Problem) -> None:
        self._num_objectives = len(problem.objectives)
        self._num_genes = problem.space.num_genes
        self._allocate(64)
        self._position: dict[bytes, int] = {}
        self.front: Indices = np.zeros(0, dtype=np.int64)

    def _allocate(self, capacity: int) -> None:
        self._genes = np.zeros((capacity, self._num_genes), dtype=np.int64)
        self._objectives = np.full((capacity, self._num_objectives), np.nan)
        self._violations = np.full(capacity, np.inf)

    def __len__(self) -> int:
        return len(self._position)

    @property
    def genes(self) -> Genes:
        """Shape (n, genes)."""
        return self._genes[: len(self)]

    @property
    def objectives(self) -> Values:
        """Minimised, NaN where failed; shape (n, objectives)."""
        return self._objectives[: len(self)]

    @property
    def violations(self) -> Values:
        """0 where all constraints are met; shape (n,)."""
        return self._violations[: len(self)]

    @property
    def evaluated(self) -> Indices:
        """Indices of rows with a result in every objective."""
        return np.flatnonzero(~np.isnan(self.objectives).any(axis=1) & np.isfinite(self.violations))

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        """Add results, as in ``Sampler.tell``; a known row's result is replaced."""
        positions, replaced = [], False
        for row, values, violation in zip(genes, objectives, violations, strict=True):
            key = np.ascontiguousarray(row, dtype=np.int64).tobytes()
            position = self._position.get(key)
            if position is None:
                position = len(self)
                if position == len(self._genes):
                    self._grow()
                self._position[key] = position
                self._genes[position] = row
            else:
                replaced = True
            self._objectives[position] = values
            self._violations[position] = violation
            positions.append(position)
        known = np.arange(len(self)) if replaced else np.r_[self.front, positions].astype(np.int64)
        feasible = known[self._violations[known] <= 0]
        self.front = np.sort(feasible[non_dominated(self._objectives[feasible])])

    def _grow(self) -> None:
        n, old = len(self), (self._genes, self._objectives, self._violations)
        self._allocate(2 * n)
        for new, values in zip((self._genes, self._objectives, self._violations), old, strict=True):
            new[:n] = values
