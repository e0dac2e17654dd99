"""Weights of published timm networks in our backbone and back, by parameter name.

Each family of timm's has a table of ordered replacements that make timm's names of ours; shapes
then agree up to trailing 1 × 1 kernels. Users load pretrained checkpoints this way, and the tests
prove with it that our blocks compute what the published ones compute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from search_space.architecture import Architecture
from search_space.components import Component, components
from search_space.errors import NasError
from supernet.network.backbone import Backbone, build
from supernet.network.tensor_files import read_tensors

_TABLE = "relative_position_bias_table"
Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


@dataclass(frozen=True)
class Family:
    """How timm names the parameters of a kind of networks.

    Args:
        blocks: Labels of the blocks that they are made of.
        downsample: Their transition.
        rules: Replacements, in their order, in our names. In these the path of a stem, block or
            head is followed by its style, ``stages.0.blocks.1<basic>.first.conv.weight``, and a
            head's style by the number of stages.
        shortcut: Of the macro style.
        tables: Whether biases of positions are (heads, height, width) in timm, of the distances
            from the query to the key; ours are (height · width, heads), of those from the key.
    """

    blocks: frozenset[str]
    downsample: str
    rules: Rules
    shortcut: str | None = None
    tables: bool = False

    def fits(self, architecture: Architecture) -> bool:
        """Says whether an architecture's blocks and transitions are this family's."""
        macro = architecture.macro
        labels = {b.label for s in architecture.stages for b in s.blocks if not b.skipped}
        return (
            labels <= self.blocks
            and macro.downsample == self.downsample
            and self.shortcut in (None, macro.shortcut)
        )

    def values(self, theirs: str, value: Tensor) -> Tensor:
        """Returns values of a parameter of timm's in our order, in whatever shape."""
        if self.tables and theirs.endswith(_TABLE):
            return value.flip(1, 2).permute(1, 2, 0)
        return value

    def their_values(self, theirs: str, value: Tensor, shape: torch.Size) -> Tensor:
        """Returns values of a parameter of ours in timm's order and ``shape``."""
        if self.tables and theirs.endswith(_TABLE):
            return value.reshape(*shape[1:], shape[0]).permute(2, 0, 1).flip(1, 2)
        return value.reshape(shape)

    def name(self, ours: str) -> str:
        """Returns timm's name of a parameter, of ours with styles."""
        for pattern, replacement in self.rules:
            ours = re.sub(pattern, replacement, ours)
        return re.sub(r"<.*?>", "", ours)


