"""Cascaded group attention (Liu et al., EfficientViT, 2023, equations 2 and 3).

Each head attends with a part of the channels, to which the output of the head before is added.
Attention is in windows; biases depend on the absolute distances along both sides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network.axes import Axes, Concat, Product, prefixed
from supernet.network.layers import ConvNorm
from supernet.network.mixers.mixer import Mixer
from supernet.network.mixers.windows import distances, partition, together
from supernet.network.registry import register_mixer

EPS = 1e-5  # of batch norms, as in the published networks


class _Head(nn.Module):
    """Queries, keys and values of one head; queries are convolved."""

    def __init__(self, group: int, key_dim: int, kernel: int) -> None:
        super().__init__()
        self.sizes = [key_dim, key_dim, group]
        self.qkv = ConvNorm(group, sum(self.sizes), norm="batch_norm", norm_eps=EPS)
        self.near = ConvNorm(
            key_dim, key_dim, kernel, depthwise=True, norm="batch_norm", norm_eps=EPS
        )

    def forward(self, maps: Tensor, bias: Tensor) -> Tensor:
        """Attends in maps (batch, group, height, width) with biases (area, area)."""
        q, k, v = self.qkv(maps).split(self.sizes, 1)
        q, k, v = (part.flatten(2).transpose(1, 2)[:, None] for part in (self.near(q), k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None, None])
        return out[:, 0].transpose(1, 2).reshape(maps.shape)

    def axes(self) -> dict[str, Axes]:
        return {
            **self.qkv.axes("qkv", "group", Concat("key_dim", "key_dim", "group")),
            **self.near.axes("near", "key_dim", "key_dim"),
        }


@register_mixer("cascaded_group_attention")
class CascadedGroupAttention(Mixer):
    """``heads`` heads with keys of ``key_dim`` channels, in windows of side ``window``.

    Maps that the window does not divide are padded with zeros, which are attended to as in the
    published networks; a window that is not smaller than the map becomes global.
    """

    def __init__(
        self, dim: int, heads: int = 4, key_dim: int = 16, window: int = 7, kernel: int = 5
    ) -> None:
        super().__init__()
        self.dim, self.key_dim, self.window, self.kernel = dim, key_dim, window, kernel
        self.group = dim // heads
        self.heads = nn.ModuleList(_Head(self.group, key_dim, kernel) for _ in range(heads))
        self.proj = ConvNorm(dim, dim, norm="batch_norm", norm_eps=EPS)
        self.position_bias = nn.Parameter(torch.zeros(heads, window * window))

    def forward(self, x: Tensor) -> Tensor:
        height, width = int(x.shape[1]), int(x.shape[2])
        sides = min(self.window, height), min(self.window, width)
        area = sides[0] * sides[1]
        biases = self.position_bias[:, distances(sides, self.window, x.device)]
        biases = biases.reshape(-1, area, area)
        parts = partition(x, sides).permute(0, 3, 1, 2).split(self.group, 1)
        outputs: list[Tensor] = []
        for head, part, bias in zip(self.heads, parts, biases, strict=True):
            outputs.append(head(part + outputs[-1] if outputs else part, bias))
        mixed = self.proj(F.relu(torch.cat(outputs, 1))).permute(0, 2, 3, 1)
        return together(mixed, height, width)

    def axes(self) -> dict[str, Axes]:
        result = {
            "position_bias": ("heads", Product("table", "table")),
            **self.proj.axes("proj", "dim", Product("heads", "group")),
        }
        for index, head in enumerate(self.heads):
            assert isinstance(head, _Head)
            result |= prefixed(f"heads.{index}", head.axes())
        return result

    def sizes(self) -> dict[str, int]:
        groups = {"heads": len(self.heads), "group": self.group, "key_dim": self.key_dim}
        positions = {"kernel": self.kernel, "table": self.window}
        return {"dim": self.dim, **groups, **positions}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"key_dim"}),)  # the order of channels says which head reads them
