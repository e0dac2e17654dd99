"""What of timm's an architecture may be: arguments of registered models, and calls of classes.

Points of ConvNeXt, Swin and ResNet are a registered model with keyword arguments; those of
FocalNet, PoolFormer, EfficientNet and MobileNetV3, whose registered functions take no blocks, are
calls of the class. Only structures are compared here; ``timm_models`` compares parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torch import nn

from search_space import known_convolutional as published
from search_space.architecture import Architecture, default_stride
from search_space.blocks import Block, hidden_width
from search_space.known import CONVNEXT, FOCALNET, POOLFORMER, SWIN, SWINV2
from search_space.macro import Macro
from search_space.mixers import num_heads


@dataclass(frozen=True)
class TimmModel:
    """A network of timm's, as what builds it.

    Args:
        name: Of a registered model, or of a class of ``timm.models``.
        arguments: By keyword: numbers, names and lists, or ``Code``.
        imports: Statements that a class and its arguments need; none for a registered model.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()

    @property
    def registered(self) -> bool:
        """Whether ``timm.create_model`` knows the name."""
        return not self.imports

    def source(self, num_classes: int) -> str:
        """Returns Python that makes ``model``, which needs timm and nothing of this package."""
        given = {**self.arguments, "num_classes": num_classes}
        text = ", ".join(f"{key}={value!r}" for key, value in given.items())
        if self.registered:
            return f"import timm\n\nmodel = timm.create_model({self.name!r}, {text})\n"
        return "\n".join((*self.imports, "", f"model = {self.name}({text})", ""))

    def build(self, num_classes: int) -> nn.Module:
        """Builds the network with random weights, by its ``source``."""
        made: dict[str, Any] = {}
        exec(self.source(num_classes), made)  # its values are numbers and our own text
        return made["model"]


class Code(str):
    """An argument that is an expression of Python, not a text."""

    def __repr__(self) -> str:
        return str(self)


def _like(architecture: Architecture, macro: Macro, *free: str) -> bool:
    """Says whether the style is ``macro`` but for the fields ``free`` and the stem's width."""
    own = architecture.macro
    given = {name: getattr(own, name) for name in (*free, "stem_width")}
    return replace(macro, **given) == own


def _usual_strides(architecture: Architecture) -> bool:
    strides = architecture.strides
    return strides == tuple(default_stride(i) for i in range(len(strides)))


def _uniform(stages: list[list[Block]], kind: str, res_post_norm: bool = False) -> bool:
    """Says whether all blocks have mixer ``kind``, and each stage blocks of one sort."""
    return all(
        block.label == kind and block == stage[0] and block["res_post_norm"] == res_post_norm
        for stage in stages
        for block in stage
    )


def image_size(architecture: Architecture, usual: int = 224) -> dict[str, Any]:
    """Returns the argument of networks that are made for a size, none for the ``usual`` one."""
    resolution = architecture.resolution
    return {} if resolution == usual else {"img_size": resolution}


def _hierarchy(architecture: Architecture, macro: Macro, *free: str) -> bool:
    """Says whether it is in the style ``macro``, and its stem and strides are the usual ones."""
    return (
        _like(architecture, macro, *free)
        and architecture.widths_before[0] == architecture.widths[0]
        and _usual_strides(architecture)
        and all(s.blocks and not s.blocks[0].skipped for s in architecture.stages)
    )


def _doubled(architecture: Architecture) -> bool:
    first, *others = architecture.widths
    return all(width == first * 2 ** (i + 1) for i, width in enumerate(others))


def _mixers(stages: list[list[Block]], param: str) -> list[Any]:
    return [stage[0].values[param] for stage in stages]


def _depths(stages: list[list[Block]]) -> list[int]:
    return [len(stage) for stage in stages]


def _convnext(architecture: Architecture, stages: list[list[Block]]) -> TimmModel | None:
    macro = architecture.macro
    free = ("layer_scale", "norm_eps", "head_norm_eps", "stem_kernel", "stem_stride")
    if not (_uniform(stages, "depthwise_conv") and _hierarchy(architecture, CONVNEXT, *free)):
        return None
    if macro.stem_kernel != macro.stem_stride or macro.norm_eps != macro.head_norm_eps:
        return None
    arguments = {
        "depths": _depths(stages),
        "dims": list(architecture.widths),
        "kernel_sizes": _mixers(stages, "kernel"),
        "ls_init_value": macro.layer_scale or None,
        "patch_size": macro.stem_stride,
        "norm_eps": macro.norm_eps,
    }
    return TimmModel("convnext_tiny", arguments)


