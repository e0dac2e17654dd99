"""ResNet's bottleneck block (He et al., 2016), with the stride in its 3 × 3 convolution."""

from __future__ import annotations

from typing import Any

from supernet.network.blocks.basic import PostActivation
from supernet.network.layers import ConvNorm
from supernet.network.registry import register_block


@register_block("bottleneck")
class Bottleneck(PostActivation):
    """1 × 1 reduction to ``hidden`` channels, 3 × 3 convolution, 1 × 1 expansion.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        stride: Of the 3 × 3 convolution.
        hidden: Channels inside; that they are before and after the 3 × 3 convolution.
        activation: After the first two convolutions and after the sum.
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
        self.widths |= {"hidden": hidden, "inner": hidden, "kernel": 3}
        style: dict[str, Any] = {"norm": norm, "norm_eps": norm_eps}
        reduce = ConvNorm(dim, hidden, activation=activation, **style)
        middle = ConvNorm(
            hidden, hidden, 3, stride, activation=activation, padding=padding, **style
        )
        self.add("reduce", reduce, "dim", "hidden")
        self.add("middle", middle, "hidden", "inner")
        self.add("expand", ConvNorm(hidden, out_dim, **style), "inner", "out_dim")
