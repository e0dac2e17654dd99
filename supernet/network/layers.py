"""Layers with the initial values that our modules start from: activations, convolutions, folding.

A module initialises itself: it is made of these layers, or of any others whose values it then sets
in its constructor. Nothing overwrites them afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network.axes import Axes, Axis, Centre
from supernet.network.norms import BatchNorm, build_norm, norm_axes


@torch.no_grad()
def initialise(layer: nn.Linear | nn.Conv2d) -> None:
    """Sets zero biases and truncated normal weights.

    The weights' standard deviation is 0.02, as in the published networks, but at least
    0.5/√fan_in: 0.02 is made for hundreds of channels and starves narrow layers.
    """
    fan_in = math.prod(layer.weight.shape[1:])
    nn.init.trunc_normal_(layer.weight, std=max(0.02, 0.5 / math.sqrt(fan_in)))
    if layer.bias is not None:
        layer.bias.zero_()


class Linear(nn.Linear):
    """A linear layer that starts as ``initialise`` says."""

    def reset_parameters(self) -> None:
        initialise(self)


class Conv2d(nn.Conv2d):
    """A convolution that starts as ``initialise`` says."""

    def reset_parameters(self) -> None:
        initialise(self)


# Activations ---------------------------------------------------------------------------------


class StarReLU(nn.Module):
    """``scale · relu(x)² + bias`` with learned numbers (Yu et al., MetaFormer Baselines, 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x) ** 2 + self.bias


class SquaredReLU(nn.Module):
    """``relu(x)²`` (So et al., Primer, 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hard_swish": nn.Hardswish,
    "star_relu": StarReLU,
    "squared_relu": SquaredReLU,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


def build_activation(name: str) -> nn.Module:
    """Builds the activation called ``name``, one of ``search_space.blocks.ACTIVATIONS``."""
    return _ACTIVATIONS[name]()


def activation_axes(prefix: str, activation: nn.Module) -> dict[str, Axes]:
    """Returns the axes of an activation's parameters, which are single numbers."""
    return {f"{prefix}.{name}": (1,) for name, _ in activation.named_parameters()}


# Convolutions of maps (batch, dim, height, width), channels last in memory --------------------


