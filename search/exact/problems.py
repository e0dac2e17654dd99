"""Search problems that need no evaluation, solved exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from predictors.tables.additive import AdditiveTable
from search.exact.front import Front, sweep
from search.exact.optimum import optimise
from search.exact.programme import GAP, SECONDS
from search.problem import Constraint, Problem
from search.shape import ShapeRule
from search_space.errors import UsageError


def linear_constraints(
    problem: Problem,
) -> tuple[list[Constraint], Mapping[str, AdditiveTable], bool, list[Constraint]]:
    """The limits of a problem that an integer programme can keep.

    Returns:
        Constraints on additive tables, these tables by metric, whether the rule on shape holds,
        and the cheap constraints that are neither.
    """
    tables = {m: t for m, t in problem.tables.items() if isinstance(t, AdditiveTable)}
    kept, shape_rule, others = [], False, []
    for constraint in problem.constraints:
        if constraint.metric in tables:
            kept.append(constraint)
        elif isinstance(problem.tables[constraint.metric], ShapeRule) and constraint.maximum == 0:
            shape_rule = True
        else:
            others.append(constraint)
    return kept, tables, shape_rule, others


def refusal(problem: Problem) -> str | None:
    """Why nothing can be proven about a problem, and what to use instead; None where it can."""
    _, tables, _, others = linear_constraints(problem)
    used = [*(o.metric for o in problem.objectives), *problem.needs_evaluation]
    for metric in dict.fromkeys([*used, *(c.metric for c in others)]):
        if metric not in tables:
            return (
                f"{metric} does not add up over a network's parts, so nothing can be proven about "
                f"it; exact search knows {', '.join(sorted(tables)) or 'no metric here'}. "
                "Use another sampler, such as surrogate."
            )
        if tables[metric].combine != "sum" and metric in [o.metric for o in problem.objectives]:
            return (
                f"{metric} is the largest of its parts, and only sums can be optimised exactly; "
                "limit it instead, or use another sampler, such as surrogate."
            )
    if len(problem.objectives) > 2:
        return (
            f"{len(problem.objectives)} objectives: exact fronts have two. Turn the others into "
            "limits, or use another sampler, such as surrogate."
        )
    return None


def solve(
    problem: Problem,
    *,
    gap: float | None = None,
    points: int | None = None,
    seconds: float = SECONDS,
    progress: Callable[[int, float], None] | None = None,
) -> Front:
    """The proven front of a problem of one or two objectives; of one objective, its one point.

    All metrics that the problem uses must have additive tables; ``search.shape``'s rule may be a
    constraint too. Of two objectives, the second is the one that the sweep limits.

    Args:
        gap: relative, within which optima are proven; by default 0.001 for one objective, 0 for
            a front.
        points: of a front: all, or at most this many at evenly spaced values of the second
            objective.
        seconds, progress: as for ``sweep``.

    Raises:
        InfeasibleError: No architecture meets the constraints, which is proven.
        UsageError: The problem is not of this kind.

    Example:
        >>> front = solve(Problem(space, (Objective("macs", "minimize"),), (), counts(space), ()))
        >>> front.points[0].proof.bound
    """
    if (reason := refusal(problem)) is not None:
        raise UsageError(reason)
    constraints, tables, shape_rule, _ = linear_constraints(problem)
    first, *others = problem.objectives
    maximise = first.direction == "maximize"
    if not others:
        optimum = optimise(
            problem.space,
            tables[first.metric],
            constraints,
            tables,
            maximise=maximise,
            shape_rule=shape_rule,
            gap=GAP if gap is None else gap,
            seconds=seconds,
        )
        proven = optimum.proof.status == "optimal"
        return Front((optimum,), np.array([optimum.value]), proven, optimum.proof.seconds)
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
        seconds=seconds,
        progress=progress,
    )
