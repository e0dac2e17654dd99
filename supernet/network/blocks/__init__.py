"""Blocks, one file each: plain fixed modules with declared axes."""

from supernet.network.blocks.basic import Basic
from supernet.network.blocks.bottleneck import Bottleneck
from supernet.network.blocks.fused_inverted_residual import FusedInvertedResidual
from supernet.network.blocks.inverted_residual import DepthwiseSeparable, InvertedResidual
from supernet.network.blocks.metaformer import MetaFormer
from supernet.network.blocks.moat import Moat
from supernet.network.blocks.prenorm_inverted_residual import PreNormInvertedResidual
from supernet.network.blocks.projection import Projection
from supernet.network.registry import register_block

__all__ = [
    "Basic",
    "Bottleneck",
    "DepthwiseSeparable",
    "FusedInvertedResidual",
    "InvertedResidual",
    "MetaFormer",
    "Moat",
    "PreNormInvertedResidual",
    "Projection",
    "register_block",
]
