"""Stems: images ``(batch, channels, height, width)`` to maps ``(batch, height, width, dim)``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from search_space.macro import conv_padding
from supernet.network.axes import Axes, StaticModule
from supernet.network.layers import Conv2d, ConvNorm, folded_after
from supernet.network.norms import build_norm, norm_axes
from supernet.network.registry import register_stem


@register_stem("conv")
class ConvStem(StaticModule):
    """Strided convolution of images ``(batch, channels, height, width)``, and a norm."""

    def __init__(
        self,
        dim: int,
        kernel: int,
        stride: int,
        norm: str,
        norm_eps: float,
        norm_bias: bool = True,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.dim, self.kernel, self.stride, self.in_chans = dim, kernel, stride, in_chans
        self.conv = Conv2d(in_chans, dim, kernel, stride, conv_padding(kernel, stride))
        self.norm = build_norm(norm, dim, norm_eps, norm_bias)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images.contiguous(memory_format=torch.channels_last))
        return self.norm(maps.permute(0, 2, 3, 1))

    def fold(self) -> None:
        """Folds the norm into the convolution."""
        self.norm = folded_after(self.conv, self.norm)

    def axes(self) -> dict[str, Axes]:
        conv: dict[str, Axes] = {
            "conv.weight": ("dim", self.in_chans, self.kernel, self.kernel),
            "conv.bias": ("dim",),
        }
        return conv | norm_axes("norm", self.norm, "dim")

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)


class _Convolutions(StaticModule):
    """Convolutions with norm and activation, one after the other, of ``widths`` and ``strides``.

    The last width is ``dim``; those before, if any, are ``hidden`` and ``outer``.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        kernel: int,
        strides: tuple[int, ...],
        in_chans: int,
        **style: Any,
    ) -> None:
        super().__init__()
        self.in_chans, self.names = in_chans, ("outer", "hidden", "dim")[-len(widths) :]
        self.widths = dict(zip(self.names, widths, strict=True)) | {"kernel": kernel}
        before = in_chans
        for i, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            self.add_module(
                f"conv{i}" if i else "conv", ConvNorm(before, width, kernel, stride, **style)
            )
            before = width

    def chain(self) -> list[nn.Module]:
        """Returns the layers in their order, each of which reads what the one before writes."""
        return list(self.children())

    def forward(self, images: Tensor) -> Tensor:
        maps = images.contiguous(memory_format=torch.channels_last)
        for layer in self.children():
            maps = layer(maps)
        return maps.permute(0, 2, 3, 1)

    def axes(self) -> dict[str, Axes]:
        result: dict[str, Axes] = {}
        before: str | int = self.in_chans
        for (prefix, layer), axis in zip(self.named_children(), self.names, strict=False):
            assert isinstance(layer, ConvNorm)
            result |= layer.axes(prefix, before, axis)
            before = axis
        return result

    def sizes(self) -> dict[str, int]:
        return self.widths

    def permutable(self) -> tuple[frozenset[str], ...]:
        return tuple(frozenset({name}) for name in self.names)


@register_stem("conv_act")
class ConvActStem(_Convolutions):
    """Strided convolution, norm and activation (MobileNet)."""

    def __init__(self, dim: int, kernel: int, stride: int, in_chans: int = 3, **style: Any):
        super().__init__((dim,), kernel, (stride,), in_chans, **style)


@register_stem("conv_act_conv")
class ConvActConvStem(_Convolutions):
    """Strided convolution, norm, activation, and a convolution alone; both have biases (MaxViT)."""

    def __init__(self, dim: int, kernel: int, stride: int, in_chans: int = 3, **style: Any):
        super().__init__((dim, dim), kernel, (stride, 1), in_chans, **style, bias=True)
        self.conv1 = ConvNorm(dim, dim, kernel, norm="none", norm_eps=0.0)


@register_stem("conv_pool")
class ConvPoolStem(_Convolutions):
    """Convolution, norm, activation, and 3 × 3 max-pooling of stride 2 (ResNet)."""

    def __init__(self, dim: int, kernel: int, stride: int, in_chans: int = 3, **style: Any):
        super().__init__((dim,), kernel, (stride // 2,), in_chans, **style)
        self.pool = nn.MaxPool2d(3, 2, 1)


class _DeepPoolStem(_Convolutions):
    """Three convolutions, of which the first has a stride, and 3 × 3 max-pooling of stride 2."""

    def __init__(
        self, widths: tuple[int, ...], kernel: int, stride: int, in_chans: int, **style: Any
    ) -> None:
        super().__init__(widths, kernel, (stride // 2, 1, 1), in_chans, **style)
        self.pool = nn.MaxPool2d(3, 2, 1)


@register_stem("deep_pool")
class DeepPoolStem(_DeepPoolStem):
    """Two of the three convolutions have half the channels (ResNet-C, ResNet-D)."""

    def __init__(self, dim: int, kernel: int, stride: int, in_chans: int = 3, **style: Any):
        half = max(1, dim // 2)
        super().__init__((half, half, dim), kernel, stride, in_chans, **style)


@register_stem("tiered_pool")
class TieredPoolStem(_DeepPoolStem):
    """The three convolutions have 3/8, half and all of the channels (ResNet-T)."""

    def __init__(self, dim: int, kernel: int, stride: int, in_chans: int = 3, **style: Any):
        widths = (max(1, 3 * (dim // 8)), max(1, dim // 2), dim)
        super().__init__(widths, kernel, stride, in_chans, **style)


@register_stem("convs")
class ConvsStem(_Convolutions):
    """Two convolutions, the first of stride 2, by way of half the channels (EfficientFormer)."""

    def __init__(self, dim: int, kernel: int, stride: int, in_chans: int = 3, **style: Any):
        super().__init__((max(1, dim // 2), dim), kernel, (2, stride // 2), in_chans, **style)