def _swin(architecture: Architecture, stages: list[list[Block]]) -> TimmModel | None:
    if not _is_swin(architecture, stages, "window_attention", SWIN):
        return None
    dims, windows = _mixers(stages, "head_dim"), _mixers(stages, "window")
    heads = _heads(architecture, stages)
    whole = all(n * dim == w for n, dim, w in zip(heads, dims, architecture.widths, strict=True))
    if not whole and len(set(dims)) > 1:
        return None
    arguments = {
        "depths": _depths(stages),
        "embed_dim": architecture.widths[0],
        "num_heads": heads,
        "window_size": windows[0] if len(set(windows)) == 1 else windows,
        "mlp_ratio": _mixers(stages, "mlp_ratio"),
    } | ({} if whole else {"head_dim": dims[0]})
    return TimmModel("swin_tiny_patch4_window7_224", arguments | image_size(architecture))


def _swin_v2(architecture: Architecture, stages: list[list[Block]]) -> TimmModel | None:
    """Heads fill the width there, and all stages have one window and one ratio of MLPs."""
    if not _is_swin(architecture, stages, "cosine_window_attention", SWINV2):
        return None
    windows, ratios = set(_mixers(stages, "window")), set(_mixers(stages, "mlp_ratio"))
    if len(windows) > 1 or len(ratios) > 1:
        return None
    arguments = {
        "depths": _depths(stages),
        "embed_dim": architecture.widths[0],
        "num_heads": _heads(architecture, stages),
        "window_size": windows.pop(),
        "mlp_ratio": ratios.pop(),
        "pretrained_window_sizes": _mixers(stages, "trained"),
    }
    return TimmModel("swinv2_tiny_window8_256", arguments | image_size(architecture, 256))


def _is_swin(
    architecture: Architecture, stages: list[list[Block]], kind: str, macro: Macro
) -> bool:
    return (
        _uniform(stages, kind, res_post_norm=macro == SWINV2)
        and _hierarchy(architecture, macro)
        and _doubled(architecture)
        and all(stage[0].values.get("normaliser", "softmax") == "softmax" for stage in stages)
        # every second block is shifted, by its position
        and not any(block.skipped for stage in architecture.stages for block in stage.blocks)
    )


def _heads(architecture: Architecture, stages: list[list[Block]]) -> list[int]:
    return [
        num_heads(width, dim, ratio)
        for width, dim, ratio in zip(
            architecture.widths,
            _mixers(stages, "head_dim"),
            _mixers(stages, "head_ratio"),
            strict=True,
        )
    ]


def _focalnet(architecture: Architecture, stages: list[list[Block]]) -> TimmModel | None:
    if not (
        _uniform(stages, "focal_modulation")
        and _hierarchy(architecture, FOCALNET, "layer_scale")
        and _doubled(architecture)
        and len(set(_mixers(stages, "mlp_ratio"))) == 1
        and len(set(_mixers(stages, "post_norm"))) == 1
    ):
        return None
    arguments = {
        "depths": _depths(stages),
        "embed_dim": architecture.widths[0],
        "mlp_ratio": stages[0][0]["mlp_ratio"],
        "focal_levels": _mixers(stages, "levels"),
        "focal_windows": _mixers(stages, "window"),
        "use_post_norm_in_modulation": stages[0][0].traits["post_norm"],
        "layerscale_value": architecture.macro.layer_scale or None,
    }
    return TimmModel("FocalNet", arguments, ("from timm.models.focalnet import FocalNet",))


def _poolformer(architecture: Architecture, stages: list[list[Block]]) -> TimmModel | None:
    if not (
        _uniform(stages, "pooling")
        and _hierarchy(architecture, POOLFORMER, "layer_scale")
        and set(_mixers(stages, "kernel")) == {3}
    ):
        return None
    arguments = {
        "depths": _depths(stages),
        "dims": list(architecture.widths),
        "downsample_norm": None,
        "mlp_act": Code("nn.GELU"),
        "mlp_bias": True,
        "norm_layers": Code("GroupNorm1"),
        "layer_scale_init_values": architecture.macro.layer_scale or None,
        "res_scale_init_values": None,
        "use_mlp_head": False,
    }
    imports = (
        "from timm.layers import GroupNorm1",
        "from timm.models.metaformer import MetaFormer",
        "from torch import nn",
    )
    return TimmModel("MetaFormer", arguments, imports)


_RESNETS = {  # registered models by the kinds of blocks in their stages
    ("basic",) * 4: "resnet18",
    ("bottleneck",) * 4: "resnet50",
    ("basic", "basic", "bottleneck", "basic"): "test_resnet",
}
_RESNET_STEMS = {"conv_pool": "", "deep_pool": "deep", "tiered_pool": "deep_tiered"}


