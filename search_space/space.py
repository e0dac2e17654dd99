"""A search space: the set of architectures to choose from, and its integer encoding.

A population is an integer array of shape ``(n, genes)``. A row holds the index of the
resolution, then for each stage the indices of its width and depth and one choice per position
among the position's blocks; positions beyond the depth hold −1, so that equal architectures have
equal rows. All operators work on whole populations and return only valid rows: nothing is ever
re-drawn.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from search_space.architecture import (
    Architecture,
    Stage,
    check_entry,
    check_resolution,
    default_stride,
)
from search_space.blocks import Block
from search_space.errors import InvalidArchitectureError, InvalidSpaceError
from search_space.macro import BLOCK_TRANSITION, Macro
from search_space.stage_space import INACTIVE, Genes, StageSpace, check_choices

MAX_SIZE = 10**300  # architectures; more than a float holds is a slip, and no one could print it


@dataclass(frozen=True)
class SearchSpace:
    """Architectures that share a macro style and choose within ``StageSpace``s.

    Example:
        Ten random architectures of a preset, and the genes that stand for them::

            space = load_space("cifar")
            genes = space.sample(np.random.default_rng(0), 10)
            assert (space.encode(space.decode(genes)) == genes).all()

    Args:
        name: Name of the preset, for people; not part of the digest.
        macro: Macro style of every architecture.
        resolutions: Image sides to choose from, ascending.
        stages: One or more stage spaces; afterwards every one states its stride.

    Raises:
        InvalidSpaceError: A rule is broken.
    """

    name: str
    macro: Macro
    resolutions: tuple[int, ...]
    stages: tuple[StageSpace, ...]

    def __post_init__(self) -> None:
        check_choices("resolution", self.resolutions)
        try:
            check_resolution(self.macro, self.resolutions[0], [s.stride for s in self.stages])
            stages = tuple(
                replace(stage, stride=default_stride(i)) if stage.stride is None else stage
                for i, stage in enumerate(self.stages)
            )
            object.__setattr__(self, "stages", stages)
            for i, stage in enumerate(stages if self.enters_by_block else ()):
                before = self.widths_before[i]
                if i or self.strides[0] > 1 or self.macro.stem_width:  # else the stem's is its own
                    check_entry(i, self.strides[i], before, stage.widths, stage.positions[0])
        except InvalidArchitectureError as error:
            raise InvalidSpaceError(str(error)) from None
        if self.size > MAX_SIZE:
            depths = [stage.max_depth for stage in self.stages]
            raise InvalidSpaceError(
                f"depths up to {depths} with so many block choices make more than 1e300 "
                "architectures; take smaller depths or fewer choices."
            )

    @property
    def enters_by_block(self) -> bool:
        """Whether the first block of each stage is also the transition from the stage before."""
        return self.macro.downsample == BLOCK_TRANSITION

    @property
    def widths_before(self) -> tuple[tuple[int, ...], ...]:
        """Widths that each stage may be given: the stem's, then those of the stages before."""
        stem = self.macro.stem_width
        first = (stem,) if stem else self.stages[0].widths
        return (first, *(stage.widths for stage in self.stages[:-1]))

    @property
    def strides(self) -> tuple[int, ...]:
        """The stages' strides."""
        return tuple(stage.stride or 1 for stage in self.stages)

    # Layout of a row of genes ------------------------------------------------------------

    @cached_property
    def width_columns(self) -> Genes:
        """Column of each stage's width gene, shape (stages,); the depth gene follows it."""
        lengths = [2 + stage.max_depth for stage in self.stages[:-1]]
        return np.cumsum([1, *lengths], dtype=np.int64)

    def block_columns(self, stage: int) -> slice:
        """Returns the columns of the block choices of ``stage``."""
        start = int(self.width_columns[stage]) + 2
        return slice(start, start + self.stages[stage].max_depth)

    @property
    def num_genes(self) -> int:
        return self.block_columns(len(self.stages) - 1).stop

    @cached_property
    def cardinalities(self) -> Genes:
        """Number of choices of each gene, shape (genes,)."""
        result = np.empty(self.num_genes, dtype=np.int64)
        result[0] = len(self.resolutions)
        for i, stage in enumerate(self.stages):
            column = self.width_columns[i]
            result[column] = len(stage.widths)
            result[column + 1] = len(stage.depths)
            result[self.block_columns(i)] = [len(choices) for choices in stage.positions]
        return result

    def active(self, genes: Genes) -> npt.NDArray[np.bool_]:
        """Says which genes matter in each row, shape (n, genes)."""
        mask = np.ones(genes.shape, dtype=bool)
        for i, stage in enumerate(self.stages):
            depth = np.asarray(stage.depths)[genes[:, self.width_columns[i] + 1]]
            mask[:, self.block_columns(i)] = np.arange(stage.max_depth) < depth[:, None]
        return mask

    def present(self, genes: Genes, stage: int) -> npt.NDArray[np.bool_]:
        """Says where a stage has blocks that are not skipped, (n, genes) to (n, positions)."""
        space = self.stages[stage]
        skipped = np.array([block.skipped for block in space.blocks] + [True])
        return ~skipped[space.of_all(genes[:, self.block_columns(stage)])]

    # Size and extremes ----------------------------------------------------------------------

    @cached_property
    def size(self) -> int:
        """The number of architectures."""
        total = len(self.resolutions)
        for stage in self.stages:
            counts = [len(choices) for choices in stage.positions]
            total *= len(stage.widths) * sum(math.prod(counts[:depth]) for depth in stage.depths)
        return total

    @cached_property
    def smallest(self) -> Architecture:
        """The architecture of all first choices; choices are listed from light to heavy."""
        return self._extreme(0)

    @cached_property
    def largest(self) -> Architecture:
        """The architecture of all last choices."""
        return self._extreme(-1)

    def _extreme(self, index: int) -> Architecture:
        stages = tuple(
            Stage(
                s.widths[index],
                tuple(choices[index] for choices in s.positions[: s.depths[index]]),
                s.stride,
            )
            for s in self.stages
        )
        return Architecture(self.macro, self.resolutions[index], stages)

    # Architectures to genes and back --------------------------------------------------------

    def encode(self, architectures: Sequence[Architecture]) -> Genes:
        """Returns the genes of architectures, shape (n, genes).

        Raises:
            InvalidArchitectureError: One lies outside the space; names what.
        """
        genes = np.full((len(architectures), self.num_genes), INACTIVE, dtype=np.int64)
        for row, architecture in zip(genes, architectures, strict=True):
            if architecture.macro != self.macro:
                raise InvalidArchitectureError(
                    f"the macro style of {architecture.digest} is not that of space {self.name!r}."
                )
            if architecture.strides != self.strides:
                raise InvalidArchitectureError(
                    f"the stages of {architecture.digest} have strides {architecture.strides}, "
                    f"those of space {self.name!r} {self.strides}."
                )
            row[0] = self._index(self.resolutions, architecture.resolution, "resolution")
            for i, (space, stage) in enumerate(zip(self.stages, architecture.stages, strict=True)):
                column = self.width_columns[i]
                row[column] = self._index(space.widths, stage.width, f"stages[{i}] width")
                row[column + 1] = self._index(space.depths, stage.depth, f"stages[{i}] depth")
                start = self.block_columns(i).start
                for j, (block, choices) in enumerate(
                    zip(stage.blocks, space.positions, strict=False)
                ):
                    row[start + j] = self._index(choices, block, f"stages[{i}].blocks[{j}]")
        return genes

    def _index(self, values: Sequence[Any], value: Any, where: str) -> int:
        if value in values:
            return values.index(value)
        shown = [str(v.to_dict()) if isinstance(v, Block) else str(v) for v in values]
        plain = value.to_dict() if isinstance(value, Block) else value
        raise InvalidArchitectureError(
            f"{where} {plain} is not in space {self.name!r}; choices: {', '.join(shown)}."
        )

    def decode(self, genes: Genes) -> list[Architecture]:
        """Returns the architectures of genes (n, genes); raises InvalidArchitectureError."""
        genes = np.asarray(genes)
        self._check(genes)
        result = []
        for row in genes.tolist():
            stages = []
            for i, space in enumerate(self.stages):
                column = int(self.width_columns[i])
                depth = space.depths[row[column + 1]]
                choices = row[column + 2 : column + 2 + depth]
                blocks = tuple(
                    of_position[choice]
                    for of_position, choice in zip(space.positions, choices, strict=False)
                )
                stages.append(Stage(space.widths[row[column]], blocks, space.stride))
            result.append(Architecture(self.macro, self.resolutions[row[0]], tuple(stages)))
        return result

    def _check(self, genes: Genes) -> None:
        if genes.ndim != 2 or genes.shape[1] != self.num_genes:
            raise InvalidArchitectureError(
                f"genes of shape {genes.shape} do not fit space {self.name!r}: expected "
                f"(n, {self.num_genes})."
            )
        heads = np.concatenate([[0], self.width_columns, self.width_columns + 1])
        valid = bool(np.all((genes[:, heads] >= 0) & (genes[:, heads] < self.cardinalities[heads])))
        if valid:
            in_range = (genes >= 0) & (genes < self.cardinalities)
            valid = bool(np.all(np.where(self.active(genes), in_range, genes == INACTIVE)))
        if not valid:
            raise InvalidArchitectureError(
                f"genes out of range for space {self.name!r}: active genes lie in "
                f"0…{self.cardinalities.max() - 1} by column, inactive ones are {INACTIVE}."
            )

    def contains(self, architecture: Architecture) -> bool:
        """Says whether ``architecture`` is a point of this space."""
        try:
            self.encode([architecture])
        except InvalidArchitectureError:
            return False
        return True

    # Operators --------------------------------------------------------------------------------

    def sample(self, rng: np.random.Generator, n: int) -> Genes:
        """Draws ``n`` random rows, shape (n, genes), every gene uniform over its choices."""
        genes = rng.integers(0, self.cardinalities, size=(n, self.num_genes))
        return np.where(self.active(genes), genes, INACTIVE)

    def mutate(self, genes: Genes, rng: np.random.Generator, rate: float = 0.1) -> Genes:
        """Returns changed copies of rows.

        A width, depth or resolution moves to another value; a block moves to a choice that
        differs in one parameter or, just as often, to any choice. Blocks that a deeper stage adds
        copy a block of the stage or are drawn afresh, half and half.

        Args:
            genes: Valid rows (n, genes).
            rng: Source of randomness.
            rate: Probability that an active gene changes; at least one per row does.

        Returns:
            Valid rows (n, genes).
        """
        drawn = rng.integers(0, self.cardinalities, size=genes.shape)
        active = self.active(genes)
        # shift by 1 … c−1 so that a gene that changes takes another value
        step = 1 + (rng.random(genes.shape) * (self.cardinalities - 1)).astype(np.int64)
        proposed = np.where(
            self.cardinalities > 1, (np.maximum(genes, 0) + step) % self.cardinalities, genes
        )
        local = rng.random(genes.shape) < 0.5
        for i, stage in enumerate(self.stages):
            columns = self.block_columns(i)
            current = np.maximum(genes[:, columns], 0)
            sizes, table = self._near[i]
            position = np.arange(stage.max_depth)
            pick = (rng.random(current.shape) * sizes[position, current]).astype(np.int64)
            near_choice = table[position, current, pick]
            use = local[:, columns] & (near_choice != current)
            proposed[:, columns] = np.where(use, near_choice, proposed[:, columns])
        changeable = active & (self.cardinalities > 1)
        change = (rng.random(genes.shape) < rate) & changeable
        priority = np.where(changeable, rng.random(genes.shape), -1.0)
        idle = ~change.any(axis=1) & changeable.any(axis=1)
        change[np.flatnonzero(idle), priority[idle].argmax(axis=1)] = True
        result = np.where(change, proposed, genes)
        for i, stage in enumerate(self.stages):
            columns = self.block_columns(i)
            blocks = result[:, columns]
            old_depth = active[:, columns].sum(axis=1)
            source = (rng.random(blocks.shape) * old_depth[:, None]).astype(np.int64)
            copied = stage.copied(np.take_along_axis(blocks, source, axis=1), source)
            copied = np.where(copied == INACTIVE, drawn[:, columns], copied)
            fresh = np.where(rng.random(blocks.shape) < 0.5, copied, drawn[:, columns])
            result[:, columns] = np.where(blocks == INACTIVE, fresh, blocks)
        return np.where(self.active(result), result, INACTIVE)

    @cached_property
    def _near(self) -> list[tuple[Genes, Genes]]:
        """Per stage the number of neighbours of each choice, (P, C), and they, (P, C, most)."""
        result = []
        for stage in self.stages:
            most = max(map(len, stage.positions))
            sizes = np.ones((stage.max_depth, most), dtype=np.int64)
            lists = [[list(near) for near in choices] for choices in stage.neighbours]
            table = np.zeros((*sizes.shape, max(len(n) for c in lists for n in c)), dtype=np.int64)
            for p, choices in enumerate(lists):
                for c, near in enumerate(choices):
                    sizes[p, c] = len(near)
                    table[p, c, : len(near)] = near
            result.append((sizes, table))
        return result

    def crossover(self, first: Genes, second: Genes, rng: np.random.Generator) -> Genes:
        """Returns children of the pairs of rows in ``first`` and ``second``, shape (n, genes).

        Half of the children take whole stages from either parent, half take single genes. A
        position that only one parent has takes its block from that parent.
        """
        n = len(first)
        by_stage = np.empty(first.shape, dtype=bool)
        by_stage[:, 0] = rng.random(n) < 0.5
        for i in range(len(self.stages)):
            end = self.block_columns(i).stop
            by_stage[:, self.width_columns[i] : end] = (rng.random(n) < 0.5)[:, None]
        by_gene = rng.random(first.shape) < 0.5
        take_first = np.where(rng.random((n, 1)) < 0.5, by_stage, by_gene)
        child = np.where(take_first, first, second)
        # a child is as deep as one of its parents, so where one parent has no block the other has
        child = np.where(child == INACTIVE, np.maximum(first, second), child)
        return np.where(self.active(child), child, INACTIVE)

    # Identity and files -----------------------------------------------------------------------

    @cached_property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the content, without the name."""
        content = {key: value for key, value in self.to_dict().items() if key != "name"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain form, every block choice spelled out; see ``space_from_dict``."""
        return {
            "name": self.name,
            "macro": self.macro.to_dict(),
            "resolution": list(self.resolutions),
            "stages": [
                stage.to_dict()
                | ({} if stage.stride == default_stride(i) else {"stride": stage.stride})
                for i, stage in enumerate(self.stages)
            ],
        }
