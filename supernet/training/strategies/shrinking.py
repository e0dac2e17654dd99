"""Schedules of when small subnets join, over any other strategy; they can be nested.

The small ones share the weights of the large ones; a large network that is trained already is a
better start for them, and a better teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import numpy as np

from search_space.errors import UsageError
from search_space.space import SearchSpace
from search_space.stage_space import INACTIVE, Genes, StageSpace
from supernet.training.strategies.base import Observation, StepSubnet, SubnetSampler, Target

DIMENSIONS = ("kernel", "depth", "mlp_ratio", "width")
STARTS = (0.1, 0.2, 0.35, 0.5)  # of DIMENSIONS, as shares of the training
RAMP = 0.5  # share of the steps that are left in which the learning rate grows
SORTED_BEFORE = ("mlp_ratio", "width")  # dimensions that keep the first channels


@dataclass(eq=False)
class ShrinkingSampler(SubnetSampler):
    """Base of schedules over the subnets of ``inner``; all else is the inner strategy's."""

    inner: SubnetSampler
    space: SearchSpace = field(repr=False)
    _: KW_ONLY
    total_steps: int

    def observe(self, step: int, observations: Sequence[Observation]) -> None:
        self.inner.observe(step, observations)

    def sorts_channels(self, step: int) -> bool:
        return self.inner.sorts_channels(step)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)


@dataclass(eq=False)
class DelayedShrinking(ShrinkingSampler):
    """Delayed ε-shrinking (Annavajjala et al., "DεpS", ECCV 2024).

    For the share ``start`` of the training the largest alone, on labels (or learning from a fixed
    teacher, with ``teacher``). Then the inner strategy, the largest of a step first, with the
    learning rate of all but the largest times a factor: ε in the first such step, and from there
    growing in a straight line to 1 at the share ``RAMP`` of the steps that were left.

    Raises:
        UsageError: ``epsilon`` is outside of (0, 1].
    """

    _: KW_ONLY
    start: float = 0.5
    epsilon: float = 0.1
    teacher: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise UsageError(f"epsilon {self.epsilon:g} of shrinking must be above 0, at most 1.")
        self.first_step = round(self.start * self.total_steps)

    def lr_factor(self, step: int) -> float:
        """The factor of all subnets but the largest, at a step from ``first_step`` on."""
        length = RAMP * (self.total_steps - self.first_step)
        done = min(1.0, (step - self.first_step) / length)
        return self.epsilon + (1 - self.epsilon) * done

    def __call__(self, step: int, rank: int = 0) -> tuple[StepSubnet, ...]:
        largest = self.space.largest
        if step < self.first_step:
            target = Target.TEACHER if self.teacher else Target.LABELS
            only = StepSubnet(role="largest", architecture=largest, target=target, regularised=True)
            return (only,)
        subnets, factor = self.inner(step, rank), self.lr_factor(step)
        at_full_rate = [subnet for subnet in subnets if subnet.architecture == largest]
        others = [subnet for subnet in subnets if subnet.architecture != largest]
        slowed = (replace(subnet, lr_factor=factor * subnet.lr_factor) for subnet in others)
        return (*at_full_rate, *slowed)


@dataclass(eq=False)
class ProgressiveShrinking(ShrinkingSampler):
    """Progressive shrinking (Cai et al., "Once-for-all", ICLR 2020): dimension by dimension.

    ``DIMENSIONS`` are released one after the other, at the shares ``STARTS`` of the training:
    first the parameters of mixers (kernel, window, levels, order …) with the resolution, then
    depth, MLP ratio and width. Until then all subnets are clamped to the largest in them: an
    extent to its last choice, a block to the last choice (they are listed from light to heavy)
    that agrees with it in all that is released. The kind of mixer is free from the start, since
    kinds have weights of their own. A position that a deeper stage adds, or that is skipped, takes
    a block of the stage, from its first on, or its own last choice where it has no such block.

    Channels are sorted by importance before the first step of the MLP ratio and of the width.
    The smallest of the inner strategy becomes the smallest of what is released. A subnet that was
    clamped is no longer of its bank.
    """

    def __post_init__(self) -> None:
        firsts = (round(share * self.total_steps) for share in STARTS)
        self.first_steps = dict(zip(DIMENSIONS, firsts, strict=True))

    def released(self, step: int) -> frozenset[str]:
        """The ones of ``DIMENSIONS`` in which the subnets of a step may be smaller."""
        return frozenset(name for name, first in self.first_steps.items() if step >= first)

    def __call__(self, step: int, rank: int = 0) -> tuple[StepSubnet, ...]:
        subnets, released = self.inner(step, rank), self.released(step)
        genes = self.space.encode([subnet.architecture for subnet in subnets])
        clamped = clamp(self.space, genes, released)
        changed = (genes != clamped).any(axis=1)
        return tuple(
            replace(subnet, architecture=architecture, bank=None) if differs else subnet
            for subnet, architecture, differs in zip(
                subnets, self.space.decode(clamped), changed, strict=True
            )
        )

    def sorts_channels(self, step: int) -> bool:
        now = any(step == self.first_steps[name] for name in SORTED_BEFORE)
        return now or self.inner.sorts_channels(step)


def clamp(space: SearchSpace, genes: Genes, released: frozenset[str]) -> Genes:
    """Makes rows largest in all of ``DIMENSIONS`` but those released, shape (n, genes)."""
    result = genes.copy()
    if "kernel" not in released:
        result[:, 0] = len(space.resolutions) - 1
    for i, stage in enumerate(space.stages):
        column, columns = int(space.width_columns[i]), space.block_columns(i)
        if "width" not in released:
            result[:, column] = len(stage.widths) - 1
        if "depth" not in released:
            present = space.present(genes, i)
            in_turn = np.argsort(~present, axis=1, kind="stable")
            count = np.maximum(present.sum(axis=1), 1)[:, None]
            every = np.arange(stage.max_depth)
            source = np.take_along_axis(in_turn, every % count, axis=1)
            source = np.where(present, every, source)
            taken = np.take_along_axis(genes[:, columns], source, axis=1)
            copied = stage.copied(taken, source)
            missing = (copied == INACTIVE) | ~present.any(axis=1, keepdims=True)
            last = [len(choices) - 1 for choices in stage.positions]
            result[:, columns] = np.where(missing, last, copied)
            result[:, column + 1] = len(stage.depths) - 1
        table = _heaviest_choices(stage, released)
        blocks = result[:, columns]
        heaviest = table[np.arange(stage.max_depth), blocks]
        result[:, columns] = np.where(blocks == INACTIVE, INACTIVE, heaviest)
    return result


def _heaviest_choices(stage: StageSpace, released: frozenset[str]) -> Genes:
    """The last choice that agrees in what is released, for each position and choice."""
    table = np.zeros((stage.max_depth, max(map(len, stage.positions))), dtype=np.int64)
    for row, choices in zip(table, stage.positions, strict=True):
        traits = [
            (
                block.label,
                block.without_ratios if "kernel" in released else None,
                block.ratios if "mlp_ratio" in released else None,
            )
            for block in choices
        ]
        last = {trait: j for j, trait in enumerate(traits)}
        row[: len(choices)] = [last[trait] for trait in traits]
    return table
