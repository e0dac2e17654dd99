"""Inverted separable convolution (Yu et al., MetaFormer baselines for vision, 2022; ConvFormer)."""

from __future__ import annotations

from torch import Tensor

from search_space.blocks import hidden_width
from supernet.network.axes import Axes, Centre
from supernet.network.layers import Conv2d, Linear, StarReLU, activation_axes
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer


@register_mixer("separable_conv")
class SeparableConv(Mixer):
    """Expansion, StarReLU, one ``kernel`` × ``kernel`` filter per channel and projection.

    There are ``expansion`` times as many channels inside, and no biases.
    """

    def __init__(self, dim: int, expansion: float = 2.0, kernel: int = 7) -> None:
        super().__init__()
        self.dim, self.kernel = dim, kernel
        self.inner = inner = hidden_width(dim, expansion)
        self.expand = Linear(dim, inner, bias=False)
        self.activation = StarReLU()
        self.conv = Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner, bias=False)
        self.project = Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.activation(self.expand(x)).permute(0, 3, 1, 2)
        return self.project(self.conv(maps).permute(0, 2, 3, 1))

    def axes(self) -> dict[str, Axes]:
        kernel = Centre("kernel")
        return {
            "expand.weight": ("inner", "dim"),
            "conv.weight": ("inner", 1, kernel, kernel),
            "project.weight": ("dim", "inner"),
        } | activation_axes("activation", self.activation)

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim, "inner": self.inner, "kernel": self.kernel}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"inner"})
