"""Modules that compute in int8: their layers, simulated in float.

A quantised layer sees its input and its weights rounded to 256 levels. Inputs are uint8 with a
scale and a zero point, weights int8 with a scale for each output channel (Jacob et al.,
Quantization and training of neural networks for efficient integer-arithmetic-only inference, 2018).
Softmax, norms, products of attention and activations with curves stay in float, as they are
deployed. The same modules, exported, are graphs with QuantizeLinear and DequantizeLinear.

A convolution runs in int8 only where its output is rounded, too, which a matrix product does not
need: so convolutions round theirs, after a ReLU if one follows. A component begins and ends with
float maps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from supernet.network.layers import (
    ChannelMix,
    Conv2d,
    ConvNorm,
    Linear,
    SqueezeExcite,
    fold_batch_norms,
)

LEVELS = 255  # of uint8, above the lowest
LARGEST_WEIGHT = 127
_SMALLEST_SCALE = 1e-8
_SMALLEST_SHARE = 1e-4  # of the largest scale of a layer's weights, so that biases fit int32
_CUTTING = (nn.ReLU, nn.ReLU6, nn.Identity)  # activations that the rounding of uint8 takes over


class FakeQuantiser(nn.Module):
    """Rounds a tensor to what uint8 holds.

    That is ``scale · (clip(round(x / scale) + zero, 0, 255) − zero)``.

    In training the rounding passes gradients on as if it were not there, and scales are learned
    (Esser et al., Learned step size quantization, 2020), as logarithms, so that steps of an
    optimiser change them by shares.

    Args:
        nonnegative: Whether the tensor is, so that zero is the lowest level.

    Attributes:
        watch: Sees each tensor instead of the rounding, while ranges are found; None otherwise.
    """

    zero: Tensor

    def __init__(self, nonnegative: bool = False) -> None:
        super().__init__()
        self.nonnegative = nonnegative
        self.watch: Callable[[Tensor], None] | None = None
        self.log_scale = nn.Parameter(torch.empty(()))
        self.register_buffer("zero", torch.empty((), dtype=torch.int32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets a range of 4, for modules whose speed alone is of interest."""
        low = 0.0 if self.nonnegative else -2.0
        self.set_range(low, low + 4.0)

    @torch.no_grad()
    def set_range(self, low: float, high: float) -> None:
        """Sets the range that the levels cover; it is widened so that zero is one of them."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / LEVELS, _SMALLEST_SCALE)
        # new tensors, never written into memory that others may use
        self.log_scale.data = torch.full_like(self.log_scale, math.log(scale))
        self.zero = torch.full_like(self.zero, round(-low / scale))

    @property
    def scale(self) -> Tensor:
        """The distance of two levels."""
        return self.log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        if self.watch is not None:
            self.watch(x)
            return x
        if self.training:
            scale = self.scale
            levels = _rounded(x / scale) + self.zero
            return (levels.clamp(0, LEVELS) - self.zero) * scale
        return torch.fake_quantize_per_tensor_affine(x, self.scale.detach(), self.zero, 0, LEVELS)


def _rounded(x: Tensor) -> Tensor:
    """Rounds, with the gradient of the identity."""
    return x + (x.round() - x).detach()


class _Quantised(nn.Module):
    """What quantised layers share: scales of the weights, by output channel."""

    weight: Any
    bias: Any
    input: nn.Module
    before: tuple[nn.Module, ...] = ()  # in a tuple, since it is a module of another layer

    def begin(self, weight: Tensor, bias: Tensor | None) -> None:
        """Takes over the parameters of a float layer."""
        self.weight = nn.Parameter(weight.detach())
        self.bias = None if bias is None else nn.Parameter(bias.detach())
        self.log_weight_scale = nn.Parameter(torch.empty(len(weight), device=weight.device))
        self.reset_scales()

    def reset_parameters(self) -> None:
        """Draws nothing: the parameters are a float layer's."""

    @torch.no_grad()
    def reset_scales(self) -> None:
        """Makes the largest weight of each output channel the highest level."""
        largest = self.weight.detach().flatten(1).abs().amax(1)
        scale = largest / LARGEST_WEIGHT
        least = (_SMALLEST_SHARE * scale.amax()).clamp(min=_SMALLEST_SCALE)
        self.log_weight_scale.data = torch.maximum(scale, least).log()

    def rounded_weight(self, weight: Tensor, axis: int) -> Tensor:
        """Rounds a weight whose output channels are ``axis``."""
        scale = self.log_weight_scale.exp()
        if self.training:
            shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
            scale = scale.reshape(shape)
            return _rounded(weight / scale).clamp(-LARGEST_WEIGHT - 1, LARGEST_WEIGHT) * scale
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight, scale.detach(), zeros, axis, -LARGEST_WEIGHT - 1, LARGEST_WEIGHT
        )

    def rounded_bias(self) -> Tensor | None:
        """Rounds the bias to int32, whose scale is that of the input times that of the weights."""
        if self.bias is None or self.watched:
            return self.bias
        scale = self.reads.scale * self.log_weight_scale.exp()
        if self.training:
            return _rounded(self.bias / scale) * scale
        scale = scale.detach()
        return (self.bias / scale).round() * scale

    @property
    def reads(self) -> FakeQuantiser:
        """What rounds the input: the layer's own, or the output's of the layer before."""
        own = self.input if isinstance(self.input, FakeQuantiser) else self.before[0]
        assert isinstance(own, FakeQuantiser)
        return own

    @property
    def watched(self) -> bool:
        """Whether ranges are being found, so that they mean nothing yet."""
        return self.reads.watch is not None


