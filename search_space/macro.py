"""The macro style: what surrounds the blocks, and the registered stems, transitions and heads.

The rules of each part say which options its module takes of the style, and what it does to the
side of a map; the modules are in ``supernet/network/{stems,transitions,heads}.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from search_space.blocks import ACTIVATIONS, OptionValue
from search_space.errors import InvalidArchitectureError, UnknownNameError
from search_space.registry import FLOAT, PRECISIONS, Registry, is_int, is_number

NORMS = ("layer_norm", "group_norm", "batch_norm", "rep_batch_norm")
AS_NORM = "as_norm"
HEAD_NORMS = ("before_pool", "after_pool", "none")
PADDINGS = ("half", "same")
SHORTCUTS = ("conv", "pooled")
BLOCK_TRANSITION = "block"
LINEAR = "linear"
PROJECTIONS = ("transition", LINEAR)


@dataclass(frozen=True)
class Part:
    """Rules of a stem, a transition or a head.

    Args:
        name: Of the style.
        options: Keyword options of its module, of the macro style.
        size: Side of the output, of the macro style, the input's side and the stride.
        problem: Says what its module cannot be built of in a macro style, or None.
    """

    name: str
    options: Callable[[Macro], dict[str, OptionValue]]
    size: Callable[[Macro, int, int], int] = field(default=lambda macro, side, stride: side)
    problem: Callable[[Macro], str | None] = field(default=lambda macro: None)


STEMS: Registry[Part] = Registry("stem", "nas.stems")
TRANSITIONS: Registry[Part] = Registry("transition", "nas.transitions")
HEADS: Registry[Part] = Registry("head", "nas.heads")


def _later(default: Any) -> Any:
    """A field that files leave out where it has its default, so that older ones keep digests."""
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True, kw_only=True)
class Macro:
    """The macro style, which surrounds the blocks: stem, transitions, norms, layer scale, head.

    Args:
        stem_kernel: Of the stem's first convolution, whose padding is half of the overlap.
        stem_stride: Of the whole stem.
        stem_norm: Whether a norm follows the convolution of a ``conv`` stem.
        downsample: The transition between stages: ``patch_merging`` (Swin, As-ViT: neighbours
            concatenated, norm, linear), ``patch_merging_norm`` (SwinV2: the norm comes last),
            ``norm_conv`` (ConvNeXt), ``residual_norm_conv`` (ViT-ResNAS: the same beside averages
            of 2 × 2), ``conv_norm`` (FocalNet), ``conv`` (PoolFormer), or
            ``block``: the first block of every stage has its stride and changes the width
            (MobileNet, ResNet).
        downsample_kernel: Side of the strided convolution, or of the merged patches.
        norm: ``layer_norm`` over channels, ``group_norm`` with one group over the whole map,
            ``batch_norm``, or ``rep_batch_norm`` (SLAB: batch norm beside a learned multiple of the
            input, which are one map once trained); of MetaFormer blocks, ``conv`` stems,
            transitions and the last norm.
        norm_eps: Added to every such norm's variance.
        layer_scale: Initial value of the learned scale of each residual branch; 0 for none.
        head_norm: Whether the last norm sits before or after global pooling, or is left out.
        head_norm_eps: Added to the last norm's variance.
        stem: ``conv`` (one convolution and, if ``stem_norm``, ``norm``), ``conv_act`` (convolution,
            norm and activation: MobileNet), ``conv_act_conv`` (and a convolution of stride 1
            without the two; both have biases: MaxViT), ``conv_pool`` (``conv_act`` and max-pooling:
            ResNet), ``deep_pool`` and ``tiered_pool`` (three such convolutions, and max-pooling:
            ResNet-D and -T) or ``convs`` (two such convolutions, one after the other:
            EfficientFormer). All but the first have odd kernels; the last four share an even
            stride, of which pooling, or the first of two convolutions, has 2.
        stem_width: Channels of the stem, 0 for those of the first stage.
        head: ``linear`` (the classifier), ``conv`` (before pooling a 1 × 1 convolution to
            ``head_width`` channels, with norm and activation: MobileNetV2), ``conv_hidden`` (such a
            convolution to ``head_conv_width`` channels, pooling, a linear layer to ``head_width``
            and the activation: MobileNetV3), ``hidden`` (pooling, a linear layer to ``head_width``
            and tanh: MaxViT) or ``mlp`` (pooling, a linear layer to ``head_width``,
            activation and norm: CAFormer).
        head_width: Channels that the classifier sees, where the head is not ``linear``.
        activation: Of MetaFormer blocks' MLPs.
        conv_norm: Norm of convolutional blocks, stems and heads.
        conv_norm_eps: Added to every such norm's variance.
        conv_activation: Activation of convolutional stems, and of heads.
        padding: Of convolutional stems and blocks: ``half`` of the kernel on every side, or
            ``same``: as much as strides need, the odd one at the end (TensorFlow).
        block_norm: Norm of MetaFormer blocks, ``as_norm`` for that of ``norm``.
        bias: Whether MetaFormer blocks' norms and MLPs, and norms of ``conv`` stems and
            transitions, have biases.
        shortcut: What residual blocks that change the size add: ``conv`` (a strided 1 × 1
            convolution) or ``pooled`` (averages of 2 × 2 and a 1 × 1 convolution: ResNet-D).
        head_conv_width: Channels that are pooled, where the head has a hidden layer.
        projection: What changes the width where a stage has stride 1, unless blocks do:
            ``transition``, the style's own with a kernel of 1, or ``linear``, a 1 × 1 convolution
            without a norm, by which parts of two networks are joined.
        precision: What stem, transitions and head compute in: ``float``, the run's own format, or
            ``int8``.

    Raises:
        UnknownNameError: A style, norm, activation or place is unknown.
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
    stem: str = _later("conv")
    stem_width: int = _later(0)
    head: str = _later("linear")
    head_width: int = _later(0)
    activation: str = _later("gelu")
    conv_norm: str = _later("batch_norm")
    conv_norm_eps: float = _later(1e-5)
    conv_activation: str = _later("relu6")
    padding: str = _later("half")
    block_norm: str = _later(AS_NORM)
    bias: bool = _later(True)
    shortcut: str = _later("conv")
    head_conv_width: int = _later(0)
    projection: str = _later("transition")
    precision: str = _later(FLOAT)

    def __post_init__(self) -> None:
        for name, allowed in _NAMES.items():
            if getattr(self, name) not in allowed:
                raise UnknownNameError(f"macro {name}", str(getattr(self, name)), list(allowed))
        for name, least in _INTEGERS.items():
            value = getattr(self, name)
            if not is_int(value) or value < least:
                rule = "must be a positive integer" if least == 1 else f"must be at least {least}"
                raise InvalidArchitectureError(f"{name}={value!r} {rule}.")
        for name in ("stem_norm", "bias"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArchitectureError(f"{name}={getattr(self, name)!r} must be a flag.")
        for name in ("norm_eps", "head_norm_eps", "conv_norm_eps", "layer_scale"):
            value = getattr(self, name)
            if not is_number(value) or value < 0 or (value == 0 and name != "layer_scale"):
                none = "0 (none) or " if name == "layer_scale" else ""
                raise InvalidArchitectureError(f"{name}={value!r} must be {none}a positive number.")
            # 0, 0.0 and -0.0 are equal, and so must be their JSON and digests
            object.__setattr__(self, name, float(value) + 0.0)
        for part in (STEMS[self.stem], TRANSITIONS[self.downsample], HEADS[self.head]):
            if (problem := part.problem(self)) is not None:
                raise InvalidArchitectureError(problem)
        if (self.head == "linear") != (self.head_width == 0):
            raise InvalidArchitectureError(
                f"head={self.head!r} with head_width={self.head_width}: a head with a layer before "
                "the classifier needs its channels, a linear one has none."
            )

    @property
    def norm_of_blocks(self) -> str:
        """The norm of MetaFormer blocks."""
        return self.norm if self.block_norm == AS_NORM else self.block_norm

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain form, without newer fields that have their default."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if not item.metadata.get("later") or getattr(self, item.name) != item.default
        }

    @classmethod
    def from_dict(cls, data: object) -> Self:
        if not isinstance(data, Mapping):
            raise InvalidArchitectureError(f"macro: expected a mapping, got {data!r:.60}.")
        known = [item.name for item in fields(cls)]
        for key in data:
            if key not in known:
                raise UnknownNameError("key in macro", str(key), known)
        return cls(**data)


