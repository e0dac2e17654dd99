"""Weights of published timm networks in our backbone, by parameter name.

Each family's names are translated by ordered replacements; shapes then agree up to trailing
1 × 1 kernels. Users load pretrained checkpoints this way, and the tests prove with it that our
blocks compute what the published ones compute.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from search_space.architecture import Architecture
from search_space.errors import NasError
from supernet.network.backbone import Backbone, build
from supernet.network.tensor_files import read_tensors

_SWIN = (
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.norm\.", "stem.norm."),
    (r"^layers\.", "stages."),
    (r"\.attn\.", ".mixer."),
    (r"^norm\.", "head.norm."),
)
_FOCALNET = (
    (r"^stem\.proj\.", "stem.conv."),
    (r"^layers\.", "stages."),
    (r"\.downsample\.proj\.", ".downsample.conv."),
    (r"\.modulation\.f\.", ".mixer.proj_in."),
    (r"\.modulation\.h\.", ".mixer.modulator."),
    (r"\.modulation\.proj\.", ".mixer.proj_out."),
    (r"\.modulation\.norm\.", ".mixer.norm."),
    (r"\.modulation\.focal_layers\.(\d+)\.0\.", r".mixer.contexts.\1."),
    (r"\.ls([12])\.gamma$", r".scale\1"),
    (r"^norm\.", "head.norm."),
)
_CONVNEXT = (
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.norm."),
    (r"\.downsample\.0\.", ".downsample.norm."),
    (r"\.downsample\.1\.", ".downsample.conv."),
    (r"\.conv_dw\.", ".mixer.conv."),
    (r"(\.blocks\.\d+)\.norm\.", r"\1.norm2."),
    (r"\.gamma$", ".scale2"),
)
_POOLFORMER = ((r"\.layer_scale([12])\.scale$", r".scale\1"),)

# the family is told by a parameter that only its networks have
_FAMILIES = (
    ("patch_embed.proj.weight", _SWIN),
    ("layers.0.blocks.0.modulation.f.weight", _FOCALNET),
    ("stages.0.blocks.0.conv_dw.weight", _CONVNEXT),
    ("stages.0.blocks.0.layer_scale1.scale", _POOLFORMER),
)


def from_timm(state: Mapping[str, Tensor], network: Backbone) -> dict[str, Tensor]:
    """Translates a timm state dict to the names and shapes of ``network``.

    Raises:
        NasError: The family is not known, or a parameter does not fit.
    """
    rules = next((rules for key, rules in _FAMILIES if key in state), None)
    if rules is None:
        raise NasError(
            "these weights are of no known family; known are timm's swin_transformer, focalnet, "
            "convnext and poolformer (v1) networks."
        )
    expected = network.state_dict()
    result = {}
    for key, value in state.items():
        if key.endswith(("relative_position_index", "attn_mask")):
            continue  # constants that our blocks derive from the map's size
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name not in expected:
            raise NasError(f"{key} has no counterpart in {network.architecture}; expected {name}.")
        if value.numel() != expected[name].numel():
            raise NasError(
                f"{key} has shape {tuple(value.shape)}, but {name} of {network.architecture} has "
                f"{tuple(expected[name].shape)}: the weights are of another architecture."
            )
        result[name] = value.reshape(expected[name].shape)
    missing = sorted(set(expected) - set(result))
    if missing:
        raise NasError(f"the weights lack {missing[0]} and {len(missing) - 1} others.")
    return result


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
    stored = state["head.fc.weight"].shape[0] if "head.fc.weight" in state else 0
    network = build(architecture, stored)
    network.load_state_dict(from_timm(state, network))
    if num_classes is not None and num_classes != stored:
        network.reset_classifier(num_classes)
    return network
