"""Depthwise convolutions of a few channels each (Yu et al., InceptionNeXt, 2023, equation 5).

Of the channels, which keep their order, the last three parts go through a square kernel, a row and
a column; the others stay as they are. A depthwise convolution of all channels is bound by memory,
and most of that traffic is saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.network.axes import Axes, Centre
from supernet.network.layers import Conv2d
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer


@register_mixer("inception_depthwise")
class InceptionDepthwise(Mixer):
    """Kernels ``kernel`` × ``kernel``, 1 × ``band`` and ``band`` × 1 on 1 / ``share`` each."""

    inside_mlp = True

    def __init__(self, dim: int, kernel: int = 3, band: int = 11, share: int = 8) -> None:
        super().__init__()
        self.dim, self.kernel, self.band, self.part = dim, kernel, band, dim // share
        part = self.part
        self.square = Conv2d(part, part, kernel, padding=kernel // 2, groups=part)
        self.row = Conv2d(part, part, (1, band), padding=(0, band // 2), groups=part)
        self.column = Conv2d(part, part, (band, 1), padding=(band // 2, 0), groups=part)

    def forward(self, x: Tensor) -> Tensor:
        part = self.part
        maps = x.permute(0, 3, 1, 2)
        same, square, row, column = maps.split([self.dim - 3 * part, part, part, part], 1)
        mixed = torch.cat([same, self.square(square), self.row(row), self.column(column)], 1)
        return mixed.permute(0, 2, 3, 1).contiguous()

    def axes(self) -> dict[str, Axes]:
        kernel, band = Centre("kernel"), Centre("kernel_band")
        return {
            "square.weight": ("part", 1, kernel, kernel),
            "square.bias": ("part",),
            "row.weight": ("part", 1, 1, band),
            "row.bias": ("part",),
            "column.weight": ("part", 1, band, 1),
            "column.bias": ("part",),
        }

    def sizes(self) -> dict[str, int]:
        part = {"part": self.part}
        return {"dim": self.dim, **part, "kernel": self.kernel, "kernel_band": self.band}
