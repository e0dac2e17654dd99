"""Architectures as values: frozen trees that check themselves and are the keys of everything.

Four stages of blocks between a stem and a head, in one macro style. Equal architectures have
equal canonical JSON and so equal digests, on every machine and in every version of Python.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Self, TypeVar

from search_space.errors import (
    CorruptFileError,
    InvalidArchitectureError,
    NasError,
    UnknownNameError,
)
from search_space.mixers import ParamValue, mixer_spec

NUM_STAGES = 4
DOWNSAMPLES = ("patch_merging", "norm_conv", "conv_norm", "conv")
NORMS = ("layer_norm", "group_norm")
HEAD_NORMS = ("before_pool", "after_pool")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidArchitectureError(message)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Mixer:
    """A token mixer and its own parameters, in the order of their names.

    Raises:
        UnknownNameError: There is no such mixer or parameter.
        InvalidArchitectureError: A parameter is missing, or its value breaks its rule.
    """

    name: str
    params: tuple[tuple[str, ParamValue], ...]

    @classmethod
    def of(cls, name: str, /, **params: ParamValue) -> Self:
        """Makes a mixer with ``params``; those left out take the mixer's defaults."""
        defaults = {key: rule.default for key, rule in mixer_spec(name).params.items()}
        return cls(name, tuple(sorted({**defaults, **params}.items())))

    def __post_init__(self) -> None:
        spec = mixer_spec(self.name)
        names = [key for key, _ in self.params]
        for key, value in self.params:
            if key not in spec.params:
                raise UnknownNameError(f"parameter of mixer {self.name}", str(key), spec.params)
            problem = spec.params[key].problem(value)
            _require(problem is None, f"{self.name}: {key}={value!r} {problem}.")
        _require(
            names == sorted(spec.params),
            f"{self.name} needs exactly the parameters {', '.join(sorted(spec.params))}, in this "
            f"order; got {', '.join(names) or 'none'}.",
        )

    def __getitem__(self, key: str) -> ParamValue:
        return dict(self.params)[key]

    @property
    def width_multiple(self) -> int:
        """The number that the width of a block with this mixer must be a multiple of."""
        return mixer_spec(self.name).width_multiple(dict(self.params))


@dataclass(frozen=True)
class Block:
    """A mixer followed by an MLP whose hidden width is ``mlp_ratio`` times the block's width."""

    mixer: Mixer
    mlp_ratio: float

    def __post_init__(self) -> None:
        _require(
            _is_number(self.mlp_ratio) and self.mlp_ratio > 0,
            f"mlp_ratio={self.mlp_ratio!r} must be a positive number.",
        )
        object.__setattr__(self, "mlp_ratio", float(self.mlp_ratio))

    def hidden(self, width: int) -> int:
        """Returns the hidden width of the MLP in a block of ``width`` channels."""
        return max(1, round(width * self.mlp_ratio))

    def to_dict(self) -> dict[str, Any]:
        return {"mixer": self.mixer.name, **dict(self.mixer.params), "mlp_ratio": self.mlp_ratio}

    @classmethod
    def from_dict(cls, data: object, where: str = "block") -> Self:
        data = _mapping(data, where)
        _require("mixer" in data, f"{where}: 'mixer' is missing.")
        try:
            name = str(data["mixer"])
            known = ("mixer", "mlp_ratio", *mixer_spec(name).params)
            for key in data:
                if key not in known:
                    raise UnknownNameError(f"key of a block with mixer {name}", str(key), known)
            params = {key: data[key] for key in known[2:] if key in data}
            return cls(Mixer.of(name, **params), data.get("mlp_ratio", 4.0))
        except NasError as error:
            raise error.located(where) from None


@dataclass(frozen=True)
class Stage:
    """A stage: blocks of one width on one feature-map size.

    Raises:
        InvalidArchitectureError: The width does not suit a block, or there is no block.
    """

    width: int
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        _require(
            _is_int(self.width) and self.width >= 1,
            f"width={self.width!r} must be a positive integer.",
        )
        _require(len(self.blocks) >= 1, "a stage needs at least one block.")
        for block in self.blocks:
            multiple = block.mixer.width_multiple
            _require(
                self.width % multiple == 0,
                f"width={self.width} does not suit {block.mixer.name} with "
                f"{dict(block.mixer.params)}: it must be a multiple of {multiple}.",
            )

    @property
    def depth(self) -> int:
        return len(self.blocks)


