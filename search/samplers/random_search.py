"""Random search: uniform over the feasible architectures, each at most once.

The baseline of every other sampler. Where hardly any random architecture is feasible, bounded
rejection is topped up by repair, so that the baseline never hangs; the result is then no longer
uniform.
"""

from __future__ import annotations

import numpy as np

from search.feasibility import diverse_sample, repair
from search.problem import Problem, Values
from search.samplers.base import ENUMERABLE, Screen
from search_space.stage_space import Genes

ROUNDS = 16
BATCH = 2048


class RandomSearch:
    """Proposes feasible architectures at random and learns nothing.

    sampler = RandomSearch(problem, seed=0)
    """

    def __init__(self, problem: Problem, *, seed: int = 0) -> None:
        self.problem = problem
        self._rng = np.random.default_rng(seed)
        self._screen = Screen(problem)

    def ask(self, n: int) -> Genes:
        space = self.problem.space
        batch = max(BATCH, 4 * n)
        rows = self._screen.collect(lambda _: space.sample(self._rng, batch), n, ROUNDS)
        rows = np.concatenate([rows, self._screen.rest(n - len(rows), self._rng)])
        if len(rows) < n and space.size > ENUMERABLE:
            missing = n - len(rows)
            repaired, _ = repair(
                self.problem,
                diverse_sample(self.problem, self._rng, batch),
                self._rng,
                wanted=4 * missing,
            )
            rows = np.concatenate([rows, self._screen.fresh(repaired, missing)])
        return rows

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        self._screen.mark(genes)
