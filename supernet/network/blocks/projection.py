"""A linear map of each position, by which parts of two networks are joined (SN-Net)."""

from __future__ import annotations

from supernet.network.registry import register_block
from supernet.network.transitions import Conv


@register_block("projection")
class Projection(Conv):
    """A 1 × 1 convolution with bias and nothing beside it, as ``macro.projection: linear`` has it.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        stride: By which the map gets smaller.
    """

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__(dim, out_dim, kernel=1, stride=stride, norm="none", norm_eps=0.0)
