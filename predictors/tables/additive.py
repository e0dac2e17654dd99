"""The additive table: a cost that is a sum over stem, transitions, blocks and head.

Latency, MACs, parameters, activations and layer-wise entropy all add up along the chain of an
architecture's components. A table holds the value of every component that a space can ask for,
as dense arrays over gene values, so that a population is costed by NumPy gather and the
cheapest architecture is found exactly: given the widths everything else is independent, and
widths couple neighbouring stages only, through the transition between them. Where the first block
of a stage is its transition, its choice is one of the transition's dimensions. Peak memory is the
largest of its components' instead of their sum; everything else about it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from search_space import Genes, ModuleSpec, SearchSpace
from search_space.components import (
    block_spec,
    components,
    head_spec,
    stem_spec,
    transition_spec,
)
from search_space.macro import STEMS, feature_sizes

Values = npt.NDArray[np.float64]
Entry = tuple[ModuleSpec, int]
"""A component's spec and the side of its input, which its cost depends on."""

_CHUNK = 8192  # rows whose genes stay in the second-level cache while their columns are read


@dataclass(frozen=True, eq=False)
class AdditiveTable:
    """Values of every component of a space, and an affine correction of their sum.

    The prediction is ``offset + scale × (stem + Σ transitions + Σ blocks + head)``. With R
    resolutions, and in a stage W widths, P positions and C choices of the position that has most:

    Args:
        space: The space whose genes index the arrays.
        stem: Values of stems, shape (R, W of stage 0).
        blocks: Values of blocks per stage, shape (R, P, W, C); 0 where a position has fewer
            choices, and of the first position where its block is the transition.
        transitions: Values of what leads into each stage, shape (R, W before, W, E). W before is 1
            for the first stage; E is 1, or the choices of the first block if that is the
            transition. 0 where there is none.
        head: Values of heads, shape (R, W of the last stage).
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
    transitions: tuple[Values, ...]
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
        values = np.array([cost(spec, size) for spec, size in index.entries] + [0.0])
        return cls(
            space,
            values[index.stem],
            tuple(values[block] for block in index.blocks),
            tuple(values[transition] for transition in index.transitions),
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

        Each has the transition's before it in it, the first stage's the stem's, the last one's the
        head's.
        """
        result = np.empty((len(genes), len(self.blocks)), dtype=np.float64)
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
        stages = []
        before: Genes | int = 0
        for i, values in enumerate(self.transitions):
            entry = columns[self.space.block_columns(i).start] if values.shape[3] > 1 else 0
            stages.append(values[resolution, before, widths[i], entry])
            before = widths[i]
        join(stages[0], self.stem[resolution, widths[0]], out=stages[0])
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
        before, enters = 0, self.space.enters_by_block
        modules = {item.path for item in components(self.space.decode(genes[None])[0])}

        def add(path: str, value: float) -> None:
            if path in modules or value:  # fitted tables have values where there is no module
                parts.append((path, value))

        for i, block in enumerate(self.blocks):
            choices = row[self.space.block_columns(i)]
            entries = self.transitions[i][r, before, widths[i]]
            entry = entries[choices[0] if len(entries) > 1 else 0]
            if not enters:
                add(f"stages.{i}.downsample", entry)
            for j, choice in enumerate(choices):
                if choice >= 0:
                    value = entry if enters and j == 0 else block[r, j, widths[i], choice]
                    add(f"stages.{i}.blocks.{j}", value)
            before = widths[i]
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
        signed = [
            np.where(offered[:, None, :], sign * block, np.inf)
            for block, offered in zip(self.blocks, self.offered, strict=True)
        ]
        stage_cost, stage_depth = [], []
        for stage, block in zip(space.stages, signed, strict=True):
            by_depth = join.accumulate(block.min(axis=3), axis=1)  # (R, P, W)
            by_depth = by_depth[:, np.asarray(stage.depths) - 1]
            stage_depth.append(by_depth.argmin(axis=1))
            stage_cost.append(by_depth.min(axis=1))
        # (R, W): the cheapest chain that ends in this width
        origins, cost = [], np.full((len(space.resolutions), 1), 0.0)
        for i, (transition, of_stage) in enumerate(zip(self.transitions, stage_cost, strict=True)):
            step = sign * transition
            through = join(cost[:, :, None], step.min(axis=3)) if i else step.min(axis=3)
            origins.append(through.argmin(axis=1))
            cost = join(through.min(axis=1), of_stage)
            if i == 0:
                cost = join(cost, sign * self.stem)
        cost = join(cost, sign * self.head)
        r, width = (int(i) for i in np.unravel_index(cost.argmin(), cost.shape))
        widths = [width]
        for origin in reversed(origins):
            widths.insert(0, int(origin[r, widths[0]]))
        genes = np.full(space.num_genes, -1, dtype=np.int64)
        genes[0] = r
        genes[space.width_columns] = widths[1:]
        for i, (stage, before, width) in enumerate(
            zip(space.stages, widths, widths[1:], strict=False)
        ):
            depth_index = int(stage_depth[i][r, width])
            genes[space.width_columns[i] + 1] = depth_index
            start, depth = space.block_columns(i).start, stage.depths[depth_index]
            genes[start : start + depth] = signed[i][r, :depth, width].argmin(axis=1)
            if self.transitions[i].shape[3] > 1:
                genes[start] = (sign * self.transitions[i][r, before, width]).argmin()
        return genes

    @cached_property
    def offered(self) -> list[npt.NDArray[np.bool_]]:
        """Says per stage which positions have which choices, shape (P, C)."""
        return [stage.block_index[:, :-1] >= 0 for stage in self.space.stages]


