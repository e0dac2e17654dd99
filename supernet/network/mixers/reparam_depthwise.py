"""Depthwise convolution that is several while it trains and one afterwards.

Every branch has a batch norm of its own, and their sum is one convolution once the norms are
folded (Ding et al., RepVGG, 2021). A branch is added to the kernel's centre; a dilated one is, with
its holes filled by zeros, a larger kernel (Ding et al., UniRepLKNet, 2024, equation 2).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from supernet.network.axes import Axes, Axis, Centre
from supernet.network.layers import Conv2d
from supernet.network.mixers.mixer import Mixer
from supernet.network.norms import BatchNorm, norm_axes
from supernet.network.registry import register_mixer

EPS = 1e-5  # of batch norms, as in the published networks
# sides of the kernels beside the largest, by their dilation, for each side of the largest
DILATED: dict[int, dict[int, int]] = {
    3: {},
    5: {1: 3, 2: 3},
    7: {1: 5, 2: 3, 3: 3},
    9: {1: 5, 2: 5, 3: 3, 4: 3},
    11: {1: 5, 2: 5, 3: 3, 4: 3, 5: 3},
    13: {1: 5, 2: 7, 3: 3, 4: 3, 5: 3},
    15: {1: 5, 2: 7, 3: 3, 5: 3, 7: 3},
    17: {1: 5, 2: 9, 4: 3, 5: 3, 7: 3},
}


class _Branch(nn.Module):
    """A depthwise convolution without a bias and its batch norm; of side 0 the norm alone."""

    def __init__(self, dim: int, side: int, dilation: int = 1) -> None:
        super().__init__()
        self.side, self.dilation = side, dilation
        self.conv: nn.Module = nn.Identity()
        if side:
            margin = dilation * (side // 2)
            self.conv = Conv2d(
                dim, dim, side, padding=margin, dilation=dilation, groups=dim, bias=False
            )
        self.norm = BatchNorm(dim, EPS)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm.of_maps(self.conv(maps))

    @torch.no_grad()
    def merged(self, kernel: int) -> tuple[Tensor, Tensor]:
        """Returns weight (dim, 1, kernel, kernel) and bias (dim,) of the branch, float64."""
        scale, shift = self.norm.affine()
        result = scale.new_zeros(len(scale), 1, kernel, kernel)
        side = max(1, self.side)
        start = kernel // 2 - self.dilation * (side // 2)
        taps = slice(start, kernel - start, self.dilation)
        weight = self.conv.weight.double() if isinstance(self.conv, Conv2d) else 1.0
        result[:, :, taps, taps] = weight * scale.reshape(-1, 1, 1, 1)
        return result, shift

    def axes(self, prefix: str, side: Axis) -> dict[str, Axes]:
        result = norm_axes(f"{prefix}.norm", self.norm, "dim")
        return result | ({f"{prefix}.conv.weight": ("dim", 1, side, side)} if self.side else {})


@register_mixer("reparam_depthwise")
class ReparamDepthwise(Mixer):
    """A ``kernel`` × ``kernel`` filter per channel, trained as a sum of normed branches.

    ``branches`` says which stand beside the largest: ``point``, a 1 × 1 kernel and the input itself
    as in RepVGG, or ``dilated``, those of UniRepLKNet. Folding leaves one convolution with bias.
    """

    inside_mlp = True

    def __init__(self, dim: int, kernel: int = 7, branches: str = "dilated") -> None:
        super().__init__()
        self.dim, self.kernel = dim, kernel
        self.merged: Conv2d | None = None
        parts = {"main": _Branch(dim, kernel)}
        if branches == "point":
            parts |= {"point": _Branch(dim, 1), "input": _Branch(dim, 0)}
        else:
            for dilation, side in DILATED[kernel].items():
                parts[f"dilated_{dilation}"] = _Branch(dim, side, dilation)
        self.branches = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        maps = x.permute(0, 3, 1, 2)
        if self.merged is not None:
            return self.merged(maps).permute(0, 2, 3, 1)
        first, *others = self._parts().values()
        result = first(maps)
        for branch in others:
            result = result + branch(maps)
        return result.permute(0, 2, 3, 1)

    def _parts(self) -> dict[str, _Branch]:
        return cast(dict[str, _Branch], dict(self.branches.items()))

    @torch.no_grad()
    def fold(self) -> None:
        """Merges all branches into one convolution with bias."""
        if self.merged is not None:
            return
        parts = [branch.merged(self.kernel) for branch in self._parts().values()]
        weight, bias = (torch.stack(terms).sum(0) for terms in zip(*parts, strict=True))
        like = self._parts()["main"].norm.weight
        with torch.device(like.device):
            self.merged = Conv2d(
                self.dim, self.dim, self.kernel, padding=self.kernel // 2, groups=self.dim
            )
        self.merged.weight = nn.Parameter(weight.to(like.dtype))
        self.merged.bias = nn.Parameter(bias.to(like.dtype))
        self.branches = nn.ModuleDict()

    def axes(self) -> dict[str, Axes]:
        if self.merged is not None:
            return {"merged.weight": ("dim", 1, self.kernel, self.kernel), "merged.bias": ("dim",)}
        result: dict[str, Axes] = {}
        for name, branch in self._parts().items():
            side: Axis = Centre(name) if branch.side > 1 else 1
            result |= branch.axes(f"branches.{name}", side)
        return result

    def sizes(self) -> dict[str, int]:
        sides = {name: branch.side for name, branch in self._parts().items() if branch.side > 1}
        return {"dim": self.dim, **sides}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)
