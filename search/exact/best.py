"""The best solution of several programmes, opened from the best bound down.

Bounds of all programmes at once come from the Lagrangian relaxation, and its solutions are often
good ones, so that most programmes are never opened. Those that are left are enumerated
(``search.exact.core``), or go to the integer programme where they have too many candidates or a
bound on effectiveness, which is not linear.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from search.exact.core import MOST_LABELS, Core, indifferent, resolve
from search.exact.dual import descend, minimise
from search.exact.integer import relaxed_bound, solve_integer
from search.exact.programme import GAP, Choices, Programme, Solution, Values
from search.exact.relaxation import Evaluation, Indices, Relaxation

SHARED_ROUNDS = 25
ROUNDS = 40
OWN_ROUNDS = 40
IMPOSSIBLE = -1e150
EASY = 20_000  # labels that cost less than finding better prices
TRIED = 2  # programmes opened without a solution until all bounds are brought down

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Best:
    """The best solution of several programmes, and what is proven.

    Args:
        key: of the programme, as it was given.
        solution: its solution.
        bound: no programme has a larger objective.
        programmes: how many there were; solved: opened, since bounds alone did not settle them.
        seconds: of wall time.
    """

    key: int
    solution: Solution
    bound: float
    programmes: int
    solved: int
    seconds: float

    @property
    def gap(self) -> float:
        """Relative distance of the bound from the solution."""
        return max(0.0, self.bound - self.solution.value) / max(abs(self.solution.value), 1e-12)


def best_of(
    programmes: Iterable[Programme], gap: float = GAP, progress: Progress | None = None
) -> Best | None:
    """Solve what may hold the best solution; None where all are proven infeasible."""
    every = list(programmes)
    return Solver(every).best(gap, progress) if every else None


class Solver:
    """Programmes that are solved again and again while a limit is lowered.

    Args:
        programmes: with the same depths, rules, and maxima of limits.
        tie: the limit, of those that add up, whose quantity is made small among equal objectives.
    """

    def __init__(self, programmes: list[Programme], tie: int | None = None) -> None:
        self.begin = time.monotonic()
        self.relaxation = Relaxation(programmes)
        self.tie = tie
        self.lowest = self.relaxation.lowest()
        n, limits = self.relaxation.capacity.shape
        self._prices = np.zeros((n, limits))
        # bounds are this plus prices · capacity, for whatever capacity
        self._fixed = np.full(n, np.inf)
        self._ceiling = np.where(self.relaxation.impossible, -np.inf, np.inf)
        self._shared = False
        self._value, self._tied = -math.inf, math.inf
        self._best: tuple[int, Solution] | None = None

    def lower(self, k: int, maximum: float) -> None:
        """Lower a limit's value: bounds remain bounds, solutions are forgotten."""
        self.relaxation.limit(k, maximum)
        self._value, self._tied, self._best = -math.inf, math.inf, None

    def best(self, gap: float = GAP, progress: Progress | None = None) -> Best | None:
        """The best solution within the limits as they are; None: proven that there is none."""
        n = len(self.relaxation)
        refined, opened = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        screened = self._share(gap)
        if screened:
            self._descend(np.flatnonzero(self.bounds() > IMPOSSIBLE), gap)
        settled = -1
        while True:
            bounds = self.bounds()
            open_ = ~opened & (bounds > max(self._level(gap), IMPOSSIBLE))
            if progress is not None and settled != (settled := n - int(open_.sum())):
                progress(settled, n)
            if not open_.any():
                break
            if not screened and (self._value > -math.inf or opened.sum() >= TRIED):
                screened = True
                self._descend(np.flatnonzero(open_), gap)
                continue
            row = int(np.where(open_, bounds, -np.inf).argmax())
            opened[row] = self._open(row, gap, refined[row])
            if not opened[row]:
                refined[row] = True
                self._refine(row, gap)
        if self._best is None:
            return None
        row, solution = self._best
        bound = max(float(self.bounds().max()), solution.value)
        return Best(
            key=row,
            solution=Solution(solution.choices, solution.value, bound),
            bound=bound,
            programmes=n,
            solved=int(opened.sum()),
            seconds=time.monotonic() - self.begin,
        )

    def _level(self, gap: float) -> float:
        return indifferent(self._value, gap, self.relaxation.rounding, self.tie is not None)

    def bounds(self) -> Values:
        """What no solution of each programme exceeds, shape (n,); −∞ where there is none."""
        capacity = self.relaxation.capacity
        bounds = np.minimum(self._ceiling, self._fixed + (self._prices * capacity).sum(axis=1))
        # no solution is below the lowest value
        return np.where(bounds < self.lowest - self.relaxation.rounding, -np.inf, bounds)

    def _share(self, gap: float) -> bool:
        """Start from the prices that are best for all programmes together; False: done before."""
        if self._shared:
            return False
        self._shared = True
        rows = np.flatnonzero(self.bounds() > IMPOSSIBLE)
        if len(rows):
            prices = np.zeros(self.relaxation.capacity.shape[1])
            lowest = float(self.lowest[rows].min())
            minimise(
                self.relaxation,
                rows,
                prices,
                lambda: self._level(gap),
                lowest,
                SHARED_ROUNDS,
                self._see,
            )
        return True

    def _descend(self, rows: Indices, gap: float) -> None:
        """Bring down the bounds of many programmes at once."""
        descend(
            self.relaxation,
            rows,
            self._prices[rows],
            lambda: self._level(gap),
            self.lowest[rows],
            ROUNDS,
            self._see,
        )

    def _refine(self, row: int, gap: float) -> None:
        """The best bound of one programme, by its own prices, or by the linear relaxation."""
        programme = self.relaxation.programmes[row]
        if programme.effectiveness is not None:
            bound = relaxed_bound(programme)
            self._ceiling[row] = min(self._ceiling[row], -math.inf if bound is None else bound)
            return
        minimise(
            self.relaxation,
            np.array([row]),
            self._prices[row],
            lambda: self._level(gap),
            float(self.lowest[row]),
            OWN_ROUNDS,
            self._see,
        )

    def _open(self, row: int, gap: float, refined: bool) -> bool:
        """Settle a programme: find its best solution, if that is of interest.

        False where it should be refined before: better prices leave fewer candidates.
        """
        programme = self.relaxation.programmes[row]
        if programme.effectiveness is None:
            most = MOST_LABELS if refined else EASY
            core = Core(self.relaxation, row, self._prices[row], self.tie, most)
            resolved = resolve(core, float(self.lowest[row]), self._value, gap)
            self._ceiling[row] = min(self._ceiling[row], resolved.ceiling)
            if (found := resolved.best) is not None:
                choices = self.relaxation.placed(row, found.depths, found.counts)
                self._take(row, choices, found.value, found.usage)
            if resolved.complete:
                return True
        if not refined:
            return False
        solution = solve_integer(programme, self._value, gap)
        ceiling = self._value if solution is None else solution.bound
        self._ceiling[row] = min(self._ceiling[row], ceiling)
        if solution is not None:
            self._take(row, solution.choices, solution.value)
        return True

    def _see(self, rows: Indices, prices: Values, found: Evaluation) -> None:
        """Remember the best bounds, and a solution that happens to be within the limits."""
        relaxation = self.relaxation
        capacity = relaxation.capacity[rows]
        priced = (prices * capacity).sum(axis=1)
        better = found.bounds < self._fixed[rows] + (self._prices[rows] * capacity).sum(axis=1)
        self._fixed[rows[better]] = (found.bounds - priced)[better]
        self._prices[rows[better]] = prices[better]
        meets = (found.usage <= capacity + relaxation.tolerance).all(axis=1)
        meets &= found.values > max(self._value, IMPOSSIBLE)
        if not meets.any():
            return
        i = int(np.where(meets, found.values, -np.inf).argmax())
        counts = []
        for stage, depth, choices in zip(
            relaxation.stages, found.depths[i], found.choices, strict=True
        ):
            times = np.zeros((len(stage.positions), len(stage.columns)), dtype=np.int64)
            times[np.arange(len(times)), choices[i]] = stage.counts[:, depth]
            counts.append(tuple(times))
        row = int(rows[i])
        placed = relaxation.placed(row, found.depths[i].tolist(), counts)
        if relaxation.programmes[row].meets(placed):
            self._take(row, placed, float(found.values[i]), found.usage[i])

    def _take(self, row: int, choices: Choices, value: float, usage: Values | None = None) -> None:
        """Keep a solution if it is the best so far; of equals that with more of ``tie`` left."""
        tied = math.inf
        if self.tie is not None and usage is not None:
            tied = float((usage - self.relaxation.capacity[row])[self.tie])
        rounding = self.relaxation.rounding
        if value > self._value + rounding or (
            value >= self._value - rounding and tied < self._tied
        ):
            self._value, self._tied = value, tied
            self._best = row, Solution(tuple(map(tuple, choices)), value, math.inf)
