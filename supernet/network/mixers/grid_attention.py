"""Attention in blocks and in grids, which MaxViT has in turn (Tu et al., 2022).

A block is a window of neighbours that never shifts. A grid holds every n-th position of both sides,
so that each reaches the whole map, at the cost of a block.
"""

from __future__ import annotations

from supernet.network.mixers.window_attention import TableAttention
from supernet.network.registry import register_mixer


@register_mixer("block_attention")
class BlockAttention(TableAttention):
    """Attention within ``window`` × ``window`` neighbours.

    There are ``head_ratio * dim / head_dim`` heads.
    """

    def __init__(
        self, dim: int, window: int = 7, head_dim: int = 32, head_ratio: float = 1.0
    ) -> None:
        super().__init__(dim, window, head_dim, head_ratio)


@register_mixer("grid_attention")
class GridAttention(TableAttention):
    """Attention among ``window`` × ``window`` positions, spread evenly over the map.

    There are ``head_ratio * dim / head_dim`` heads.
    """

    def __init__(
        self, dim: int, window: int = 7, head_dim: int = 32, head_ratio: float = 1.0
    ) -> None:
        super().__init__(dim, window, head_dim, head_ratio, strided=True)
