"""What convolutional blocks share: the shortcut and the declaration of channels."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor, nn

from supernet.network.axes import Axes, Axis, StaticModule
from supernet.network.layers import ChannelMix, ConvNorm, SqueezeExcite


class PooledConvNorm(ConvNorm):
    """Averages of 2 × 2 neighbours, fewer at odd edges, and a 1 × 1 convolution with norm."""

    def forward(self, maps: Tensor) -> Tensor:
        pooled = F.avg_pool2d(maps, 2, 2, ceil_mode=True, count_include_pad=False)
        return super().forward(pooled)


class ConvBlock(StaticModule):
    """A block of convolutions, one after the other, of maps ``(batch, height, width, dim)``.

    ``parts`` names its layers (``ConvNorm``, ``SqueezeExcite``, ``ChannelMix``) in their order,
    with the axes of their inputs and outputs. Sizes of axes are ``widths``, which names ``kernel``
    too. ``shortcut`` is what the input passes beside the parts; None for nothing.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        stride: Of the block.
        norm: After each convolution.
        norm_eps: Added to the norms' variances.
        padding: As for ``ConvNorm``.
        widths: Sizes of further axes.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        stride: int,
        norm: str,
        norm_eps: float,
        padding: str,
        **widths: int,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.style: dict[str, Any] = {"norm": norm, "norm_eps": norm_eps, "padding": padding}
        self.shortcut: nn.Module | None = None
        self.parts: dict[str, tuple[Axis, Axis]] = {}
        self.widths: dict[str, int] = {"dim": dim, "out_dim": out_dim, **widths}

    @property
    def changes_size(self) -> bool:
        """Whether the output has another shape than the input."""
        return self.stride > 1 or self.widths["dim"] != self.widths["out_dim"]

    def convolve(
        self, name: str, dim: str, out_dim: str, kernel: int = 1, stride: int = 1, **how: Any
    ) -> None:
        """Appends a convolution between channels of two axes; ``how`` as for ``ConvNorm``."""
        layer = ConvNorm(
            self.widths[dim], self.widths[out_dim], kernel, stride, **self.style, **how
        )
        self.add(name, layer, dim, out_dim)

    def add(self, name: str, layer: nn.Module, dim: Axis, out_dim: Axis) -> None:
        """Appends a layer between channels of two axes."""
        self.add_module(name, layer)
        self.parts[name] = dim, out_dim

    def scale_channels(
        self, axis: str, squeeze: int, eca: bool, activation: str, gate: str
    ) -> None:
        """Appends squeeze-excite, ECA, both or none, of the channels of an axis.

        Args:
            axis: Of the channels.
            squeeze: Channels inside squeeze-excite, 0 for none.
            eca: Whether there is ECA.
            activation: Inside squeeze-excite.
            gate: Of squeeze-excite.
        """
        dim = self.widths[axis]
        if squeeze > 0:
            self.widths["squeeze"] = squeeze
            self.add("excite", SqueezeExcite(dim, squeeze, activation, gate), axis, axis)
        if eca:
            mix = ChannelMix(dim)
            self.widths["neighbours"] = mix.kernel
            self.add("mix", mix, axis, axis)

    @property
    def keeps_channels(self) -> bool:
        """Whether the input itself is added, so that in- and output have the same channels."""
        return isinstance(self.shortcut, nn.Identity)

    def chain(self) -> list[nn.Module]:
        """Returns the parts in their order, each of which reads what the one before writes."""
        return [self.get_submodule(name) for name in self.parts]

    def forward(self, x: Tensor) -> Tensor:
        maps = x.permute(0, 3, 1, 2)
        branch = self.begin(x).permute(0, 3, 1, 2)
        for name in self.parts:
            branch = self._modules[name](branch)  # type: ignore[misc]
        if self.shortcut is not None:
            branch = drop_path(branch, self.drop_path_rate, self.training)
            branch = branch + self.shortcut(maps)
        return self.finish(branch).permute(0, 2, 3, 1)

    def begin(self, x: Tensor) -> Tensor:
        """What is done before the parts, channels last: nothing, unless overridden."""
        return x

    def finish(self, maps: Tensor) -> Tensor:
        """What is done after the sum: nothing, unless overridden."""
        return maps

    def axes(self) -> dict[str, Axes]:
        result: dict[str, Axes] = {}
        for name, (dim, out_dim) in self.parts.items():
            layer = self.get_submodule(name)
            if isinstance(layer, ChannelMix):
                result |= layer.axes(name)
            elif isinstance(layer, SqueezeExcite):
                result |= layer.axes(name, dim)
            else:
                assert isinstance(layer, ConvNorm)
                result |= layer.axes(name, dim, out_dim)
        if isinstance(self.shortcut, ConvNorm):
            result |= self.shortcut.axes("shortcut", "dim", "out_dim")
        return result

    def sizes(self) -> dict[str, int]:
        return self.widths

    def permutable(self) -> tuple[frozenset[str], ...]:
        others = ("dim", "out_dim", "kernel", "neighbours")
        inner = [{name} for name in self.widths if name not in others]
        ends = [{"dim", "out_dim"}] if self.keeps_channels else [{"dim"}, {"out_dim"}]
        fixed = {self.parts["mix"][0]} if "mix" in self.parts else set()  # the order matters there
        return tuple(frozenset(names) for names in (*ends, *inner) if fixed.isdisjoint(names))
