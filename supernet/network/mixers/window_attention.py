"""Attention in windows with a table of relative position biases (Liu et al., Swin, 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from supernet.network.axes import Axes, Centre, Product
from supernet.network.mixers.normalisers import attend
from supernet.network.mixers.partitioned_attention import PartitionedAttention
from supernet.network.registry import register_mixer


class TableAttention(PartitionedAttention):
    """Attention in parts with a learned bias for each distance of two positions and each head."""

    def __init__(
        self, dim: int, window: int, head_dim: int, head_ratio: float, **parts: bool
    ) -> None:
        super().__init__(dim, window, head_dim, head_ratio, **parts)
        side = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(side * side, self.heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def position_bias(self, index: Tensor, sides: tuple[int, int]) -> Tensor:
        return self.relative_position_bias_table[index]

    def axes(self) -> dict[str, Axes]:
        table = Product(Centre("table"), Centre("table"))
        return super().axes() | {"relative_position_bias_table": (table, "heads")}

    def sizes(self) -> dict[str, int]:
        return super().sizes() | {"table": 2 * self.window - 1}


@register_mixer("window_attention")
class WindowAttention(TableAttention):
    """Attention within windows of ``window`` × ``window`` neighbours.

    There are ``head_ratio * dim / head_dim`` heads. ``shifted`` moves the windows by half their
    side, cyclically, and masks what the wrapping brings together. ``normaliser`` says how scores
    become weights.
    """

    def __init__(
        self,
        dim: int,
        window: int = 7,
        head_dim: int = 32,
        head_ratio: float = 1.0,
        normaliser: str = "softmax",
        shifted: bool = False,
    ) -> None:
        super().__init__(dim, window, head_dim, head_ratio, shifted=shifted)
        self.normaliser = normaliser

    def attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attend(q, k, v, self.normaliser, mask)
