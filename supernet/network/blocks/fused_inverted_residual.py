"""Fused inverted residuals (Tan & Le, EfficientNetV2, 2021)."""

from __future__ import annotations

from torch import nn

from supernet.network.blocks.residual import ConvBlock
from supernet.network.layers import ConvNorm
from supernet.network.registry import register_block


@register_block("fused_inverted_residual")
class FusedInvertedResidual(ConvBlock):
    """Full convolution to ``hidden`` channels and 1 × 1 projection, with the sum if sizes allow.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        stride: Of the full convolution.
        hidden: Channels inside.
        kernel: Odd side of the full convolution's kernel.
        activation: After the full convolution.
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
        kernel: int,
        activation: str,
        norm: str,
        norm_eps: float,
        padding: str,
    ) -> None:
        super().__init__(dim, out_dim)
        self.widths |= {"hidden": hidden, "kernel": kernel}
        expand = ConvNorm(
            dim,
            hidden,
            kernel,
            stride,
            norm=norm,
            norm_eps=norm_eps,
            activation=activation,
            padding=padding,
        )
        self.add("expand", expand, "dim", "hidden")
        project = ConvNorm(hidden, out_dim, norm=norm, norm_eps=norm_eps)
        self.add("project", project, "hidden", "out_dim")
        if stride == 1 and dim == out_dim:
            self.shortcut = nn.Identity()