_SWIN: Rules = (
    (r"^stem<\w+>\.conv\.", "patch_embed.proj."),
    (r"^stem<\w+>\.norm\.", "patch_embed.norm."),
    (r"^stages\.", "layers."),
    (r"\.mixer\.", ".attn."),
    (r"^head<.*?>\.norm\.", "norm."),
)
_FOCALNET: Rules = (
    (r"^stem<\w+>\.conv\.", "stem.proj."),
    (r"^stages\.", "layers."),
    (r"\.downsample\.conv\.", ".downsample.proj."),
    (r"\.mixer\.proj_in\.", ".modulation.f."),
    (r"\.mixer\.modulator\.", ".modulation.h."),
    (r"\.mixer\.proj_out\.", ".modulation.proj."),
    (r"\.mixer\.norm\.", ".modulation.norm."),
    (r"\.mixer\.contexts\.(\d+)\.", r".modulation.focal_layers.\1.0."),
    (r"\.scale([12])$", r".ls\1.gamma"),
    (r"^head<.*?>\.norm\.", "norm."),
)
_CONVNEXT: Rules = (
    (r"^stem<\w+>\.conv\.", "stem.0."),
    (r"^stem<\w+>\.norm\.", "stem.1."),
    (r"\.downsample\.norm\.", ".downsample.0."),
    (r"\.downsample\.conv\.", ".downsample.1."),
    (r"\.mixer\.conv\.", ".conv_dw."),
    (r"\.norm2\.", ".norm."),
    (r"\.scale2$", ".gamma"),
)
_BASELINE: Rules = (
    (r"\.mixer\.expand\.", ".token_mixer.pwconv1."),
    (r"\.mixer\.activation\.", ".token_mixer.act1."),
    (r"\.mixer\.conv\.", ".token_mixer.dwconv."),
    (r"\.mixer\.project\.", ".token_mixer.pwconv2."),
    (r"\.mixer\.", ".token_mixer."),
    (r"\.mlp\.activation\.", ".mlp.act."),
    (r"\.shortcut([12])$", r".res_scale\1.scale"),
    (r"^head<mlp:\d+>\.hidden\.", "head.fc.fc1."),
    (r"^head<mlp:\d+>\.hidden_norm\.", "head.fc.norm."),
    (r"^head<mlp:\d+>\.fc\.", "head.fc.fc2."),
)
_POOLFORMER: Rules = ((r"\.scale([12])$", r".layer_scale\1.scale"),)
_MOBILE: Rules = (
    (r"^stem<\w+>\.conv\.conv\.", "conv_stem."),
    (r"^stem<\w+>\.conv\.norm\.", "bn1."),
    (r"^stages\.(\d+)\.blocks\.", r"blocks.\1."),
    (r"\.excite\.(reduce|expand)\.", r".se.conv_\1."),
    (r"<depthwise_separable>\.depthwise\.conv\.", ".conv_dw."),
    (r"<depthwise_separable>\.depthwise\.norm\.", ".bn1."),
    (r"<depthwise_separable>\.project\.conv\.", ".conv_pw."),
    (r"<depthwise_separable>\.project\.norm\.", ".bn2."),
    (r"<inverted_residual>\.expand\.conv\.", ".conv_pw."),
    (r"<inverted_residual>\.expand\.norm\.", ".bn1."),
    (r"<inverted_residual>\.depthwise\.conv\.", ".conv_dw."),
    (r"<inverted_residual>\.depthwise\.norm\.", ".bn2."),
    (r"<inverted_residual>\.project\.conv\.", ".conv_pwl."),
    (r"<inverted_residual>\.project\.norm\.", ".bn3."),
    (r"<fused_inverted_residual>\.expand\.conv\.", ".conv_exp."),
    (r"<fused_inverted_residual>\.expand\.norm\.", ".bn1."),
    (r"<fused_inverted_residual>\.project\.conv\.", ".conv_pwl."),
    (r"<fused_inverted_residual>\.project\.norm\.", ".bn2."),
    (r"^head<conv:\d+>\.conv\.conv\.", "conv_head."),
    (r"^head<conv:\d+>\.conv\.norm\.", "bn2."),
    (r"^head<conv_hidden:(\d+)>\.conv\.conv\.", r"blocks.\1.0.conv."),
    (r"^head<conv_hidden:(\d+)>\.conv\.norm\.", r"blocks.\1.0.bn1."),
    (r"^head<.*?>\.hidden\.", "conv_head."),
    (r"^head<.*?>\.fc\.", "classifier."),
)
_RESNET: Rules = (
    (r"^stem<conv_pool>\.conv\.conv\.", "conv1."),
    (r"^stem<\w+>\.conv\.conv\.", "conv1.0."),
    (r"^stem<conv_pool>\.conv\.norm\.", "bn1."),
    (r"^stem<\w+>\.conv\.norm\.", "conv1.1."),
    (r"^stem<\w+>\.conv1\.conv\.", "conv1.3."),
    (r"^stem<\w+>\.conv1\.norm\.", "conv1.4."),
    (r"^stem<\w+>\.conv2\.conv\.", "conv1.6."),
    (r"^stem<\w+>\.conv2\.norm\.", "bn1."),
    (r"^stages\.(\d+)\.blocks\.", lambda found: f"layer{int(found[1]) + 1}."),
    (r"\.(first|reduce)\.conv\.", ".conv1."),
    (r"\.(first|reduce)\.norm\.", ".bn1."),
    (r"\.(second|middle)\.conv\.", ".conv2."),
    (r"\.(second|middle)\.norm\.", ".bn2."),
    (r"\.excite\.reduce\.", ".se.fc1."),
    (r"\.excite\.expand\.", ".se.fc2."),
    (r"\.mix\.conv\.", ".se.conv."),
    (r"\.expand\.conv\.", ".conv3."),
    (r"\.expand\.norm\.", ".bn3."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"^head<.*?>\.fc\.", "fc."),
)
# the pooling comes first there
_RESNET_D: Rules = (
    (r"\.shortcut\.conv\.", ".downsample.1."),
    (r"\.shortcut\.norm\.", ".downsample.2."),
    *_RESNET,
)

