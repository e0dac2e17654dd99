"""Places where scales can be moved: what writes channels, and the layers that read them.

Dividing what is written by positive numbers, one a channel, and multiplying the weights that read
it by them changes nothing in float, but ranges. A norm's scale and shift write channels, and so
does a convolution before a ReLU.

Which layers read a norm is found by trying: powers of two are moved, which no rounding disturbs,
and the module's output tells whether that was all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from search_space.components import components
from supernet.network.backbone import Backbone
from supernet.network.layers import ConvNorm
from supernet.network.norms import GroupNorm

Layer = nn.Linear | nn.Conv2d
_NORMS = (nn.LayerNorm, GroupNorm)
_MOST_READERS = 4
_EXACT = 1e-4  # of the largest output


class Pair:
    """What writes channels, the layers that read them, and what was seen of the channels.

    Attributes:
        writer: A norm, or a convolution whose norm is folded.
        readers: Layers that are given nothing else.
        shifts: Whether numbers may be added to channels, too: readers then take them back.
        low: The smallest value of each channel, and zero, (channels,).
        high: The largest likewise.
    """

    def __init__(self, writer: Any, readers: Sequence[Layer], *, shifts: bool = False) -> None:
        self.writer, self.readers, self.shifts = writer, readers, shifts
        self.low = self.high = writer.weight.detach().new_zeros(len(writer.weight))

    @property
    def of_norm(self) -> bool:
        """Whether a norm writes."""
        return isinstance(self.writer, _NORMS)

    def see(self, x: Tensor) -> None:
        """Takes into account what readers are given."""
        channels = x.movedim(1, -1) if isinstance(self.readers[0], nn.Conv2d) else x
        flat = channels.detach().flatten(0, -2)
        self.low = torch.minimum(self.low, flat.amin(0))
        self.high = torch.maximum(self.high, flat.amax(0))

    def largest_weights(self) -> Tensor:
        """Returns the largest absolute weight that reads each channel, (channels,)."""
        return torch.stack([_largest(layer) for layer in self.readers]).amax(0)

    @torch.no_grad()
    def divide(self, by: Tensor) -> None:
        """Divides channels by positive numbers (channels,), and multiplies what reads them."""
        rows = by.reshape(-1, *[1] * (self.writer.weight.ndim - 1))
        self.writer.weight.data = self.writer.weight / rows
        if self.writer.bias is not None:
            self.writer.bias.data = self.writer.bias / by
        for layer in self.readers:
            shape = (-1, 1) if _is_depthwise(layer) else (1, -1)
            layer.weight.data = layer.weight * by.reshape(*shape, *[1] * (layer.weight.ndim - 2))
        self.low, self.high = self.low / by, self.high / by

    @torch.no_grad()
    def add(self, shift: Tensor) -> None:
        """Adds numbers (channels,) to channels, and takes them from the biases of what reads."""
        assert self.shifts
        self.writer.bias.data = self.writer.bias + shift
        for layer in self.readers:
            assert layer.bias is not None
            layer.bias.data = layer.bias - layer.weight @ shift
        self.low, self.high = self.low + shift, self.high + shift


def _is_depthwise(layer: Layer) -> bool:
    """Whether its weight has a row for each channel that it reads, instead of a column."""
    return isinstance(layer, nn.Conv2d) and layer.groups > 1


def _largest(layer: Layer) -> Tensor:
    weight = layer.weight.detach().abs()
    if weight.ndim > 2:
        weight = weight.flatten(2).amax(2)
    return weight.amax(1 if _is_depthwise(layer) else 0)


def chain_pairs(module: nn.Module) -> list[Pair]:
    """Finds convolutions after another with nothing or a ReLU between; norms must be folded."""
    found = []
    for part in module.modules():
        chain = getattr(part, "chain", None)
        for before, after in itertools.pairwise(chain() if chain is not None else ()):
            if not (isinstance(before, ConvNorm) and isinstance(after, ConvNorm)):
                continue
            even = isinstance(before.activation, (nn.ReLU, nn.Identity))
            if even and isinstance(before.norm, nn.Identity):
                found.append(Pair(before.conv, [after.conv]))
    return found


@torch.no_grad()
def norm_pairs(module: nn.Module, x: Tensor) -> list[Pair]:
    """Finds norms that linear layers alone read.

    Args:
        module: In evaluation mode.
        x: What it is given, of the size that it will be given.
    """
    order: list[nn.Module] = []
    called = [part for part in module.modules() if isinstance(part, (*_NORMS, nn.Linear))]
    with _hooked(called, lambda part, _: order.append(part)):
        wanted = module(x)

    def same() -> bool:
        return bool((module(x) - wanted).abs().amax() <= _EXACT * wanted.abs().amax())

    found = []
    for place, norm in enumerate(order):
        if not isinstance(norm, _NORMS) or norm.weight is None or order.count(norm) > 1:
            continue
        after = itertools.takewhile(lambda part: not isinstance(part, _NORMS), order[place + 1 :])
        linear = [part for part in after if isinstance(part, nn.Linear)]
        for count in range(1, min(len(linear), _MOST_READERS) + 1):
            readers = linear[:count]
            if any(part.in_features != len(norm.weight) for part in readers):
                break
            pair = Pair(norm, readers)
            if _can(pair.divide, pair, same):
                biased = all(part.bias is not None for part in (norm, *readers))
                pair.shifts = biased
                pair.shifts = biased and _can(pair.add, pair, same)
                found.append(Pair(norm, readers, shifts=pair.shifts))
                break
    return found


def _can(change: Callable[[Tensor], None], pair: Pair, same: Callable[[], bool]) -> bool:
    """Whether a change of channels leaves the output; everything is as it was afterwards."""
    parts = (pair.writer, *pair.readers)
    kept = [
        (part, part.weight.data, None if part.bias is None else part.bias.data) for part in parts
    ]
    change(2.0 ** (torch.arange(len(pair.low), device=pair.low.device) % 4 - 1))
    result = same()
    for part, weight, bias in kept:
        part.weight.data = weight
        if bias is not None:
            part.bias.data = bias
    return result


@contextmanager
def _hooked(parts: Sequence[nn.Module], see: Callable[[nn.Module, Tensor], Any]) -> Iterator[None]:
    """Shows what parts are given when they are called."""
    with ExitStack() as stack:
        for part in parts:

            def hook(part: nn.Module, given: tuple[Any, ...]) -> None:
                see(part, given[0])

            stack.callback(part.register_forward_pre_hook(hook).remove)
        yield


@torch.no_grad()
def pairs_of(network: Backbone, paths: Collection[str], images: Sequence[Tensor]) -> list[Pair]:
    """Finds all pairs within some components of a network, and what images say of them.

    Args:
        network: In evaluation mode.
        paths: Of components with folded batch norms.
        images: Batches (n, 3, side, side), normalised; at least one.
    """
    found = []
    x = images[0][:1]
    for item in components(network.architecture, network.num_classes):
        module = network.get_submodule(item.path)
        if item.path in paths:
            found += chain_pairs(module) + norm_pairs(module, x)
        x = module(x)
    by_reader: dict[nn.Module, Pair] = {pair.readers[0]: pair for pair in found}
    with _hooked(list(by_reader), lambda part, x: by_reader[part].see(x)):
        for batch in images:
            network(batch)
    return found
