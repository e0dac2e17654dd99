"""The additive table: a cost that is a sum over stem, blocks, downsampling and head.

Latency, MACs, parameters, activations and layer-wise entropy all add up along the chain of an
architecture's components. A table holds the value of every component that a space can ask for,
as dense arrays over gene values, so that a population is costed by NumPy gather and the
cheapest architecture is found exactly: given the widths everything else is independent, and
widths couple neighbouring stages only, through the downsampling layer between them. Peak memory
is the largest of its components' instead of their sum; everything else about it is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from search_space import Genes, ModuleSpec, SearchSpace
from search_space.architecture import NUM_STAGES, feature_sizes
from search_space.components import block_spec, downsample_spec, head_spec, stem_spec

Values = npt.NDArray[np.float64]
Entry = tuple[ModuleSpec, int]
"""What a component's cost depends on: its spec and the side of its input."""

_CHUNK = 8192  # rows whose genes stay in the second-level cache while their columns are read


@dataclass(frozen=True, eq=False)
class AdditiveTable:
    """Values of every component of a space, and an affine correction of their sum.

    The prediction is ``offset + scale × (stem + Σ blocks + Σ downsampling + head)``. With
    R resolutions, and W widths, P positions and C block choices in a stage:

    Args:
        space: The space whose genes index the arrays.
        stem: Values of stems, shape (R, W of stage 0).
        blocks: Values of blocks per stage, shape (R, P, W, C).
        downsamples: Values before stages 1 to 3, shape (R, W of the stage before, W of the stage).
        head: Values of heads, shape (R, W of stage 3).
        scale: Factor of the correction, positive, so that it never reorders architectures.
        offset: Offset of the correction.
        combine: How values of components make that of a network: ``sum``, or ``max`` (of values
            that are not negative).

    Example:
        >>> table = AdditiveTable.build(space, 1000, cost)
        >>> table.predict(space.sample(rng, 10_000))
        >>> space.decode([table.argmin()])  # the cheapest architecture of all
    """

    space: SearchSpace
    stem: Values
    blocks: tuple[Values, ...]
    downsamples: tuple[Values, ...]
    head: Values
    scale: float = 1.0
    offset: float = 0.0
    combine: Literal["sum", "max"] = "sum"

    @classmethod
    def build(
        cls,
        space: SearchSpace,
        num_classes: int,
        cost: Callable[[ModuleSpec, int], float],
        *,
        scale: float = 1.0,
        offset: float = 0.0,
        combine: Literal["sum", "max"] = "sum",
    ) -> AdditiveTable:
        """Builds a table from ``cost(spec, in_size)``, which is called once per distinct entry."""
        index = _index(space, num_classes)
        values = np.array([cost(spec, size) for spec, size in index.entries], dtype=np.float64)
        return cls(
            space,
            values[index.stem],
            tuple(values[block] for block in index.blocks),
            tuple(values[downsample] for downsample in index.downsamples),
            values[index.head],
            scale,
            offset,
            combine,
        )

    # Prediction -------------------------------------------------------------------------------

    def predict(self, genes: Genes) -> Values:
        """Predicts the values of valid rows, shape (n, genes) to (n,)."""
        genes = np.asarray(genes)
        result = np.empty(len(genes), dtype=np.float64)
        for start in range(0, len(genes), _CHUNK):
            rows = genes[start : start + _CHUNK]
            result[start : start + _CHUNK] = self._join.reduce(self._by_stage(rows))
        return self.offset + self.scale * result

    @cached_property
    def _flat_blocks(self) -> tuple[Values, ...]:
        """Per stage (P, R·W·(C + 1)): an inactive gene, −1, indexes a column of zeros."""
        flat = []
        for block in self.blocks:
            padded = np.pad(block, ((0, 0), (0, 0), (0, 0), (1, 0)))
            flat.append(padded.transpose(1, 0, 2, 3).reshape(block.shape[1], -1).copy())
        return tuple(flat)

    def stage_sums(self, genes: Genes) -> Values:
        """Computes uncorrected values of each stage, shape (n, genes) to (n, stages).

        The first stage's has the stem's in it, the others' that of the downsampling before them,
        the last one's the head's.
        """
        result = np.empty((len(genes), NUM_STAGES), dtype=np.float64)
        for start in range(0, len(genes), _CHUNK):
            rows = np.asarray(genes[start : start + _CHUNK])
            result[start : start + _CHUNK] = np.stack(self._by_stage(rows), axis=1)
        return result

    @property
    def _join(self) -> np.ufunc:
        return np.add if self.combine == "sum" else np.maximum

    def _by_stage(self, genes: Genes) -> list[Values]:
        columns = np.ascontiguousarray(genes.T)
        resolution = columns[0]
        widths = [columns[column] for column in self.space.width_columns]
        join = self._join
        stages = [self.stem[resolution, widths[0]]]
        for before, after, values in zip(widths, widths[1:], self.downsamples, strict=False):
            stages.append(values[resolution, before, after])
        join(stages[-1], self.head[resolution, widths[-1]], out=stages[-1])
        for i, (block, flat) in enumerate(zip(self.blocks, self._flat_blocks, strict=True)):
            _, _, num_widths, num_choices = block.shape
            base = (resolution * num_widths + widths[i]) * (num_choices + 1) + 1
            for row, choice in zip(flat, columns[self.space.block_columns(i)], strict=True):
                join(stages[i], row.take(base + choice), out=stages[i])
        return stages

    # Explanation ------------------------------------------------------------------------------

    def breakdown(self, genes: Genes) -> list[tuple[str, float]]:
        """Lists component paths and their share of one row's prediction, shape (genes,).

        The shares are scaled by the correction and the last one, ``correction``, is its offset
        (left out where that is zero), so they add up to the prediction of a ``sum``.
        """
        row = [int(gene) for gene in genes]
        r, widths = row[0], [row[column] for column in self.space.width_columns]
        parts = [("stem", self.stem[r, widths[0]])]
        for i, block in enumerate(self.blocks):
            if i > 0:
                value = self.downsamples[i - 1][r, widths[i - 1], widths[i]]
                parts.append((f"stages.{i}.downsample", value))
            for j, choice in enumerate(row[self.space.block_columns(i)]):
                if choice >= 0:
                    parts.append((f"stages.{i}.blocks.{j}", block[r, j, widths[i], choice]))
        parts.append(("head", self.head[r, widths[-1]]))
        shares = [(path, self.scale * float(value)) for path, value in parts]
        return [*shares, ("correction", self.offset)] if self.offset else shares

    # Exact extremes ---------------------------------------------------------------------------

    def argmin(self) -> Genes:
        """Finds the genes of an architecture with the smallest value of all, shape (genes,)."""
        return self._cheapest(1.0)

    def argmax(self) -> Genes:
        """Finds the genes of an architecture with the largest value of all, shape (genes,)."""
        return self._cheapest(-1.0)

    def _cheapest(self, sign: float) -> Genes:
        """Dynamic programming over the stages' widths, for each resolution."""
        space = self.space
        join: np.ufunc = np.add
        if self.combine == "max":
            join = np.maximum if sign > 0 else np.minimum
        choices = [(sign * block).argmin(axis=3) for block in self.blocks]  # each (R, P, W)
        stage_cost, stage_depth = [], []
        for stage, block in zip(space.stages, self.blocks, strict=True):
            by_depth = join.accumulate((sign * block).min(axis=3), axis=1)  # (R, P, W)
            by_depth = by_depth[:, np.asarray(stage.depths) - 1]
            stage_depth.append(by_depth.argmin(axis=1))
            stage_cost.append(by_depth.min(axis=1))
        # (R, W): the cheapest chain that ends in this width
        cost = join(sign * self.stem, stage_cost[0])
        origins = []
        for downsample, of_stage in zip(self.downsamples, stage_cost[1:], strict=True):
            through = join(cost[:, :, None], sign * downsample)
            origins.append(through.argmin(axis=1))
            cost = join(through.min(axis=1), of_stage)
        cost = join(cost, sign * self.head)
        r, width = (int(i) for i in np.unravel_index(cost.argmin(), cost.shape))
        widths = [width]
        for origin in reversed(origins):
            widths.insert(0, int(origin[r, widths[0]]))
        genes = np.full(space.num_genes, -1, dtype=np.int64)
        genes[0] = r
        genes[space.width_columns] = widths
        for i, (stage, width) in enumerate(zip(space.stages, widths, strict=True)):
            depth_index = int(stage_depth[i][r, width])
            genes[space.width_columns[i] + 1] = depth_index
            start, depth = space.block_columns(i).start, stage.depths[depth_index]
            genes[start : start + depth] = choices[i][r, :depth, width]
        return genes


