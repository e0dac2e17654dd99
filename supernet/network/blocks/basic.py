"""ResNet's basic block (He et al., 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network.axes import Axes
from supernet.network.blocks.residual import ConvBlock
from supernet.network.layers import ConvNorm, activation_axes, build_activation
from supernet.network.registry import register_block


class PooledConvNorm(ConvNorm):
    """Averages of 2 × 2 neighbours, fewer at odd edges, and a 1 × 1 convolution with norm."""

    def forward(self, maps: Tensor) -> Tensor:
        pooled = F.avg_pool2d(maps, 2, 2, ceil_mode=True, count_include_pad=False)
        return super().forward(pooled)


class PostActivation(ConvBlock):
    """A residual block with the activation after the sum, and a projection where sizes change."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        stride: int,
        activation: str,
        shortcut: str,
        norm: str,
        norm_eps: float,
    ) -> None:
        super().__init__(dim, out_dim)
        self.activation = build_activation(activation)
        self.shortcut = nn.Identity()
        if stride > 1 and shortcut == "pooled":
            self.shortcut = PooledConvNorm(dim, out_dim, norm=norm, norm_eps=norm_eps)
        elif stride > 1 or dim != out_dim:
            self.shortcut = ConvNorm(dim, out_dim, 1, stride, norm=norm, norm_eps=norm_eps)

    def finish(self, maps: Tensor) -> Tensor:
        return self.activation(maps)

    def axes(self) -> dict[str, Axes]:
        return super().axes() | activation_axes("activation", self.activation)


@register_block("basic")
class Basic(PostActivation):
    """Two 3 × 3 convolutions.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        stride: Of the first convolution.
        hidden: Channels between the two.
        activation: After the first convolution and after the sum.
        shortcut: Where sizes change: ``conv``, or ``pooled`` before it.
        norm: After each convolution.
        norm_eps: Added to the norms' variances.
        padding: As for ``ConvNorm``.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        stride: int,
        hidden: int,
        activation: str,
        shortcut: str,
        norm: str,
        norm_eps: float,
        padding: str,
    ) -> None:
        super().__init__(dim, out_dim, stride, activation, shortcut, norm, norm_eps)
        self.widths |= {"hidden": hidden, "kernel": 3}
        first = ConvNorm(
            dim,
            hidden,
            3,
            stride,
            norm=norm,
            norm_eps=norm_eps,
            activation=activation,
            padding=padding,
        )
        self.add("first", first, "dim", "hidden")
        second = ConvNorm(hidden, out_dim, 3, norm=norm, norm_eps=norm_eps)
        self.add("second", second, "hidden", "out_dim")
