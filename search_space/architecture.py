"""Architectures as values: frozen trees that check themselves and are the keys of everything.

Stages of blocks between a stem and a head, in one macro style. Equal architectures have equal
canonical JSON and so equal digests, on every machine and in every version of Python.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self, TypeVar

from search_space.blocks import BLOCKS, Block
from search_space.errors import (
    CorruptFileError,
    InvalidArchitectureError,
    UnknownNameError,
)
from search_space.macro import BLOCK_TRANSITION, Macro, feature_sizes
from search_space.registry import is_int


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidArchitectureError(message)


def default_stride(index: int) -> int:
    """Returns the stride of a stage that states none: 1 of the first, 2 of all others."""
    return 1 if index == 0 else 2


@dataclass(frozen=True)
class Stage:
    """A stage: blocks of one width on one feature-map size.

    Args:
        width: Channels of its maps.
        blocks: At least one; skipped ones keep their positions.
        stride: 1 or 2, by which its maps are smaller than those before; None for the usual one,
            which an architecture puts in its place.

    Raises:
        InvalidArchitectureError: The width does not suit a block, or there is no block.
    """

    width: int
    blocks: tuple[Block, ...]
    stride: int | None = None

    def __post_init__(self) -> None:
        _require(
            is_int(self.width) and self.width >= 1,
            f"width={self.width!r} must be a positive integer.",
        )
        _require(len(self.blocks) >= 1, "a stage needs at least one block.")
        _require(
            self.stride is None or (is_int(self.stride) and self.stride in (1, 2)),
            f"stride={self.stride!r} must be 1 or 2.",
        )
        for block in self.blocks:
            multiple = block.width_multiple
            _require(
                self.width % multiple == 0,
                f"width={self.width} does not suit {block.label} with {block.traits}: it must be "
                f"a multiple of {multiple}.",
            )

    @property
    def depth(self) -> int:
        """Positions of blocks, those of skipped ones included."""
        return len(self.blocks)


@dataclass(frozen=True)
class Architecture:
    """A vision backbone of one or more stages, independent of the number of classes.

    Example:
        A small network of one block a stage::

            block = metaformer(Mixer.of("pooling"), mlp_ratio=2.0)
            stages = tuple(Stage(width, (block,)) for width in (16, 32, 48, 64))
            architecture = Architecture(Macro(), 64, stages)

    Args:
        macro: What surrounds the blocks.
        resolution: Side of the square images.
        stages: One or more; afterwards every one states its stride.

    Raises:
        InvalidArchitectureError: A rule is broken.
    """

    macro: Macro
    resolution: int
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        check_resolution(self.macro, self.resolution, [stage.stride for stage in self.stages])
        stages = tuple(
            replace(stage, stride=default_stride(i)) if stage.stride is None else stage
            for i, stage in enumerate(self.stages)
        )
        object.__setattr__(self, "stages", stages)
        if self.macro.downsample == BLOCK_TRANSITION:
            for i, (stage, before) in enumerate(zip(stages, self.widths_before, strict=True)):
                check_entry(i, self.strides[i], [before], [stage.width], stage.blocks[:1])

    @property
    def strides(self) -> tuple[int, ...]:
        """The stages' strides."""
        return tuple(stage.stride or 1 for stage in self.stages)

    @property
    def widths_before(self) -> tuple[int, ...]:
        """Channels that each stage is given: the stem's, then those of the stages before."""
        return (self.macro.stem_width or self.widths[0], *self.widths[:-1])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the stages' maps."""
        return feature_sizes(self.macro, self.strides, self.resolution)

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple(stage.depth for stage in self.stages)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(stage.width for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain JSON-able form; ``from_dict`` inverts it."""
        return {
            "macro": self.macro.to_dict(),
            "resolution": self.resolution,
            "stages": [
                {"width": stage.width, "blocks": [block.to_dict() for block in stage.blocks]}
                | ({} if stage.stride == default_stride(i) else {"stride": stage.stride})
                for i, stage in enumerate(self.stages)
            ],
        }

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Makes an architecture of its plain form, whose ``digest``, if any, must be the content's.

        Raises:
            InvalidArchitectureError: The content breaks a rule.
            UnknownNameError: A key, mixer or parameter is unknown.
            CorruptFileError: The digest is another.
        """
        data = dict(_mapping(data, "architecture"))
        stated = data.pop("digest", None)
        data = _known_keys(cls, data, "architecture")
        for key in ("resolution", "stages"):
            _require(key in data, f"architecture: {key!r} is missing.")
        _require(
            isinstance(data["stages"], (list, tuple)), "architecture: 'stages' must be a list."
        )
        stages = []
        for i, raw in enumerate(data["stages"]):
            where = f"stages[{i}]"
            stage = _known_keys(Stage, _mapping(raw, where), where)
            _require(
                isinstance(stage.get("blocks"), (list, tuple)) and "width" in stage,
                f"{where} needs 'width' and a list 'blocks'.",
            )
            blocks = tuple(
                Block.from_dict(block, f"{where}.blocks[{j}]")
                for j, block in enumerate(stage["blocks"])
            )
            try:
                stages.append(Stage(stage["width"], blocks, stage.get("stride")))
            except InvalidArchitectureError as error:
                raise error.located(where) from None
        result = cls(Macro.from_dict(data.get("macro", {})), data["resolution"], tuple(stages))
        if stated is not None and stated != result.digest:
            raise CorruptFileError(
                f"the architecture says digest {stated!r} but its content has {result.digest!r}: "
                "it was altered. Restore the file, or delete the digest line if the change is "
                "meant."
            )
        return result

    def canonical_json(self) -> str:
        """Returns one line of JSON, the same for equal architectures everywhere."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @cached_property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:12]

    def __str__(self) -> str:
        stages = ", ".join(f"{stage.width}×{stage.depth}" for stage in self.stages)
        return f"{self.digest} ({self.resolution} px: {stages})"


def check_resolution(macro: Macro, resolution: object, strides: Sequence[int | None]) -> None:
    """Raises InvalidArchitectureError where a network has no stage, or images are too small."""
    _require(
        is_int(resolution) and isinstance(resolution, int) and resolution >= 1,
        f"resolution={resolution!r} must be a positive integer.",
    )
    assert isinstance(resolution, int)
    _require(len(strides) >= 1, "a network needs at least one stage.")
    known = tuple(stride or default_stride(i) for i, stride in enumerate(strides))
    sizes = feature_sizes(macro, known, resolution)
    _require(
        min(sizes) >= 1,
        f"resolution={resolution} is too small: the stages' feature maps have sides {sizes}; take "
        "a larger one.",
    )


def check_entry(
    index: int, stride: int, before: Sequence[int], widths: Sequence[int], blocks: Sequence[Block]
) -> None:
    """Checks the blocks that may enter a stage where blocks are the transitions.

    Raises:
        InvalidArchitectureError: A block cannot change the size or the width where it must.
    """
    if stride == 1 and set(before) == set(widths) and len(widths) == 1:
        return
    for block in blocks:
        _require(
            BLOCKS[block.kind].strided,
            f"stages[{index}].blocks[0]: a block of kind {block.kind} cannot enter a stage of "
            f"stride {stride} from {' or '.join(map(str, before))} to "
            f"{' or '.join(map(str, widths))} channels, as downsample: block asks for; put one of "
            f"{', '.join(name for name in BLOCKS if BLOCKS[name].strided)} first, or take another "
            "downsample.",
        )


def _mapping(data: object, where: str) -> Mapping[str, Any]:
    _require(isinstance(data, Mapping), f"{where}: expected a mapping, got {data!r:.60}.")
    assert isinstance(data, Mapping)
    return data


T = TypeVar("T")


def _known_keys(cls: type[T], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise UnknownNameError(f"key in {where}", str(key), known)
    return dict(data)
