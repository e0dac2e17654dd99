"""The Pareto front of two additive quantities, proven: the ε-constraint sweep.

The best quality at any cost, the least cost of that quality; then the same strictly below this
cost, and so on (Haimes et al. 1971; Mavrotas 2009 for the second stage, which is what makes every
point efficient). Sums are compared as the tables give them, and two costs count as different
where they differ by more than rounding can explain, so no point is stepped over however close it
lies. Where there are more points than anyone wants, the sweep visits evenly spaced costs, and
every point's bound says what might lie between it and the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from predictors.tables.additive import AdditiveTable
from search.exact.best import Solver
from search.exact.optimum import Combinations, Sliceable, optimise
from search.exact.programme import Limit, Programme, Values
from search.problem import ROUNDING, Constraint
from search_space import Genes, SearchSpace
from search_space.errors import InfeasibleError

APART = 2 * ROUNDING  # of the largest cost: costs closer than this are the same


@dataclass(frozen=True)
class Front:
    """Points of a front from the best quality to the best cost.

    Args:
        genes: shape (n, genes).
        quality, cost: in their own units and directions, shape (n,).
        limits: cost under which each point was looked for, shape (n,).
        bounds: no architecture within the constraints whose cost is within ``limits[i]`` has a
            better quality than ``bounds[i]``, shape (n,).
        complete: whether nothing is missing: every architecture within the constraints is
            dominated by a point of the front, or equal to one in both objectives.
        solved: programmes that were opened.
        seconds: of wall time.
    """

    genes: Genes
    quality: Values
    cost: Values
    limits: Values
    bounds: Values
    complete: bool
    solved: int
    seconds: float

    def __len__(self) -> int:
        return len(self.genes)

    @property
    def gaps(self) -> Values:
        """Relative distance of each bound from its point's quality, shape (n,)."""
        return np.abs(self.bounds - self.quality) / np.maximum(np.abs(self.quality), 1e-12)


def sweep(
    space: SearchSpace,
    quality: Sliceable,
    cost: AdditiveTable,
    constraints: Sequence[Constraint] = (),
    tables: Mapping[str, AdditiveTable] | None = None,
    *,
    maximise: tuple[bool, bool] = (True, False),
    shape_rule: bool = False,
    points: int | None = None,
    gap: float = 0.0,
    progress: Callable[[int, float], None] | None = None,
) -> Front:
    """The front of two additive quantities.

    Args:
        space, constraints, tables, shape_rule: as for ``optimise``.
        quality: what each step optimises.
        cost: what each step limits; it adds up.
        maximise: whether quality is, and whether cost is.
        points: all of them, or at most this many at evenly spaced costs.
        gap: relative, within which a point's quality is proven to be optimal. With 0 each point
            is efficient; else it may be dominated by what lies within the gap.
        progress: called after each point with their number and the share of the costs swept.

    Raises InfeasibleError where no architecture meets the constraints, which is proven, and
    UsageError for what does not add up.
    """
    begin = time.monotonic()
    tables = tables or {}
    better, sign = (1.0 if maximise[0] else -1.0), (-1.0 if maximise[1] else 1.0)
    ends = sign * cost.predict(np.stack([cost.argmin(), cost.argmax()]))
    apart = APART * float(np.abs(ends).max())
    combinations = Combinations(space, shape_rule=shape_rule)
    limited = [
        _with_limit(programme, Limit(cost.at(*case).scaled(sign), float(ends.max()) + apart))
        for case, programme in zip(
            combinations.cases,
            combinations.programmes(quality, constraints, tables, maximise[0]),
            strict=True,
        )
    ]
    if not limited:
        raise InfeasibleError(combinations.nothing_meets([str(c) for c in constraints]))
    solver = Solver(limited, tie=0 if gap == 0 else None)
    least = optimise(
        space,
        cost,
        constraints,
        tables,
        maximise=maximise[1],
        shape_rule=shape_rule,
        gap=gap,
    )
    # the smallest cost that there can be
    lowest = sign * least.bound
    found: list[tuple[Genes, float, float, float, float]] = []
    limit, most, solved = float(ends.max()) + apart, 0.0, least.proof.solved
    grid: Values | None = None
    while True:
        best = solver.best(gap)
        if best is None:
            break
        solved += best.solved
        row = combinations.genes(best.key, best.solution.choices)
        own = sign * float(cost.predict(row[None])[0])
        found.append(
            (row, better * best.solution.value, sign * own, sign * limit, better * best.bound)
        )
        if grid is None:
            most = own
            if points is not None:
                grid = np.linspace(lowest, most, points)
        if progress is not None:
            progress(len(found), 1.0 if most <= lowest else (most - own) / (most - lowest))
        limit = own - apart
        if grid is not None:
            below = grid[grid <= limit]
            if not len(below):
                break
            limit = float(below[-1])
        solver.lower(0, limit)
    genes, *columns = zip(*found, strict=True)
    quality_values, cost_values, limits, bounds = (np.array(column) for column in columns)
    return Front(
        np.stack(genes),
        quality_values,
        cost_values,
        limits,
        bounds,
        complete=points is None and gap == 0,
        solved=solved,
        seconds=time.monotonic() - begin,
    )


def _with_limit(programme: Programme, limit: Limit) -> Programme:
    """With one more limit, the first."""
    return Programme(
        programme.depths,
        programme.objective,
        (limit, *programme.limits),
        programme.effectiveness,
        programme.depth_rules,
    )
