"""ResNet's basic block (He et al., 2016)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from supernet.network.axes import Axes
from supernet.network.blocks.residual import ConvBlock, PooledConvNorm
from supernet.network.layers import ConvNorm, activation_axes, build_activation
from supernet.network.registry import register_block


class PostActivation(ConvBlock):
    """A residual block with the activation after the sum, and a projection where sizes change.

    Args:
        activation: After the sum.
        shortcut: Where sizes change: ``conv``, or ``pooled`` before it.
        style: Channels, stride, norm, padding and widths, as for ``ConvBlock``.
    """

    def __init__(self, activation: str, shortcut: str, **style: Any) -> None:
        super().__init__(kernel=3, **style)
        self.activation = build_activation(activation)
        self.shortcut = nn.Identity()
        sizes = self.widths["dim"], self.widths["out_dim"]
        if self.stride > 1 and shortcut == "pooled":
            self.shortcut = PooledConvNorm(*sizes, **self.style)
        elif self.changes_size:
            self.shortcut = ConvNorm(*sizes, 1, self.stride, **self.style)

    def finish(self, maps: Tensor) -> Tensor:
        return self.activation(maps)

    def axes(self) -> dict[str, Axes]:
        return super().axes() | activation_axes("activation", self.activation)


@register_block("basic")
class Basic(PostActivation):
    """Two 3 × 3 convolutions.

    Args:
        hidden: Channels between the two.
        activation: After the first convolution and after the sum.
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
        super().__init__(activation, shortcut, hidden=hidden, **style)
        self.convolve("first", "dim", "hidden", 3, self.stride, activation=activation)
        self.convolve("second", "hidden", "out_dim", 3)
        self.scale_channels("out_dim", squeeze, eca, "relu", "sigmoid")
