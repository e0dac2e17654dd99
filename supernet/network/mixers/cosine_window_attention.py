"""Scaled cosine attention in windows, with positions by their distances (Liu et al., SwinV2, 2022).

A small network makes the biases of distances on a logarithmic scale, so that no weight depends on
the window's side. onnxruntime computes the biases once, when it loads the network.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network.axes import Axes, Product
from supernet.network.layers import Linear
from supernet.network.mixers.partitioned_attention import PartitionedAttention
from supernet.network.registry import register_mixer

HIDDEN = 512  # units of the network that makes the biases
SPAN = 8.0  # the largest distance within a window, before the logarithm
LARGEST_BIAS = 16.0
FIRST_SCALE, LARGEST_SCALE = math.log(10.0), math.log(100.0)


@register_mixer("cosine_window_attention")
class CosineWindowAttention(PartitionedAttention):
    """Attention by angles between queries and keys, within ``window`` × ``window`` neighbours.

    There are ``head_ratio * dim / head_dim`` heads. Distances are measured by the side of the
    windows, or of the windows ``trained`` in, where weights come from others. ``shifted`` moves the
    windows by half their side, cyclically, and masks what the wrapping brings together.
    """

    def __init__(
        self,
        dim: int,
        window: int = 8,
        head_dim: int = 32,
        head_ratio: float = 1.0,
        trained: int = 0,
        shifted: bool = False,
    ) -> None:
        super().__init__(dim, window, head_dim, head_ratio, shifted=shifted, bias=False)
        self.trained = trained
        self.q_bias = nn.Parameter(torch.zeros(self.heads * head_dim))  # keys have none
        self.v_bias = nn.Parameter(torch.zeros(self.heads * head_dim))
        self.logit_scale = nn.Parameter(torch.full((self.heads, 1, 1), FIRST_SCALE))
        layers = Linear(2, HIDDEN), nn.ReLU(), Linear(HIDDEN, self.heads, bias=False)
        self.cpb_mlp = nn.Sequential(*layers)

    def attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        shape = (self.heads, 1, self.head_dim)
        q, v = q + self.q_bias.view(shape), v + self.v_bias.view(shape)
        least = max(1e-12, torch.finfo(q.dtype).tiny)  # keys of padding are zeros
        scale = self.logit_scale.clamp(max=LARGEST_SCALE).exp()
        q, k = F.normalize(q, dim=-1, eps=least) * scale, F.normalize(k, dim=-1, eps=least)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)

    def position_bias(self, index: Tensor, sides: tuple[int, int]) -> Tensor:
        places = sides, self.window, self.trained
        if torch.compiler.is_compiling():  # tensors of a trace must not outlive it
            pairs = torch.tensor(_pairs(*places), device=index.device)
        else:
            pairs = _on_device(*places, index.device)
        table = self.cpb_mlp(pairs.to(self.logit_scale.dtype))
        return (LARGEST_BIAS * table.sigmoid())[index]

    def axes(self) -> dict[str, Axes]:
        inner = Product("heads", "head_dim")
        return super().axes() | {
            "q_bias": (inner,),
            "v_bias": (inner,),
            "logit_scale": ("heads", 1, 1),
            "cpb_mlp.0.weight": (HIDDEN, 2),
            "cpb_mlp.0.bias": (HIDDEN,),
            "cpb_mlp.2.weight": ("heads", HIDDEN),
        }


@lru_cache(maxsize=256)
def _on_device(sides: tuple[int, int], window: int, trained: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(_pairs(sides, window, trained), device=device)


def _pairs(sides: tuple[int, int], window: int, trained: int) -> list[tuple[float, float]]:
    """Distances 1 − window … window − 1 along both sides, each with each, by their logarithms."""
    down, across = (_distances(trained or side, window) for side in sides)
    return [(y, x) for y in down for x in across]


def _distances(measure: int, window: int) -> list[float]:
    """Distances by the largest within a part of side ``measure``, on a logarithmic scale."""
    steps = [SPAN * step / max(measure - 1, 1) for step in range(1 - window, window)]
    return [math.copysign(math.log2(abs(step) + 1) / math.log2(SPAN), step) for step in steps]