class QuantisedLinear(_Quantised, nn.Linear):
    """A linear layer with rounded inputs and weights, and float outputs."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.begin(layer.weight, layer.bias)
        self.input = FakeQuantiser()

    def forward(self, x: Tensor) -> Tensor:
        # the weight is rounded as the product of matrices takes it, so that graphs need no more
        y = self.input(x) @ self.rounded_weight(self.weight.t(), axis=1)
        bias = self.rounded_bias()
        return y if bias is None else y + bias


class QuantisedConv2d(_Quantised, nn.Conv2d):
    """A convolution with rounded inputs and weights, and outputs that ``output`` rounds."""

    def __init__(self, layer: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        for name in _CONVOLUTION:
            setattr(self, name, getattr(layer, name))
        self.begin(layer.weight, layer.bias)
        self.input = FakeQuantiser()
        self.output: nn.Module = FakeQuantiser()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.rounded_weight(self.weight, axis=0)
        return self.output(self._conv_forward(self.input(x), weight, self.rounded_bias()))


_CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("padding_mode", "transposed", "output_padding", "_reversed_padding_repeated_twice"),
)


def quantise_module(module: nn.Module) -> nn.Module:
    """Puts quantised layers in the place of a module's own, in place, and folds its batch norms.

    Squeeze-excite stays in float: its maps are single positions.

    Args:
        module: With its trained weights; of batch norms the averages must be known.

    Returns:
        The module, whose scales of inputs are those of ``FakeQuantiser.reset_parameters``.
    """
    training = module.training
    fold_batch_norms(module)
    for parent in list(module.modules()):
        if isinstance(parent, ConvNorm):
            _quantise_conv_norm(parent)
    _replace_layers(module)
    for chain in _chains(module):
        _share_rounding(chain)
    return module.train(training)


def _quantise_conv_norm(part: ConvNorm) -> None:
    conv = QuantisedConv2d(part.conv)
    if isinstance(part.norm, nn.Identity) and isinstance(part.activation, _CUTTING):
        cut = not isinstance(part.activation, nn.Identity)
        conv.output = nn.Identity()
        part.activation = nn.Sequential(part.activation, FakeQuantiser(nonnegative=cut))
    part.conv = conv  # type: ignore[assignment]


def _replace_layers(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Linear):
            setattr(module, name, QuantisedLinear(child))
        elif isinstance(child, Conv2d):
            setattr(module, name, QuantisedConv2d(child))
        elif not isinstance(child, (SqueezeExcite, ChannelMix, _Quantised)):
            _replace_layers(child)


def _chains(module: nn.Module) -> Iterable[list[nn.Module]]:
    """Layers of which each reads what the one before it writes."""
    for part in module.modules():
        chain = getattr(part, "chain", None)
        if chain is not None:
            yield chain()


def _share_rounding(chain: list[nn.Module]) -> None:
    """Leaves out the rounding of inputs that are rounded as outputs of the layer before."""
    for before, after in itertools.pairwise(chain):
        if not (isinstance(before, ConvNorm) and isinstance(after, ConvNorm)):
            continue
        conv = after.conv
        assert isinstance(conv, QuantisedConv2d)
        if not isinstance(before.activation, nn.Sequential):
            continue
        # zeros around the map, where there are some, are a level of its rounding
        conv.input, conv.before = nn.Identity(), (before.activation[1],)


def reset_ranges(module: nn.Module) -> None:
    """Gives a module ranges for which its speed is that of found ones."""
    for part in module.modules():
        if isinstance(part, FakeQuantiser):
            part.reset_parameters()
        elif isinstance(part, _Quantised):
            part.reset_scales()


def fake_quantisers(module: nn.Module) -> dict[str, FakeQuantiser]:
    """Returns what rounds inputs and outputs in a module, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, FakeQuantiser)}
