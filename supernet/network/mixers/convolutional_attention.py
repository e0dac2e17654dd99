"""Attention whose projections are convolutions (Wu et al., CvT, 2021, equation 2).

Queries, keys and values each see their neighbourhood, keys and values at every second position.
Scores are divided by the root of the block's channels, not of a head's, as in the published code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from search_space.mixers import num_heads
from supernet.network.axes import Axes, Product, prefixed
from supernet.network.layers import ConvNorm, Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer

EPS = 1e-5  # of batch norms, as in the published networks


class _Projection(nn.Module):
    """A depthwise convolution with batch norm, then a linear layer; as (batch, heads, …)."""

    def __init__(self, dim: int, inner: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.around = ConvNorm(
            dim, dim, kernel, stride, depthwise=True, norm="batch_norm", norm_eps=EPS
        )
        self.linear = Linear(dim, inner)

    def forward(self, maps: Tensor, heads: int) -> Tensor:
        rows = self.linear(self.around(maps).flatten(2).transpose(1, 2))
        return rows.unflatten(-1, (heads, -1)).transpose(1, 2)

    def axes(self) -> dict[str, Axes]:
        inner = Product("heads", "head_dim")
        linear: dict[str, Axes] = {"linear.weight": (inner, "dim"), "linear.bias": (inner,)}
        return self.around.axes("around", "dim", "dim") | linear


@register_mixer("convolutional_attention")
class ConvolutionalAttention(Mixer):
    """Attention of every position to those that a stride of ``reduction`` leaves.

    There are ``head_ratio * dim / head_dim`` heads.
    """

    def __init__(
        self,
        dim: int,
        kernel: int = 3,
        reduction: int = 2,
        head_dim: int = 32,
        head_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim, self.kernel, self.head_dim = dim, kernel, head_dim
        self.heads = num_heads(dim, head_dim, head_ratio)
        self.inner = self.heads * head_dim
        self.query = _Projection(dim, self.inner, kernel, 1)
        self.key = _Projection(dim, self.inner, kernel, reduction)
        self.value = _Projection(dim, self.inner, kernel, reduction)
        self.proj = Linear(self.inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        maps = x.permute(0, 3, 1, 2)
        q, k, v = (part(maps, self.heads) for part in (self.query, self.key, self.value))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.dim**-0.5)
        return self.proj(out.transpose(1, 2).reshape(*x.shape[:3], self.inner))

    def axes(self) -> dict[str, Axes]:
        return {
            **prefixed("query", self.query.axes()),
            **prefixed("key", self.key.axes()),
            **prefixed("value", self.value.axes()),
            "proj.weight": ("dim", Product("heads", "head_dim")),
            "proj.bias": ("dim",),
        }

    def sizes(self) -> dict[str, int]:
        heads = {"heads": self.heads, "head_dim": self.head_dim}
        return {"dim": self.dim, **heads, "kernel": self.kernel}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"heads"}), frozenset({"head_dim"})