_MAXVIT: Rules = (
    (r"^stem<\w+>\.conv\.conv\.", "stem.conv1."),
    (r"^stem<\w+>\.conv\.norm\.", "stem.norm1."),
    (r"^stem<\w+>\.conv1\.conv\.", "stem.conv2."),
    # a block of timm's is three of ours
    (r"\.blocks\.(\d+)(<\w+>)?\.", lambda found: _of_three(int(found[1]))),
    (r"\.conv\.norm\.", ".conv.pre_norm."),
    (r"\.conv\.expand\.conv\.", ".conv.conv1_1x1."),
    (r"\.conv\.expand\.norm\.", ".conv.norm1."),
    (r"\.conv\.depthwise\.conv\.", ".conv.conv2_kxk."),
    (r"\.conv\.depthwise\.norm\.", ".conv.norm2."),
    (r"\.conv\.excite\.reduce\.", ".conv.se.fc1."),
    (r"\.conv\.excite\.expand\.", ".conv.se.fc2."),
    (r"\.conv\.project\.conv\.", ".conv.conv3_1x1."),
    (r"\.conv\.shortcut\.conv\.", ".conv.shortcut.expand."),
    (r"\.mixer\.relative_position_bias_table", ".mixer.rel_pos.relative_position_bias_table"),
    (r"\.mixer\.", ".attn."),
    (r"^head<.*?>\.hidden\.", "head.pre_logits.fc."),
)


def _of_three(position: int) -> str:
    part = ("conv", "attn_block", "attn_grid")[position % 3]
    return f".blocks.{position // 3}.{part}."


_MOBILE_BLOCKS = frozenset({"inverted_residual", "depthwise_separable", "fused_inverted_residual"})
FAMILIES = {
    "swin_transformer": Family(frozenset({"window_attention"}), "patch_merging", _SWIN),
    "swin_transformer_v2": Family(
        frozenset({"cosine_window_attention"}), "patch_merging_norm", _SWIN
    ),
    "focalnet": Family(frozenset({"focal_modulation"}), "conv_norm", _FOCALNET),
    "convnext": Family(frozenset({"depthwise_conv"}), "norm_conv", _CONVNEXT),
    "poolformer": Family(frozenset({"pooling"}), "conv", _POOLFORMER),
    "metaformer": Family(
        frozenset({"pooling", "separable_conv", "attention"}), "norm_conv", _BASELINE
    ),
    "efficientnet and mobilenetv3": Family(_MOBILE_BLOCKS, "block", _MOBILE),
    "maxvit": Family(
        frozenset({"prenorm_inverted_residual", "block_attention", "grid_attention"}),
        "block",
        _MAXVIT,
        tables=True,
    ),
    "resnet": Family(frozenset({"basic", "bottleneck"}), "block", _RESNET, "conv"),
    "resnet-d": Family(frozenset({"basic", "bottleneck"}), "block", _RESNET_D, "pooled"),
}


def family(architecture: Architecture) -> Family:
    """Returns the family whose names an architecture's parameters have.

    Raises:
        NasError: There is none.
    """
    found = next((item for item in FAMILIES.values() if item.fits(architecture)), None)
    if found is None:
        raise NasError(
            f"{architecture} is of no family of timm networks that is known: its blocks and "
            f"transitions must be those of {', '.join(FAMILIES)}."
        )
    return found


def timm_names(network: Backbone) -> dict[str, str]:
    """Returns timm's name of every entry of the state dict of ``network``.

    Blocks that are skipped have no place in timm's networks: those behind them move up.

    Raises:
        NasError: There is no such family.
    """
    rules = family(network.architecture)
    places = _places(components(network.architecture, network.num_classes))
    result = {}
    for name in network.state_dict():
        path = next((path for path in places if name.startswith(path + ".")), None)
        styled = name if path is None else places[path] + name[len(path) :]
        result[name] = rules.name(styled)
    return result


