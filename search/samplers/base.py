"""Interface of samplers, and the screen that candidates pass before they are evaluated.

Samplers work on rows of genes: they know the problem's space operators and cheap metrics, and
neither files, processes nor networks. A search that is continued replays what it was told.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

import numpy as np

from search.problem import Problem, Values
from search.samplers.archive import row_keys
from search_space.space import SearchSpace
from search_space.stage_space import INACTIVE, Genes

ENUMERABLE = 50_000


class Sampler(Protocol):
    """Proposes candidates and learns from their results.

    The same seed and the same sequence of calls give the same candidates.
    """

    def ask(self, n: int) -> Genes:
        """Up to ``n`` candidates, shape (k, genes); none when it has nothing new to propose."""
        ...

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        """Results of candidates, whether this sampler asked for them or not.

        Args:
            genes: shape (n, genes).
            objectives: shape (n, objectives), minimised; a row with NaN failed.
            violations: shape (n,), 0 where all constraints are met.
        """
        ...


class Screen:
    """Lets through rows that meet the cheap constraints and were never let through before."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._seen: set[bytes] = set()

    def fresh(self, genes: Genes, limit: int) -> Genes:
        """The first ``limit`` new feasible rows, marked as seen; shape (k, genes)."""
        new = self.candidates(genes)[:limit]
        self.mark(new)
        return new

    def candidates(self, genes: Genes) -> Genes:
        """New feasible rows, each once, not yet marked; shape (k, genes)."""
        passed = genes[self.problem.cheap_violation(genes) == 0] if len(genes) else genes
        rows = {key: i for i, key in reversed(list(enumerate(row_keys(passed))))}
        new = sorted(i for key, i in rows.items() if key not in self._seen)
        return passed[np.array(new, dtype=np.int64)]

    def mark(self, genes: Genes) -> None:
        """Never let these rows through again."""
        self._seen.update(row_keys(genes))

    def collect(self, propose: Callable[[int], Genes], n: int, rounds: int) -> Genes:
        """Up to ``n`` fresh rows from at most ``rounds`` calls of ``propose(round)``."""
        kept = np.zeros((0, self.problem.space.num_genes), dtype=np.int64)
        for i in range(rounds):
            if len(kept) >= n:
                break
            kept = np.concatenate([kept, self.fresh(propose(i), n - len(kept))])
        return kept

    def rest(self, n: int, rng: np.random.Generator) -> Genes:
        """Up to ``n`` random fresh rows of a space small enough to enumerate; none of a larger one.

        Chance leaves the last few rows of a small space unseen for long; counting does not.
        """
        space = self.problem.space
        if n <= 0 or space.size > ENUMERABLE:
            return np.zeros((0, space.num_genes), dtype=np.int64)
        return self.fresh(rng.permutation(enumerate_rows(space)), n)


def enumerate_rows(space: SearchSpace) -> Genes:
    """Every row of a space, shape (space.size, genes)."""
    parts = [np.arange(len(space.resolutions))[:, None]]
    for stage in space.stages:
        rows = []
        for width, (index, depth) in itertools.product(
            range(len(stage.widths)), enumerate(stage.depths)
        ):
            rest = (INACTIVE,) * (stage.max_depth - depth)
            for choice in itertools.product(*(range(len(c)) for c in stage.positions[:depth])):
                rows.append((width, index, *choice, *rest))
        parts.append(np.array(rows, dtype=np.int64))
    picks = np.indices([len(part) for part in parts]).reshape(len(parts), -1)
    return np.hstack([part[pick] for part, pick in zip(parts, picks, strict=True)])
