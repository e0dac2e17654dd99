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
from search_space.space import Genes


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
        open_members = [members[i] for i in np.argsort(explored, kind="stable")]
        waiting: deque[tuple[Genes, Genes | None]] = deque((each, None) for each in open_members)
        chosen: list[Genes] = []
        while waiting and len(chosen) < n:
            member, rows = waiting.popleft()
            if rows is None:
                rows = self._screen.candidates(neighbours(self.problem, member))
                rows = self._rng.permutation(rows)
            fresh, rest = self._first_new(rows)
            key = member.tobytes()
            if len(fresh) == 0:
                self._exhausted.add(key)
                continue
            self._explored[key] = self._explored.get(key, 0) + 1
            chosen.append(fresh[0])
            waiting.append((member, rest))
        return np.stack(chosen) if chosen else self._no_rows()

    def _first_new(self, rows: Genes) -> tuple[Genes, Genes]:
        """The first row that is not marked yet, now marked, and those behind it."""
        for i in range(len(rows)):
            fresh = self._screen.fresh(rows[i : i + 1], 1)
            if len(fresh):
                return fresh, rows[i + 1 :]
        return rows[:0], rows[:0]

    def _learn(self, told: Judged) -> None:
        self._archive.tell(told)
