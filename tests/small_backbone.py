"""A network with every mixer on small maps, in four macro styles, and how tests make it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from mixer_sizes import narrow
from torch import Tensor

from search_space import MIXERS, Architecture, Macro, Mixer, Stage, metaformer
from supernet import build
from supernet.network.backbone import Backbone

STYLES = {
    "swin": Macro(
        stem_kernel=2, stem_stride=2, downsample="patch_merging", head_norm="before_pool"
    ),
    "focalnet": Macro(
        stem_kernel=2, stem_stride=2, downsample="conv_norm", head_norm="before_pool"
    ),
    "convnext": Macro(stem_kernel=2, stem_stride=2, downsample="norm_conv", layer_scale=0.5),
    "poolformer": Macro(
        stem_kernel=3,
        stem_stride=2,
        stem_norm=False,
        downsample="conv",
        downsample_kernel=3,
        norm="group_norm",
        layer_scale=0.5,
    ),
}
WIDTHS = (8, 16, 24, 32)
styles = pytest.mark.parametrize("style", STYLES)


def small(style: str = "swin") -> Architecture:
    """All registered mixers, on maps of side 16, 8, 4 and 2."""
    attention = metaformer(Mixer.of("window_attention", window=4, head_dim=8), 2)
    everywhere = metaformer(Mixer.of("attention", head_dim=8), 2, shortcut_scale=True)
    focal = metaformer(Mixer.of("focal_modulation", levels=2), 2)
    recursive = metaformer(Mixer.of("gnconv", order=3, kernel=3), 2)
    pooling = metaformer(Mixer.of("pooling"), 2)
    convolution = metaformer(Mixer.of("depthwise_conv", kernel=3), 2)
    blocks = [
        [attention, attention],
        [focal, pooling],
        [recursive, convolution, everywhere],
        [attention],
    ]
    chosen = {block.mixer.name for row in blocks for block in row}
    others = [metaformer(narrow(name), 2) for name in MIXERS if name not in chosen]
    blocks[2].extend(others)
    stages = tuple(Stage(width, tuple(row)) for width, row in zip(WIDTHS, blocks, strict=True))
    return Architecture(STYLES[style], 32, stages)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def without(architecture: Architecture, mixer: str) -> Architecture:
    """The architecture but for blocks with a mixer."""
    stages = [
        replace(stage, blocks=tuple(b for b in stage.blocks if b.label != mixer))
        for stage in architecture.stages
    ]
    return replace(architecture, stages=tuple(stages))


def network(
    style: str = "swin", architecture: Architecture | None = None, **options: Any
) -> Backbone:
    torch.manual_seed(0)
    return build(architecture or small(style), **{"num_classes": 7, **options}).eval()


def create(style: str = "swin", **options: Any) -> Any:
    """As a user of timm does, with the architecture as plain JSON."""
    torch.manual_seed(0)
    form = json.loads(json.dumps(small(style).to_dict()))
    return timm.create_model("nas_backbone", architecture=form, **options).eval()


def stage_outputs(backbone: Backbone, x: Tensor) -> list[Tensor]:
    """Maps after each stage, by hooks: (batch, height, width, dim)."""
    maps: list[Tensor] = []
    handles = [
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output))
        for stage in backbone.stages
    ]
    backbone(x)
    for handle in handles:
        handle.remove()
    return maps
