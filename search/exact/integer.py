"""A programme of fixed widths as an integer programme over counts (``scipy.optimize.milp``, HiGHS).

DeepMAD's effectiveness fits in exactly: ``L_i / (Π w)^(1/L_i) ≤ ρ`` at the end of stage i means
``L_i · log(L_i / ρ) ≤ Σ log w``, whose left side is convex in the integer L_i, so that chords
between neighbouring integers say the same with linear constraints.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from predictors.tables.additive import Slice
from search.exact.programme import GAP, Effectiveness, Programme, Solution, Values, undominated
from search_space.errors import RunError

CHORDS = 12
TIGHTER = (0.0, 2e-6, 2e-5, 2e-4)  # of a scaled limit, until rounding breaks none


def relaxed_bound(programme: Programme) -> float | None:
    """Objective of the linear relaxation, no smaller than any solution's; None: infeasible."""
    result = _solve(programme, _cells(programme), integral=False)
    return None if result is None else result[1]


def solve_integer(
    programme: Programme, at_least: float = -math.inf, gap: float = GAP
) -> Solution | None:
    """The optimum within a relative ``gap``; None where none reaches ``at_least``.

    The solver allows limits to be exceeded by a millionth. Where its solution does, limits are
    tightened by a little, and ``Solution.bound`` remains that of the limits as given.
    """
    proven = None
    cells = _cells(programme)
    for tighter in TIGHTER:
        found = _solve(programme, cells, integral=True, at_least=at_least, gap=gap, tighter=tighter)
        if found is None:
            return None
        counts, bound = found
        proven = bound if proven is None else proven  # tighter limits bound nothing else
        choices = _placed(programme, cells, counts)
        if programme.meets(choices):
            return Solution(choices, programme.value(choices), proven)
    raise RunError("the integer programme's solution breaks its limits by rounding.")


@dataclass(frozen=True)
class _Cell:
    """Positions of a stage that no quantity tells apart, and the choices worth taking there."""

    stage: int
    positions: tuple[int, ...]
    choices: tuple[int, ...]


def _cells(programme: Programme) -> list[_Cell]:
    """Cells with the choices that no other choice of the cell beats in everything."""
    wanted = [programme.objective]
    unwanted = [limit.quantity for limit in programme.sums]
    if programme.effectiveness is not None:
        wanted.append(programme.effectiveness.entropy)
        unwanted.append(programme.effectiveness.layers)
    cells = []
    for stage, depths in enumerate(programme.depths):
        merits = [q.blocks[stage] for q in wanted] + [-q.blocks[stage] for q in unwanted]
        merit = np.stack(merits, axis=2)  # (positions, choices, merits)
        allowed = programme.allowed(stage)
        groups: dict[bytes, list[int]] = {}
        for position in range(max(depths)):
            key = merit[position].tobytes() + allowed[position].tobytes()
            groups.setdefault(key, []).append(position)
        for positions in groups.values():
            open_choices = np.flatnonzero(allowed[positions[0]])
            best = undominated(merit[positions[0]][open_choices])
            chosen = tuple(int(c) for c in open_choices[best])
            cells.append(_Cell(stage, tuple(positions), chosen))
    return cells


def _solve(
    programme: Programme,
    cells: Sequence[_Cell],
    *,
    integral: bool,
    at_least: float = -math.inf,
    gap: float = GAP,
    tighter: float = 0.0,
) -> tuple[Values, float] | None:
    """Counts of the cells' choices and the bound, or None where proven infeasible.

    Variables: for each cell the count of each choice, then for each stage one binary per depth.
    """
    for limit in programme.largest_parts:
        if limit.quantity.constants.max() > limit.maximum:
            return None
    system = _System(cells, programme.depths)
    for i, cell in enumerate(cells):
        # as many blocks as the chosen depth has positions of this cell
        row = system.zeros()
        row[system.columns[i]] = 1.0
        for depth, column in zip(
            programme.depths[cell.stage], system.depth_columns[cell.stage], strict=True
        ):
            row[column] = -float(sum(p < depth for p in cell.positions))
        system.equal(row, 0.0)
    for columns in system.depth_columns:
        row = system.zeros()
        row[columns] = 1.0
        system.equal(row, 1.0)
    for i, j, most in programme.depth_rules:
        row = system.zeros()
        row[system.depth_columns[i]] += programme.depths[i]
        row[system.depth_columns[j]] -= programme.depths[j]
        system.at_most(row, float(most))
    for limit in programme.sums:
        row = system.coefficients(limit.quantity)
        system.at_most(row, limit.maximum - float(limit.quantity.constants.sum()))
    if programme.effectiveness is not None:
        # fewer chords bound less tightly, which is all that a relaxation is for
        _bound_effectiveness(system, programme.effectiveness, None if integral else CHORDS)
    objective = system.coefficients(programme.objective)
    constant = float(programme.objective.constants.sum())
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
    system: _System, effectiveness: Effectiveness, most_chords: int | None
) -> None:
    """Chords of the convex L · log(L / ρ) between the integers that L can take, or some."""
    log_width = effectiveness.entropy.scaled(2.0)
    entropy_row, layer_row = system.zeros(), system.zeros()
    entropy_sum = layer_sum = least = most = 0.0
    for stage, depths in enumerate(system.depths):
        entropy_row = entropy_row + system.coefficients(log_width, stage)
        layer_row = layer_row + system.coefficients(effectiveness.layers, stage)
        entropy_sum += float(log_width.constants[stage])
        layer_sum += float(effectiveness.layers.constants[stage])
        per_block = [
            effectiveness.layers.blocks[stage][c.positions[0], list(c.choices)]
            for c in system.cells
            if c.stage == stage and c.choices
        ]
        if per_block:
            least += depths[0] * min(float(block.min()) for block in per_block)
            most += depths[-1] * max(float(block.max()) for block in per_block)
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


def _placed(
    programme: Programme, cells: Sequence[_Cell], solution: Values
) -> tuple[tuple[int, ...], ...]:
    """Choices by stage and position from counts; lighter ones first within a cell."""
    system = _System(cells, programme.depths)
    placed: list[dict[int, int]] = [{} for _ in programme.depths]
    depths = [
        options[int(np.argmax(solution[columns]))]
        for options, columns in zip(programme.depths, system.depth_columns, strict=True)
    ]
    for cell, columns in zip(cells, system.columns, strict=True):
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
        self.cells, self.depths = cells, depths
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
