"""Average pooling minus identity (Yu et al., MetaFormer is actually what you need, 2022)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from supernet.network.axes import Axes
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer


@register_mixer("pooling")
class Pooling(Mixer):
    """Mean over a ``kernel`` × ``kernel`` neighbourhood, borders not counted, minus the input."""

    def __init__(self, dim: int, kernel: int = 3) -> None:
        super().__init__()
        self.dim, self.kernel = dim, kernel

    def forward(self, x: Tensor) -> Tensor:
        maps = x.permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(
            maps, self.kernel, stride=1, padding=self.kernel // 2, count_include_pad=False
        )
        return pooled.permute(0, 2, 3, 1) - x

    def axes(self) -> dict[str, Axes]:
        return {}

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)