def _resnet(architecture: Architecture, stages: list[list[Block]]) -> TimmModel | None:
    macro, widths = architecture.macro, architecture.widths
    kinds = tuple(stage[0].kind for stage in stages)
    base = published.RESNET if macro.stem == "conv_pool" else published.RESNET_D
    if not (
        kinds in _RESNETS
        and _like(architecture, base, "stem", "shortcut")
        and macro.stem in _RESNET_STEMS
        and _usual_strides(architecture)
        and all(
            block == Block.of(kind) for kind, s in zip(kinds, stages, strict=True) for block in s
        )
    ):
        return None
    channels = [
        w // (4 if kind == "bottleneck" else 1) for w, kind in zip(widths, kinds, strict=True)
    ]
    arguments = {
        "layers": _depths(stages),
        "channels": channels,
        "stem_type": _RESNET_STEMS[macro.stem],
        "stem_width": architecture.widths_before[0] // 2,
        "avg_down": macro.shortcut == "pooled",
    }
    return TimmModel(_RESNETS[kinds], arguments)


_SHORT = {"relu": "re", "relu6": "r6", "hard_swish": "hs", "silu": "sw"}
_TYPES = {
    "depthwise_separable": "ds",
    "inverted_residual": "ir",
    "fused_inverted_residual": "er",
}


def _mobile(architecture: Architecture, stages: list[list[Block]]) -> TimmModel | None:
    macro = architecture.macro
    free = ("padding", "conv_norm_eps", "conv_activation", "head", "head_width", "head_conv_width")
    blocks = [block for stage in stages for block in stage]
    gates = {block["gate"] for block in blocks if block.traits.get("squeeze", 0.0)}
    activations = {block.traits.get("activation") for block in blocks} - {macro.conv_activation}
    if not (
        all(block.kind in _TYPES for block in blocks)
        and _like(architecture, published.MOBILENETV2, *free)
        and len(gates) <= 1
        and prod(architecture.strides) <= 16  # beyond, timm dilates instead
        and activations <= set(_SHORT)
        and macro.conv_activation in (*_SHORT, "gelu")
    ):
        return None
    definition = []
    for i, (stage, width) in enumerate(zip(stages, architecture.widths, strict=True)):
        entry, stride = architecture.widths_before[i], architecture.strides[i]
        texts = []
        for j, block in enumerate(stage):
            place = (entry, stride) if j == 0 else (width, 1)
            texts.append(_block_string(block, *place, width, macro.conv_activation))
        definition.append(texts)
    arguments: dict[str, Any] = {
        "stem_size": architecture.widths_before[0],
        "num_features": macro.head_width,
        "round_chs_fn": Code("int"),
        "act_layer": Code(f"get_act_layer({macro.conv_activation!r})"),
        "norm_layer": Code(f"partial(nn.BatchNorm2d, eps={macro.conv_norm_eps!r})"),
        "pad_type": "same" if macro.padding == "same" else "",
    }
    if gates == {"hard_sigmoid"}:
        gate = "partial(SqueezeExcite, gate_layer='hard_sigmoid', force_act_layer=nn.ReLU)"
        arguments["se_layer"] = Code(gate)
    name, module = "EfficientNet", "efficientnet"
    if macro.head == "conv_hidden":
        name, module = "MobileNetV3", "mobilenetv3"
        definition.append([f"cn_r1_k1_s1_c{macro.head_conv_width}"])
        arguments["se_from_exp"] = False
    arguments = {"block_args": Code(f"decode_arch_def({definition!r})"), **arguments}
    imports = (
        "from functools import partial",
        "from timm.layers import get_act_layer",
        "from timm.models._efficientnet_blocks import SqueezeExcite",
        "from timm.models._efficientnet_builder import decode_arch_def",
        f"from timm.models.{module} import {name}",
        "from torch import nn",
    )
    return TimmModel(name, arguments, imports)


def _block_string(block: Block, width_in: int, stride: int, width: int, usual: str) -> str:
    """A block in the words of timm's ``decode_arch_def``."""
    expansion, inner = 1.0, width_in
    text = f"{_TYPES[block.kind]}_r1_k{block['kernel']}_s{stride}"
    if "expansion" in block.traits:
        inner = hidden_width(width_in, block["expansion"])
        expansion = inner / width_in
        text += f"_e{expansion!r}"
    text += f"_c{width}"
    if block.traits.get("squeeze", 0.0):
        squeeze = hidden_width(width_in, block["squeeze"])
        text += f"_se{squeeze / inner * expansion!r}"
    if block["activation"] != usual:
        text += f"_n{_SHORT[str(block['activation'])]}"
    return text


Proposal = Callable[[Architecture, list[list[Block]]], TimmModel | None]
PROPOSALS: tuple[Proposal, ...] = (
    _convnext,
    _swin,
    _swin_v2,
    _focalnet,
    _poolformer,
    _resnet,
    _mobile,
)
"""Each makes a network of an architecture and its stages' blocks that are not skipped, or None."""
