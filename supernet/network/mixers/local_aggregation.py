"""UniFormer's local relation aggregation (Li et al., UniFormer, 2022, equation 6).

Weights of neighbours that do not depend on what they hold are a depthwise convolution. The
published block has ``position``, and batch norms; its global one is ``attention``.
"""

from __future__ import annotations

from torch import Tensor

from supernet.network.axes import Axes, Centre
from supernet.network.layers import Conv2d, Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer


@register_mixer("local_aggregation")
class LocalAggregation(Mixer):
    """A ``kernel`` × ``kernel`` filter per channel between two projections."""

    def __init__(self, dim: int, kernel: int = 5) -> None:
        super().__init__()
        self.dim, self.kernel = dim, kernel
        self.value = Linear(dim, dim)
        self.around = Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.around(self.value(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def axes(self) -> dict[str, Axes]:
        kernel = Centre("kernel")
        return {
            "value.weight": ("dim", "dim"),
            "value.bias": ("dim",),
            "around.weight": ("dim", 1, kernel, kernel),
            "around.bias": ("dim",),
            "proj.weight": ("dim", "dim"),
            "proj.bias": ("dim",),
        }

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim, "kernel": self.kernel}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)
