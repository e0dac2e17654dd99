"""Sizes of architectures: widths that their mixers allow, depths, resolutions.

A width is a multiple of 8, which accelerators like, and of what every mixer of the stage needs.
A seed may break the first rule; its own widths are always valid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from search_space import Architecture, Stage

WIDTH_UNIT = 8


@dataclass(frozen=True)
class Shape:
    """The part of an architecture that scaling changes: depths, widths and resolution."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    resolution: int

    @classmethod
    def of(cls, architecture: Architecture) -> Shape:
        return cls(architecture.depths, architecture.widths, architecture.resolution)

    def apply(self, seed: Architecture) -> Architecture:
        """``seed`` in this shape: stages repeat their last block, or end earlier."""
        stages = tuple(
            Stage(width, (stage.blocks + stage.blocks[-1:] * depth)[:depth], stage.stride)
            for stage, depth, width in zip(seed.stages, self.depths, self.widths, strict=True)
        )
        return Architecture(seed.macro, self.resolution, stages)


def without_skips(architecture: Architecture) -> Architecture:
    """``architecture`` without positions that are skipped, where a stage has others.

    What scales depths would else add blocks that are none.
    """
    stages = []
    for stage in architecture.stages:
        blocks = tuple(block for block in stage.blocks if not block.skipped)
        stages.append(Stage(stage.width, blocks or stage.blocks[:1], stage.stride))
    return replace(architecture, stages=tuple(stages))


def width_multiple(stage: Stage) -> int:
    """The least common multiple of 8 and of what every mixer of the stage needs."""
    return math.lcm(WIDTH_UNIT, *(block.width_multiple for block in stage.blocks))


def grown_widths(seed: Architecture, factor: float) -> tuple[int, ...]:
    """The widths of ``seed`` times ``factor ≥ 1``, rounded to allowed ones, none below its own."""
    return tuple(
        max(stage.width, nearest(factor * stage.width, width_multiple(stage)))
        for stage in seed.stages
    )


def nearest(value: float, multiple: int) -> int:
    """The positive multiple that is nearest to ``value``, halves rounded up."""
    return max(1, math.floor(value / multiple + 0.5)) * multiple


def total_stride(architecture: Architecture) -> int:
    """The pixels of the image for a position of the last feature map, along a side."""
    return architecture.macro.stem_stride * math.prod(architecture.strides)


def describe_change(before: Shape, after: Shape) -> str:
    """The difference for people: ``stage 3: 6 → 7 blocks; widths 96-192 → 104-208``."""
    parts = [
        f"stage {i}: {a} → {b} blocks"
        for i, (a, b) in enumerate(zip(before.depths, after.depths, strict=True), 1)
        if a != b
    ]
    if before.widths != after.widths:
        parts.append(f"widths {_row(before.widths)} → {_row(after.widths)}")
    if before.resolution != after.resolution:
        parts.append(f"{before.resolution} → {after.resolution} px")
    return "; ".join(parts)


def _row(numbers: Sequence[int]) -> str:
    return "-".join(map(str, numbers))
