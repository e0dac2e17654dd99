"""Search problems that need no evaluation, solved exactly."""

from __future__ import annotations

from predictors.tables.additive import AdditiveTable
from search.exact.front import Front, sweep
from search.exact.optimum import Optimum, optimise
from search.exact.programme import GAP
from search.problem import Problem
from search.shape import ShapeRule
from search_space.errors import UsageError


def solve(
    problem: Problem, *, gap: float | None = None, points: int | None = None
) -> Optimum | Front:
    """The proven optimum of a problem with one objective, the proven front of one with two.

    All metrics that the problem uses must have additive tables; ``search.shape``'s rule may be a
    constraint too. Of two objectives, the second is the one that the sweep limits.

    Args:
        gap: relative, within which optima are proven; by default 0.001 for one objective, 0 for
            a front.
        points: of a front: all, or at most this many at evenly spaced values of the second
            objective.

    Raises InfeasibleError where no architecture meets the constraints, which is proven, and
    UsageError where the problem is not of this kind.
    """
    tables = {
        name: table for name, table in problem.tables.items() if isinstance(table, AdditiveTable)
    }
    constraints, shape_rule = [], False
    for constraint in problem.constraints:
        if isinstance(problem.tables.get(constraint.metric), ShapeRule):
            if constraint.maximum != 0 or constraint.minimum is not None:
                raise UsageError(f"{constraint}: the rule on shape is kept exactly by ≤ 0 only.")
            shape_rule = True
        else:
            constraints.append(constraint)
    used = [*(o.metric for o in problem.objectives), *(c.metric for c in constraints)]
    for metric in used:
        if metric not in tables:
            raise UsageError(
                f"{metric} has no additive table, so nothing can be proven about it; exact "
                f"optimisation knows {', '.join(sorted(tables)) or 'no metric of this problem'}. "
                "Use a sampler instead, or an additive model of it."
            )
    first, *others = problem.objectives
    maximise = first.direction == "maximize"
    if not others:
        return optimise(
            problem.space,
            tables[first.metric],
            constraints,
            tables,
            maximise=maximise,
            shape_rule=shape_rule,
            gap=GAP if gap is None else gap,
        )
    if len(others) > 1:
        raise UsageError(
            f"{len(problem.objectives)} objectives: exact fronts have two. Turn the others into "
            "constraints, or into one weighted sum."
        )
    return sweep(
        problem.space,
        tables[first.metric],
        tables[others[0].metric],
        constraints,
        tables,
        maximise=(maximise, others[0].direction == "maximize"),
        shape_rule=shape_rule,
        points=points,
        gap=0.0 if gap is None else gap,
    )
