"""Attention in cross-shaped windows (Dong et al., CSWin Transformer, 2022, equations 2 to 5).

Half of the heads attend in vertical stripes, half in horizontal ones. Values are convolved within
their stripe, which tells positions apart, and added to what is attended to. Maps that the stripes
do not divide are padded after the projection, so that padding has scores and values of zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network.axes import Axes, Product
from supernet.network.layers import Conv2d, Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.mixers.windows import partition, together
from supernet.network.registry import register_mixer


@register_mixer("stripe_attention")
class StripeAttention(Mixer):
    """Multi-head attention in stripes that are ``stripe`` positions wide.

    Stripes that are not narrower than the map are the whole map, as in the published last stage.
    """

    def __init__(self, dim: int, stripe: int = 7, head_dim: int = 16) -> None:
        super().__init__()
        self.dim, self.stripe, self.head_dim = dim, stripe, head_dim
        self.heads = dim // (2 * head_dim)  # of each half
        self.qkv = Linear(dim, 3 * dim)
        half = dim // 2
        self.positions = nn.ModuleList(
            Conv2d(half, half, 3, padding=1, groups=half) for _ in range(2)
        )
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width, half = int(x.shape[1]), int(x.shape[2]), self.dim // 2
        q, k, v = self.qkv(x).chunk(3, -1)
        sides = (height, min(self.stripe, width)), (min(self.stripe, height), width)
        outputs = []
        for index, (side_h, side_w) in enumerate(sides):
            mine = slice(index * half, (index + 1) * half)
            stripes = partition(
                torch.cat([part[..., mine] for part in (q, k, v)], -1), (side_h, side_w)
            )
            rows = stripes.reshape(-1, side_h * side_w, 3, self.heads, self.head_dim)
            queries, keys, values = rows.permute(2, 0, 3, 1, 4).unbind(0)
            out = F.scaled_dot_product_attention(queries, keys, values)
            near = self.positions[index](stripes[..., 2 * half :].permute(0, 3, 1, 2))
            out = out.transpose(1, 2).reshape(-1, side_h, side_w, half) + near.permute(0, 2, 3, 1)
            outputs.append(together(out, height, width))
        return self.proj(torch.cat(outputs, -1))

    def axes(self) -> dict[str, Axes]:
        half = Product("heads", "head_dim")
        rows = Product(3, 2, "heads", "head_dim")
        result: dict[str, Axes] = {
            "qkv.weight": (rows, "dim"),
            "qkv.bias": (rows,),
            "proj.weight": ("dim", Product(2, "heads", "head_dim")),
            "proj.bias": ("dim",),
        }
        for index in range(2):
            result[f"positions.{index}.weight"] = (half, 1, 3, 3)
            result[f"positions.{index}.bias"] = (half,)
        return result

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim, "heads": self.heads, "head_dim": self.head_dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"heads"}), frozenset({"head_dim"})
