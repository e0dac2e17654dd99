"""Candidates for when nothing is known yet, or a method has nothing left to propose."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from search.feasibility import diverse_sample, extreme_rows, repair
from search.problem import Problem, Values
from search.samplers.archive import Judged
from search.samplers.base import Screen
from search_space.stage_space import Genes

OVERSAMPLE = 20
ROUNDS = 8


class PopulationSampler(ABC):
    """Proposes a spread population first, then what the method of its subclass proposes.

    Where that is too little, random feasible rows fill up what is asked for.

    Args:
        problem: what to search for.
        seed: seed of everything random.
        population: size of the first population.
    """

    def __init__(self, problem: Problem, *, seed: int, population: int) -> None:
        self.problem = problem
        self.population = population
        self._rng = np.random.default_rng(seed)
        self._screen = Screen(problem)
        self._initial: Genes | None = None  # rows of the first population not yet asked for

    def ask(self, n: int) -> Genes:
        """Up to ``n`` new feasible rows, as in ``Sampler.ask``."""
        if self._initial is None:
            self._initial = first_population(self.problem, self._screen, self._rng, self.population)
        rows = self._screen.fresh(self._initial[:n], n)
        self._initial = self._initial[n:]
        if len(rows) < n:
            rows = np.concatenate([rows, self._propose(n - len(rows))])
        if len(rows) < n:
            fill = random_rows(self.problem, self._screen, self._rng, n - len(rows))
            rows = np.concatenate([rows, fill])
        return rows

    @abstractmethod
    def _propose(self, n: int) -> Genes:
        """Up to ``n`` new feasible rows that the method thinks well of, marked as seen."""

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        """Results of candidates, as in ``Sampler.tell``."""
        self._screen.mark(genes)
        self._learn(Judged(genes, objectives, violations))

    @abstractmethod
    def _learn(self, told: Judged) -> None:
        """Takes in results; their rows are marked as seen."""

    def _no_rows(self) -> Genes:
        return np.zeros((0, self.problem.space.num_genes), dtype=np.int64)


def first_population(problem: Problem, screen: Screen, rng: np.random.Generator, n: int) -> Genes:
    """New feasible rows spread over the cost axis, in random order; shape (≤ n, genes)."""
    pool = diverse_sample(problem, rng, OVERSAMPLE * n)
    rows = screen.candidates(pool)
    if len(rows) < 2 * n:
        pool = np.concatenate([pool, extreme_rows(problem)])
        repaired, violation = repair(problem, pool, rng, wanted=4 * n)
        rows = screen.candidates(np.concatenate([rows, repaired[violation == 0]]))
    return spread(rows, problem.cost_axis(rows), n, rng)


def random_rows(problem: Problem, screen: Screen, rng: np.random.Generator, n: int) -> Genes:
    """Up to ``n`` fresh random feasible rows, marked as seen."""
    size = max(256, OVERSAMPLE * n)
    rows = screen.collect(lambda _: diverse_sample(problem, rng, size), n, ROUNDS)
    return np.concatenate([rows, screen.rest(n - len(rows), rng)])


def spread(rows: Genes, cost: Values, n: int, rng: np.random.Generator) -> Genes:
    """``n`` of the rows, as evenly over the range of ``cost`` as they allow, in random order.

    The range is cut into ``n`` equal bins; every bin gives one row before any gives a second.
    """
    if len(rows) == 0:
        return rows
    low, high = float(cost.min()), float(cost.max())
    width = (high - low) / n or 1.0
    bins = np.minimum(((cost - low) / width).astype(np.int64), n - 1)
    shuffled = rng.permutation(len(rows))
    order = shuffled[np.argsort(bins[shuffled], kind="stable")]
    ordered = bins[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(rows)])
    turn = np.arange(len(rows)) - np.repeat(starts, lengths)
    chosen = order[np.lexsort((rng.random(len(rows)), turn))][:n]
    return rows[rng.permutation(chosen)]


def neighbours(problem: Problem, row: Genes) -> Genes:
    """Rows that differ from ``row``, shape (genes,), in one gene; shape (k, genes).

    Blocks that a larger depth adds copy the stage's last one; a smaller depth drops the last ones.
    """
    space = problem.space
    changed = []
    active = space.active(row[None])[0]
    for gene in np.flatnonzero(active & (space.cardinalities > 1)):
        values = np.delete(np.arange(space.cardinalities[gene]), row[gene])
        rows = np.repeat(row[None], len(values), axis=0)
        rows[:, gene] = values
        changed.append(rows)
    result = np.concatenate(changed) if changed else row[None][:0].copy()
    for i in range(len(space.stages)):
        columns = space.block_columns(i)
        depth = int(active[columns].sum())
        blocks, stage = result[:, columns], space.stages[i]
        last = np.full(blocks.shape, row[columns][depth - 1])
        copied = stage.copied(last, np.full(blocks.shape, depth - 1))
        result[:, columns] = np.where(blocks < 0, np.maximum(copied, 0), blocks)
    return np.where(space.active(result), result, -1)