@dataclass(frozen=True, kw_only=True)
class Macro:
    """The macro style, which surrounds the blocks: stem, downsampling, norms, layer scale, head.

    Args:
        stem_kernel: Of the stem's convolution, whose padding is half of the overlap.
        stem_stride: Of the stem's convolution.
        stem_norm: Whether a norm follows it.
        downsample: ``patch_merging`` (Swin, As-ViT: neighbours concatenated, norm, linear),
            ``norm_conv`` (ConvNeXt), ``conv_norm`` (FocalNet) or ``conv`` (PoolFormer).
        downsample_kernel: Side of the strided convolution, or of the merged patches.
        norm: ``layer_norm`` over channels, or ``group_norm`` with one group over the whole map.
        norm_eps: Added to every norm's variance.
        layer_scale: Initial value of the learned scale of each residual branch; 0 for none.
        head_norm: Whether the last norm sits before or after global pooling.
        head_norm_eps: Added to the last norm's variance.

    Raises:
        UnknownNameError: A style, norm or place of the last norm is unknown.
        InvalidArchitectureError: A number breaks its rule.
    """

    stem_kernel: int = 4
    stem_stride: int = 4
    stem_norm: bool = True
    downsample: str = "norm_conv"
    downsample_kernel: int = 2
    norm: str = "layer_norm"
    norm_eps: float = 1e-6
    layer_scale: float = 0.0
    head_norm: str = "after_pool"
    head_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name, allowed in (
            ("downsample", DOWNSAMPLES),
            ("norm", NORMS),
            ("head_norm", HEAD_NORMS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise UnknownNameError(f"macro {name}", str(value), allowed)
        for name in ("stem_kernel", "stem_stride", "downsample_kernel"):
            value = getattr(self, name)
            _require(_is_int(value) and value >= 1, f"{name}={value!r} must be a positive integer.")
        _require(isinstance(self.stem_norm, bool), f"stem_norm={self.stem_norm!r} must be a flag.")
        _require(
            self.stem_kernel >= self.stem_stride,
            f"stem_kernel={self.stem_kernel} must not be smaller than the stride "
            f"{self.stem_stride}.",
        )
        _require(
            self.downsample_kernel >= 2,
            f"downsample_kernel={self.downsample_kernel} must be at least 2.",
        )
        for name in ("norm_eps", "head_norm_eps"):
            value = getattr(self, name)
            _require(
                _is_number(value) and value > 0, f"{name}={value!r} must be a positive number."
            )
        _require(
            _is_number(self.layer_scale) and self.layer_scale >= 0,
            f"layer_scale={self.layer_scale!r} must be 0 (none) or a positive number.",
        )
        # 0, 0.0 and -0.0 are equal, and so must be their JSON and digests
        for name in ("norm_eps", "head_norm_eps", "layer_scale"):
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        return cls(**_known_keys(cls, _mapping(data, "macro"), "macro"))


@dataclass(frozen=True)
class Architecture:
    """A four-stage vision backbone, independent of the number of classes.

    Example:
        A small network of one block a stage::

            block = Block(Mixer.of("pooling"), mlp_ratio=2.0)
            stages = tuple(Stage(width, (block,)) for width in (16, 32, 48, 64))
            architecture = Architecture(Macro(), 64, stages)

    Args:
        macro: What surrounds the blocks.
        resolution: Side of the square images.
        stages: Four stages.

    Raises:
        InvalidArchitectureError: A rule is broken.
    """

    macro: Macro
    resolution: int
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        _require(
            _is_int(self.resolution) and self.resolution >= 1,
            f"resolution={self.resolution!r} must be a positive integer.",
        )
        _require(
            len(self.stages) == NUM_STAGES,
            f"an architecture has {NUM_STAGES} stages, not {len(self.stages)}.",
        )
        sizes = feature_sizes(self.macro, self.resolution)
        _require(
            min(sizes) >= 1,
            f"resolution={self.resolution} is too small: after the stem and three downsampling "
            f"steps the feature maps have sides {sizes}; take a larger one.",
        )

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple(stage.depth for stage in self.stages)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(stage.width for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain JSON-able form; ``from_dict`` inverts it."""
        return {
            "macro": asdict(self.macro),
            "resolution": self.resolution,
            "stages": [
                {"width": stage.width, "blocks": [block.to_dict() for block in stage.blocks]}
                for stage in self.stages
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
                stages.append(Stage(stage["width"], blocks))
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


def conv_size(size: int, kernel: int, stride: int) -> int:
    """Returns the side of a convolution's output, padded by half of the overlap, rounded up."""
    return (size + 2 * conv_padding(kernel, stride) - kernel) // stride + 1


def conv_padding(kernel: int, stride: int) -> int:
    """Returns the padding that keeps size / stride positions: 0 for patches, 2 for 7/4."""
    return (kernel - stride + 1) // 2


def feature_sizes(macro: Macro, resolution: int) -> tuple[int, ...]:
    """Returns the side of the feature map in each stage."""
    sizes = [conv_size(resolution, macro.stem_kernel, macro.stem_stride)]
    for _ in range(NUM_STAGES - 1):
        if macro.downsample == "patch_merging":
            sizes.append((sizes[-1] + 1) // 2)
        else:
            sizes.append(conv_size(sizes[-1], macro.downsample_kernel, 2))
    return tuple(sizes)


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
