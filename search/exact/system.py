"""A linear system in integers, solved by HiGHS (``scipy.optimize.milp``).

HiGHS takes 10⁻⁶ for nothing, in rows as in the objective. Rows and objective are scaled so that
this is 10⁻⁹ of their own size; what is found is checked in the tables' own numbers besides.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search_space.errors import RunError

Values = npt.NDArray[np.float64]
Columns = npt.NDArray[np.int64]

SCALE = 1e3  # of rows and objective, in their largest numbers
_OPTIMAL, _STOPPED, _INFEASIBLE, _UNCLEAR = 0, 1, 2, 4


@dataclass(frozen=True)
class Answer:
    """The solver's answer about a system.

    Attributes:
        values: of the variables; None where no solution is known.
        bound: no solution has a larger objective; −∞ where there is none.
        nodes: of the search tree.
        optimal: whether the solver ended by itself, not by its time limit.
    """

    values: Values | None
    bound: float
    nodes: int
    optimal: bool

    @property
    def infeasible(self) -> bool:
        """Whether it is proven that there is no solution."""
        return self.optimal and self.values is None


class System:
    """Variables between 0 and an upper bound, and linear rows over them."""

    def __init__(self) -> None:
        self.upper: Values = np.zeros(0)
        self.integral: Columns = np.zeros(0, dtype=np.int64)
        self._rows: list[tuple[Columns, Values, float, float]] = []

    @property
    def size(self) -> int:
        """Number of variables."""
        return len(self.upper)

    def variables(self, shape: tuple[int, ...], upper: float = 1.0, whole: bool = True) -> Columns:
        """Adds variables, whole numbers unless told otherwise; returns their columns."""
        columns = self.size + np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
        self.upper = np.append(self.upper, np.full(columns.size, upper))
        self.integral = np.append(self.integral, np.full(columns.size, int(whole)))
        return columns

    def row(self, *terms: tuple[Columns, npt.ArrayLike], low: float, high: float) -> int:
        """Adds ``low ≤ Σ factor · variable ≤ high``; returns the row's number."""
        columns = np.concatenate([np.atleast_1d(columns).ravel() for columns, _ in terms])
        factors = np.concatenate(
            [np.broadcast_to(f, np.shape(c) or (1,)).ravel() for c, f in terms]
        ).astype(np.float64)
        self._rows.append((columns, factors, low, high))
        return len(self._rows) - 1

    def extend(self, row: int, columns: Columns, factor: float) -> None:
        """Adds ``factor · variable`` to a row."""
        known, factors, low, high = self._rows[row]
        more = np.full(columns.size, factor)
        self._rows[row] = np.append(known, columns), np.append(factors, more), low, high

    def bound(self, row: int, low: float, high: float) -> None:
        """Sets other bounds of a row."""
        columns, factors, _, _ = self._rows[row]
        self._rows[row] = columns, factors, low, high

    def maximise(
        self, objective: Values, *, gap: float, seconds: float, tighter: float = 0.0
    ) -> Answer:
        """The largest ``objective · variables`` within a relative ``gap``.

        Args:
            objective: shape (n,), of the first variables; the others' is 0.
            seconds: the solver's time limit.
            tighter: taken off inequalities on both sides, relative to the row's size.

        Raises:
            RunError: The solver gave up.
        """
        objective = np.pad(objective, (0, self.size - len(objective)))
        scale = SCALE / (float(np.abs(objective).max(initial=0.0)) or 1.0)
        lengths = [len(columns) for columns, *_ in self._rows]
        matrix, low, high = [], np.empty(len(lengths)), np.empty(len(lengths))
        for i, (_, factors, least, most) in enumerate(self._rows):
            if least == most and not most:
                size = 1.0  # a balance of whole numbers
            else:
                ends = [abs(end) for end in (least, most) if math.isfinite(end)]
                size = SCALE / max(float(np.abs(factors).max(initial=0.0)), *ends, 1e-300)
            inside = 0.0 if least == most else tighter * SCALE
            matrix.append(factors * size)
            low[i], high[i] = least * size + inside, most * size - inside
        # Here, since the import takes a quarter of a second and most commands solve nothing.
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        rows = csr_array(
            (
                np.concatenate(matrix),
                np.concatenate([columns for columns, *_ in self._rows]),
                np.concatenate([[0], np.cumsum(lengths)]),
            ),
            shape=(len(lengths), self.size),
        )
        constraints = LinearConstraint(rows, low, high)
        for presolve in (True, False):  # now and then only presolving fails
            with _quiet_solver():
                result = milp(
                    -scale * objective,
                    integrality=self.integral,
                    bounds=Bounds(0.0, self.upper),
                    constraints=constraints,
                    options={"mip_rel_gap": gap, "time_limit": seconds, "presolve": presolve},
                )
            if result.status != _UNCLEAR:
                break
        if result.status == _INFEASIBLE:
            return Answer(None, -math.inf, 0, True)
        if result.status not in (_OPTIMAL, _STOPPED):
            raise RunError(f"the integer programme was not solved: {result.message}")
        bound = math.inf if result.mip_dual_bound is None else -float(result.mip_dual_bound) / scale
        return Answer(result.x, bound, int(result.mip_node_count or 0), result.status == _OPTIMAL)


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
