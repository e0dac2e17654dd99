"""The proven optimum of a space: programmes for all combinations of resolution and widths."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from predictors.proxies.space_tables import PathTables
from predictors.tables.additive import AdditiveTable, Slice
from search.exact.best import Best, best_of
from search.exact.programme import GAP, Choices, Effectiveness, Limit, Programme
from search.problem import Constraint
from search.shape import DEEPEST
from search_space import Genes, SearchSpace
from search_space.errors import InfeasibleError, UsageError

Case = tuple[int, tuple[int, ...]]
"""Indices of resolution and of the stages' widths."""


class Sliceable(Protocol):
    """A quantity that is additive once resolution and widths are fixed."""

    def at(self, resolution: int, widths: Sequence[int]) -> Slice:
        """The quantity at these indices."""
        ...


@dataclass(frozen=True)
class Optimum:
    """An architecture that is proven to be the best within ``gap``, relative.

    Args:
        genes: shape (genes,).
        value: of the objective, as it was given.
        bound: no architecture within the limits is better than this.
        proof: what was solved.
    """

    genes: Genes
    value: float
    bound: float
    proof: Best


def optimise(
    space: SearchSpace,
    objective: Sliceable,
    constraints: Sequence[Constraint] = (),
    tables: Mapping[str, AdditiveTable] | None = None,
    *,
    maximise: bool = True,
    paths: PathTables | None = None,
    effectiveness: float | None = None,
    shape_rule: bool = False,
    gap: float = GAP,
    progress: Callable[[int, int], None] | None = None,
) -> Optimum:
    """The best architecture of a space by an additive objective.

    Args:
        space: where to look.
        objective: an additive table, or DeepMAD's score (``PathTables``).
        constraints: on metrics of ``tables``, with an upper limit, a lower limit, or both.
        tables: additive tables by metric; those of a largest part have no lower limit.
        maximise: or minimise.
        paths, effectiveness: tables of the longest path and the largest ρ that is allowed.
        shape_rule: whether ``search.shape`` holds: no stage narrower than the one before, none
            deeper than the third.
        gap: relative, within which the result is proven to be optimal.
        progress: called with the number of combinations of widths settled so far, and of all.

    Raises InfeasibleError where no architecture meets the limits, which is proven, and UsageError
    for an objective or a lower limit that does not add up.
    """
    combinations = Combinations(space, shape_rule)
    bound = None
    if effectiveness is not None:
        assert paths is not None, "a bound on effectiveness needs the tables of paths"
        bound = (paths, effectiveness)
    programmes = combinations.programmes(objective, constraints, tables or {}, maximise, bound)
    best = best_of(programmes, gap, progress)
    if best is None:
        given = [str(constraint) for constraint in constraints]
        if effectiveness is not None:
            given.append(f"effectiveness ρ ≤ {effectiveness:g}")
        raise InfeasibleError(combinations.nothing_meets(given))
    sign = 1.0 if maximise else -1.0
    genes = combinations.genes(best.key, best.solution.choices)
    return Optimum(genes, sign * best.solution.value, sign * best.bound, best)


class Combinations:
    """Every combination of resolution and widths that is allowed, each with its programme.

    Args:
        space, shape_rule: as for ``optimise``.
    """

    def __init__(self, space: SearchSpace, shape_rule: bool = False) -> None:
        self.space, self.shape_rule = space, shape_rule
        self.cases = list(_cases(space, shape_rule))
        self.depths = tuple(stage.depths for stage in space.stages)

    def programmes(
        self,
        objective: Sliceable,
        constraints: Sequence[Constraint],
        tables: Mapping[str, AdditiveTable],
        maximise: bool = True,
        effectiveness: tuple[PathTables, float] | None = None,
    ) -> list[Programme]:
        """A programme for each case; its limits are in the order of ``constraints``.

        One with both an upper and a lower limit gives two, the upper first.
        """
        for constraint in constraints:
            if constraint.minimum is not None and tables[constraint.metric].combine != "sum":
                raise UsageError(
                    f"{constraint}: {constraint.metric} is the largest of its parts, and lower "
                    "limits can be kept of sums only; leave the lower limit out."
                )
        sign = 1.0 if maximise else -1.0
        rules = tuple((i, DEEPEST, 0) for i in range(len(self.depths))) if self.shape_rule else ()
        result = []
        for case in self.cases:
            own = objective.at(*case)
            if own.combine != "sum":
                raise UsageError(
                    "the objective is the largest of its parts, and only sums can be optimised "
                    "exactly; limit it instead."
                )
            bound = None
            if effectiveness is not None:
                paths, most = effectiveness
                bound = Effectiveness(paths.entropy.at(*case), paths.layers.at(*case), most)
            limits = tuple(_limits(constraints, tables, case))
            result.append(Programme(self.depths, own.scaled(sign), limits, bound, rules))
        return result

    def genes(self, key: int, choices: Choices) -> Genes:
        """Row of a solution of programme ``key``, shape (genes,)."""
        resolution, widths = self.cases[key]
        genes = np.full(self.space.num_genes, -1, dtype=np.int64)
        genes[0] = resolution
        for i, (stage, chosen) in enumerate(zip(self.space.stages, choices, strict=True)):
            column = int(self.space.width_columns[i])
            genes[column] = widths[i]
            genes[column + 1] = stage.depths.index(len(chosen))
            start = self.space.block_columns(i).start
            genes[start : start + len(chosen)] = chosen
        return genes

    def nothing_meets(self, constraints: Sequence[str]) -> str:
        """Message of an infeasible problem."""
        return (
            f"no architecture of space {self.space.name!r} meets all of {'; '.join(constraints)}: "
            f"proven by integer programming over all {len(self.cases)} combinations of resolution "
            "and widths. Loosen one of them, or take another space."
        )


def _limits(
    constraints: Sequence[Constraint], tables: Mapping[str, AdditiveTable], case: Case
) -> Iterator[Limit]:
    for constraint in constraints:
        quantity = tables[constraint.metric].at(*case)
        if constraint.maximum is not None:
            yield Limit(quantity, constraint.maximum)
        if constraint.minimum is not None:
            yield Limit(quantity.scaled(-1.0), -constraint.minimum)


def _cases(space: SearchSpace, growing_widths: bool) -> Iterator[Case]:
    """Indices of resolution and widths that are allowed."""
    for resolution in range(len(space.resolutions)):
        for widths in itertools.product(*(range(len(stage.widths)) for stage in space.stages)):
            sizes = [s.widths[w] for s, w in zip(space.stages, widths, strict=True)]
            if not growing_widths or sizes == sorted(sizes):
                yield resolution, widths
