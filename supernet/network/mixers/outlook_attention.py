"""Outlook attention (Yuan et al., VOLO, 2022, equations 3 to 5).

The mean of each cell of ``stride`` × ``stride`` positions says at once how the positions around it
attend to each other: a linear layer makes the weights, no keys are compared. What every position
gets from all neighbourhoods that it lies in is summed.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from supernet.network.axes import Axes, Centre, Product
from supernet.network.layers import Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer


@register_mixer("outlook_attention")
class OutlookAttention(Mixer):
    """Attention within ``kernel`` × ``kernel`` positions around every ``stride``-th."""

    def __init__(self, dim: int, kernel: int = 3, stride: int = 2, head_dim: int = 32) -> None:
        super().__init__()
        self.dim, self.kernel, self.stride = dim, kernel, stride
        self.heads, self.head_dim = dim // head_dim, head_dim
        self.value = Linear(dim, dim, bias=False)
        self.weights = Linear(dim, kernel**4 * self.heads)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width, area = int(x.shape[1]), int(x.shape[2]), self.kernel**2
        around = {"kernel_size": self.kernel, "padding": self.kernel // 2, "stride": self.stride}
        values = F.unfold(self.value(x).permute(0, 3, 1, 2), **around)
        values = values.reshape(-1, self.heads, self.head_dim, area, values.shape[-1])
        cells = x.permute(0, 3, 1, 2)
        if self.stride > 1:
            cells = F.avg_pool2d(cells, self.stride, self.stride, ceil_mode=True)
        weights = self.weights(cells.permute(0, 2, 3, 1))
        weights = weights.reshape(-1, values.shape[-1], self.heads, area, area).transpose(1, 2)
        weights = (weights * (1 / math.sqrt(self.head_dim))).softmax(-1)
        out = weights @ values.permute(0, 1, 4, 3, 2)
        out = out.permute(0, 1, 4, 3, 2).reshape(-1, self.dim * area, values.shape[-1])
        maps = F.fold(out, (height, width), **around)
        return self.proj(maps.permute(0, 2, 3, 1).contiguous())

    def axes(self) -> dict[str, Axes]:
        inner, side = Product("heads", "head_dim"), Centre("kernel")
        pairs = Product("heads", side, side, side, side)
        return {
            "value.weight": (inner, "dim"),
            "weights.weight": (pairs, "dim"),
            "weights.bias": (pairs,),
            "proj.weight": ("dim", inner),
            "proj.bias": ("dim",),
        }

    def sizes(self) -> dict[str, int]:
        heads = {"heads": self.heads, "head_dim": self.head_dim}
        return {"dim": self.dim, **heads, "kernel": self.kernel}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"heads"}), frozenset({"head_dim"})
