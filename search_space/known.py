"""Well-known designs as architectures: baselines of every report, and the proof of our blocks.

Swin and SwinV2 (Liu et al. 2021, 2022; version 2 at 256 px), FocalNet (Yang et al. 2022; small and
large receptive field), ConvNeXt (Liu et al. 2022), PoolFormer (Yu et al. 2022; its head as timm has
it, pooling before the norm), HorNet in its 7×7 version (Rao et al. 2022), and PoolFormerV2,
ConvFormer and CAFormer (Yu et al., MetaFormer baselines for vision, 2022). Convolutional and
mixed ones have files of their own.
"""

from __future__ import annotations

from dataclasses import replace

from search_space.architecture import Architecture, Stage
from search_space.blocks import Block, Mixer, metaformer
from search_space.errors import UnknownNameError
from search_space.known_convolutional import CONVOLUTIONAL, convolutional
from search_space.known_hybrid import HYBRID, hybrid
from search_space.macro import Macro

SWIN = Macro(downsample="patch_merging", norm_eps=1e-5, head_norm="before_pool", head_norm_eps=1e-5)
SWINV2 = replace(SWIN, downsample="patch_merging_norm")
FOCALNET = Macro(downsample="conv_norm", norm_eps=1e-5, head_norm="before_pool", head_norm_eps=1e-5)
CONVNEXT = Macro(downsample="norm_conv", layer_scale=1e-6)  # HorNet's, too
POOLFORMER = Macro(
    stem_kernel=7,
    stem_norm=False,
    downsample="conv",
    downsample_kernel=3,
    norm="group_norm",
    norm_eps=1e-5,
    layer_scale=1e-5,
)
BASELINE = Macro(
    stem_kernel=7,
    downsample="norm_conv",
    downsample_kernel=3,
    activation="star_relu",
    bias=False,
)
POOLFORMERV2 = replace(BASELINE, block_norm="group_norm")
_DEEP_POOLFORMER = replace(POOLFORMER, layer_scale=1e-6)

_ATTENTION = (Mixer.of("window_attention", window=7, head_dim=32),) * 4
_COSINE = (Mixer.of("cosine_window_attention", window=8, head_dim=32),) * 4
_SMALL_FIELD = (Mixer.of("focal_modulation", levels=2, window=3),) * 4
_LARGE_FIELD = (Mixer.of("focal_modulation", levels=3, window=3),) * 4
_CONVOLUTION = (Mixer.of("depthwise_conv", kernel=7),) * 4
_POOLING = (Mixer.of("pooling", kernel=3),) * 4
_SEPARABLE = (Mixer.of("separable_conv", expansion=2.0, kernel=7),) * 4
_MIXED = (*_SEPARABLE[:2], *(Mixer.of("attention", head_dim=32),) * 2)
_GATED = tuple(Mixer.of("gnconv", order=order, kernel=7) for order in (2, 3, 4, 5))

_WIDTHS_64, _WIDTHS_96, _WIDTHS_128, _WIDTHS_192 = (
    (width, 2 * width, 4 * width, 8 * width) for width in (64, 96, 128, 192)
)
_SMALL_POOL, _MEDIUM_POOL = (64, 128, 320, 512), (96, 192, 384, 768)
_POOL_DEPTHS = {
    "s12": (_SMALL_POOL, (2, 2, 6, 2)),
    "s24": (_SMALL_POOL, (4, 4, 12, 4)),
    "s36": (_SMALL_POOL, (6, 6, 18, 6)),
    "m36": (_MEDIUM_POOL, (6, 6, 18, 6)),
    "m48": (_MEDIUM_POOL, (8, 8, 24, 8)),
}
BASELINE_SIZES = {
    "s18": (_SMALL_POOL, (3, 3, 9, 3)),
    "s36": (_SMALL_POOL, (3, 12, 18, 3)),
    "m36": ((96, 192, 384, 576), (3, 12, 18, 3)),
    "b36": ((128, 256, 512, 768), (3, 12, 18, 3)),
}
_TINY, _DEEP, _GATED_DEPTHS = (2, 2, 6, 2), (2, 2, 18, 2), (2, 3, 18, 2)


def _baseline(widths: tuple[int, ...]) -> Macro:
    return replace(BASELINE, head="mlp", head_width=4 * widths[-1], conv_activation="squared_relu")