def _places(chain: tuple[Component, ...]) -> dict[str, str]:
    """Paths of stem, blocks and head: where timm has them, and their styles."""
    result, counts = {}, dict[str, int]()
    for item in chain:
        style = item.spec.as_dict()["style"]
        path = item.path
        if item.spec.kind == "block":
            stage = path.rpartition(".")[0]
            path = f"{stage}.{counts.setdefault(stage, 0)}"
            counts[stage] += 1
        elif item.spec.kind == "head":
            style = f"{style}:{len(counts)}"
        if item.spec.kind != "downsample":
            result[item.path] = f"{path}<{style}>"
    return result


_CONSTANTS = ("num_batches_tracked", "relative_position_index", "attn_mask")


def from_timm(state: Mapping[str, Tensor], network: Backbone) -> dict[str, Tensor]:
    """Translates a timm state dict to the names and shapes of ``network``.

    Raises:
        NasError: The family is not known, or a parameter does not fit.
    """
    expected, named = network.state_dict(), family(network.architecture)
    ours = {theirs: name for name, theirs in timm_names(network).items()}
    if not set(ours) & set(state):
        raise NasError(
            f"these weights are of no known family, or of another than {network.architecture}; "
            f"known are timm's {', '.join(FAMILIES)} networks."
        )
    result = {}
    for key, value in state.items():
        if key.endswith(_CONSTANTS):
            continue  # counts, and what our blocks derive from the map's size
        if key not in ours:
            raise NasError(f"{key} has no counterpart in {network.architecture}.")
        name = ours[key]
        if value.numel() != expected[name].numel():
            raise NasError(
                f"{key} has shape {tuple(value.shape)}, but {name} of {network.architecture} has "
                f"{tuple(expected[name].shape)}: the weights are of another architecture."
            )
        result[name] = named.values(key, value).reshape(expected[name].shape)
    missing = sorted(theirs for theirs, name in ours.items() if name not in result)
    if missing:
        raise NasError(f"the weights lack {missing[0]} and {len(missing) - 1} others.")
    return result


def in_order(state: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives weights of another implementation timm's names, where both have the same order.

    Args:
        state: The other implementation's state dict.
        names: The state dict of timm's network; its values may be on the meta device.

    Raises:
        NasError: They differ in number, or in the shape of an entry.
    """
    given = [(key, value) for key, value in state.items() if not key.endswith(_CONSTANTS)]
    wanted = [(key, value) for key, value in names.items() if not key.endswith(_CONSTANTS)]
    if len(given) != len(wanted):
        raise NasError(f"there are {len(given)} weights, but timm's network has {len(wanted)}.")
    for (theirs, value), (name, like) in zip(given, wanted, strict=True):
        if value.shape != like.shape:
            raise NasError(
                f"{theirs} has shape {tuple(value.shape)}, but in its place timm has {name} of "
                f"shape {tuple(like.shape)}: the order or the architecture is another."
            )
    return {name: value for (_, value), (name, _) in zip(given, wanted, strict=True)}


def load_timm_checkpoint(
    architecture: Architecture, path: str | Path, num_classes: int | None = None
) -> Backbone:
    """Builds the backbone of ``architecture`` with the weights in a timm checkpoint file.

    Args:
        architecture: The architecture of the published network.
        path: A file that ``read_tensors`` reads.
        num_classes: The checkpoint's by default; another number gives a fresh classifier.

    Raises:
        NasError: The weights are of another architecture.
        CorruptFileError: The file is damaged.
    """
    state = read_tensors(Path(path))
    classifier = family(architecture).name(
        f"head<{architecture.macro.head}:{len(architecture.stages)}>.fc.weight"
    )
    stored = state[classifier].shape[0] if classifier in state else 0
    network = build(architecture, stored)
    network.load_state_dict(from_timm(state, network))
    if num_classes is not None and num_classes != stored:
        network.reset_classifier(num_classes)
    return network
