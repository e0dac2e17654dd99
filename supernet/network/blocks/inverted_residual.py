"""Inverted residuals and depthwise separable convolutions (Sandler et al., MobileNetV2, 2018).

With squeeze-excite as in EfficientNet (Tan & Le, 2019) and MobileNetV3 (Howard et al., 2019).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from supernet.network.blocks.residual import ConvBlock
from supernet.network.layers import ConvNorm, SqueezeExcite
from supernet.network.registry import register_block


class _Depthwise(ConvBlock):
    """Depthwise convolution, squeeze-excite and linear projection of ``inner`` channels."""

    def _finish_parts(
        self,
        inner: str,
        width: int,
        stride: int,
        kernel: int,
        activation: str,
        squeeze: int,
        gate: str,
        norm: str,
        norm_eps: float,
        padding: str,
    ) -> None:
        self.widths |= {inner: width, "kernel": kernel}
        style: dict[str, Any] = {"norm": norm, "norm_eps": norm_eps}
        depthwise = ConvNorm(
            width,
            width,
            kernel,
            stride,
            depthwise=True,
            activation=activation,
            padding=padding,
            **style,
        )
        self.add("depthwise", depthwise, inner, inner)
        if squeeze > 0:
            self.widths["squeeze"] = squeeze
            # MobileNetV3 has hard gates with ReLU inside, EfficientNet the block's activation
            inside = "relu" if gate == "hard_sigmoid" else activation
            self.add("excite", SqueezeExcite(width, squeeze, inside, gate), inner, inner)
        self.add("project", ConvNorm(width, self.out_dim, **style), inner, "out_dim")
        if stride == 1 and self.dim == self.out_dim:
            self.shortcut = nn.Identity()


@register_block("inverted_residual")
class InvertedResidual(_Depthwise):
    """1 × 1 expansion to ``hidden`` channels, depthwise convolution, 1 × 1 projection.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        stride: Of the depthwise convolution.
        hidden: Channels inside.
        kernel: Odd side of the depthwise kernel.
        activation: After expansion and depthwise convolution.
        squeeze: Channels inside squeeze-excite, 0 for none.
        gate: Of squeeze-excite.
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
        squeeze: int,
        gate: str,
        norm: str,
        norm_eps: float,
        padding: str,
    ) -> None:
        super().__init__(dim, out_dim)
        expand = ConvNorm(dim, hidden, norm=norm, norm_eps=norm_eps, activation=activation)
        self.add("expand", expand, "dim", "hidden")
        self._finish_parts(
            "hidden", hidden, stride, kernel, activation, squeeze, gate, norm, norm_eps, padding
        )


@register_block("depthwise_separable")
class DepthwiseSeparable(_Depthwise):
    """Depthwise convolution and 1 × 1 projection; arguments as those of an inverted residual."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        stride: int,
        kernel: int,
        activation: str,
        squeeze: int,
        gate: str,
        norm: str,
        norm_eps: float,
        padding: str,
    ) -> None:
        super().__init__(dim, out_dim)
        self._finish_parts(
            "dim", dim, stride, kernel, activation, squeeze, gate, norm, norm_eps, padding
        )
