"""Rows of genes as features whose weights add up over an architecture's components.

A block choice is described from coarse to fine: its traits (mixer, each parameter, MLP ratio) in
the whole network, the same in its stage, and the choice itself in its stage. Finer groups are
scaled down, so that a ridge penalty explains what it can by the coarse ones: the prior says that
like choices do alike. Weights of all groups are values of components, so whatever is linear in
these features is an additive table.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from predictors.tables.additive import AdditiveTable
from search_space import BLOCKS, Block, Genes, SearchSpace

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AdditiveFeatures:
    """Encoder of a space's rows.

    Args:
        space: The space whose rows are encoded.
        finer: Scale of each group relative to the next coarser one, positive.
    """

    space: SearchSpace
    finer: float = 0.5

    @cached_property
    def _choices(self) -> list[Values]:
        """Per stage the features of one block of each choice, shape (C, features of blocks)."""
        names: dict[Hashable, int] = {}
        for stage in self.space.stages:
            for block in stage.blocks:
                for trait in _traits(block):
                    names.setdefault(trait, len(names))
        traits = []
        for stage in self.space.stages:
            table = np.zeros((len(stage.blocks), len(names)))
            for row, block in zip(table, stage.blocks, strict=True):
                row[[names[trait] for trait in _traits(block)]] = 1.0
            traits.append(table)
        result = []
        for i, table in enumerate(traits):
            parts = [table]
            for j, stage in enumerate(self.space.stages):
                here = float(i == j)
                parts.append(here * self.finer * table)
                parts.append(here * self.finer**2 * np.eye(len(table), len(stage.blocks)))
            result.append(np.hstack(parts))
        used = np.any([table.any(axis=0) for table in result], axis=0)
        return [np.ascontiguousarray(table[:, used]) for table in result]

    @cached_property
    def _all_choices(self) -> Values:
        return np.concatenate(self._choices)

    def encode(self, genes: Genes) -> Values:
        """Encodes valid rows, shape (n, genes) to (n, features)."""
        space = self.space
        parts = [_one_hot(genes[:, 0], len(space.resolutions))]
        every = np.arange(len(genes))
        counted = []
        for i, stage in enumerate(space.stages):
            width, choice = genes[:, space.width_columns[i]], genes[:, space.block_columns(i)]
            parts += [_one_hot(width, len(stage.widths)), _steps(width, len(stage.widths))]
            parts.append(np.asarray(choice >= 0, dtype=np.float64))
            counts = np.zeros((len(genes), len(stage.blocks) + 1))  # −1 counts in the last one
            for column in stage.of_all(choice).T:
                counts[every, column] += 1.0
            counted.append(counts[:, :-1])
        blocks = np.hstack(counted) @ self._all_choices
        return np.hstack([*parts, blocks])

    def table(self, weights: Values, offset: float) -> AdditiveTable:
        """Builds the table of ``offset + features @ weights``, weights of shape (features,)."""
        space, at = self.space, 0

        def take(count: int) -> Values:
            nonlocal at
            at += count
            return weights[at - count : at]

        resolution = take(len(space.resolutions))
        widths, positions = [], []
        for stage in space.stages:
            num = len(stage.widths)
            every = np.arange(num)
            widths.append(take(num) + _steps(every, num) @ take(num - 1))
            positions.append(take(stage.max_depth))
        of_blocks = take(self._choices[0].shape[1])
        num, blocks, transitions = len(resolution), [], []
        before = np.zeros(1)
        for stage, position, choices, width in zip(
            space.stages, positions, self._choices, widths, strict=True
        ):
            of_all = np.append(choices @ of_blocks, 0.0)
            values = position[:, None] + of_all[stage.block_index[:, :-1]]  # (P, C)
            into = width[:, None]
            if space.enters_by_block:
                into = into + values[0, : len(stage.positions[0])]
                values[0] = 0.0
            shape = (num, len(position), len(width), values.shape[1])
            blocks.append(np.broadcast_to(values[None, :, None, :], shape).copy())
            shape = (num, len(before), *into.shape)
            transitions.append(np.broadcast_to(into, shape).copy())
            before = width
        return AdditiveTable(
            space,
            np.broadcast_to(resolution[:, None], (num, len(widths[0]))).copy(),
            tuple(blocks),
            tuple(transitions),
            np.zeros((num, len(widths[-1]))),
            offset=offset,
        )


@dataclass(frozen=True, eq=False)
class GeneFeatures:
    """Encoder of a space's rows with columns for each gene, so that a model can weigh genes.

    Two values of a gene are at most 1 apart, in squared distance: half of it for being different,
    half by how different, which is the number of choices between two widths, depths or
    resolutions, and the traits that two blocks do not share. An inactive gene is all zeros.

    Args:
        space: The space whose rows are encoded.
    """

    space: SearchSpace

    @cached_property
    def _tables(self) -> list[Values]:
        """Per gene the columns of each choice, and last of none: shape (choices + 1, columns)."""
        tables = [_ordered(int(count)) for count in self.space.cardinalities]
        for i, stage in enumerate(self.space.stages):
            start = self.space.block_columns(i).start
            for j, choices in enumerate(stage.positions):
                names = list(dict.fromkeys(name for block in choices for name in _traits(block)))
                traits = np.array([[name in _traits(b) for name in names] for b in choices], float)
                unlike = (traits[:, None] != traits).sum(axis=2).max(initial=1)
                tables[start + j] = _halves(traits / np.sqrt(unlike))
        return [np.vstack([table, np.zeros(table.shape[1])]) for table in tables]

    @cached_property
    def group(self) -> Genes:
        """Gene of each column, shape (columns,)."""
        widths = [table.shape[1] for table in self._tables]
        return np.repeat(np.arange(len(widths)), widths)

    def encode(self, genes: Genes) -> Values:
        """Encodes valid rows, shape (n, genes) to (n, columns)."""
        return np.hstack([t[gene] for t, gene in zip(self._tables, genes.T, strict=True)])


def _ordered(count: int) -> Values:
    return _halves(_steps(np.arange(count), count) / np.sqrt(max(count - 1, 1)))


def _halves(alike: Values) -> Values:
    """Columns whose squared distances are half those of ``alike`` and half 1, shape (n, …)."""
    different = np.eye(len(alike)) / np.sqrt(2)
    return np.hstack([alike, different]) / np.sqrt(2)


def _one_hot(indices: Genes, count: int) -> Values:
    return np.asarray(indices[:, None] == np.arange(count), dtype=np.float64)


def _steps(indices: Genes, count: int) -> Values:
    """Marks the steps between ``count`` ordered choices that are passed: near choices are alike."""
    return np.asarray(indices[:, None] > np.arange(count - 1), dtype=np.float64)


def _traits(block: Block) -> list[Hashable]:
    """Lists what blocks can have in common; the first is shared by all of them."""
    shared = BLOCKS[block.kind].ratios
    own = [(block.label, key, value) for key, value in block.traits.items() if key not in shared]
    return ["block", block.label, *own, *((key, block[key]) for key in shared)]
