"""The shape that published hierarchical backbones share, as a rule for searches without training.

Closed-form scores were checked on four-stage networks whose stages never get narrower and whose
third stage has the most blocks. A search that leaves this shape is scored by nothing that was ever
tested, and would spend its blocks where maps are largest; so it is kept inside.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from search_space.architecture import Architecture
from search_space.space import SearchSpace
from search_space.stage_space import Genes

Values = npt.NDArray[np.float64]
SHAPE = "shape"


def deepest_of(stages: int) -> int | None:
    """The stage that must have the most blocks: the third of four; other counts have no rule."""
    return 2 if stages == 4 else None


def keeps_shape(architecture: Architecture) -> bool:
    """Whether no stage is narrower than the one before, and of four none deeper than the third."""
    widths, depths = architecture.widths, architecture.depths
    deepest = deepest_of(len(depths))
    return list(widths) == sorted(widths) and (deepest is None or max(depths) == depths[deepest])


class ShapeRule:
    """Channels by which stages get narrower, and blocks by which others exceed the third stage.

    0 where the rule is kept. A cheap metric like any table (``search.problem.Table``).
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._widths = [np.array(stage.widths, dtype=np.float64) for stage in space.stages]
        self._depths = [np.array(stage.depths, dtype=np.float64) for stage in space.stages]

    def predict(self, genes: Genes) -> Values:
        """Excess of rows, shape (n, genes) to (n,)."""
        columns = self.space.width_columns
        widths = [w[genes[:, c]] for w, c in zip(self._widths, columns, strict=True)]
        depths = [d[genes[:, c + 1]] for d, c in zip(self._depths, columns, strict=True)]
        total = np.zeros(len(genes))
        for before, after in itertools.pairwise(widths):
            total += np.maximum(before - after, 0)
        deepest = deepest_of(len(depths))
        if deepest is not None:
            for depth in depths:
                total += np.maximum(depth - depths[deepest], 0)
        return total

    def argmin(self) -> Genes:
        """Row with the least excess of the whole space, shape (genes,)."""
        return self._extreme(1.0)

    def argmax(self) -> Genes:
        """Row with the most excess of the whole space, shape (genes,)."""
        return self._extreme(-1.0)

    def _extreme(self, sign: float) -> Genes:
        """Widths by dynamic programming; depths one by one; which blocks does not matter."""
        row = np.zeros(self.space.num_genes, dtype=np.int64)
        cost, origins = np.zeros(len(self._widths[0])), []
        for before, after in itertools.pairwise(self._widths):
            through = cost[:, None] + sign * np.maximum(before[:, None] - after, 0)
            origins.append(through.argmin(axis=0))
            cost = through.min(axis=0)
        widths = [int(cost.argmin())]
        for origin in reversed(origins):
            widths.insert(0, int(origin[widths[0]]))
        row[self.space.width_columns] = widths
        deepest = deepest_of(len(self._depths))
        for i, depths in enumerate(self._depths if deepest is not None else ()):
            if (i == deepest) == (sign > 0):
                row[self.space.width_columns[i] + 1] = len(depths) - 1
        return np.where(self.space.active(row[None])[0], row, -1)
