"""Regularised evolution (Real et al. 2019): the best of a few breeds, the oldest dies.

Ageing forgives a lucky evaluation only once: whoever does not breed in time is gone. The paper
has one objective; here a tournament is held along a random direction: its winner has the smallest
augmented Chebyshev distance under random weights (Knowles 2006, ParEGO) among those that meet all
constraints, or else the smallest violation. A rank by dominance would hardly tell apart the few
members of a sample, most of which dominate nobody; random directions always decide, and over many
tournaments they cover the whole front.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from search.problem import Problem, Values
from search.samplers.base import Screen, pack_floats, unpack_floats
from search.samplers.proposals import BROOD, ROUNDS, first_population, random_rows
from search_space.space import Genes

OFFSPRING_FACTOR = 4
AUGMENTATION = 0.05


class RegularisedEvolution:
    """Sampler for one or more objectives under constraints; mutation only, as in the paper.

    Args:
        problem: what to search for.
        seed: seed of everything random.
        population: how many of the latest results may breed, and size of the first population.
        tournament: how many of them compete; None for a quarter, as in the paper.
        mutation_rate: probability of each gene's change, at least one changes; None for one gene
            a row on average.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        population: int = 48,
        tournament: int | None = None,
        mutation_rate: float | None = None,
    ) -> None:
        self.problem = problem
        self.population = population
        self.tournament = tournament or max(2, population // 4)
        self.mutation_rate = mutation_rate or 1 / problem.space.num_genes
        self._rng = np.random.default_rng(seed)
        self._screen = Screen(problem)
        self._initial: Genes | None = None  # rows of the first population not yet asked for
        self._brood = self._rows([])  # children not yet asked for
        self._genes = self._rows([])  # oldest first
        self._objectives = np.zeros((0, len(problem.objectives)))
        self._violations = np.zeros(0)

    def ask(self, n: int) -> Genes:
        if self._initial is None:
            self._initial = first_population(
                self.problem, self._screen, self._rng, self.population // 2
            )
        rows = self._screen.fresh(self._initial[:n], n)
        self._initial = self._initial[n:]
        if len(rows) < n and len(self._genes):
            rows = np.concatenate([rows, self._offspring(n - len(rows))])
        missing = n - len(rows)
        if missing:
            fill = random_rows(self.problem, self._screen, self._rng, missing)
            rows = np.concatenate([rows, fill])
        return rows

    def _offspring(self, n: int) -> Genes:
        """New feasible children; each round of too few mutates more than the one before."""
        size = OFFSPRING_FACTOR * max(n, BROOD)

        def propose(i: int) -> Genes:
            rate = min(0.5, self.mutation_rate * 1.5**i)
            return self.problem.space.mutate(self._genes[self._winners(size)], self._rng, rate)

        if len(self._brood) < n:
            bred = self._screen.collect(propose, max(n, BROOD) - len(self._brood), ROUNDS)
            self._brood = np.concatenate([self._brood, bred])
        rows, self._brood = self._brood[:n], self._brood[n:]
        return rows

    def _winners(self, n: int) -> Genes:
        """Indices of the winners of ``n`` tournaments, shape (n,)."""
        rng = self._rng
        drawn = rng.integers(len(self._genes), size=(n, self.tournament))
        weights = rng.dirichlet(np.ones(self._objectives.shape[1]), size=n)
        failed = np.asarray(np.isnan(self._objectives).any(axis=1))
        known = self._objectives[~failed & (self._violations <= 0)]
        low = known.min(axis=0) if len(known) else np.zeros(self._objectives.shape[1])
        span = np.ptp(known, axis=0) if len(known) else np.zeros(self._objectives.shape[1])
        scaled = (self._objectives - low) / np.where(span > 0, span, 1.0)
        weighted = weights[:, None, :] * np.where(failed[:, None], 0.0, scaled)[drawn]
        distance = weighted.max(axis=2) + AUGMENTATION * weighted.sum(axis=2)
        violation = np.where(failed & (self._violations <= 0), np.inf, self._violations)[drawn]
        # by violation first: the feasible ones share zero
        best = np.lexsort((distance, violation), axis=1)[:, 0]
        return drawn[np.arange(n), best]

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        self._screen.mark(genes)
        keep = self.population
        self._genes = np.concatenate([self._genes, genes])[-keep:]
        self._objectives = np.concatenate([self._objectives, objectives])[-keep:]
        self._violations = np.concatenate([self._violations, violations])[-keep:]

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

    def _rows(self, rows: list[list[int]]) -> Genes:
        return np.array(rows, dtype=np.int64).reshape(-1, self.problem.space.num_genes)