def entries(space: SearchSpace, num_classes: int = 1000) -> list[Entry]:
    """Lists distinct (spec, input side) of all components of all architectures of ``space``."""
    return list(_index(space, num_classes).entries)


@dataclass(frozen=True)
class _Index:
    """Distinct entries, and arrays of a table's shapes with each cell's position in them."""

    entries: list[Entry]
    stem: Genes
    blocks: list[Genes]
    downsamples: list[Genes]
    head: Genes


@lru_cache(maxsize=4)
def _index(space: SearchSpace, num_classes: int) -> _Index:
    """Made once for all tables of a space; its arrays are only read."""
    macro, num = space.macro, len(space.resolutions)
    widths = [len(stage.widths) for stage in space.stages]
    sizes = [feature_sizes(macro, resolution) for resolution in space.resolutions]
    known: dict[Entry, int] = {}

    def fill(array: Genes, cell: tuple[int, ...], spec: ModuleSpec, in_sizes: list[int]) -> None:
        for r, size in enumerate(in_sizes):
            array[(r, *cell)] = known.setdefault((spec, size), len(known))

    def empty(*shape: int) -> Genes:
        return np.empty((num, *shape), dtype=np.int64)

    stem, head = empty(widths[0]), empty(widths[-1])
    blocks = [empty(s.max_depth, len(s.widths), len(s.blocks)) for s in space.stages]
    downsamples = [empty(before, after) for before, after in pairwise(widths)]
    for w, width in enumerate(space.stages[0].widths):
        fill(stem, (w,), stem_spec(macro, width), list(space.resolutions))
    for i, stage in enumerate(space.stages):
        in_sizes = [per_stage[i] for per_stage in sizes]
        for w, width in enumerate(stage.widths):
            if i > 0:
                for v, before in enumerate(space.stages[i - 1].widths):
                    spec = downsample_spec(macro, before, width)
                    fill(downsamples[i - 1], (v, w), spec, [s[i - 1] for s in sizes])
            for c, block in enumerate(stage.blocks):
                for p in range(stage.max_depth):
                    fill(blocks[i], (p, w, c), block_spec(macro, width, block, p), in_sizes)
    for w, width in enumerate(space.stages[-1].widths):
        spec = head_spec(macro, width, num_classes)
        fill(head, (w,), spec, [s[NUM_STAGES - 1] for s in sizes])
    return _Index(list(known), stem, blocks, downsamples, head)
