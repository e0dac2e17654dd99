"""Fused inverted residuals (Tan & Le, EfficientNetV2, 2021)."""

from __future__ import annotations

from typing import Any

from torch import nn

from supernet.network.blocks.residual import ConvBlock
from supernet.network.registry import register_block


@register_block("fused_inverted_residual")
class FusedInvertedResidual(ConvBlock):
    """Full convolution to ``hidden`` channels and 1 × 1 projection, with the sum if sizes allow.

    Args:
        hidden: Channels inside.
        kernel: Odd side of the full convolution's kernel.
        activation: After the full convolution.
        style: Channels, stride, norm and padding, as for ``ConvBlock``.
    """

    def __init__(self, *, hidden: int, kernel: int, activation: str, **style: Any) -> None:
        super().__init__(hidden=hidden, kernel=kernel, **style)
        self.convolve("expand", "dim", "hidden", kernel, self.stride, activation=activation)
        self.convolve("project", "hidden", "out_dim")
        if not self.changes_size:
            self.shortcut = nn.Identity()
