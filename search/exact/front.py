"""The Pareto front of two additive quantities, proven: the ε-constraint sweep.

The best quality at any cost, then the best at a lower cost, and so on (Haimes et al. 1971). A
little of the cost is taken off the quality that each step maximises, so that every point is
efficient (Mavrotas 2009). Costs that are nearer to each other than ``APART`` of their range count
as one, which is what ends the sweep. Where there are more points than anyone wants, it visits
evenly spaced costs, and each point's bound says what might lie between it and the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from predictors.tables.additive import AdditiveTable
from search.exact.optimum import check_sum, nothing_meets, undecided
from search.exact.programme import SECONDS, Programme, Proof, Solution
from search.exact.system import Answer, Values
from search.problem import Constraint
from search_space import Genes, SearchSpace

APART = 1e-6  # of the range of costs: costs closer than this are the same
LITTLE = 1e-6  # of the range of qualities, lost over the whole range of costs


@dataclass(frozen=True)
class Front:
    """Points of a front from the best quality to the best cost.

    Attributes:
        points: each with the proof of its quality under the cost at which it was looked for.
        cost: in its own unit, shape (n,).
        complete: whether nothing is missing: every architecture within the constraints is
            dominated by a point of the front, but for differences below the sweep's resolution,
            10⁻⁶ of the ranges.
        seconds: of wall time.
    """

    points: tuple[Solution, ...]
    cost: Values
    complete: bool
    seconds: float

    def __len__(self) -> int:
        return len(self.points)

    @property
    def genes(self) -> Genes:
        """Rows, shape (n, genes)."""
        return np.stack([point.genes for point in self.points])

    @property
    def quality(self) -> Values:
        """In its own unit, shape (n,)."""
        return np.array([point.value for point in self.points])

    @property
    def gap(self) -> float:
        """The largest relative gap of its points."""
        return max(point.proof.gap for point in self.points)


def sweep(
    space: SearchSpace,
    quality: AdditiveTable,
    cost: AdditiveTable,
    constraints: Sequence[Constraint] = (),
    tables: Mapping[str, AdditiveTable] | None = None,
    *,
    maximise: tuple[bool, bool] = (True, False),
    shape_rule: bool = False,
    points: int | None = None,
    gap: float = 0.0,
    seconds: float = SECONDS,
    progress: Callable[[int, float], None] | None = None,
) -> Front:
    """The front of two additive quantities.

    Args:
        space, constraints, tables, shape_rule, seconds: as for ``optimise``, for each point.
        quality: what each step optimises.
        cost: what each step limits.
        maximise: whether quality is, and whether cost is.
        points: all of them, or at most this many at evenly spaced costs.
        gap: relative, within which a point's quality is proven to be optimal. With 0 each point
            is efficient; else it may be dominated by what lies within the gap.
        progress: called after each point with their number and the share of the costs swept.

    Raises:
        InfeasibleError: No architecture meets the constraints, which is proven.
        UsageError: A quantity is the largest of its parts.
        RunError: The time limit passed before a first point.

    Example:
        >>> front = sweep(space, accuracy, latency, points=20)
        >>> front.quality, front.cost
    """
    begin, tables = time.monotonic(), tables or {}
    check_sum(quality)
    check_sum(cost)
    better, less = (1.0 if maximise[0] else -1.0), (-1.0 if maximise[1] else 1.0)
    programme = Programme(
        space, constraints, tables, [(quality, better), (cost, -less)], shape_rule
    )
    gain = better * programme.coefficients(quality)
    price = less * programme.coefficients(cost)
    step = _Step(programme, quality, better, gap, seconds)

    # both ends first: they say what is little
    best, answer = step.solve(gain)
    if best is None:
        if not answer.infeasible:
            raise undecided(constraints, seconds)
        raise nothing_meets(space, constraints, tables, shape_rule)
    cheapest, _ = step.solve(-price)
    assert cheapest is not None, "there is a best one, so there is a cheapest"
    lowest = less * float(cost.predict(cheapest[None])[0])
    highest = less * float(cost.predict(best[None])[0])
    range_ = max(highest - lowest, 0.0)
    gained = better * float(np.diff(quality.predict(np.stack([cheapest, best])))[0])
    share = LITTLE * gained / range_ if range_ > 0 and gained > 0 else 0.0
    traded = gain - share * price
    cut = programme.system.row((np.arange(programme.system.size), price), low=-np.inf, high=np.inf)
    grid = None if points is None else np.linspace(lowest, highest, max(points, 1))[:-1]
    found: list[Solution] = []
    limit = highest
    while True:
        # what meets the limit exactly may miss it by the rounding of its sum
        rounded = limit + APART / 10 * range_
        programme.system.bound(cut, -np.inf, rounded - less * cost.offset)
        # whatever is within the cut pays at most this
        point = step.point(traded, share * (rounded - less * cost.offset))
        if point is None:
            break
        found.append(point)
        own = less * float(cost.predict(point.genes[None])[0])
        if progress is not None:
            progress(len(found), 1.0 if not range_ else min(1.0, (highest - own) / range_))
        limit = min(own, limit) - APART * range_
        if grid is not None:
            below = grid[grid <= limit]
            limit = float(below[-1]) if len(below) else -np.inf
        if limit < lowest or not range_:
            break
    costs = cost.predict(np.stack([point.genes for point in found]))
    proven = all(point.proof.status == "optimal" for point in found)
    return Front(
        tuple(found), costs, points is None and not gap and proven, time.monotonic() - begin
    )


@dataclass(frozen=True)
class _Step:
    """One solution of a sweep's programme."""

    programme: Programme
    quality: AdditiveTable
    better: float
    gap: float
    seconds: float

    def solve(self, objective: Values) -> tuple[Genes | None, Answer]:
        return self.programme.maximise(objective, gap=self.gap, seconds=self.seconds)

    def point(self, traded: Values, paid: float) -> Solution | None:
        """The best under the sweep's present limit; ``paid`` is at most taken off its quality."""
        begin = time.monotonic()
        genes, answer = self.solve(traded)
        if genes is None:
            return None
        value = float(self.quality.predict(genes[None])[0])
        bound = max(answer.bound + paid + self.better * self.quality.offset, self.better * value)
        proof = Proof.of(value, self.better * bound, answer, time.monotonic() - begin)
        return Solution(genes, value, proof)
