"""Transitions: from the maps of one stage to those of the next, fewer and of another width.

A transition of stride 1 changes the width only.
"""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from search_space.macro import conv_padding
from supernet.network.axes import Axes, Axis, Product, StaticModule, extent
from supernet.network.layers import Conv2d, Linear, folded_after, folded_before
from supernet.network.norms import build_norm, norm_axes
from supernet.network.registry import register_transition


class Transition(StaticModule):
    """What all transitions are.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        kernel: Side of the convolution, or of the merged patches.
        stride: By which the map gets smaller.
        norm: As for ``build_norm``.
        norm_eps: Added to its variance.
        norm_bias: Whether it has a bias.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: int,
        stride: int,
        norm: str,
        norm_eps: float,
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.out_dim, self.kernel, self.stride = dim, out_dim, kernel, stride
        axis = self.normed()
        self.norm: nn.Module = nn.Identity()
        if axis is not None:
            self.norm = build_norm(norm, extent(axis, self.sizes()), norm_eps, norm_bias)
        self.add_layer()

    def normed(self) -> Axis | None:
        """Returns the channels that the norm is over; None without one."""
        return None

    @abstractmethod
    def add_layer(self) -> None:
        """Adds the layer that changes the width."""

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim, "out_dim": self.out_dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"out_dim"})


@register_transition("patch_merging")
class PatchMerging(Transition):
    """Neighbours concatenated, norm and linear layer (Swin)."""

    @property
    def merged(self) -> Axis:
        """The channels of a merged patch."""
        return Product(self.kernel**2, "dim")

    def normed(self) -> Axis:
        return self.merged

    def add_layer(self) -> None:
        self.reduction = Linear(self.kernel**2 * self.dim, self.out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(self.patches(x)))

    def fold(self) -> None:
        """Folds the norm, which comes after the padding, into the linear layer."""
        self.norm = folded_before(self.norm, self.reduction)

    def patches(self, x: Tensor) -> Tensor:
        """Returns every second kernel × kernel patch as one vector; odd maps are padded by one."""
        if self.kernel == 1:
            return x
        batch, height, width, dim = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        rows, columns = (height + 1) // 2, (width + 1) // 2
        if self.kernel == 2:
            x = x.reshape(batch, rows, 2, columns, 2, dim)
            return x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # columns before rows, as published
        padding = conv_padding(self.kernel, 2)
        x = F.unfold(x.permute(0, 3, 1, 2), self.kernel, padding=padding, stride=2)
        x = x.reshape(batch, dim, self.kernel**2, rows * columns)
        return x.permute(0, 3, 2, 1).reshape(batch, rows, columns, -1)

    def axes(self) -> dict[str, Axes]:
        norm = norm_axes("norm", self.norm, self.normed())
        return norm | {"reduction.weight": ("out_dim", self.merged)}


@register_transition("patch_merging_norm")
class PatchMergingNorm(PatchMerging):
    """Neighbours concatenated, linear layer and norm (SwinV2)."""

    def normed(self) -> Axis:
        return "out_dim"

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(self.patches(x)))

    def fold(self) -> None:
        """Folds the norm into the linear layer, which then has a bias."""
        self.norm = folded_after(self.reduction, self.norm)


@register_transition("conv")
class Conv(Transition):
    """Strided convolution (PoolFormer), with a norm before or after it in subclasses."""

    def add_layer(self) -> None:
        padding = conv_padding(self.kernel, self.stride)
        self.conv = Conv2d(self.dim, self.out_dim, self.kernel, self.stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def axes(self) -> dict[str, Axes]:
        conv: dict[str, Axes] = {
            "conv.weight": ("out_dim", "dim", self.kernel, self.kernel),
            "conv.bias": ("out_dim",),
        }
        return conv | norm_axes("norm", self.norm, self.normed() or "dim")


@register_transition("norm_conv")
class NormConv(Conv):
    """Norm and strided convolution (ConvNeXt); the norm is not folded over the padding."""

    def normed(self) -> Axis:
        return "dim"

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


@register_transition("residual_norm_conv")
class ResidualNormConv(NormConv):
    """Norm and strided convolution beside averages of 2 × 2 neighbours (Liao et al., 2021).

    ViT-ResNAS's residual spatial reduction. Channels that the averages lack are zeros; those that
    the output lacks are left out.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self._shortcut(x)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            up = self.kernel % 2 == 1  # as many positions as the convolution has
            maps = x.permute(0, 3, 1, 2)
            maps = F.avg_pool2d(maps, 2, 2, ceil_mode=up, count_include_pad=False)
            x = maps.permute(0, 2, 3, 1)
        if self.dim < self.out_dim:
            return F.pad(x, (0, self.out_dim - self.dim))
        return x[..., : self.out_dim]

    def permutable(self) -> tuple[frozenset[str], ...]:
        together = frozenset({"dim", "out_dim"})
        return (together,) if self.dim == self.out_dim else ()


@register_transition("conv_norm")
class ConvNormTransition(Conv):
    """Strided convolution and norm (FocalNet)."""

    def normed(self) -> Axis:
        return "out_dim"

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))

    def fold(self) -> None:
        """Folds the norm into the convolution."""
        self.norm = folded_after(self.conv, self.norm)