def entries(space: SearchSpace, num_classes: int = 1000) -> list[Entry]:
    """Lists distinct (spec, input side) of all components of all architectures of ``space``."""
    return list(_index(space, num_classes).entries)


@dataclass(frozen=True)
class _Index:
    """Distinct entries, and arrays of a table's shapes with each cell's position in them."""

    entries: list[Entry]
    stem: Genes
    blocks: list[Genes]
    transitions: list[Genes]
    head: Genes


@lru_cache(maxsize=4)
def _index(space: SearchSpace, num_classes: int) -> _Index:
    """Made once for all tables of a space; its arrays are only read."""
    macro, num = space.macro, len(space.resolutions)
    stems = [STEMS[macro.stem].size(macro, side, macro.stem_stride) for side in space.resolutions]
    sizes = [feature_sizes(macro, space.strides, resolution) for resolution in space.resolutions]
    known: dict[Entry, int] = {}

    def fill(
        array: Genes, cell: tuple[int, ...], spec: ModuleSpec | None, in_sizes: Sequence[int]
    ) -> None:
        for r, size in enumerate(in_sizes):
            if spec is not None:
                array[(r, *cell)] = known.setdefault((spec, size), len(known))

    def empty(*shape: int) -> Genes:
        return np.full((num, *shape), -1, dtype=np.int64)  # −1 is the entry that costs nothing

    first, last = space.stages[0], space.stages[-1]
    stem, head = empty(len(first.widths)), empty(len(last.widths))
    blocks, transitions = [], []
    for w, width in enumerate(first.widths):
        fill(stem, (w,), stem_spec(macro, width), space.resolutions)
    in_sizes = stems
    for i, (stage, stride) in enumerate(zip(space.stages, space.strides, strict=True)):
        out_sizes = [per_stage[i] for per_stage in sizes]
        most = max(map(len, stage.positions))
        entries = stage.positions[0] if space.enters_by_block else (None,)
        before = (None,) if i == 0 else space.widths_before[i]
        blocks.append(empty(stage.max_depth, len(stage.widths), most))
        transitions.append(empty(len(before), len(stage.widths), len(entries)))
        for w, width in enumerate(stage.widths):
            for v, e in np.ndindex(len(before), len(entries)):
                width_in, entry = before[v] or macro.stem_width or width, entries[e]
                if entry is None:
                    spec = transition_spec(macro, width_in, width, stride)
                else:
                    spec = block_spec(macro, width, entry, 0, width_in, stride)
                fill(transitions[i], (v, w, e), spec, in_sizes)
            for p, choices in enumerate(stage.positions):
                for c, block in enumerate(choices if p or not space.enters_by_block else ()):
                    fill(blocks[i], (p, w, c), block_spec(macro, width, block, p), out_sizes)
        in_sizes = out_sizes
    for w, width in enumerate(last.widths):
        fill(head, (w,), head_spec(macro, width, num_classes), in_sizes)
    return _Index(list(known), stem, blocks, transitions, head)
