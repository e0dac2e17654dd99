"""The proven optimum of additive objectives under additive limits.

With resolution and widths fixed, everything that adds up over components is linear in how often
each block choice is used at the positions of a stage that cost the same. So each combination of
resolution and widths is a small integer programme over counts (``scipy.optimize.milp``, HiGHS).
Linear relaxations bound all combinations first; the programmes are then solved from the best
bound down, and those whose bound is below the best solution are never opened.

DeepMAD's effectiveness fits in exactly: ``L_i / (Π w)^(1/L_i) ≤ ρ`` at the end of stage i means
``L_i · log(L_i / ρ) ≤ Σ log w``, whose left side is convex in the integer L_i, so that chords
between neighbouring integers say the same with linear constraints.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from predictors.additive import AdditiveTable, Slice
from predictors.proxies.space_tables import PathTables
from search.problem import Constraint
from search.shape import DEEPEST
from search_space import Genes, SearchSpace
from search_space.errors import InfeasibleError, RunError

Values = npt.NDArray[np.float64]
Choices = Sequence[Sequence[int]]
"""Index of the block choice by stage and position."""
GAP = 1e-3
CHORDS = 12
TIGHTER = (0.0, 2e-6, 2e-5, 2e-4)  # of a scaled limit, until rounding breaks none


class Sliceable(Protocol):
    """A quantity that is additive once resolution and widths are fixed."""

    def at(self, resolution: int, widths: Sequence[int]) -> Slice:
        """The quantity at these indices."""
        ...


@dataclass(frozen=True)
class Effectiveness:
    """A bound on ρ, with Σ ½·log w and the number of layers of a programme's longest path."""

    entropy: Slice
    layers: Slice
    maximum: float


@dataclass(frozen=True)
class Limit:
    """An upper limit of an additive quantity, or of one that is the largest of its parts."""

    quantity: Slice
    maximum: float


@dataclass(frozen=True)
class Solution:
    """Which block choice sits at each active position of each stage, and the objective."""

    choices: tuple[tuple[int, ...], ...]
    value: float
    bound: float


