"""Scale-aware modulation (Lin et al., Scale-Aware Modulation Meet Transformer, 2023).

    y = W (M ⊙ V x),   M = W₂ GELU(BN(W₁ S))

Channels of a projection are convolved with a kernel that grows from head to head; S has, side by
side, the channel of each head that belong together, and W₁ mixes only these. The published W₁ has a
bias, which the batch norm after it takes away; here it has none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network.axes import Axes, Product
from supernet.network.layers import BatchNorm, Conv2d, Linear, folded_after, norm_axes
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer

EPS = 1e-5  # of the batch norm, as in the published networks


@register_mixer("scale_aware_modulation")
class ScaleAwareModulation(Mixer):
    """``heads`` groups of channels with kernels of side 3, 5, 7 and so on.

    There are ``expansion`` times as many channels where their scales are mixed.
    """

    def __init__(self, dim: int, heads: int = 4, expansion: int = 2) -> None:
        super().__init__()
        self.dim, self.heads, self.group, self.expansion = dim, heads, dim // heads, expansion
        self.value = Linear(dim, dim)
        self.scales = Linear(dim, dim)
        self.filters = nn.ModuleList(
            Conv2d(self.group, self.group, 3 + 2 * i, padding=1 + i, groups=self.group)
            for i in range(heads)
        )
        self.mix = Conv2d(dim, expansion * dim, 1, groups=self.group, bias=False)
        self.norm: nn.Module = BatchNorm(expansion * dim, EPS)
        self.modulator = Conv2d(expansion * dim, dim, 1)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.scales(x).permute(0, 3, 1, 2).split(self.group, 1)
        scales = torch.stack(
            [conv(part) for conv, part in zip(self.filters, parts, strict=True)], 2
        )
        maps = self.mix(scales.flatten(1, 2))
        maps = self.norm.of_maps(maps) if isinstance(self.norm, BatchNorm) else maps
        modulator = self.modulator(F.gelu(maps)).permute(0, 2, 3, 1)
        return self.proj(self.value(x) * modulator)  # contiguous, as the first factor is

    def fold(self) -> None:
        """Folds the batch norm into the convolution before it."""
        self.norm = folded_after(self.mix, self.norm)

    def axes(self) -> dict[str, Axes]:
        inner = Product("group", "expansion", "heads")
        result: dict[str, Axes] = {
            "value.weight": ("dim", "dim"),
            "value.bias": ("dim",),
            "scales.weight": (Product("heads", "group"), "dim"),
            "scales.bias": (Product("heads", "group"),),
            "mix.weight": (inner, "heads", 1, 1),
            **norm_axes("norm", self.norm, inner),
            "modulator.weight": ("dim", inner, 1, 1),
            "modulator.bias": ("dim",),
            "proj.weight": ("dim", "dim"),
            "proj.bias": ("dim",),
        }
        for i in range(self.heads):
            result[f"filters.{i}.weight"] = ("group", 1, 3 + 2 * i, 3 + 2 * i)
            result[f"filters.{i}.bias"] = ("group",)
        return result

    def sizes(self) -> dict[str, int]:
        heads = {"heads": self.heads, "group": self.group}
        return {"dim": self.dim, **heads, "expansion": self.expansion}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"group"}), frozenset({"expansion"})
