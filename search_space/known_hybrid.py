"""Well-known designs of convolutions and attention: MaxViT (Tu et al. 2022), as in TensorFlow."""

from __future__ import annotations

from dataclasses import replace

from search_space.architecture import Architecture, Stage
from search_space.blocks import Block, Mixer, metaformer
from search_space.macro import Macro

MAXVIT = Macro(
    stem="conv_act_conv",
    stem_kernel=3,
    stem_stride=2,
    stem_width=64,
    downsample="block",
    norm_eps=1e-5,
    head_norm_eps=1e-5,
    head="hidden",
    head_width=512,
    activation="gelu_tanh",
    conv_norm_eps=1e-3,
    conv_activation="gelu_tanh",
    padding="same",
)
_MAXVIT_BLOCK = (
    Block.of("prenorm_inverted_residual", squeeze=0.25, activation="gelu_tanh"),
    *(metaformer(Mixer.of(name, window=7)) for name in ("block_attention", "grid_attention")),
)
# channels of the stem and the first stage, and blocks of each stage
HYBRID = {
    "maxvit_t": (64, 64, (2, 2, 5, 2)),
    "maxvit_s": (64, 96, (2, 2, 5, 2)),
    "maxvit_b": (64, 96, (2, 6, 14, 2)),
    "maxvit_l": (128, 128, (2, 6, 14, 2)),
}


def hybrid(name: str) -> Architecture:
    """Returns the known design ``name``, one of ``HYBRID``."""
    stem, width, depths = HYBRID[name]
    stages = tuple(Stage(width * 2**i, _MAXVIT_BLOCK * depth, 2) for i, depth in enumerate(depths))
    macro = replace(MAXVIT, stem_width=stem, head_width=8 * width)
    return Architecture(macro, 224, stages)