@dataclass(frozen=True)
class _Cell:
    """Positions of a stage that no quantity tells apart, and the choices worth taking there."""

    stage: int
    positions: tuple[int, ...]
    choices: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Programme:
    """Maximise an additive objective over the blocks of stages of fixed width.

    Args:
        depths: possible depths of each stage, ascending.
        objective: to be maximised.
        limits: upper limits.
        effectiveness: bound on ρ at the end of every stage.
        depth_rules: (i, j, n) says that stage i has at most n blocks more than stage j.
    """

    depths: tuple[tuple[int, ...], ...]
    objective: Slice
    limits: tuple[Limit, ...] = ()
    effectiveness: Effectiveness | None = None
    depth_rules: tuple[tuple[int, int, int], ...] = ()

    def bound(self) -> float | None:
        """Objective of the linear relaxation, no smaller than any solution's; None: infeasible."""
        result = self._milp(integral=False)
        return None if result is None else result[1]

    def solve(self, at_least: float = -math.inf, gap: float = GAP) -> Solution | None:
        """The optimum within a relative ``gap``; None where none reaches ``at_least``."""
        proven = None
        for tighter in TIGHTER:
            found = self._milp(integral=True, at_least=at_least, gap=gap, tighter=tighter)
            if found is None:
                return None
            counts, bound = found
            proven = bound if proven is None else proven  # tighter limits bound nothing else
            choices = self._placed(counts)
            if self.meets(choices):
                return Solution(choices, self.value(choices), proven)
        raise RunError("the integer programme's solution breaks its limits by rounding.")

    def value(self, choices: Choices) -> float:
        """Objective of block choices by stage and position."""
        return float(_stage_values(self.objective, choices).sum())

    def meets(self, choices: Choices) -> bool:
        """Whether all limits hold exactly; the solver itself allows for a millionth."""
        for limit in self._sums:
            if _stage_values(limit.quantity, choices).sum() > limit.maximum:
                return False
        if self.effectiveness is None:
            return True
        entropy = _stage_values(self.effectiveness.entropy, choices).cumsum()
        layers = _stage_values(self.effectiveness.layers, choices).cumsum()
        rho = layers * np.exp(-2 * entropy / layers)
        return bool(rho.max() <= self.effectiveness.maximum)

    # Cells ------------------------------------------------------------------------------------

    @cached_property
    def _sums(self) -> list[Limit]:
        return [limit for limit in self.limits if limit.quantity.combine == "sum"]

    @cached_property
    def _cells(self) -> list[_Cell]:
        """Cells with the choices that no other choice of the cell beats in everything."""
        wanted = [self.objective]
        unwanted = [limit.quantity for limit in self._sums]
        if self.effectiveness is not None:
            wanted.append(self.effectiveness.entropy)
            unwanted.append(self.effectiveness.layers)
        cells = []
        for stage in range(len(self.depths)):
            merits = [q.blocks[stage] for q in wanted] + [-q.blocks[stage] for q in unwanted]
            merit = np.stack(merits, axis=2)  # (P, C, merits)
            allowed = self._allowed(stage)
            groups: dict[bytes, list[int]] = {}
            for position in range(max(self.depths[stage])):
                key = merit[position].tobytes() + allowed[position].tobytes()
                groups.setdefault(key, []).append(position)
            for positions in groups.values():
                open_choices = np.flatnonzero(allowed[positions[0]])
                best = _undominated(merit[positions[0]][open_choices])
                chosen = tuple(int(c) for c in open_choices[best])
                cells.append(_Cell(stage, tuple(positions), chosen))
        return cells

    def _allowed(self, stage: int) -> npt.NDArray[np.bool_]:
        """Choices that no limit on a largest part forbids, shape (P, C)."""
        result = np.ones(self.objective.blocks[stage].shape, dtype=bool)
        for limit in self.limits:
            if limit.quantity.combine == "max":
                result &= limit.quantity.blocks[stage] <= limit.maximum
        return result

    # The integer programme ----------------------------------------------------------------------

    def _milp(
        self,
        *,
        integral: bool,
        at_least: float = -math.inf,
        gap: float = GAP,
        tighter: float = 0.0,
    ) -> tuple[Values, float] | None:
        """Counts of the cells' choices and the bound, or None where proven infeasible.

        Variables: for each cell the count of each choice, then for each stage one binary per
        depth.
        """
        for limit in self.limits:
            if limit.quantity.combine == "max" and limit.quantity.constants.max() > limit.maximum:
                return None
        system = _System(self._cells, self.depths)
        for i, cell in enumerate(self._cells):
            # as many blocks as the chosen depth has positions of this cell
            row = system.zeros()
            row[system.columns[i]] = 1.0
            for depth, column in zip(
                self.depths[cell.stage], system.depth_columns[cell.stage], strict=True
            ):
                row[column] = -float(sum(p < depth for p in cell.positions))
            system.equal(row, 0.0)
        for columns in system.depth_columns:
            row = system.zeros()
            row[columns] = 1.0
            system.equal(row, 1.0)
        for i, j, most in self.depth_rules:
            row = system.zeros()
            row[system.depth_columns[i]] += self.depths[i]
            row[system.depth_columns[j]] -= self.depths[j]
            system.at_most(row, float(most))
        for limit in self._sums:
            row = system.coefficients(limit.quantity)
            system.at_most(row, limit.maximum - float(limit.quantity.constants.sum()))
        if self.effectiveness is not None:
            # fewer chords bound less tightly, which is all that a relaxation is for
            self._bound_effectiveness(system, self.effectiveness, None if integral else CHORDS)
        objective = system.coefficients(self.objective)
        constant = float(self.objective.constants.sum())
        if at_least > -math.inf:
            system.at_most(-objective, constant - at_least)
        with _quiet_solver():
            result = milp(
                -objective,
                integrality=np.full(system.size, int(integral)),
                bounds=Bounds(0.0, system.upper),
                constraints=system.constraints(tighter),
                options={"mip_rel_gap": gap},
            )
        if result.status == 2:
            return None
        if result.status != 0:
            raise RunError(f"the integer programme was not solved: {result.message}")
        bound = -result.fun if result.mip_dual_bound is None else -result.mip_dual_bound
        return result.x, constant + float(bound)

    def _bound_effectiveness(
        self, system: _System, effectiveness: Effectiveness, most_chords: int | None
    ) -> None:
        """Chords of the convex L · log(L / ρ) between the integers that L can take, or some."""
        log_width = effectiveness.entropy.scaled(2.0)
        entropy_row, layer_row = system.zeros(), system.zeros()
        entropy_sum = layer_sum = least = most = 0.0
        for stage in range(len(self.depths)):
            entropy_row = entropy_row + system.coefficients(log_width, stage)
            layer_row = layer_row + system.coefficients(effectiveness.layers, stage)
            entropy_sum += float(log_width.constants[stage])
            layer_sum += float(effectiveness.layers.constants[stage])
            per_block = [
                effectiveness.layers.blocks[stage][c.positions[0], list(c.choices)]
                for c in self._cells
                if c.stage == stage and c.choices
            ]
            if per_block:
                least += self.depths[stage][0] * min(float(block.min()) for block in per_block)
                most += self.depths[stage][-1] * max(float(block.max()) for block in per_block)
            low, high = layer_sum + least, layer_sum + most
            first = max(1, math.floor(low))
            integers = range(first, max(first + 1, math.ceil(high)))
            step = 1 if most_chords is None else -(-len(integers) // most_chords)
            for k in integers[::step]:
                here = k * math.log(k / effectiveness.maximum)
                slope = (k + 1) * math.log((k + 1) / effectiveness.maximum) - here
                # here + slope · (L − k) ≤ Σ log w
                system.at_most(
                    slope * layer_row - entropy_row,
                    entropy_sum - here - slope * (layer_sum - k),
                )

    def _placed(self, solution: Values) -> tuple[tuple[int, ...], ...]:
        """Choices by stage and position from counts; lighter ones first within a cell."""
        system = _System(self._cells, self.depths)
        placed: list[dict[int, int]] = [{} for _ in self.depths]
        depths = [
            options[int(np.argmax(solution[columns]))]
            for options, columns in zip(self.depths, system.depth_columns, strict=True)
        ]
        for cell, columns in zip(self._cells, system.columns, strict=True):
            counts = np.rint(solution[columns]).astype(int)
            chosen = [c for c, n in zip(cell.choices, counts, strict=True) for _ in range(n)]
            active = [p for p in cell.positions if p < depths[cell.stage]]
            placed[cell.stage].update(zip(active, chosen, strict=True))
        return tuple(
            tuple(stage[position] for position in range(depth))
            for stage, depth in zip(placed, depths, strict=True)
        )


class _System:
    """Rows of a linear system over the variables of a programme."""

    def __init__(self, cells: Sequence[_Cell], depths: Sequence[Sequence[int]]) -> None:
        self.cells = cells
        ends = np.cumsum([0, *(len(cell.choices) for cell in cells), *map(len, depths)])
        spans = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        self.columns = spans[: len(cells)]
        self.depth_columns = [np.arange(s.start, s.stop) for s in spans[len(cells) :]]
        self.size = int(ends[-1])
        self.upper = np.ones(self.size)
        for cell, columns in zip(cells, self.columns, strict=True):
            self.upper[columns] = len(cell.positions)
        self._equal: list[tuple[Values, float]] = []
        self._at_most: list[tuple[Values, float]] = []

    def zeros(self) -> Values:
        return np.zeros(self.size)

    def coefficients(self, quantity: Slice, stage: int | None = None) -> Values:
        """Row of a quantity's value per block, of one stage or all."""
        row = self.zeros()
        for cell, columns in zip(self.cells, self.columns, strict=True):
            if stage in (None, cell.stage):
                row[columns] = quantity.blocks[cell.stage][cell.positions[0], list(cell.choices)]
        return row

    def equal(self, row: Values, value: float) -> None:
        self._equal.append((row, value))

    def at_most(self, row: Values, value: float) -> None:
        """Rows are scaled, so that the solver's absolute tolerance means the same for each."""
        scale = max(abs(value), float(np.abs(row).max()), 1e-300)
        self._at_most.append((row / scale, value / scale))

    def constraints(self, tighter: float) -> list[LinearConstraint]:
        """All rows; ``tighter`` is taken off the scaled upper limits."""
        rows = [row for row, _ in (*self._equal, *self._at_most)]
        upper = [value for _, value in self._equal]
        upper += [value - tighter for _, value in self._at_most]
        lower = [value for _, value in self._equal] + [-np.inf] * len(self._at_most)
        return [LinearConstraint(np.stack(rows), lower, upper)]


def _stage_values(quantity: Slice, choices: Choices) -> Values:
    """What each stage adds to a sum, shape (stages,)."""
    own = [
        sum(float(block[p, c]) for p, c in enumerate(row))
        for block, row in zip(quantity.blocks, choices, strict=True)
    ]
    return quantity.constants + np.array(own)


@contextmanager
def _quiet_solver() -> Iterator[None]:
    """HiGHS now and then writes on standard output, where data belongs."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _undominated(merit: Values) -> npt.NDArray[np.int64]:
    """Indices of rows that no other row equals or exceeds in every column; first of equals."""
    keep = []
    for i, row in enumerate(merit):
        others = np.all(merit >= row, axis=1)
        others[i] = False
        better = others & (np.any(merit > row, axis=1) | (np.arange(len(merit)) < i))
        if not better.any():
            keep.append(i)
    return np.array(keep, dtype=np.int64)


# Over resolutions and widths ------------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """The best solution of several programmes, and what is proven.

    Args:
        key: of the programme, as it was given.
        solution: its solution.
        bound: no programme has a larger objective.
        programmes: how many there were; relaxed: feasible by linear relaxation; solved: opened.
        seconds: of wall time.
    """

    key: int
    solution: Solution
    bound: float
    programmes: int
    relaxed: int
    solved: int
    seconds: float

    @property
    def gap(self) -> float:
        """Relative distance of the bound from the solution."""
        return max(0.0, self.bound - self.solution.value) / max(abs(self.solution.value), 1e-12)


def best_of(
    programmes: Iterable[Programme],
    gap: float = GAP,
    progress: Callable[[int, int], None] | None = None,
) -> Best | None:
    """Solve what may hold the best solution; None where all are proven infeasible."""
    begin = time.monotonic()
    all_programmes = list(programmes)
    bounds: list[tuple[float, int]] = []
    for i, programme in enumerate(all_programmes):
        bound = programme.bound()
        if bound is not None:
            bounds.append((bound, i))
        if progress is not None:
            progress(i + 1, len(all_programmes))
    bounds.sort(key=lambda item: (-item[0], item[1]))
    best: tuple[int, Solution] | None = None
    proven, solved = -math.inf, 0
    for bound, i in bounds:
        value = -math.inf if best is None else best[1].value
        if best is not None and bound <= value + gap * abs(value):
            proven = max(proven, bound)
            break
        solved += 1
        solution = all_programmes[i].solve(value, gap)
        if solution is None:
            continue
        proven = max(proven, min(bound, solution.bound))
        if best is None or solution.value > value:
            best = (i, solution)
    if best is None:
        return None
    return Best(
        key=best[0],
        solution=best[1],
        bound=max(proven, best[1].value),
        programmes=len(all_programmes),
        relaxed=len(bounds),
        solved=solved,
        seconds=time.monotonic() - begin,
    )


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
    at_least: Genes | None = None,
    shape_rule: bool = False,
    gap: float = GAP,
    progress: Callable[[int, int], None] | None = None,
) -> Optimum:
    """The best architecture of a space by an additive objective.

    Args:
        space: where to look.
        objective: an additive table, or DeepMAD's score (``PathTables``).
        constraints: on metrics of ``tables``.
        tables: additive tables by metric.
        maximise: or minimise.
        paths, effectiveness: tables of the longest path and the largest ρ that is allowed.
        at_least: row of an architecture that no width, depth or resolution may fall below.
        shape_rule: whether ``search.shape`` holds: no stage narrower than the one before, none
            deeper than the third.
        gap: relative, within which the result is proven to be optimal.
        progress: called with the number of combinations of widths bounded so far, and of all.

    Raises InfeasibleError where no architecture meets the limits, which is proven.
    """
    tables, sign = tables or {}, 1.0 if maximise else -1.0
    cases = list(_cases(space, at_least, shape_rule))
    depths = tuple(
        stage.depths if at_least is None else stage.depths[int(at_least[column + 1]) :]
        for stage, column in zip(space.stages, space.width_columns, strict=True)
    )

    def programme(resolution: int, widths: tuple[int, ...]) -> Programme:
        limits = []
        for constraint in constraints:
            quantity = tables[constraint.metric].at(resolution, widths)
            if constraint.maximum is not None:
                limits.append(Limit(quantity, constraint.maximum))
            if constraint.minimum is not None:
                assert quantity.combine == "sum", "a largest part has no lower limit"
                limits.append(Limit(quantity.scaled(-1.0), -constraint.minimum))
        bound = None
        if effectiveness is not None:
            assert paths is not None, "a bound on effectiveness needs the tables of paths"
            bound = Effectiveness(
                paths.entropy.at(resolution, widths),
                paths.layers.at(resolution, widths),
                effectiveness,
            )
        return Programme(
            depths,
            objective.at(resolution, widths).scaled(sign),
            tuple(limits),
            bound,
            tuple((i, DEEPEST, 0) for i in range(len(depths))) if shape_rule else (),
        )

    best = best_of((programme(*case) for case in cases), gap, progress)
    if best is None:
        given = [str(constraint) for constraint in constraints]
        if effectiveness is not None:
            given.append(f"effectiveness ρ ≤ {effectiveness:g}")
        raise InfeasibleError(
            f"no architecture of space {space.name!r} meets all of {'; '.join(given)}: proven by "
            f"integer programming over all {len(cases)} combinations of resolution and widths. "
            "Loosen one of them, or take another space."
        )
    resolution, widths = cases[best.key]
    genes = np.full(space.num_genes, -1, dtype=np.int64)
    genes[0] = resolution
    for i, (stage, choices) in enumerate(zip(space.stages, best.solution.choices, strict=True)):
        column = int(space.width_columns[i])
        genes[column] = widths[i]
        genes[column + 1] = stage.depths.index(len(choices))
        start = space.block_columns(i).start
        genes[start : start + len(choices)] = choices
    return Optimum(genes, sign * best.solution.value, sign * best.bound, best)


def _cases(
    space: SearchSpace, at_least: Genes | None, growing_widths: bool
) -> Iterable[tuple[int, tuple[int, ...]]]:
    """Indices of resolution and widths that are allowed."""
    low = [0] * 5 if at_least is None else [int(at_least[c]) for c in (0, *space.width_columns)]
    for resolution in range(low[0], len(space.resolutions)):
        for widths in itertools.product(
            *(range(a, len(s.widths)) for a, s in zip(low[1:], space.stages, strict=True))
        ):
            sizes = [s.widths[w] for s, w in zip(space.stages, widths, strict=True)]
            if not growing_widths or sizes == sorted(sizes):
                yield resolution, widths
