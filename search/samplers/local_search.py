"""Local search around the front, and samplers that end with it.

Every one-gene change of every architecture on the present front is a candidate; members whose
neighbourhood is explored least come first, so that a new member is looked around at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from search.problem import Problem, Values
from search.samplers.archive import Archive
from search.samplers.base import Sampler, Screen
from search.samplers.proposals import ROUNDS, first_population, neighbours, random_rows
from search_space.errors import UsageError
from search_space.space import Genes


class LocalSearch:
    """Sampler that proposes feasible neighbours of the front, least explored members first.

    Args:
        problem: what to search for.
        seed: seed of everything random.
        population: size of the spread population that it starts from.
        alone: whether to start from a population, and go on at random where all neighbours are
            known; otherwise it then has nothing to propose.
    """

    def __init__(
        self, problem: Problem, *, seed: int = 0, population: int = 24, alone: bool = True
    ) -> None:
        self.problem = problem
        self.population = population
        self.alone = alone
        self._rng = np.random.default_rng(seed)
        self._screen = Screen(problem)
        self._archive = Archive(problem)
        self._initial: Genes | None = None if alone else self._rows([])
        self._explored: dict[bytes, int] = {}  # neighbours proposed of each member of a front
        self._exhausted: dict[bytes, None] = {}  # members whose neighbours are all known

    def ask(self, n: int) -> Genes:
        if self._initial is None:
            self._initial = first_population(self.problem, self._screen, self._rng, self.population)
        rows = self._screen.fresh(self._initial[:n], n)
        self._initial = self._initial[n:]
        if len(rows) < n:
            rows = np.concatenate([rows, self._around_front(n - len(rows))])
        if len(rows) < n and self.alone:
            fill = random_rows(self.problem, self._screen, self._rng, n - len(rows))
            rows = np.concatenate([rows, fill])
        return rows

    def _around_front(self, n: int) -> Genes:
        """Up to ``n`` new feasible neighbours, one a member until no member has more."""
        front = self._archive.genes[self._rng.permutation(self._archive.front)]
        members = [row for row in front if row.tobytes() not in self._exhausted]
        explored = [self._explored.get(member.tobytes(), 0) for member in members]
        open_members = [members[i] for i in np.argsort(explored, kind="stable")]
        waiting: deque[tuple[Genes, Genes | None]] = deque(
            (member, None) for member in open_members
        )
        chosen: list[Genes] = []
        while waiting and len(chosen) < n:
            member, rows = waiting.popleft()
            if rows is None:
                rows = self._screen.candidates(neighbours(self.problem, member))
                rows = self._rng.permutation(rows)
            fresh, rest = self._first_new(rows)
            key = member.tobytes()
            if len(fresh) == 0:
                self._exhausted[key] = None
                continue
            self._explored[key] = self._explored.get(key, 0) + 1
            chosen.append(fresh[0])
            waiting.append((member, rest))
        return np.stack(chosen) if chosen else self._rows([])

    def _first_new(self, rows: Genes) -> tuple[Genes, Genes]:
        """The first row that is not marked yet, now marked, and those behind it."""
        for i in range(len(rows)):
            fresh = self._screen.fresh(rows[i : i + 1], 1)
            if len(fresh):
                return fresh, rows[i + 1 :]
        return rows[:0], rows[:0]

    def skip(self, genes: Genes) -> None:
        """Never propose these rows."""
        self._screen.mark(genes)

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        self._screen.mark(genes)
        self._archive.tell(genes, objectives, violations)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": self._rng.bit_generator.state,
            "seen": self._screen.state(),
            "archive": self._archive.state(),
            "initial": None if self._initial is None else self._initial.tolist(),
            "explored": [[_plain(key), count] for key, count in self._explored.items()],
            "exhausted": [_plain(key) for key in self._exhausted],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._screen.load(state["seen"])
        self._archive.load(state["archive"])
        initial = state["initial"]
        self._initial = None if initial is None else self._rows(initial)
        self._explored = {_key(row): count for row, count in state["explored"]}
        self._exhausted = dict.fromkeys(_key(row) for row in state["exhausted"])

    def _rows(self, rows: list[list[int]]) -> Genes:
        return np.array(rows, dtype=np.int64).reshape(-1, self.problem.space.num_genes)


def _plain(key: bytes) -> list[int]:
    return [int(gene) for gene in np.frombuffer(key, dtype=np.int64)]


def _key(row: list[int]) -> bytes:
    return np.array(row, dtype=np.int64).tobytes()


class Polished:
    """A sampler whose last evaluations go to local search around its front.

    Args:
        inner: proposes the first ``after`` of the budget, and whatever local search has no
            neighbours left for.
        problem: what to search for.
        budget: evaluations of the whole search.
        after: share of it that ``inner`` has, between 0 and 1.
        seed: seed of the local search.

    Raises UsageError for a share outside 0 … 1.
    """

    def __init__(
        self, inner: Sampler, problem: Problem, *, budget: int, after: float = 0.8, seed: int = 0
    ) -> None:
        if not 0 <= after <= 1:
            raise UsageError(f"polish after {after:g} of the budget: give a share from 0 to 1.")
        self.inner = inner
        self.local = LocalSearch(problem, seed=seed, alone=False)
        self._screen = Screen(problem)  # of both: neither sees what the other one asked for
        self._switch = round(after * budget)
        self._asked = 0

    def ask(self, n: int) -> Genes:
        rows = self.local.ask(n if self._asked >= self._switch else 0)
        rows = self._screen.fresh(rows, n)
        for _ in range(ROUNDS):
            if len(rows) == n:
                break
            more = self.inner.ask(n - len(rows))
            if len(more) == 0:
                break
            rows = np.concatenate([rows, self._screen.fresh(more, n - len(rows))])
        self.local.skip(rows)
        self._asked += len(rows)
        return rows

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        self._screen.mark(genes)
        self.inner.tell(genes, objectives, violations)
        self.local.tell(genes, objectives, violations)

    def state_dict(self) -> dict[str, Any]:
        return {
            "asked": self._asked,
            "seen": self._screen.state(),
            "inner": self.inner.state_dict(),
            "local": self.local.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._asked = state["asked"]
        self._screen.load(state["seen"])
        self.inner.load_state_dict(state["inner"])
        self.local.load_state_dict(state["local"])
