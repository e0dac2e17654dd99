"""Token mixers, one file each: plain fixed modules with declared axes."""

from supernet.mixers.depthwise import DepthwiseConv
from supernet.mixers.focal_modulation import FocalModulation
from supernet.mixers.gnconv import GnConv
from supernet.mixers.pooling import Pooling
from supernet.mixers.registry import (
    Mixer,
    build_mixer,
    mixer_class,
    register_mixer,
    registered_mixers,
)
from supernet.mixers.window_attention import WindowAttention

__all__ = [
    "DepthwiseConv",
    "FocalModulation",
    "GnConv",
    "Mixer",
    "Pooling",
    "WindowAttention",
    "build_mixer",
    "mixer_class",
    "register_mixer",
    "registered_mixers",
]
