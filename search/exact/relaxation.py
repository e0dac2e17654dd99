"""The Lagrangian relaxation of many programmes at once.

Where limits are replaced by prices λ ≥ 0 on what they limit, the best block of each position and
the best depth of each stage are chosen alone, and the value ``max_x objective(x) + λ · (limit −
usage(x))`` bounds every solution from above (Geoffrion 1974). For a few hundred combinations of
widths that is a few array operations, where a linear programme each would take seconds. At the
best prices the bound is that of the linear relaxation, since the choice by position and depth has
integral corners.

The bound on effectiveness, which is not linear, is left out: what is relaxed remains a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from predictors.tables.additive import Slice
from search.exact.programme import Programme, Values
from search.problem import ROUNDING

Indices = npt.NDArray[np.int64]
CLOSED = -1e200  # objective of a choice that is not allowed: added up it is finite still


@dataclass(frozen=True)
class Evaluation:
    """The relaxation of r programmes at given prices, and what attains it.

    Args:
        bounds: shape (r,).
        values: objective of what attains it, shape (r,).
        usage: of each limit, shape (r, limits), in units of the relaxation.
        depths: index of each stage's depth, shape (r, stages).
        choices: column of each cell's choice, per stage of shape (r, cells).
    """

    bounds: Values
    values: Values
    usage: Values
    depths: Indices
    choices: tuple[Indices, ...]


class StageArrays:
    """One stage of n programmes, its positions joined to cells that nothing tells apart.

    Attributes:
        objective: shape (n, cells, choices), ``CLOSED`` where not allowed or beaten by another.
        usage: shape (limits, n, cells, choices).
        columns: the space's index of each choice, shape (choices,).
        positions: of each cell.
        counts: positions of a cell below a depth, shape (cells, depths).
    """

    def __init__(self, programmes: Sequence[Programme], stage: int, scales: Values) -> None:
        depths = programmes[0].depths[stage]
        deepest = max(depths)

        def stacked(quantities: Sequence[Slice]) -> Values:
            return np.stack([q.blocks[stage][:deepest] for q in quantities])  # (n, P, C)

        objective = stacked([p.objective for p in programmes])
        limits = list(zip(*([limit.quantity for limit in p.sums] for p in programmes), strict=True))
        usage = [stacked(q) / scale for q, scale in zip(limits, scales, strict=True)]
        merits = [objective, *(-u for u in usage)]
        bounds = [p.effectiveness for p in programmes if p.effectiveness is not None]
        if bounds:
            merits += [
                stacked([b.entropy for b in bounds]),
                -stacked([b.layers for b in bounds]),
            ]
        allowed = np.stack([p.allowed(stage)[:deepest] for p in programmes])
        groups: dict[bytes, list[int]] = {}
        for position in range(deepest):
            key = b"".join(a[:, position].tobytes() for a in (*merits, allowed))
            groups.setdefault(key, []).append(position)
        self.positions = [np.array(group) for group in groups.values()]
        first = np.array([group[0] for group in groups.values()])
        merit = np.stack([m[:, first] for m in merits], axis=-1)  # (n, cells, choices, merits)
        open_ = allowed[:, first] & ~_beaten(merit, allowed[:, first])
        self.columns = np.flatnonzero(open_.any(axis=(0, 1)))
        self.objective = np.where(open_, objective[:, first], CLOSED)[:, :, self.columns]
        self.usage = np.zeros((len(usage), *self.objective.shape))
        for array, values in zip(self.usage, usage, strict=True):
            array[:] = np.where(open_, values[:, first], 0.0)[:, :, self.columns]
        self.counts = np.array(
            [[float((group < depth).sum()) for depth in depths] for group in self.positions]
        )


def _beaten(merit: Values, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Choices that another allowed one equals or exceeds in everything; the first of equals stays.

    Args:
        merit: shape (n, cells, choices, merits); larger is better.
        allowed: shape (n, cells, choices).
    """
    result = np.zeros(allowed.shape, dtype=bool)
    for j in range(merit.shape[2]):
        covers = allowed.copy()  # whether each choice covers choice j
        covered = allowed.copy()
        for k in range(merit.shape[3]):
            column = merit[..., k]
            covers &= column >= column[:, :, j : j + 1]
            covered &= column <= column[:, :, j : j + 1]
        earlier = np.arange(merit.shape[2]) < j
        better = covers & (~covered | earlier)
        better[:, :, j] = False
        result[:, :, j] = better.any(axis=2)
    return result


