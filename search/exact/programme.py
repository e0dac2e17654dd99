"""A whole space as one integer programme.

An architecture is a path: from the resolution to a width of the first stage, from there to one of
the second, and so on. Each step of the path is a binary variable, so that what depends on
neighbouring widths and the resolution (stem, downsampling, head) is linear. Where the path passes,
a depth is chosen, and as many blocks as it has; positions that cost the same in all tables are one
cell, and what counts is how often each choice is taken there. Quantities that add up are thus
linear in the variables, whatever they are: latency, parameters, entropy, a measured loss. One that
is the largest of its parts forbids the parts above its limit.

The linear relaxation of such a programme is as tight as prices on the limits can make it (flows
have integral corners), which is why HiGHS proves optima of 10⁶⁰ architectures in a second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from predictors.tables.additive import AdditiveTable
from search.exact.system import Answer, Columns, System, Values
from search.problem import Constraint, scale_of
from search.shape import deepest_of
from search_space import Genes, SearchSpace
from search_space.errors import RunError

GAP = 1e-3
SECONDS = 600.0  # for one optimum
TIGHTER = (0.0, 1e-9, 1e-8, 1e-7, 1e-6)  # of a row, until the solver's rounding breaks no limit


@dataclass(frozen=True)
class Proof:
    """The proof of a solution.

    Attributes:
        status: ``optimal`` within the gap that was asked for, or ``stopped`` by the time limit.
        bound: no architecture within the limits is better than this.
        gap: relative distance of the bound from the solution.
        nodes: of the solver's search tree.
        seconds: of wall time.
    """

    status: Literal["optimal", "stopped"]
    bound: float
    gap: float
    nodes: int
    seconds: float

    @classmethod
    def of(cls, value: float, bound: float, answer: Answer, seconds: float) -> Proof:
        """The proof of a solution's value by the solver's answer."""
        return cls(
            "optimal" if answer.optimal else "stopped",
            bound,
            abs(bound - value) / max(abs(value), 1e-12),
            answer.nodes,
            seconds,
        )


@dataclass(frozen=True)
class Solution:
    """A row of genes, shape (genes,), the objective's value there, and what is proven of it."""

    genes: Genes
    value: float
    proof: Proof


