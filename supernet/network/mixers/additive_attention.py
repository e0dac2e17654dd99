"""Convolutional additive attention (Zhang et al., CAS-ViT, 2024, equations 5 and 6).

    y = D' * ((D * (Φ_q(q) + Φ_k(k))) ⊙ v)

with D and D' depthwise convolutions. Φ weights positions by one number each, made of their
neighbourhood, and then channels by one number each, made of their means. The published first
convolution of Φ has a bias, which the batch norm after it takes away; here it has none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from supernet.network.axes import Axes, Centre, Product, prefixed
from supernet.network.layers import Conv2d, ConvNorm, Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer


class _Weighting(nn.Module):
    """Φ: maps (batch, dim, height, width) weighted by position, then by channel."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.around = ConvNorm(
            dim, dim, kernel, depthwise=True, norm="batch_norm", norm_eps=1e-5, activation="relu"
        )
        self.position = Conv2d(dim, 1, 1, bias=False)
        self.channel = Conv2d(dim, dim, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps * torch.sigmoid(self.position(self.around(maps)))
        return maps * torch.sigmoid(self.channel(maps.mean((2, 3), keepdim=True)))

    def axes(self) -> dict[str, Axes]:
        return {
            **self.around.axes("around", "dim", "dim"),
            "position.weight": (1, "dim", 1, 1),
            "channel.weight": ("dim", "dim", 1, 1),
        }


@register_mixer("additive_attention")
class AdditiveAttention(Mixer):
    """Queries and keys meet in a sum; all convolutions have a ``kernel`` × ``kernel`` kernel."""

    def __init__(self, dim: int, kernel: int = 3) -> None:
        super().__init__()
        self.dim, self.kernel = dim, kernel
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.query = _Weighting(dim, kernel)
        self.key = _Weighting(dim, kernel)
        self.context = Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.proj = Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).permute(0, 3, 1, 2).chunk(3, 1)
        return self.proj(self.context(self.query(q) + self.key(k)) * v).permute(0, 2, 3, 1)

    def axes(self) -> dict[str, Axes]:
        kernel = Centre("kernel")
        filters: Axes = ("dim", 1, kernel, kernel)
        return {
            "qkv.weight": (Product(3, "dim"), "dim"),
            **prefixed("query", self.query.axes()),
            **prefixed("key", self.key.axes()),
            "context.weight": filters,
            "context.bias": ("dim",),
            "proj.weight": filters,
            "proj.bias": ("dim",),
        }

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim, "kernel": self.kernel}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)