_NAMES: dict[str, Any] = {
    "downsample": TRANSITIONS,
    "stem": STEMS,
    "head": HEADS,
    "norm": NORMS,
    "conv_norm": NORMS,
    "block_norm": (AS_NORM, *NORMS),
    "head_norm": HEAD_NORMS,
    "activation": ACTIVATIONS,
    "conv_activation": ACTIVATIONS,
    "padding": PADDINGS,
    "shortcut": SHORTCUTS,
    "projection": PROJECTIONS,
    "precision": PRECISIONS,
}
_INTEGERS = {
    "stem_kernel": 1,
    "stem_stride": 1,
    "downsample_kernel": 2,
    "stem_width": 0,
    "head_width": 0,
    "head_conv_width": 0,
}


def conv_size(size: int, kernel: int, stride: int) -> int:
    """Returns the side of a convolution's output, padded by half of the overlap, rounded up."""
    return (size + 2 * conv_padding(kernel, stride) - kernel) // stride + 1


def conv_padding(kernel: int, stride: int) -> int:
    """Returns the padding that keeps size / stride positions: 0 for patches, 2 for 7/4."""
    return (kernel - stride + 1) // 2


def feature_sizes(macro: Macro, strides: tuple[int, ...], resolution: int) -> tuple[int, ...]:
    """Returns the side of the feature map in each stage, of the stages' strides."""
    side = STEMS[macro.stem].size(macro, resolution, macro.stem_stride)
    sizes = []
    for stride in strides:
        if stride > 1:
            side = TRANSITIONS[macro.downsample].size(macro, side, stride)
        sizes.append(side)
    return tuple(sizes)


