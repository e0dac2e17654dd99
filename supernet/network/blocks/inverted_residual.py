"""Inverted residuals and depthwise separable convolutions (Sandler et al., MobileNetV2, 2018).

With squeeze-excite as in EfficientNet (Tan & Le, 2019) and MobileNetV3 (Howard et al., 2019).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from supernet.network.blocks.residual import ConvBlock
from supernet.network.registry import register_block


@register_block("inverted_residual")
class InvertedResidual(ConvBlock):
    """1 × 1 expansion to ``hidden`` channels, depthwise convolution, 1 × 1 projection.

    Args:
        kernel: Odd side of the depthwise kernel.
        activation: After expansion and depthwise convolution.
        squeeze: Channels inside squeeze-excite, 0 for none.
        gate: Of squeeze-excite.
        hidden: Channels inside; None for those of the input, without an expansion.
        eca: Whether channels are scaled by ECA, too.
        style: Channels, stride, norm and padding, as for ``ConvBlock``.
    """

    def __init__(
        self,
        *,
        kernel: int,
        activation: str,
        squeeze: int,
        gate: str,
        hidden: int | None = None,
        eca: bool = False,
        **style: Any,
    ) -> None:
        super().__init__(kernel=kernel, **style)
        inner = "dim"
        if hidden is not None:
            inner, self.widths["hidden"] = "hidden", hidden
            self.convolve("expand", "dim", inner, activation=activation)
        self.convolve(
            "depthwise", inner, inner, kernel, self.stride, depthwise=True, activation=activation
        )
        # MobileNetV3 has hard gates with ReLU inside, EfficientNet the block's activation
        inside = "relu" if gate == "hard_sigmoid" else activation
        self.scale_channels(inner, squeeze, eca, inside, gate)
        self.convolve("project", inner, "out_dim")
        if not self.changes_size:
            self.shortcut = nn.Identity()


@register_block("depthwise_separable")
class DepthwiseSeparable(InvertedResidual):
    """An inverted residual without expansion."""
