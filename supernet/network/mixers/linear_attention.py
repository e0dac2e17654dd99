"""Simplified linear attention in windows (Guo et al., SLAB, 2024, equations 8 and 9).

Scores are products of rectified queries and keys, so that the sums over keys come first and the
cost grows with the number of positions. A depthwise convolution of the values, the same for all
heads, sees what is near.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_space.mixers import num_heads
from supernet.network.axes import Axes, Centre, Product
from supernet.network.layers import Conv2d, Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.mixers.windows import partition, together
from supernet.network.registry import register_mixer

EPS = 1e-6  # added to the sums


@register_mixer("linear_attention")
class LinearAttention(Mixer):
    """Linear attention within ``window`` × ``window`` neighbours, whose positions keys know.

    There are ``head_ratio * dim / head_dim`` heads. Maps that the window does not divide are padded
    with zeros, which are attended to; a window that is not smaller than the map becomes global.
    Sums over keys are means here, which fit half precision.
    """

    def __init__(
        self,
        dim: int,
        window: int = 14,
        head_dim: int = 32,
        head_ratio: float = 1.0,
        kernel: int = 5,
    ) -> None:
        super().__init__()
        self.dim, self.window, self.head_dim, self.kernel = dim, window, head_dim, kernel
        self.heads = num_heads(dim, head_dim, head_ratio)
        inner = self.heads * head_dim
        self.qkv = Linear(dim, 3 * inner)
        self.positions = nn.Parameter(torch.zeros(window * window, inner))
        self.near = Conv2d(head_dim, head_dim, kernel, padding=kernel // 2, groups=head_dim)
        self.proj = Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = int(x.shape[1]), int(x.shape[2])
        sides = min(self.window, height), min(self.window, width)
        area = sides[0] * sides[1]
        qkv = self.qkv(partition(x, sides)).reshape(-1, area, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (windows, heads, area, head_dim)
        q, k = F.relu(q), F.relu(k + self._positions(sides)) / area
        weights = (q * k.sum(2, keepdim=True)).sum(3, keepdim=True)
        weights = weights + max(EPS / area, torch.finfo(q.dtype).tiny)
        k = k.transpose(2, 3)
        out = q @ (k @ v) if area > self.head_dim else (q @ k) @ v  # whichever costs less
        maps = v.transpose(2, 3).reshape(-1, self.head_dim, *sides)
        near = self.near(maps).reshape(-1, self.heads, self.head_dim, area).transpose(2, 3)
        out = (out / weights + near).transpose(1, 2)
        out = self.proj(out.reshape(-1, *sides, self.heads * self.head_dim))
        return together(out, height, width)

    def _positions(self, sides: tuple[int, int]) -> Tensor:
        """What keys at the positions of a part are given, (heads, area, head_dim)."""
        grid = self.positions.view(self.window, self.window, self.heads, self.head_dim)
        part = grid[: sides[0], : sides[1]].reshape(-1, self.heads, self.head_dim)
        return part.transpose(0, 1)

    def axes(self) -> dict[str, Axes]:
        rows, inner = Product(3, "heads", "head_dim"), Product("heads", "head_dim")
        kernel = Centre("kernel")
        return {
            "qkv.weight": (rows, "dim"),
            "qkv.bias": (rows,),
            "positions": (Product("table", "table"), inner),
            "near.weight": ("head_dim", 1, kernel, kernel),
            "near.bias": ("head_dim",),
            "proj.weight": ("dim", inner),
            "proj.bias": ("dim",),
        }

    def sizes(self) -> dict[str, int]:
        heads = {"heads": self.heads, "head_dim": self.head_dim}
        return {"dim": self.dim, **heads, "table": self.window, "kernel": self.kernel}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"heads"}), frozenset({"head_dim"})