class ConvNorm(nn.Module):
    """A convolution, a norm and an activation.

    Args:
        dim: Channels of the input.
        out_dim: Channels of the output.
        kernel: Odd side of the kernel.
        stride: Of the convolution.
        depthwise: Whether each channel is convolved by itself.
        norm: As for ``build_norm``; without one the convolution always has a bias.
        norm_eps: Added to the variance.
        activation: As for ``build_activation``.
        padding: ``half`` of the kernel on every side, or ``same``: as much as the stride needs,
            the odd one at the end.
        bias: Whether the convolution has a bias.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        norm: str,
        norm_eps: float,
        activation: str = "none",
        padding: str = "half",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.depthwise = kernel, stride, depthwise
        self.same = padding == "same" and stride > 1
        self.conv = Conv2d(
            dim,
            out_dim,
            kernel,
            stride,
            0 if self.same else kernel // 2,
            groups=dim if depthwise else 1,
            bias=bias or norm == "none",
        )
        self.norm = build_norm(norm, out_dim, norm_eps)
        self.activation = build_activation(activation)

    def forward(self, maps: Tensor) -> Tensor:
        if self.same:
            height, width = map(int, maps.shape[2:])  # constants of a graph
            maps = F.pad(maps, (*self._margins(width), *self._margins(height)))
        maps = self.conv(maps)
        if isinstance(self.norm, BatchNorm):
            maps = self.norm.of_maps(maps)
        elif not isinstance(self.norm, nn.Identity):
            maps = self.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.activation(maps)

    def _margins(self, length: int) -> tuple[int, int]:
        steps = (length + self.stride - 1) // self.stride
        total = max((steps - 1) * self.stride + self.kernel - length, 0)
        return total // 2, total - total // 2

    def fold(self) -> None:
        """Folds the norm into the convolution, which then has a bias."""
        self.norm = folded_after(self.conv, self.norm)

    def axes(self, prefix: str, dim: Axis, out_dim: Axis) -> dict[str, Axes]:
        """Returns the axes of the parameters of ``prefix``; kernels above 1 are ``kernel``."""
        side: Axis = Centre("kernel") if self.kernel > 1 else 1
        result: dict[str, Axes] = {
            f"{prefix}.conv.weight": (out_dim, 1 if self.depthwise else dim, side, side)
        }
        if self.conv.bias is not None:
            result[f"{prefix}.conv.bias"] = (out_dim,)
        result |= norm_axes(f"{prefix}.norm", self.norm, out_dim)
        return result | activation_axes(f"{prefix}.activation", self.activation)


class SqueezeExcite(nn.Module):
    """Scales channels by what the mean of the map says (Hu et al., 2018).

    Args:
        dim: Channels.
        squeeze: Channels inside.
        activation: After the first convolution.
        gate: ``sigmoid`` or ``hard_sigmoid``.
    """

    def __init__(self, dim: int, squeeze: int, activation: str, gate: str) -> None:
        super().__init__()
        self.reduce = Conv2d(dim, squeeze, 1)
        self.activation = build_activation(activation)
        self.expand = Conv2d(squeeze, dim, 1)
        self.gate = build_activation(gate)

    def forward(self, maps: Tensor) -> Tensor:
        mean = maps.mean((2, 3), keepdim=True)
        return maps * self.gate(self.expand(self.activation(self.reduce(mean))))

    def axes(self, prefix: str, dim: Axis) -> dict[str, Axes]:
        """Returns the axes of the parameters of ``prefix``; the inner channels are ``squeeze``."""
        return {
            f"{prefix}.reduce.weight": ("squeeze", dim, 1, 1),
            f"{prefix}.reduce.bias": ("squeeze",),
            f"{prefix}.expand.weight": (dim, "squeeze", 1, 1),
            f"{prefix}.expand.bias": (dim,),
        } | activation_axes(f"{prefix}.activation", self.activation)


class ChannelMix(nn.Module):
    """Scales channels by what the means of their neighbours say (Wang et al., ECA-Net, 2020).

    A convolution along the channels makes the scales; its kernel grows with their number, by
    equation 12 of the paper. The order of the channels says which are neighbours.

    Args:
        dim: Channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        steps = int((math.log2(dim) + 1) / 2)
        self.kernel = max(3, steps if steps % 2 else steps + 1)
        self.conv = Conv2d(1, 1, (1, self.kernel), padding=(0, self.kernel // 2), bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        means = maps.mean((2, 3)).reshape(maps.shape[0], 1, 1, maps.shape[1])
        gates = torch.sigmoid(self.conv(means))
        return maps * gates.reshape(maps.shape[0], maps.shape[1], 1, 1)

    def axes(self, prefix: str) -> dict[str, Axes]:
        """Returns the axes of the parameter of ``prefix``; its kernel is ``neighbours``."""
        return {f"{prefix}.conv.weight": (1, 1, 1, Centre("neighbours"))}


M = TypeVar("M", bound=nn.Module)


# Folding --------------------------------------------------------------------------------------


@runtime_checkable
class Foldable(Protocol):
    """Folds its own batch norms; a module does that which knows what comes before and after."""

    def fold(self) -> None:
        """Folds in place what can be folded; logits in evaluation stay but for rounding."""
        ...


@torch.no_grad()
def folded_after(layer: nn.Linear | nn.Conv2d, norm: nn.Module) -> nn.Module:
    """Folds a batch norm into the layer before it; returns what then stands in its place."""
    if not isinstance(norm, BatchNorm):
        return norm
    scale, shift = norm.affine()
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    _replace(layer, weight, shift if layer.bias is None else layer.bias * scale + shift)
    return nn.Identity()


@torch.no_grad()
def folded_before(norm: nn.Module, layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """Folds a batch norm into the linear layer or 1 × 1 convolution after it.

    Returns:
        What then stands in the norm's place.
    """
    if not isinstance(norm, BatchNorm):
        return norm
    scale, shift = norm.affine()
    weight = layer.weight.double().flatten(1)
    bias = weight @ shift
    weight = (weight * scale).reshape(layer.weight.shape)
    _replace(layer, weight, bias if layer.bias is None else layer.bias + bias)
    return nn.Identity()


def _replace(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype, memory_format=torch.preserve_format))
    layer.bias = nn.Parameter(bias.to(dtype))


def fold_batch_norms(network: M) -> M:
    """Folds the batch norms of a network into its layers, in place, and returns it in eval mode.

    That is the form in which networks are run, so latencies and counts of operations are of it.
    Logits stay the same but for rounding; it trains no more as before. A norm stays where no linear
    layer or convolution is next to it, or where padding comes between, which it would change.
    """
    for module in network.modules():
        if isinstance(module, Foldable):
            module.fold()
    return network.eval()
