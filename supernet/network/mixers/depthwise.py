"""Depthwise convolution before the inverted bottleneck (Liu et al., ConvNeXt, 2022)."""

from __future__ import annotations

from torch import Tensor

from supernet.network.axes import Axes, Centre
from supernet.network.layers import Conv2d
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer


@register_mixer("depthwise_conv")
class DepthwiseConv(Mixer):
    """One ``kernel`` × ``kernel`` filter per channel, with bias."""

    inside_mlp = True

    def __init__(self, dim: int, kernel: int = 7) -> None:
        super().__init__()
        self.dim, self.kernel = dim, kernel
        self.conv = Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def axes(self) -> dict[str, Axes]:
        kernel = Centre("kernel")
        return {"conv.weight": ("dim", 1, kernel, kernel), "conv.bias": ("dim",)}

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim, "kernel": self.kernel}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)
