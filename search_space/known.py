"""Well-known designs as points: the baselines of every report, and the proof of our blocks.

Swin (Liu et al. 2021), FocalNet (Yang et al. 2022; small and large receptive field), ConvNeXt
(Liu et al. 2022), PoolFormer (Yu et al. 2022; its head as timm has it, pooling before the norm)
and HorNet in its 7×7 version (Rao et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from search_space.architecture import Architecture, Block, Macro, Mixer, Stage
from search_space.errors import UnknownNameError

SWIN = Macro(downsample="patch_merging", norm_eps=1e-5, head_norm="before_pool", head_norm_eps=1e-5)
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


def _design(
    macro: Macro, widths: Sequence[int], depths: Sequence[int], mixers: Sequence[Mixer]
) -> Architecture:
    stages = tuple(
        Stage(width, (Block(mixer, 4.0),) * depth)
        for width, depth, mixer in zip(widths, depths, mixers, strict=True)
    )
    return Architecture(macro, 224, stages)


def _doubling(width: int) -> list[int]:
    return [width, 2 * width, 4 * width, 8 * width]


def _swin(width: int, depths: Sequence[int]) -> Architecture:
    mixer = Mixer.of("window_attention", window=7, head_dim=32)
    return _design(SWIN, _doubling(width), depths, [mixer] * 4)


def _focalnet(width: int, depths: Sequence[int], levels: int) -> Architecture:
    mixer = Mixer.of("focal_modulation", levels=levels, window=3)
    return _design(FOCALNET, _doubling(width), depths, [mixer] * 4)


def _convnext(width: int, depths: Sequence[int]) -> Architecture:
    return _design(CONVNEXT, _doubling(width), depths, [Mixer.of("depthwise_conv", kernel=7)] * 4)


def _poolformer(
    widths: Sequence[int], depths: Sequence[int], layer_scale: float = 1e-5
) -> Architecture:
    macro = replace(POOLFORMER, layer_scale=layer_scale)
    return _design(macro, widths, depths, [Mixer.of("pooling", kernel=3)] * 4)


def _hornet(width: int) -> Architecture:
    mixers = [Mixer.of("gnconv", order=order, kernel=7) for order in (2, 3, 4, 5)]
    return _design(CONVNEXT, _doubling(width), (2, 3, 18, 2), mixers)


_TINY, _DEEP = (2, 2, 6, 2), (2, 2, 18, 2)

_KNOWN: dict[str, Callable[[], Architecture]] = {
    "swin_t": lambda: _swin(96, _TINY),
    "swin_s": lambda: _swin(96, _DEEP),
    "swin_b": lambda: _swin(128, _DEEP),
    "focalnet_t_srf": lambda: _focalnet(96, _TINY, 2),
    "focalnet_s_srf": lambda: _focalnet(96, _DEEP, 2),
    "focalnet_b_srf": lambda: _focalnet(128, _DEEP, 2),
    "focalnet_t_lrf": lambda: _focalnet(96, _TINY, 3),
    "focalnet_s_lrf": lambda: _focalnet(96, _DEEP, 3),
    "focalnet_b_lrf": lambda: _focalnet(128, _DEEP, 3),
    "convnext_t": lambda: _convnext(96, (3, 3, 9, 3)),
    "convnext_s": lambda: _convnext(96, (3, 3, 27, 3)),
    "convnext_b": lambda: _convnext(128, (3, 3, 27, 3)),
    "poolformer_s12": lambda: _poolformer((64, 128, 320, 512), _TINY),
    "poolformer_s24": lambda: _poolformer((64, 128, 320, 512), (4, 4, 12, 4)),
    "poolformer_s36": lambda: _poolformer((64, 128, 320, 512), (6, 6, 18, 6), 1e-6),
    "poolformer_m36": lambda: _poolformer((96, 192, 384, 768), (6, 6, 18, 6), 1e-6),
    "poolformer_m48": lambda: _poolformer((96, 192, 384, 768), (8, 8, 24, 8), 1e-6),
    "hornet_t": lambda: _hornet(64),
    "hornet_s": lambda: _hornet(96),
    "hornet_b": lambda: _hornet(128),
}


def known_names() -> list[str]:
    """Returns the names of all known designs."""
    return list(_KNOWN)


def known(name: str) -> Architecture:
    """Returns the known design ``name`` at 224 px; raises UnknownNameError for another name."""
    if name not in _KNOWN:
        raise UnknownNameError("design", name, _KNOWN)
    return _KNOWN[name]()