# Stems ----------------------------------------------------------------------------------------


def _conv_stem(macro: Macro) -> dict[str, OptionValue]:
    return {
        "kernel": macro.stem_kernel,
        "stride": macro.stem_stride,
        "norm": macro.norm if macro.stem_norm else "none",
        "norm_eps": macro.norm_eps,
        "norm_bias": macro.bias,
    }


def _conv_act_stem(macro: Macro) -> dict[str, OptionValue]:
    return {
        "kernel": macro.stem_kernel,
        "stride": macro.stem_stride,
        "norm": macro.conv_norm,
        "norm_eps": macro.conv_norm_eps,
        "activation": macro.conv_activation,
        "padding": macro.padding,
    }


def _ceil_size(macro: Macro, side: int, stride: int) -> int:
    """Of odd kernels padded by half of them, or as strides need, and of pooling after such."""
    return -(-side // stride)


def _conv_problem(macro: Macro) -> str | None:
    if macro.stem_kernel >= macro.stem_stride:
        return None
    return (
        f"stem_kernel={macro.stem_kernel} must not be smaller than the stride {macro.stem_stride}."
    )


def _conv_act_problem(macro: Macro) -> str | None:
    if macro.stem_kernel % 2 == 1:
        return None
    return f"stem_kernel={macro.stem_kernel} must be odd in a stem {macro.stem!r}; take 3."


def _even_problem(macro: Macro) -> str | None:
    if macro.stem_stride % 2 == 1:
        return (
            f"stem_stride={macro.stem_stride} must be even in a stem {macro.stem!r}, whose two "
            "layers share it; take 2 or 4."
        )
    return _conv_act_problem(macro)


STEMS.add(
    Part(
        "conv",
        _conv_stem,
        lambda macro, side, stride: conv_size(side, macro.stem_kernel, stride),
        _conv_problem,
    )
)
for _name in ("conv_act", "conv_act_conv"):
    STEMS.add(Part(_name, _conv_act_stem, _ceil_size, _conv_act_problem))
for _name in ("conv_pool", "deep_pool", "tiered_pool", "convs"):
    STEMS.add(Part(_name, _conv_act_stem, _ceil_size, _even_problem))

# Transitions ----------------------------------------------------------------------------------


def _transition(macro: Macro) -> dict[str, OptionValue]:
    return {
        "kernel": macro.downsample_kernel,
        "norm": macro.norm,
        "norm_eps": macro.norm_eps,
        "norm_bias": macro.bias,
    }


for _name in ("patch_merging", "patch_merging_norm"):
    TRANSITIONS.add(Part(_name, _transition, _ceil_size))
for _name in ("norm_conv", "residual_norm_conv", "conv_norm", "conv"):
    TRANSITIONS.add(
        Part(
            _name,
            _transition,
            lambda macro, side, stride: conv_size(side, macro.downsample_kernel, stride),
        )
    )
TRANSITIONS.add(Part(BLOCK_TRANSITION, _transition, _ceil_size))

# Heads ----------------------------------------------------------------------------------------


def _linear_head(macro: Macro) -> dict[str, OptionValue]:
    return {
        "norm": "none" if macro.head_norm == "none" else macro.norm,
        "norm_eps": macro.head_norm_eps,
        "norm_after_pool": macro.head_norm == "after_pool",
    }


def _conv_head(macro: Macro) -> dict[str, OptionValue]:
    return {
        "width": macro.head_width,
        "norm": macro.conv_norm,
        "norm_eps": macro.conv_norm_eps,
        "activation": macro.conv_activation,
    }


def _hidden_head(macro: Macro) -> dict[str, OptionValue]:
    return {**_linear_head(macro), "width": macro.head_width, "activation": "tanh"}


def _mlp_head(macro: Macro) -> dict[str, OptionValue]:
    return {
        **_linear_head(macro),
        "width": macro.head_width,
        "activation": macro.conv_activation,
    }


def _conv_hidden_head(macro: Macro) -> dict[str, OptionValue]:
    return {**_conv_head(macro), "conv_width": macro.head_conv_width}


def _conv_hidden_problem(macro: Macro) -> str | None:
    if macro.head_conv_width >= 1:
        return None
    return (
        f"head_conv_width={macro.head_conv_width} must be at least 1 in a head {macro.head!r}: the "
        "channels of its convolution."
    )


HEADS.add(Part("linear", _linear_head))
HEADS.add(Part("conv", _conv_head))
HEADS.add(Part("hidden", _hidden_head))
HEADS.add(Part("mlp", _mlp_head))
HEADS.add(Part("conv_hidden", _conv_hidden_head, problem=_conv_hidden_problem))
