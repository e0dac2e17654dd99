"""Token mixers, one file each: plain fixed modules with declared axes."""

from supernet.network.mixers.additive_attention import AdditiveAttention
from supernet.network.mixers.attention import Attention
from supernet.network.mixers.cascaded_group_attention import CascadedGroupAttention
from supernet.network.mixers.convolutional_attention import ConvolutionalAttention
from supernet.network.mixers.cosine_window_attention import CosineWindowAttention
from supernet.network.mixers.depthwise import DepthwiseConv
from supernet.network.mixers.efficient_modulation import EfficientModulation
from supernet.network.mixers.focal_modulation import FocalModulation
from supernet.network.mixers.gnconv import GnConv
from supernet.network.mixers.grid_attention import BlockAttention, GridAttention
from supernet.network.mixers.inception_depthwise import InceptionDepthwise
from supernet.network.mixers.large_kernel_attention import LargeKernelAttention
from supernet.network.mixers.linear_attention import LinearAttention
from supernet.network.mixers.local_aggregation import LocalAggregation
from supernet.network.mixers.mixer import Mixer, build_mixer, mixer_class
from supernet.network.mixers.outlook_attention import OutlookAttention
from supernet.network.mixers.pooling import Pooling
from supernet.network.mixers.reparam_depthwise import ReparamDepthwise
from supernet.network.mixers.scale_aware_modulation import ScaleAwareModulation
from supernet.network.mixers.separable_conv import SeparableConv
from supernet.network.mixers.single_head_attention import SingleHeadAttention
from supernet.network.mixers.spatial_reduction_attention import SpatialReductionAttention
from supernet.network.mixers.stripe_attention import StripeAttention
from supernet.network.mixers.window_attention import WindowAttention
from supernet.network.registry import register_mixer

__all__ = [
    "AdditiveAttention",
    "Attention",
    "BlockAttention",
    "CascadedGroupAttention",
    "ConvolutionalAttention",
    "CosineWindowAttention",
    "DepthwiseConv",
    "EfficientModulation",
    "FocalModulation",
    "GnConv",
    "GridAttention",
    "InceptionDepthwise",
    "LargeKernelAttention",
    "LinearAttention",
    "LocalAggregation",
    "Mixer",
    "OutlookAttention",
    "Pooling",
    "ReparamDepthwise",
    "ScaleAwareModulation",
    "SeparableConv",
    "SingleHeadAttention",
    "SpatialReductionAttention",
    "StripeAttention",
    "WindowAttention",
    "build_mixer",
    "mixer_class",
    "register_mixer",
]
