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
from typing import TYPE_CHECKING

import numpy as np

from predictors.tables.additive import AdditiveTable
from search.exact.optimum import Target, check_sum, no_solution, undecided
from search.exact.programme import SECONDS, Solution
from search.exact.system import Values
from search.problem import Constraint
from search_space import Genes, SearchSpace

if TYPE_CHECKING:  # it imports torch
    from predictors.proxies.space_tables import PathTables

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
    quality: AdditiveTable | PathTables,
    cost: AdditiveTable,
    constraints: Sequence[Constraint] = (),
    tables: Mapping[str, AdditiveTable] | None = None,
    *,
    maximise: tuple[bool, bool] = (True, False),
    effectiveness: tuple[PathTables, float] | None = None,
    shape_rule: bool = False,
    points: int | None = None,
    gap: float = 0.0,
    seconds: float = SECONDS,
    progress: Callable[[int, float], None] | None = None,
) -> Front:
    """The front of two additive quantities.

    Args:
        space, constraints, tables, effectiveness, shape_rule: as for ``optimise``.
        seconds: the solver's time limit for each point.
        quality: what each step optimises: a table of a sum, or DeepMAD's score.
        cost: what each step limits.
        maximise: whether quality is, and whether cost is.
        points: all of them, or at most this many at evenly spaced costs.
        gap: relative, within which a point's quality is proven to be optimal. With 0 each point
            is efficient; else it may be dominated by what lies within the gap.
        progress: called after each point with their number and the share of the costs swept.

    Raises:
        InfeasibleError: No architecture meets the constraints, which is proven.
        UsageError: A quantity is the largest of its parts.
        RunError: The time limit passed before a first point or an end of the front was known.

    Example:
        >>> front = sweep(space, accuracy, latency, points=20)
        >>> front.quality, front.cost
    """
    begin, tables = time.monotonic(), tables or {}
    check_sum(cost)
    less = -1.0 if maximise[1] else 1.0
    merits = [(cost, -less)]
    target = Target.of(
        space, quality, constraints, tables, maximise[0], effectiveness, shape_rule, merits
    )
    programme, gain = target.programme, target.gain
    price = less * programme.coefficients(cost)
    # both ends first: they say what is little
    best, answer = programme.maximise(gain, gap=gap, seconds=seconds)
    if best is None:
        raise no_solution(answer, programme, effectiveness, seconds)
    cheapest, _ = programme.maximise(-price, gap=gap, seconds=seconds)
    if cheapest is None:  # there is one, since there is a best one
        raise undecided(constraints, seconds)
    lowest = less * float(cost.predict(cheapest[None])[0])
    highest = less * float(cost.predict(best[None])[0])
    range_ = max(highest - lowest, 0.0)
    gained = target.sign * float(np.diff(target.predict(np.stack([cheapest, best])))[0])
    share = LITTLE * gained / range_ if range_ > 0 and gained > 0 else 0.0
    traded = gain - share * price
    cut = programme.system.row((np.arange(programme.system.size), price), low=-np.inf, high=np.inf)
    grid = None if points is None else np.linspace(lowest, highest, max(points, 1))[:-1]
    members: list[Solution] = []
    limit, decided = highest, True
    while True:
        # what meets the limit exactly may miss it by the rounding of its sum
        rounded = limit + APART / 10 * range_
        programme.system.bound(cut, -np.inf, rounded - less * cost.offset)
        started = time.monotonic()
        row, answer = programme.maximise(traded, gap=gap, seconds=seconds)
        if row is None:
            if not members:  # the time limit passed
                raise undecided(constraints, seconds)
            decided = answer.infeasible
            break
        # whatever is within the cut loses at most this of its quality
        lost = share * (rounded - less * cost.offset)
        point = target.solution(row, answer.bound + lost, answer, time.monotonic() - started)
        members.append(point)
        paid = less * float(cost.predict(point.genes[None])[0])
        if progress is not None:
            progress(len(members), 1.0 if not range_ else min(1.0, (highest - paid) / range_))
        limit = min(paid, limit) - APART * range_
        if grid is not None:
            below = grid[grid <= limit]
            limit = float(below[-1]) if len(below) else -np.inf
        if limit < lowest or not range_:
            break
    costs = cost.predict(np.stack([point.genes for point in members]))
    proven = decided and all(point.proof.status == "optimal" for point in members)
    return Front(
        tuple(members), costs, points is None and not gap and proven, time.monotonic() - begin
    )
