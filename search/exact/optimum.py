"""The proven optimum of an additive quantity under limits, and how near limits can be met."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from predictors.tables.additive import AdditiveTable
from search.exact.paths import Flow, bound_effectiveness, score_coefficients
from search.exact.programme import GAP, SECONDS, Programme, Proof, Solution
from search.exact.system import Answer, Values
from search.problem import Constraint
from search_space import Genes, SearchSpace
from search_space.errors import InfeasibleError, RunError, UsageError
from search_space.metrics import format_metric

if TYPE_CHECKING:  # it imports torch, which feasibility does not need
    from predictors.proxies.space_tables import PathTables

ANY_GAP = 100.0  # the first solution will do
PENALTY_GAP = 1e-3  # of the nearest violation: which architecture is the nearest is advice


def optimise(
    space: SearchSpace,
    objective: AdditiveTable | PathTables,
    constraints: Sequence[Constraint] = (),
    tables: Mapping[str, AdditiveTable] | None = None,
    *,
    maximise: bool = True,
    effectiveness: tuple[PathTables, float] | None = None,
    shape_rule: bool = False,
    gap: float = GAP,
    seconds: float = SECONDS,
) -> Solution:
    """The best architecture of a space by an additive objective.

    Args:
        space: where to look.
        objective: a table of a sum, or DeepMAD's score (``PathTables``).
        constraints: on metrics of ``tables``, with an upper limit, a lower limit, or both.
        tables: additive tables by metric.
        maximise: or minimise.
        effectiveness: tables of the longest path and the largest ρ that is allowed.
        shape_rule: whether ``search.shape`` holds.
        gap: relative, within which the result is proven to be optimal.
        seconds: time limit of the solver; the best solution so far is returned then.

    Returns:
        The solution, with its proof.

    Raises:
        InfeasibleError: No architecture meets the limits, which is proven.
        UsageError: The objective is the largest of its parts.
        RunError: The time limit passed before there was a solution.

    Example:
        >>> optimum = optimise(space, accuracy, [Constraint("macs", maximum=1e9)], counts(space))
        >>> optimum.value, optimum.proof.gap
    """
    begin, tables = time.monotonic(), tables or {}
    target = Target.of(
        space, objective, constraints, tables, maximise, effectiveness, shape_rule, ()
    )
    genes, answer = target.programme.maximise(target.gain, gap=gap, seconds=seconds)
    if genes is None:
        raise no_solution(answer, target.programme, effectiveness, seconds)
    return target.solution(genes, answer.bound, answer, time.monotonic() - begin)


@dataclass(frozen=True)
class Target:
    """A programme with what is maximised in it.

    Attributes:
        gain: over the variables, shape (n,); the objective with its sign, but for ``offset``.
        sign: −1 where the objective is to be small.
        predict: the objective of rows, shape (n, genes) to (n,).
    """

    programme: Programme
    gain: Values
    offset: float
    sign: float
    predict: Callable[[Genes], Values]

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        objective: AdditiveTable | PathTables,
        constraints: Sequence[Constraint],
        tables: Mapping[str, AdditiveTable],
        maximise: bool,
        effectiveness: tuple[PathTables, float] | None,
        shape_rule: bool,
        merits: Sequence[tuple[AdditiveTable, float]],
    ) -> Target:
        """The programme of ``optimise``; ``merits`` says what else will be optimised in it."""
        sign = 1.0 if maximise else -1.0
        paths = None if isinstance(objective, AdditiveTable) else objective
        worth = objective if isinstance(objective, AdditiveTable) else objective.entropy
        wanted = [(worth, sign), *merits]
        if effectiveness is not None:
            paths = effectiveness[0]
            wanted += [(paths.entropy, 1.0), (paths.layers, -1.0)]
        programme = Programme(space, constraints, tables, wanted, shape_rule)
        entropy = None if paths is None else Flow(programme, paths.entropy)
        if effectiveness is not None and entropy is not None:
            bound_effectiveness(programme, *effectiveness, entropy)
        if isinstance(objective, AdditiveTable):
            check_sum(objective)
            gain, offset = programme.coefficients(objective), objective.offset
            return cls(programme, sign * gain, sign * offset, sign, objective.predict)
        assert entropy is not None
        gain = score_coefficients(programme, objective, entropy)
        return cls(programme, sign * gain, 0.0, sign, objective.score)

    def solution(self, genes: Genes, bound: float, answer: Answer, seconds: float) -> Solution:
        """A solution with the proof by a bound of its gain."""
        value = float(self.predict(genes[None])[0])
        bound = self.sign * max(bound + self.offset, self.sign * value)
        return Solution(genes, value, Proof.of(value, bound, answer, seconds))


def no_solution(
    answer: Answer,
    programme: Programme,
    effectiveness: tuple[PathTables, float] | None,
    seconds: float,
) -> InfeasibleError | RunError:
    """The error where a programme has no solution, or none that was seen in time."""
    if not answer.infeasible:
        return undecided(programme.constraints, seconds)
    further = [] if effectiveness is None else [f"effectiveness ρ ≤ {effectiveness[1]:g}"]
    return nothing_meets(programme, further)


def meeting(
    space: SearchSpace,
    constraints: Sequence[Constraint],
    tables: Mapping[str, AdditiveTable],
    shape_rule: bool = False,
    *,
    count: int = 1,
    seconds: float = SECONDS,
) -> Genes:
    """Architectures that meet all limits, in random directions, shape (k, genes).

    Args:
        space, constraints, tables, shape_rule: as for ``optimise``.
        count: how many at most; at least one is returned.
        seconds: the solver's time limit for all.

    Raises:
        InfeasibleError: There is none, which is proven; names the nearest and what would do.
        RunError: The time limit passed before either was known.
    """
    begin, rng = time.monotonic(), np.random.default_rng(0)
    programme = Programme(space, constraints, tables, (), shape_rule)
    rows: list[Genes] = []
    while len(rows) < count and (left := seconds - (time.monotonic() - begin)) > 0:
        # any direction will do, and a random one is followed much faster than none
        direction = rng.normal(size=programme.system.size)
        genes, answer = programme.maximise(direction, gap=ANY_GAP, seconds=left)
        if genes is None and not rows:
            raise no_solution(answer, programme, None, seconds)
        if genes is None:
            break
        rows.append(genes)
    return np.unique(rows, axis=0)


def nearest(programme: Programme) -> Genes | None:
    """The architecture whose sums violate their limits the least in all, relative to them.

    Limits on largest parts, and the rule on shape, are kept; None where they cannot be.
    """
    space, constraints, tables = programme.space, programme.constraints, programme.tables
    loose = Programme(space, constraints, tables, (), programme.shape_rule)
    genes, _ = loose.maximise(-loose.loosen(), gap=PENALTY_GAP, strict=False)
    return genes


def nothing_meets(programme: Programme, further: Sequence[str]) -> InfeasibleError:
    """The error that says what cannot be met, how near it can be met, and what to type instead."""
    space, constraints = programme.space, programme.constraints
    shape_rule = programme.shape_rule
    limits = [*map(str, constraints), *(["the rule on shape"] if shape_rule else []), *further]
    message = (
        f"no architecture of space {space.name!r} meets all of {'; '.join(limits)}: proven by an "
        f"integer programme over all {space.size:.2g} architectures."
    )
    row = None if further else nearest(programme)
    advice = [] if row is None else loosened(constraints, programme.tables, row)
    if row is not None and advice:
        missed = " and ".join(name for name, _ in advice)
        return InfeasibleError(
            f"{message} The nearest is {space.decode(row[None])[0]}, with {missed}. "
            f"Either {' and '.join(fix for _, fix in advice)}, or take another space."
        )
    return InfeasibleError(f"{message} Loosen one of them, or take another space.")


def loosened(
    constraints: Sequence[Constraint], tables: Mapping[str, AdditiveTable], row: Genes
) -> list[tuple[str, str]]:
    """For each limit that a row misses: what it has, and the limit that it would meet."""
    result = []
    for constraint in constraints:
        metric = constraint.metric
        value = float(tables[metric].predict(row[None])[0])
        if constraint.violation(np.array([value]))[0]:
            above = constraint.maximum is not None and value > constraint.maximum
            has = f"{metric} of {format_metric(metric, value)}{constraint.note}"
            result.append((has, constraint.advice(value, above)))
    return result


def undecided(constraints: Sequence[Constraint], seconds: float) -> RunError:
    limits = "; ".join(map(str, constraints)) or "no limits"
    return RunError(
        f"{limits}: the integer programme gave no architecture within {seconds:g} s; "
        "widen the bands, leave one of them out, or take a smaller space."
    )


def check_sum(table: AdditiveTable) -> None:
    """Check that a table is a sum.

    Raises:
        UsageError: It is the largest of its parts.
    """
    if table.combine != "sum":
        raise UsageError(
            "the objective is the largest of its parts, and only sums can be optimised exactly; "
            "limit it instead."
        )
