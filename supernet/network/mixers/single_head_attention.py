"""Attention with one head on some of the channels (Yun and Ro, SHViT, 2024, equation 2).

The first channels are normed and attend to all positions; the others are only projected with them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.network.axes import Axes, Concat, prefixed
from supernet.network.layers import ConvNorm
from supernet.network.mixers.mixer import Mixer
from supernet.network.norms import GroupNorm
from supernet.network.registry import register_mixer

EPS = 1e-5  # of both kinds of norm, as in the published networks


@register_mixer("single_head_attention")
class SingleHeadAttention(Mixer):
    """A part ``attending`` of the channels attends, by keys of ``key_dim`` channels."""

    def __init__(self, dim: int, attending: float = 0.214, key_dim: int = 16) -> None:
        super().__init__()
        self.dim, self.key_dim, self.part = dim, key_dim, max(1, round(attending * dim))
        self.norm = GroupNorm(self.part, EPS)
        self.qkv = ConvNorm(self.part, 2 * key_dim + self.part, norm="batch_norm", norm_eps=EPS)
        self.proj = ConvNorm(dim, dim, norm="batch_norm", norm_eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        attending, others = x.split([self.part, self.dim - self.part], -1)
        rows = self.qkv(self.norm(attending).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        rows = rows.reshape(batch, 1, height * width, 2 * self.key_dim + self.part)
        q, k, v = rows.split([self.key_dim, self.key_dim, self.part], -1)
        out = F.scaled_dot_product_attention(q, k, v).reshape(batch, height, width, self.part)
        both = F.relu(torch.cat([out, others], -1)).permute(0, 3, 1, 2)
        return self.proj(both).permute(0, 2, 3, 1).contiguous()

    def axes(self) -> dict[str, Axes]:
        return {
            **prefixed("norm", {"weight": ("part",), "bias": ("part",)}),
            **self.qkv.axes("qkv", "part", Concat("key_dim", "key_dim", "part")),
            **self.proj.axes("proj", "dim", "dim"),
        }

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim, "part": self.part, "key_dim": self.key_dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"key_dim"}),)  # the order of channels says which attend
