"""Attention to a smaller map (Wang et al., Pyramid Vision Transformer, 2021; version 2, 2022).

Queries are of all positions, keys and values of the map that a strided convolution makes, so that
the cost falls with the square of the reduction.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from search_space.mixers import num_heads
from supernet.network.axes import Axes, Centre, Product
from supernet.network.layers import Conv2d, Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.mixers.normalisers import attend
from supernet.network.registry import register_mixer


@register_mixer("spatial_reduction_attention")
class SpatialReductionAttention(Mixer):
    """Multi-head attention to patches of ``reduction`` × ``reduction`` positions.

    There are ``head_ratio * dim / head_dim`` heads; ``normaliser`` says how scores become weights.
    What is left of a map beyond the last whole patch is no key, as in the published networks; a map
    smaller than one patch is padded with zeros to one.
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 2,
        head_dim: int = 32,
        head_ratio: float = 1.0,
        normaliser: str = "softmax",
    ) -> None:
        super().__init__()
        self.dim, self.reduction, self.head_dim = dim, reduction, head_dim
        self.normaliser = normaliser
        self.heads = num_heads(dim, head_dim, head_ratio)
        inner = self.heads * head_dim
        self.query = Linear(dim, inner)
        self.key_value = Linear(dim, 2 * inner)
        self.proj = Linear(inner, dim)
        self.reduce: Conv2d | None = None
        if reduction > 1:
            self.reduce = Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        q = self.query(x).reshape(batch, height * width, self.heads, self.head_dim)
        rows = self.key_value(self._reduced(x))
        rows = rows.reshape(batch, -1, 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        k, v = rows.unbind(0)
        out = attend(q.transpose(1, 2), k, v, self.normaliser)
        out = out.transpose(1, 2).reshape(batch, height, width, self.heads * self.head_dim)
        return self.proj(out)

    def _reduced(self, x: Tensor) -> Tensor:
        if self.reduce is None:
            return x
        height, width = int(x.shape[1]), int(x.shape[2])
        margins = max(0, self.reduction - width), max(0, self.reduction - height)
        if any(margins):
            x = F.pad(x, (0, 0, 0, margins[0], 0, margins[1]))
        return self.norm(self.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def axes(self) -> dict[str, Axes]:
        inner, both = Product("heads", "head_dim"), Product(2, "heads", "head_dim")
        result: dict[str, Axes] = {
            "query.weight": (inner, "dim"),
            "query.bias": (inner,),
            "key_value.weight": (both, "dim"),
            "key_value.bias": (both,),
            "proj.weight": ("dim", inner),
            "proj.bias": ("dim",),
        }
        if self.reduce is not None:
            kernel = Centre("kernel")
            result |= {
                "reduce.weight": ("dim", "dim", kernel, kernel),
                "reduce.bias": ("dim",),
                "norm.weight": ("dim",),
                "norm.bias": ("dim",),
            }
        return result

    def sizes(self) -> dict[str, int]:
        heads = {"heads": self.heads, "head_dim": self.head_dim}
        return {"dim": self.dim, **heads, "kernel": self.reduction}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"heads"}), frozenset({"head_dim"})
