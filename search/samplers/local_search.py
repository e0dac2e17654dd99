"""Local search around the front.

Every one-gene change of every architecture on the present front is a candidate; members whose
neighbourhood is explored least come first, so that a new member is looked around at once.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from search.problem import Problem
from search.samplers.archive import Archive, Judged
from search.samplers.proposals import PopulationSampler, neighbours
from search_space.stage_space import Genes


class LocalSearch(PopulationSampler):
    """Proposes feasible neighbours of the front, least explored members first.

    sampler = LocalSearch(problem, seed=0)
    """

    def __init__(self, problem: Problem, *, seed: int = 0, population: int = 24) -> None:
        super().__init__(problem, seed=seed, population=population)
        self._archive = Archive(problem)
        self._explored: dict[bytes, int] = {}  # neighbours proposed of each member of a front
        self._exhausted: set[bytes] = set()  # members whose neighbours are all known

    def _propose(self, n: int) -> Genes:
        """Up to ``n`` new feasible neighbours, one a member until no member has more."""
        front = self._archive.results.genes[self._rng.permutation(self._archive.front)]
        members = [row for row in front if row.tobytes() not in self._exhausted]
        explored = [self._explored.get(member.tobytes(), 0) for member in members]
        waiting: deque[tuple[Genes, Genes | None]] = deque(
            (members[i], None) for i in np.argsort(explored, kind="stable")
        )
        chosen = [self._no_rows()]
        while waiting and len(chosen) <= n:
            member, rows = waiting.popleft()
            if rows is None:
                rows = self._screen.candidates(neighbours(self.problem, member))
                rows = self._rng.permutation(rows)
            rows = self._screen.candidates(rows)
            key = member.tobytes()
            if len(rows) == 0:
                self._exhausted.add(key)
                continue
            self._explored[key] = self._explored.get(key, 0) + 1
            chosen.append(self._screen.fresh(rows, 1))
            waiting.append((member, rows[1:]))
        return np.concatenate(chosen)

    def _learn(self, told: Judged) -> None:
        self._archive.tell(told)
