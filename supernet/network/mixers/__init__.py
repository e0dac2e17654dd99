"""Token mixers, one file each: plain fixed modules with declared axes."""

from supernet.network.mixers.attention import Attention
from supernet.network.mixers.depthwise import DepthwiseConv
from supernet.network.mixers.focal_modulation import FocalModulation
from supernet.network.mixers.gnconv import GnConv
from supernet.network.mixers.mixer import Mixer, build_mixer, mixer_class
from supernet.network.mixers.pooling import Pooling
from supernet.network.mixers.separable_conv import SeparableConv
from supernet.network.mixers.window_attention import WindowAttention
from supernet.network.registry import register_mixer

__all__ = [
    "Attention",
    "DepthwiseConv",
    "FocalModulation",
    "GnConv",
    "Mixer",
    "Pooling",
    "SeparableConv",
    "WindowAttention",
    "build_mixer",
    "mixer_class",
    "register_mixer",
]
