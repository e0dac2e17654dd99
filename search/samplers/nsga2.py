"""Constrained NSGA-II (Deb et al. 2002) with operators that respect the space.

Differences from the paper, all because costs are free and accuracy is not: offspring are drawn
in excess and screened by the cheap constraints, so that an infeasible or known architecture is
never paid for; the first population spreads evenly over the cost axis; and survivors are chosen
after every ``tell``, so batches may be smaller than the population.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from search.problem import Problem, Values
from search.samplers.base import Screen, pack_floats, unpack_floats
from search.samplers.proposals import BROOD, ROUNDS, first_population, random_rows
from search.samplers.ranking import constrained_ranks, crowding_distance
from search_space.space import Genes

OFFSPRING_FACTOR = 4
CROSSOVER_SHARE = 0.5
MUTATE_CROSSED = 0.5


class NSGA2:
    """Sampler for one or more objectives under constraints.

    Args:
        problem: what to search for.
        seed: seed of everything random.
        population: survivors kept, and size of the first, spread population.
        mutation_rate: probability of each gene's change; None for two genes a row on average.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        population: int = 24,
        mutation_rate: float | None = None,
    ) -> None:
        self.problem = problem
        self.population = population
        self.mutation_rate = mutation_rate or max(0.05, 2 / problem.space.num_genes)
        self._rng = np.random.default_rng(seed)
        self._screen = Screen(problem)
        self._initial: Genes | None = None  # rows of the first population not yet asked for
        self._brood = self._rows([])  # children not yet asked for
        self._genes = self._rows([])
        self._objectives = np.zeros((0, len(problem.objectives)))
        self._violations = np.zeros(0)
        self._ranks = np.zeros(0, dtype=np.int64)
        self._crowding = np.zeros(0)

    # Asking -----------------------------------------------------------------------------------

    def ask(self, n: int) -> Genes:
        problem = self.problem
        if self._initial is None:
            self._initial = first_population(problem, self._screen, self._rng, self.population)
        rows = self._screen.fresh(self._initial[:n], n)
        self._initial = self._initial[n:]
        if len(rows) < n and len(self._genes):
            rows = np.concatenate([rows, self._offspring(n - len(rows))])
        if len(rows) < n:
            fill = random_rows(problem, self._screen, self._rng, n - len(rows))
            rows = np.concatenate([rows, fill])
        return rows

    def _offspring(self, n: int) -> Genes:
        """New feasible children; each round of too few mutates more than the one before."""
        size = OFFSPRING_FACTOR * max(n, BROOD)

        def propose(i: int) -> Genes:
            return self._children(size, min(0.5, self.mutation_rate * 1.5**i))

        if len(self._brood) < n:
            bred = self._screen.collect(propose, max(n, BROOD) - len(self._brood), ROUNDS)
            self._brood = np.concatenate([self._brood, bred])
        rows, self._brood = self._brood[:n], self._brood[n:]
        return rows

    def _children(self, n: int, rate: float) -> Genes:
        rng, space = self._rng, self.problem.space
        children = self._genes[self._tournament(n)]
        mates = self._genes[self._tournament(n)]
        crossed = rng.random(n) < CROSSOVER_SHARE
        children = np.where(crossed[:, None], space.crossover(children, mates, rng), children)
        mutated = ~crossed | (rng.random(n) < MUTATE_CROSSED)
        return np.where(mutated[:, None], space.mutate(children, rng, rate), children)

    def _tournament(self, n: int) -> Genes:
        """Winners of ``n`` binary tournaments by rank, then crowding; indices, shape (n,)."""
        first, second = self._rng.integers(len(self._genes), size=(2, n))
        better = (self._ranks[second] < self._ranks[first]) | (
            (self._ranks[second] == self._ranks[first])
            & (self._crowding[second] > self._crowding[first])
        )
        return np.where(better, second, first)

    # Telling ----------------------------------------------------------------------------------

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        self._screen.mark(genes)
        self._genes = np.concatenate([self._genes, genes])
        self._objectives = np.concatenate([self._objectives, objectives])
        self._violations = np.concatenate([self._violations, violations])
        self._distinct()
        ranks = constrained_ranks(self._objectives, self._violations)
        crowding = crowding_distance(self._objectives, ranks)
        keep = np.sort(np.lexsort((-crowding, ranks))[: self.population])
        self._genes = self._genes[keep]
        self._objectives, self._violations = self._objectives[keep], self._violations[keep]
        self._ranks = ranks[keep]
        self._crowding = crowding_distance(self._objectives, self._ranks)

    def _distinct(self) -> None:
        """Keep the latest result of a row that was told more than once."""
        _, last = np.unique(self._genes[::-1], axis=0, return_index=True)
        keep = np.sort(len(self._genes) - 1 - last)
        self._genes = self._genes[keep]
        self._objectives, self._violations = self._objectives[keep], self._violations[keep]

    # State ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": self._rng.bit_generator.state,
            "seen": self._screen.state(),
            "initial": None if self._initial is None else self._initial.tolist(),
            "brood": self._brood.tolist(),
            "genes": self._genes.tolist(),
            "objectives": pack_floats(self._objectives),
            "violations": pack_floats(self._violations),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._screen.load(state["seen"])
        initial = state["initial"]
        self._initial = None if initial is None else self._rows(initial)
        self._brood = self._rows(state["brood"])
        self._genes = self._rows(state["genes"])
        self._objectives = unpack_floats(state["objectives"], len(self.problem.objectives))
        self._violations = unpack_floats(state["violations"])
        self._ranks = constrained_ranks(self._objectives, self._violations)
        self._crowding = crowding_distance(self._objectives, self._ranks)

    def _rows(self, rows: list[list[int]]) -> Genes:
        return np.array(rows, dtype=np.int64).reshape(-1, self.problem.space.num_genes)
