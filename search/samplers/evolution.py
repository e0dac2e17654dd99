"""Evolution with operators that respect the space: one loop, and two samplers by it.

``evolve`` is constrained NSGA-II (Deb et al. 2002) where judging costs nothing: closed-form
searches and the pool of a surrogate are made by it. The samplers ``NSGA2`` and
``RegularisedEvolution`` are the same where judging is expensive: offspring are drawn in excess and
screened by the cheap constraints, so that an infeasible or known architecture is never paid for,
and survivors are chosen after every ``tell``, so batches may be smaller than the population.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import numpy as np

from search.feasibility import unique_rows
from search.problem import Problem, Values
from search.samplers.archive import Judged
from search.samplers.proposals import ROUNDS, PopulationSampler
from search.samplers.ranking import best_first, constrained_ranks, crowding_distance
from search_space.space import SearchSpace
from search_space.stage_space import Genes

CROSSOVER_SHARE = 0.5
MUTATE_CROSSED = 0.5
MOST_MUTATED = 0.5
OFFSPRING_FACTOR = 4
BROOD = 8  # children bred at once at least, so that asking one by one costs no more
AUGMENTATION = 0.05

Judge = Callable[[Genes], tuple[Values, Values]]
"""Rows (n, genes) to minimised objectives (n, objectives) and violations (n,)."""


def children(
    space: SearchSpace, first: Genes, second: Genes, rng: np.random.Generator, rate: float
) -> Genes:
    """One child of each pair of rows, shape (n, genes).

    Half are crossed, of which half are mutated too; the others are mutants of the first parent.
    """
    n = len(first)
    crossed = rng.random(n) < CROSSOVER_SHARE
    rows = np.where(crossed[:, None], space.crossover(first, second, rng), first)
    mutated = ~crossed | (rng.random(n) < MUTATE_CROSSED)
    return np.where(mutated[:, None], space.mutate(rows, rng, rate), rows)


def mutation_rate(space: SearchSpace) -> float:
    """Probability of each gene's change that changes two genes of a row on average."""
    return max(0.05, 2 / space.num_genes)


def evolve(
    problem: Problem,
    start: Genes,
    judge: Judge,
    rng: np.random.Generator,
    *,
    size: int,
    generations: int,
    rate: float | None = None,
    accept: Callable[[Genes], Genes] = lambda rows: rows,
) -> Iterator[tuple[Judged, int]]:
    """Generations of constrained NSGA-II, where judging costs nothing.

    Args:
        start: rows of the first generation, shape (n, genes).
        judge: what is minimised, and by how much constraints are missed.
        size: survivors and children of a generation.
        generations: how many, the first one counted; fewer where nothing is accepted.
        rate: probability of each gene's change; None for two genes a row on average.
        accept: the rows that are judged at all, in the same order.

    Yields:
        Survivors and their children, distinct, and how many of the rows were judged before: they
        come first, best first.
    """
    rate = mutation_rate(problem.space) if rate is None else rate
    rows = accept(unique_rows(start))
    alive, known = Judged(rows, *judge(rows)), 0
    for _ in range(generations - 1):
        yield alive, known
        if len(alive) == 0:
            return
        alive = alive[best_first(alive.objectives, alive.violations)[:size]]
        known = len(alive)
        # survivors are sorted: the smaller of two positions wins a tournament
        first, second = rng.integers(known, size=(2, 2, size)).min(axis=1)
        bred = children(problem.space, alive.genes[first], alive.genes[second], rng, rate)
        fresh = accept(unique_rows(np.concatenate([alive.genes, bred]))[known:])
        if len(fresh):
            alive += Judged(fresh, *judge(fresh))
    yield alive, known


class EvolutionSampler(PopulationSampler):
    """Breeds candidates from the results that it keeps.

    Args:
        problem, seed, population: as of ``PopulationSampler``.
        rate: probability of each gene's change, at least one changes.
    """

    def __init__(self, problem: Problem, *, seed: int, population: int, rate: float) -> None:
        super().__init__(problem, seed=seed, population=population)
        self.rate = rate
        self._brood = self._no_rows()  # children not yet asked for
        self._kept = Judged.nothing(problem)

    def _propose(self, n: int) -> Genes:
        """New feasible children; each round of too few mutates more than the one before."""
        if len(self._kept) == 0:
            return self._no_rows()
        size = OFFSPRING_FACTOR * max(n, BROOD)

        def propose(i: int) -> Genes:
            return self._children(size, min(MOST_MUTATED, self.rate * 1.5**i))

        if len(self._brood) < n:
            bred = self._screen.collect(propose, max(n, BROOD) - len(self._brood), ROUNDS)
            self._brood = np.concatenate([self._brood, bred])
        rows, self._brood = self._brood[:n], self._brood[n:]
        return rows

    @abstractmethod
    def _children(self, n: int, rate: float) -> Genes:
        """``n`` children of those kept."""

    def _learn(self, told: Judged) -> None:
        self._survive(self._kept + told)

    @abstractmethod
    def _survive(self, known: Judged) -> None:
        """Chooses those that are kept, after every ``tell``."""