# macro style, widths, depths and mixers of the stages
_KNOWN = {
    "swin_t": (SWIN, _WIDTHS_96, _TINY, _ATTENTION),
    "swin_s": (SWIN, _WIDTHS_96, _DEEP, _ATTENTION),
    "swin_b": (SWIN, _WIDTHS_128, _DEEP, _ATTENTION),
    "swin_l": (SWIN, _WIDTHS_192, _DEEP, _ATTENTION),
    "swinv2_t": (SWINV2, _WIDTHS_96, _TINY, _COSINE),
    "swinv2_s": (SWINV2, _WIDTHS_96, _DEEP, _COSINE),
    "swinv2_b": (SWINV2, _WIDTHS_128, _DEEP, _COSINE),
    "focalnet_t_srf": (FOCALNET, _WIDTHS_96, _TINY, _SMALL_FIELD),
    "focalnet_s_srf": (FOCALNET, _WIDTHS_96, _DEEP, _SMALL_FIELD),
    "focalnet_b_srf": (FOCALNET, _WIDTHS_128, _DEEP, _SMALL_FIELD),
    "focalnet_t_lrf": (FOCALNET, _WIDTHS_96, _TINY, _LARGE_FIELD),
    "focalnet_s_lrf": (FOCALNET, _WIDTHS_96, _DEEP, _LARGE_FIELD),
    "focalnet_b_lrf": (FOCALNET, _WIDTHS_128, _DEEP, _LARGE_FIELD),
    **{
        f"convnext_{size}": (CONVNEXT, tuple(width * 2**i for i in range(4)), depths, _CONVOLUTION)
        for size, width, depths in (
            ("atto", 40, _TINY),
            ("femto", 48, _TINY),
            ("pico", 64, _TINY),
            ("nano", 80, (2, 2, 8, 2)),
        )
    },
    "convnext_t": (CONVNEXT, _WIDTHS_96, (3, 3, 9, 3), _CONVOLUTION),
    "convnext_s": (CONVNEXT, _WIDTHS_96, (3, 3, 27, 3), _CONVOLUTION),
    "convnext_b": (CONVNEXT, _WIDTHS_128, (3, 3, 27, 3), _CONVOLUTION),
    "convnext_l": (CONVNEXT, _WIDTHS_192, (3, 3, 27, 3), _CONVOLUTION),
    "convnext_xl": (CONVNEXT, (256, 512, 1024, 2048), (3, 3, 27, 3), _CONVOLUTION),
    "poolformer_s12": (POOLFORMER, (64, 128, 320, 512), _TINY, _POOLING),
    "poolformer_s24": (POOLFORMER, (64, 128, 320, 512), (4, 4, 12, 4), _POOLING),
    "poolformer_s36": (_DEEP_POOLFORMER, (64, 128, 320, 512), (6, 6, 18, 6), _POOLING),
    "poolformer_m36": (_DEEP_POOLFORMER, (96, 192, 384, 768), (6, 6, 18, 6), _POOLING),
    "poolformer_m48": (_DEEP_POOLFORMER, (96, 192, 384, 768), (8, 8, 24, 8), _POOLING),
    "hornet_t": (CONVNEXT, _WIDTHS_64, _GATED_DEPTHS, _GATED),
    "hornet_s": (CONVNEXT, _WIDTHS_96, _GATED_DEPTHS, _GATED),
    "hornet_b": (CONVNEXT, _WIDTHS_128, _GATED_DEPTHS, _GATED),
    "hornet_l": (CONVNEXT, _WIDTHS_192, _GATED_DEPTHS, _GATED),
    **{
        f"poolformerv2_{size}": (POOLFORMERV2, widths, depths, _POOLING)
        for size, (widths, depths) in _POOL_DEPTHS.items()
    },
    **{
        f"{name}_{size}": (_baseline(widths), widths, depths, mixers)
        for name, mixers in (("convformer", _SEPARABLE), ("caformer", _MIXED))
        for size, (widths, depths) in BASELINE_SIZES.items()
    },
}


def known_names() -> list[str]:
    """Returns the names of all known designs."""
    return [*_KNOWN, *CONVOLUTIONAL, *HYBRID]


def known(name: str) -> Architecture:
    """Returns the known design ``name``, at its own resolution; 224 px for most.

    Raises:
        UnknownNameError: There is no such design.
    """
    if name in CONVOLUTIONAL:
        return convolutional(name)
    if name in HYBRID:
        return hybrid(name)
    if name not in _KNOWN:
        raise UnknownNameError("design", name, known_names())
    macro, widths, depths, mixers = _KNOWN[name]
    stages = tuple(
        Stage(width, (_block(macro, mixer, i),) * depth)
        for i, (width, depth, mixer) in enumerate(zip(widths, depths, mixers, strict=True))
    )
    return Architecture(macro, 256 if macro == SWINV2 else 224, stages)


def _block(macro: Macro, mixer: Mixer, stage: int) -> Block:
    # of the baselines, which have no biases, the last two stages scale their shortcuts
    scaled = not macro.bias and stage >= 2
    return metaformer(mixer, shortcut_scale=scaled, res_post_norm=macro == SWINV2)