class Programme:
    """Every architecture of a space within limits.

    Args:
        space: where to look.
        constraints: on metrics of ``tables``.
        tables: additive tables by metric; those of a largest part may have limits too.
        merits: what will be optimised, as tables with their sign: +1 where more is better. A block
            that another one beats in all of them and in all limits is left out.
        shape_rule: whether ``search.shape`` holds: no stage narrower than the one before, none
            deeper than the third.

    Example:
        >>> programme = Programme(space, [Constraint("macs", maximum=1e9)], tables, [(accuracy, 1)])
        >>> programme.maximise(programme.coefficients(accuracy))
    """

    def __init__(
        self,
        space: SearchSpace,
        constraints: Sequence[Constraint],
        tables: Mapping[str, AdditiveTable],
        merits: Sequence[tuple[AdditiveTable, float]],
        shape_rule: bool = False,
    ) -> None:
        self.space, self.tables, self.constraints = space, tables, tuple(constraints)
        self.shape_rule = shape_rule
        self.system = System()
        limited = [tables[c.metric] for c in constraints]
        self._cells = _cells(space, [*limited, *(table for table, _ in merits)])
        self.edges, self.depths, self.counts = self._variables()
        self._connect()
        if shape_rule:
            self._keep_shape()
        self.rows: dict[str, int] = {}
        for constraint in constraints:
            self._limit(constraint)
        self._close_beaten(merits)

    # Variables --------------------------------------------------------------------------------

    def _variables(self) -> tuple[list[Columns], list[Columns], list[Columns]]:
        """Columns by stage: (R, W before, W, entries), (R, W, depths), (R, cells, W, choices).

        With R resolutions and W widths; the first stage has one width before it. Entries are the
        choices of the first block where it is the transition, else one.
        """
        edges, depths, counts = [], [], []
        before, num = 1, len(self.space.resolutions)
        for stage, cells in zip(self.space.stages, self._cells, strict=True):
            widths = len(stage.widths)
            entries = len(stage.positions[0]) if self.space.enters_by_block else 1
            edges.append(self.system.variables((num, before, widths, entries)))
            depths.append(self.system.variables((num, widths, len(stage.depths))))
            shape = (num, len(cells), widths, max(map(len, stage.positions)))
            counts.append(self.system.variables(shape))
            for number, positions in enumerate(cells):
                self.system.upper[counts[-1][:, number]] = 0.0
                offered = len(stage.positions[positions[0]])
                self.system.upper[counts[-1][:, number, :, :offered]] = len(positions)
            before = widths
        return edges, depths, counts

    def _connect(self) -> None:
        """One path; a depth and its blocks where it passes."""
        self.system.row((self.edges[0], 1.0), low=1.0, high=1.0)
        for i, stage in enumerate(self.space.stages):
            for r, w in np.ndindex(len(self.space.resolutions), len(stage.widths)):
                into = (self.edges[i][r, :, w].ravel(), 1.0)
                if i + 1 < len(self.edges):
                    self._equal(into, (self.edges[i + 1][r, w].ravel(), -1.0))
                self._equal(into, (self.depths[i][r, w], -1.0))
                for number, positions in enumerate(self._cells[i]):
                    blocks = [float(np.sum(positions < depth)) for depth in stage.depths]
                    self._equal(
                        (self.counts[i][r, number, w], 1.0),
                        (self.depths[i][r, w], -np.array(blocks)),
                    )

    def _equal(self, *terms: tuple[Columns, npt.ArrayLike]) -> None:
        self.system.row(*terms, low=0.0, high=0.0)

    def _keep_shape(self) -> None:
        stages = self.space.stages
        for edges, (before, after) in zip(self.edges[1:], itertools.pairwise(stages), strict=True):
            narrower = np.less.outer(after.widths, before.widths).T
            self.system.upper[edges[:, narrower]] = 0.0
        deepest = deepest_of(len(stages))
        if deepest is None:
            return
        most = np.broadcast_to(stages[deepest].depths, self.depths[deepest].shape)
        for i, stage in enumerate(stages):
            if i != deepest:
                blocks = np.broadcast_to(stage.depths, self.depths[i].shape)
                terms = (self.depths[i], blocks), (self.depths[deepest], -most)
                self.system.row(*terms, low=-math.inf, high=0.0)

    # Quantities -------------------------------------------------------------------------------

    def coefficients(self, table: AdditiveTable) -> Values:
        """The share of each variable in a quantity, its correction's scale included, shape (n,)."""
        result = np.zeros(self.system.size)
        for columns, values in self._entries(table):
            result[columns] = values
        return table.scale * result

    def _entries(self, table: AdditiveTable) -> list[tuple[Columns, Values]]:
        """Columns and a table's values for them, in arrays of the same shape."""
        join = np.add if table.combine == "sum" else np.maximum
        steps = list(table.transitions)
        steps[0] = join(steps[0], table.stem[:, None, :, None])
        steps[-1] = join(steps[-1], table.head[:, None, :, None])
        blocks = [
            block[:, [positions[0] for positions in cells]]
            for block, cells in zip(table.blocks, self._cells, strict=True)
        ]
        return list(zip([*self.edges, *self.counts], [*steps, *blocks], strict=True))

    def _limit(self, constraint: Constraint) -> None:
        table = self.tables[constraint.metric]
        low = -math.inf if constraint.minimum is None else constraint.minimum
        high = math.inf if constraint.maximum is None else constraint.maximum
        if table.combine == "sum":
            term = np.arange(self.system.size), self.coefficients(table)
            self.rows[constraint.metric] = self.system.row(
                term, low=low - table.offset, high=high - table.offset
            )
            return
        enough = []
        for columns, values in self._entries(table):
            corrected = table.offset + table.scale * values
            self.system.upper[columns[corrected > high]] = 0.0
            enough.append(columns[corrected >= low])
        if constraint.minimum is not None:  # at least one part is as large as that
            self.system.row((np.concatenate(enough), 1.0), low=1.0, high=math.inf)

    def _close_beaten(self, merits: Sequence[tuple[AdditiveTable, float]]) -> None:
        """Leave out blocks that another one of the cell beats in all that matters."""
        wanted = list(merits)
        for constraint in self.constraints:
            table = self.tables[constraint.metric]
            wanted += [(table, -1.0)] * (constraint.maximum is not None)
            wanted += [(table, 1.0)] * (constraint.minimum is not None)
        for i in range(len(self.counts) if wanted else 0):
            first = [positions[0] for positions in self._cells[i]]
            for columns, of_table in (
                (self.counts[i], [table.blocks[i][:, first] for table, _ in wanted]),
                (self.edges[i], [table.transitions[i] for table, _ in wanted]),
            ):
                merits_of = [
                    sign * values for values, (_, sign) in zip(of_table, wanted, strict=True)
                ]
                allowed = self.system.upper[columns] > 0
                beaten = _beaten(np.stack(merits_of, axis=-1), allowed)
                self.system.upper[columns[beaten]] = 0.0

    # Solving ----------------------------------------------------------------------------------

    def loosen(self) -> Values:
        """Lets every limit on a sum be exceeded at a price: the excess relative to the limit.

        Returns:
            The price over all variables, shape (n,).
        """
        excess = []
        for constraint in self.constraints:
            if constraint.metric not in self.rows:
                continue
            for bound, sign in ((constraint.maximum, -1.0), (constraint.minimum, 1.0)):
                if bound is not None:
                    column = self.system.variables((1,), math.inf, False)
                    self.system.extend(self.rows[constraint.metric], column, sign * scale_of(bound))
                    excess.append(column)
        price = np.zeros(self.system.size)
        price[np.concatenate([np.zeros(0, dtype=np.int64), *excess])] = 1.0
        return price

    def maximise(
        self,
        objective: Values,
        *,
        gap: float = GAP,
        seconds: float = SECONDS,
        strict: bool = True,
    ) -> tuple[Genes | None, Answer]:
        """The row, shape (genes,), with the largest objective, and the solver's bound.

        Limits are checked in the tables' own numbers. Where the solver's rounding breaks one, they
        are tightened by a little; the bound remains that of the limits as they are. Without
        ``strict`` they are not checked.

        Raises:
            RunError: The solver gave up, or limits leave no room for its rounding.
        """
        first: Answer | None = None
        for tighter in TIGHTER:
            answer = self.system.maximise(objective, gap=gap, seconds=seconds, tighter=tighter)
            first = first or answer
            if answer.values is None:
                if answer is first or not answer.optimal:  # nothing there, or no time left
                    return None, answer
                break
            genes = self.genes(answer.values)
            if not strict or self.meets(genes):
                bound = max(first.bound, float(objective @ answer.values[: len(objective)]))
                return genes, Answer(answer.values, bound, first.nodes, first.optimal)
        limits = "; ".join(map(str, self.constraints))
        raise RunError(
            f"{limits}: limits this narrow are beyond the solver's precision of 1e-9; widen them."
        )

    def meets(self, genes: Genes) -> bool:
        """Whether a row meets all limits, but for the rounding that ``Constraint`` forgives."""
        return not any(
            constraint.violation(self.tables[constraint.metric].predict(genes[None]))[0]
            for constraint in self.constraints
        )

    def genes(self, values: Values) -> Genes:
        """The architecture of a solution, shape (genes,); lighter blocks first within a cell."""
        row = np.full(self.space.num_genes, -1, dtype=np.int64)
        for i, stage in enumerate(self.space.stages):
            taken = values[self.edges[i]]  # (R, W before, W, entries)
            r, _, w, entry = (int(k) for k in np.unravel_index(taken.argmax(), taken.shape))
            column, start = int(self.space.width_columns[i]), self.space.block_columns(i).start
            depth = int(values[self.depths[i][r, w]].argmax())
            row[0], row[column], row[column + 1] = r, w, depth
            for number, positions in enumerate(self._cells[i]):
                times = np.rint(values[self.counts[i][r, number, w]]).astype(np.int64)
                active = positions[positions < stage.depths[depth]]
                row[start + active] = np.repeat(np.arange(len(times)), times)
            if self.space.enters_by_block:
                row[start] = entry
        return row


def _cells(space: SearchSpace, tables: Sequence[AdditiveTable]) -> list[list[Genes]]:
    """By stage the groups of positions that no table tells apart."""
    result = []
    for i, stage in enumerate(space.stages):
        groups: dict[bytes, list[int]] = {}
        for position in range(int(space.enters_by_block), stage.max_depth):
            key = stage.block_index[position].tobytes()
            key += b"".join(table.blocks[i][:, position].tobytes() for table in tables)
            groups.setdefault(key, []).append(position)
        result.append([np.array(group) for group in groups.values()])
    return result


def _beaten(merit: Values, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Choices that another allowed one equals or exceeds in everything; the first of equals stays.

    Args:
        merit: shape (…, choices, merits); larger is better.
        allowed: shape (…, choices).
    """
    result = np.zeros(allowed.shape, dtype=bool)
    for j in range(allowed.shape[-1]):
        this = merit[..., j : j + 1, :]
        covers, equal = (merit >= this).all(axis=-1), (merit == this).all(axis=-1)
        better = allowed & covers & (~equal | (np.arange(allowed.shape[-1]) < j))
        better[..., j] = False
        result[..., j] = better.any(axis=-1)
    return result
