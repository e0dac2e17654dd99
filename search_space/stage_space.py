"""The choices of one stage of a search space."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from search_space.architecture import Stage
from search_space.blocks import Block
from search_space.errors import InvalidSpaceError

Genes = npt.NDArray[np.int64]
INACTIVE = -1
MAX_DEPTH = 1000  # blocks of a stage; published networks have below a hundred


def check_choices(name: str, values: Sequence[object]) -> None:
    """Raises InvalidSpaceError unless ``values`` are ascending positive integers."""
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
        raise InvalidSpaceError(f"{name} {list(values)} must be positive integers.")
    if not values or any(a >= b for a, b in itertools.pairwise(values)):  # type: ignore[operator]
        raise InvalidSpaceError(
            f"{name} {list(values)} must be ascending and not empty, without repetition."
        )


@dataclass(frozen=True)
class StageSpace:
    """Choices of one stage: widths, depths and the blocks of each position, from light to heavy.

    Args:
        widths: Channels to choose from, ascending.
        depths: Numbers of blocks to choose from, ascending.
        positions: The blocks that each position chooses from, one tuple for each position of the
            deepest stage, or one tuple of blocks for all of them.
        stride: 1 or 2; None for the usual one, which a space puts in its place.

    Attributes:
        blocks: Distinct blocks of all positions.

    Raises:
        InvalidSpaceError: Choices are missing, not ascending or not distinct, ``skip`` is not the
            first, or a stage with it has several depths, which would say the same twice.
        InvalidArchitectureError: A block does not suit a width.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    positions: tuple[tuple[Block, ...], ...]
    stride: int | None = None

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        positions: tuple[Block, ...] | tuple[tuple[Block, ...], ...],
        stride: int | None = None,
    ) -> None:
        check_choices("width", widths)
        check_choices("depth", depths)
        if depths[-1] > MAX_DEPTH:
            raise InvalidSpaceError(
                f"depth {depths[-1]} is more than {MAX_DEPTH} blocks in a stage; take less."
            )
        if not positions or isinstance(positions[0], Block):
            positions = (positions,) * depths[-1]  # type: ignore[assignment]
        for name, value in zip(
            ("widths", "depths", "positions", "stride"),
            (widths, depths, positions, stride),
            strict=True,
        ):
            object.__setattr__(self, name, value)
        if len(self.positions) != self.max_depth:
            raise InvalidSpaceError(
                f"choices of {len(self.positions)} positions do not fit depths up to "
                f"{self.max_depth}; list the blocks of each position."
            )
        for choices in set(self.positions):
            if not choices or len(set(choices)) != len(choices):
                raise InvalidSpaceError("block choices must be distinct and at least one.")
            if any(block.skipped for block in choices[1:]):
                raise InvalidSpaceError(
                    "'skip' must be the first choice of a position: choices are listed from light "
                    "to heavy."
                )
        if len(depths) > 1 and any(block.skipped for block in self.blocks):
            raise InvalidSpaceError(
                f"depth {list(depths)} and the choice 'skip' say the same twice; list one depth, "
                "or leave out 'skip'."
            )
        for width in self.widths:
            Stage(width, self.blocks, self.stride)  # every choice must suit every width

    @property
    def max_depth(self) -> int:
        return self.depths[-1]

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(dict.fromkeys(itertools.chain.from_iterable(self.positions)))

    @cached_property
    def block_index(self) -> Genes:
        """Index in ``blocks`` of each position's choices, −1 beyond them and for inactive genes.

        Shape (positions, choices of the position with most + 1): the last column is that of −1.
        """
        numbers = {block: number for number, block in enumerate(self.blocks)}
        result = np.full((self.max_depth, max(map(len, self.positions)) + 1), -1, dtype=np.int64)
        for row, choices in zip(result, self.positions, strict=True):
            row[: len(choices)] = [numbers[block] for block in choices]
        return result

    def of_all(self, choices: Genes) -> Genes:
        """Turns genes of this stage's positions into indices in ``blocks``; −1 stays −1."""
        return self.block_index[np.arange(self.max_depth), choices]

    def copied(self, choices: Genes, sources: Genes) -> Genes:
        """Turns choices of the positions ``sources`` into those of the same blocks, where they go.

        Args:
            choices: Shape (n, positions).
            sources: For each entry the position that its choice is of.

        Returns:
            Choices of each column's own position, −1 where it does not have the block.
        """
        if len(set(self.positions)) == 1:
            return choices
        own = np.full((self.max_depth, len(self.blocks) + 1), -1, dtype=np.int64)
        for position, row in enumerate(self.block_index):
            count = len(self.positions[position])
            own[position, row[:count]] = np.arange(count)
        block = self.block_index[sources, choices]
        own[:, -1] = -1
        return own[np.arange(self.max_depth), block]

    @cached_property
    def neighbours(self) -> tuple[tuple[Genes, ...], ...]:
        """For each position the choices that differ from each choice in one parameter only."""
        of_choices: dict[tuple[Block, ...], tuple[Genes, ...]] = {}
        for choices in self.positions:
            if choices not in of_choices:
                near = ([j for j, b in enumerate(choices) if _alike(a, b)] for a in choices)
                of_choices[choices] = tuple(
                    np.array(js or [i], dtype=np.int64) for i, js in enumerate(near)
                )
        return tuple(of_choices[choices] for choices in self.positions)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain form, every block choice spelled out."""
        same = len(set(self.positions)) == 1
        listed = self.positions[:1] if same else self.positions
        plain = [[block.to_dict() for block in choices] for choices in listed]
        return {
            "width": list(self.widths),
            "depth": list(self.depths),
            **({"blocks": plain[0]} if same else {"positions": plain}),
        }


def _alike(a: Block, b: Block) -> bool:
    """Whether two blocks differ in the value of one parameter only."""
    of_a, of_b = a.traits, b.traits  # which leave out some that have their default
    differing = sum(of_a.get(key) != of_b.get(key) for key in of_a.keys() | of_b.keys())
    return a.kind == b.kind and a.label == b.label and differing == 1