class Relaxation:
    """Programmes with the same depths, rules and kinds of limits, as arrays.

    Attributes:
        capacity: what a limit leaves for blocks, shape (n, limits), in units of the relaxation.
        tolerance: by how much it may be exceeded, as rounding may, shape (limits,).
        rounding: by how much equal objectives may differ, added up in another order.
        impossible: programmes that a largest part forbids, shape (n,).
    """

    def __init__(self, programmes: Sequence[Programme]) -> None:
        first = programmes[0]
        assert all(len(p.limits) == len(first.limits) for p in programmes)
        self.programmes = programmes
        self.scales = np.array([_scale(limit.quantity) for limit in first.sums])
        self.stages = [
            StageArrays(programmes, stage, self.scales) for stage in range(len(first.depths))
        ]
        self.constants = np.array([float(p.objective.constants.sum()) for p in programmes])
        self.rounding = ROUNDING * self._size()
        self._used = np.array(
            [[float(limit.quantity.constants.sum()) for limit in p.sums] for p in programmes]
        ).reshape(len(programmes), len(self.scales))
        self.capacity = np.zeros_like(self._used)
        self.tolerance = np.zeros(len(self.scales))
        for k, limit in enumerate(first.sums):
            assert all(p.sums[k].maximum == limit.maximum for p in programmes)
            self.limit(k, limit.maximum)
        self.impossible = np.array(
            [
                any(limit.quantity.constants.max() > limit.maximum for limit in p.largest_parts)
                for p in programmes
            ]
        )

    def __len__(self) -> int:
        return len(self.programmes)

    def _size(self) -> float:
        """What the objective's parts add up to at most, without their signs."""
        sizes = np.array([float(np.abs(p.objective.constants).sum()) for p in self.programmes])
        for stage in self.stages:
            largest = np.where(stage.objective == CLOSED, 0.0, np.abs(stage.objective)).max(axis=2)
            sizes += (largest @ stage.counts).max(axis=1)
        return float(sizes.max())

    def limit(self, k: int, maximum: float) -> None:
        """Set a limit's value."""
        self.capacity[:, k] = (maximum - self._used[:, k]) / self.scales[k]
        self.tolerance[k] = ROUNDING / 2 * (abs(maximum) or 1.0) / self.scales[k]

    def evaluate(self, rows: Indices, prices: Values) -> Evaluation:
        """The relaxation of programmes ``rows`` (r,) at prices of shape (r, limits)."""
        count = np.arange(len(rows))[:, None]
        values = self.constants[rows]
        total = values + (prices * self.capacity[rows]).sum(axis=1)
        usage = np.zeros_like(prices)
        depths, choices = [], []
        whole = len(rows) == len(self)
        for stage in self.stages:
            objective = stage.objective if whole else stage.objective[rows]
            used = stage.usage if whole else stage.usage[:, rows]
            priced = objective.copy()
            for k, own in enumerate(used):
                priced -= prices[:, k, None, None] * own
            choice = priced.argmax(axis=2)
            cells = np.arange(choice.shape[1])
            by_depth = priced[count, cells, choice] @ stage.counts
            depth = by_depth.argmax(axis=1)
            total += by_depth[count[:, 0], depth]
            times = stage.counts[:, depth].T  # (r, cells)
            # what a cell without a position would choose counts for nothing
            values = values + (times * objective[count, cells, choice]).sum(axis=1)
            for k, own in enumerate(used):
                usage[:, k] += (times * own[count, cells, choice]).sum(axis=1)
            depths.append(depth)
            choices.append(choice)
        return Evaluation(total, values, usage, np.stack(depths, axis=1), tuple(choices))

    def lowest(self) -> Values:
        """Lower bound of the objective without limits, shape (n,); −∞ where nothing is allowed."""
        total = self.constants.copy()
        for stage in self.stages:
            least = np.where(stage.objective == CLOSED, np.inf, stage.objective).min(axis=2)
            least = np.where(np.isinf(least), CLOSED, least)
            total += (least @ stage.counts).min(axis=1)
        return total

    def placed(
        self, row: int, depths: Sequence[int], counts: Sequence[Sequence[Indices]]
    ) -> tuple[tuple[int, ...], ...]:
        """Choices by stage and position of one programme; lighter ones first within a cell.

        Args:
            row: of the programme.
            depths: index of each stage's depth.
            counts: per stage and cell, how often each column is chosen.
        """
        result = []
        for stage, options, index, cells in zip(
            self.stages, self.programmes[row].depths, depths, counts, strict=True
        ):
            placed: dict[int, int] = {}
            for positions, times in zip(stage.positions, cells, strict=True):
                active = positions[positions < options[index]].tolist()
                chosen = np.repeat(stage.columns, times).tolist()
                placed.update(zip(active, chosen, strict=True))
            result.append(tuple(placed[position] for position in range(options[index])))
        return tuple(result)


def _scale(quantity: Slice) -> float:
    """A typical size of what blocks use, so that prices are of the objective's size."""
    return max(float(np.abs(block).mean()) for block in quantity.blocks) or 1.0
