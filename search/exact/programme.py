"""What is optimised where resolution and widths are fixed: a choice of blocks for each stage.

Everything that adds up over components is then linear in how often each block choice is used at
the positions of a stage that cost the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from predictors.tables.additive import Slice
from search.problem import ROUNDING

Values = npt.NDArray[np.float64]
Choices = Sequence[Sequence[int]]
"""Index of the block choice by stage and position."""
GAP = 1e-3


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

    @property
    def sums(self) -> list[Limit]:
        """Limits of quantities that add up."""
        return [limit for limit in self.limits if limit.quantity.combine == "sum"]

    @property
    def largest_parts(self) -> list[Limit]:
        """Limits of quantities that are the largest of their parts."""
        return [limit for limit in self.limits if limit.quantity.combine == "max"]

    def allowed(self, stage: int) -> npt.NDArray[np.bool_]:
        """Choices that no limit on a largest part forbids, shape (positions, choices)."""
        result = np.ones(self.objective.blocks[stage].shape, dtype=bool)
        for limit in self.largest_parts:
            result &= limit.quantity.blocks[stage] <= limit.maximum
        return result

    def value(self, choices: Choices) -> float:
        """Objective of block choices by stage and position."""
        return float(_stage_values(self.objective, choices).sum())

    def meets(self, choices: Choices) -> bool:
        """Whether all limits hold, but for the rounding that ``Constraint`` forgives too."""
        for limit in self.sums:
            slack = ROUNDING / 2 * (abs(limit.maximum) or 1.0)
            if _stage_values(limit.quantity, choices).sum() > limit.maximum + slack:
                return False
        for limit in self.largest_parts:
            parts = [
                block[p, c]
                for block, row in zip(limit.quantity.blocks, choices, strict=True)
                for p, c in enumerate(row)
            ]
            if max(*parts, limit.quantity.constants.max()) > limit.maximum:
                return False
        depths = [len(row) for row in choices]
        if any(depths[i] > depths[j] + most for i, j, most in self.depth_rules):
            return False
        if self.effectiveness is None:
            return True
        entropy = _stage_values(self.effectiveness.entropy, choices).cumsum()
        layers = _stage_values(self.effectiveness.layers, choices).cumsum()
        rho = layers * np.exp(-2 * entropy / layers)
        return bool(rho.max() <= self.effectiveness.maximum)


def _stage_values(quantity: Slice, choices: Choices) -> Values:
    """What each stage adds to a sum, shape (stages,)."""
    own = [
        sum(float(block[p, c]) for p, c in enumerate(row))
        for block, row in zip(quantity.blocks, choices, strict=True)
    ]
    return quantity.constants + np.array(own)


def undominated(merit: Values) -> npt.NDArray[np.int64]:
    """Rows that no other row equals or exceeds in every column, the first of equals; ascending.

    Args:
        merit: shape (rows, columns), larger is better.
    """
    covers = np.all(merit[:, None, :] >= merit[None, :, :], axis=2)  # i is as good as j
    earlier = np.triu(np.ones_like(covers), 1)  # i < j
    beaten = covers & (~covers.T | earlier)
    np.fill_diagonal(beaten, False)
    return np.flatnonzero(~beaten.any(axis=0))
