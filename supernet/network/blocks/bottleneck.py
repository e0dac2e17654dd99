"""ResNet's bottleneck block (He et al., 2016), with the stride in its 3 × 3 convolution."""

from __future__ import annotations

from typing import Any

from supernet.network.blocks.basic import PostActivation
from supernet.network.registry import register_block


@register_block("bottleneck")
class Bottleneck(PostActivation):
    """1 × 1 reduction to ``hidden`` channels, 3 × 3 convolution, 1 × 1 expansion.

    Args:
        hidden: Channels inside, before and after the 3 × 3 convolution.
        activation: After the first two convolutions and after the sum.
        shortcut: Where sizes change: ``conv``, or ``pooled`` before it.
        squeeze: Channels inside squeeze-excite of the branch's output, 0 for none.
        eca: Whether those channels are scaled by ECA, too.
        style: Channels, stride, norm and padding, as for ``ConvBlock``.
    """

    def __init__(
        self,
        *,
        hidden: int,
        activation: str,
        shortcut: str,
        squeeze: int = 0,
        eca: bool = False,
        **style: Any,
    ) -> None:
        super().__init__(activation, shortcut, hidden=hidden, inner=hidden, **style)
        self.convolve("reduce", "dim", "hidden", activation=activation)
        self.convolve("middle", "hidden", "inner", 3, self.stride, activation=activation)
        self.convolve("expand", "inner", "out_dim")
        self.scale_channels("out_dim", squeeze, eca, "relu", "sigmoid")