class NSGA2(EvolutionSampler):
    """Searches by constrained NSGA-II (Deb et al. 2002), for one or more objectives.

        sampler = NSGA2(problem, seed=0)
        rows = sampler.ask(12)
        sampler.tell(rows, objectives, violations)

    Args:
        problem, seed: as of ``PopulationSampler``.
        population: survivors kept, and size of the first, spread population.
        rate: probability of each gene's change; None for two genes a row on average.
    """

    def __init__(
        self, problem: Problem, *, seed: int = 0, population: int = 24, rate: float | None = None
    ) -> None:
        rate = rate or mutation_rate(problem.space)
        super().__init__(problem, seed=seed, population=population, rate=rate)
        self._ranks = np.zeros(0, dtype=np.int64)
        self._crowding = np.zeros(0)

    def _children(self, n: int, rate: float) -> Genes:
        genes = self._kept.genes
        parents, mates = genes[self._tournament(n)], genes[self._tournament(n)]
        return children(self.problem.space, parents, mates, self._rng, rate)

    def _tournament(self, n: int) -> Genes:
        """Winners of ``n`` binary tournaments by rank, then crowding; indices, shape (n,)."""
        first, second = self._rng.integers(len(self._kept), size=(2, n))
        better = (self._ranks[second] < self._ranks[first]) | (
            (self._ranks[second] == self._ranks[first])
            & (self._crowding[second] > self._crowding[first])
        )
        return np.where(better, second, first)

    def _survive(self, known: Judged) -> None:
        # the latest result of a row that was told more than once
        _, last = np.unique(known.genes[::-1], axis=0, return_index=True)
        known = known[np.sort(len(known) - 1 - last)]
        best = best_first(known.objectives, known.violations)[: self.population]
        self._kept = kept = known[np.sort(best)]
        self._ranks = constrained_ranks(kept.objectives, kept.violations)
        self._crowding = crowding_distance(kept.objectives, self._ranks)


class RegularisedEvolution(EvolutionSampler):
    """Searches by regularised evolution (Real et al. 2019): the best of a few breeds, the oldest
    dies; mutation only.

        sampler = RegularisedEvolution(problem, seed=0)

    Ageing forgives a lucky evaluation only once. The paper has one objective; here a tournament is
    held along a random direction: its winner has the smallest augmented Chebyshev distance under
    random weights (Knowles 2006, ParEGO) among those that meet all constraints, or else the
    smallest violation. A rank by dominance would hardly tell apart the few members of a sample.

    Args:
        problem, seed: as of ``PopulationSampler``.
        population: how many of the latest results may breed; the first population is half of it.
        tournament: how many of them compete; None for a quarter, as in the paper.
        rate: probability of each gene's change; None for one gene a row on average.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        population: int = 48,
        tournament: int | None = None,
        rate: float | None = None,
    ) -> None:
        rate = rate or 1 / problem.space.num_genes
        super().__init__(problem, seed=seed, population=population // 2, rate=rate)
        self.kept = population
        self.tournament = tournament or max(2, population // 4)

    def _children(self, n: int, rate: float) -> Genes:
        return self.problem.space.mutate(self._kept.genes[self._winners(n)], self._rng, rate)

    def _winners(self, n: int) -> Genes:
        """Indices of the winners of ``n`` tournaments, shape (n,)."""
        rng, objectives, violations = self._rng, self._kept.objectives, self._kept.violations
        width = objectives.shape[1]
        drawn = rng.integers(len(objectives), size=(n, self.tournament))
        weights = rng.dirichlet(np.ones(width), size=n)
        failed = np.asarray(np.isnan(objectives).any(axis=1))
        known = objectives[~failed & (violations <= 0)]
        low = known.min(axis=0) if len(known) else np.zeros(width)
        span = np.ptp(known, axis=0) if len(known) else np.zeros(width)
        scaled = (objectives - low) / np.where(span > 0, span, 1.0)
        weighted = weights[:, None, :] * np.where(failed[:, None], 0.0, scaled)[drawn]
        distance = weighted.max(axis=2) + AUGMENTATION * weighted.sum(axis=2)
        violation = np.where(failed & (violations <= 0), np.inf, violations)[drawn]
        # by violation first: the feasible ones share zero
        best = np.lexsort((distance, violation), axis=1)[:, 0]
        return drawn[np.arange(n), best]

    def _survive(self, known: Judged) -> None:
        self._kept = known[-self.kept :]
