"""The structure that closed-form proxies score: layers and the longest path through them.

A network is run once on the meta device, where tensors have shapes but no data, under a dispatch
mode that sees every operator. Each linear layer and convolution has a width
``w = c_in · k² / groups`` (Shen et al. 2023, DeepMAD); a tensor remembers the path with the
largest ``Σ ½·log w`` from the image to it. Gated mixers have several branches that are multiplied:
only the longest one counts, since counting them all would make gates look like depth. A residual
sum continues the longer of its two paths. Nothing here knows any mixer or model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_LAYERS = {_aten.linear, _aten.conv1d, _aten.conv2d, _aten.convolution}
_PRODUCTS = {_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm}
_ATTENTION = _aten.scaled_dot_product_attention
_NORMS = {_aten.native_layer_norm, _aten.native_group_norm}
_POOLS = {
    *(_aten.mean, _aten.sum, _aten.amax, _aten.max),
    *(_aten.avg_pool2d, _aten.max_pool2d_with_indices),
    *(_aten._adaptive_avg_pool2d, _aten.adaptive_max_pool2d),
}
_NORM_MACS = 5  # per element, as fvcore has it


@dataclass(frozen=True)
class Path:
    """A path from the input: the half log widths of its layers added up, and their number."""

    entropy: float = 0.0
    layers: int = 0


@dataclass(frozen=True)
class Layer:
    """One linear layer or convolution as it was called.

    Args:
        width: ``c_in · k² / groups``.
        channels: Output channels.
        positions: Output positions of one image (the product of its sides).
        path: Longest path from the input to this layer's output.
    """

    width: int
    channels: int
    positions: int
    path: Path


@dataclass(frozen=True)
class Structure:
    """Layers in the order of their calls, the longest path to the output, and counts.

    ``macs`` and ``activations`` are for one image, as fvcore counts them (layer and group norms
    as 5 MACs per element); ``num_params`` are all parameters of the module.
    """

    layers: tuple[Layer, ...]
    path: Path
    num_params: int
    macs: int
    activations: int


def trace(module: nn.Module, shape: Sequence[int]) -> Structure:
    """Traces ``module``, which lies on the meta device, with one input of ``shape``.

    Layers that see a whole map pooled to one position, as squeeze-and-excitation and most
    classifiers do, are left out, as in DeepMAD; so is a last layer of one position.
    """
    x = torch.empty(*shape, device="meta")
    recorder = _Recorder(x)
    with torch.inference_mode(), recorder:
        result = module(x)
    path = recorder.longest([result])
    layers = recorder.layers
    if layers and layers[-1].positions == 1 and layers[-1].path == path and result.dim() == 2:
        *layers, last = layers  # a classifier behind maps of one position
        path = Path(path.entropy - 0.5 * math.log(last.width), path.layers - 1)
    num_params = sum(parameter.numel() for parameter in module.parameters())
    return Structure(tuple(layers), path, num_params, recorder.macs, recorder.activations)


@dataclass(frozen=True)
class _State:
    """What a tensor remembers: its path, the positions of its map, and whether they were pooled."""

    path: Path = Path()
    positions: int = 0
    pooled: bool = False


class _Recorder(TorchDispatchMode):
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.macs = self.activations = 0
        self._kept = [x]  # alive, so that no storage is used again
        self._states = {_storage(x): _State(positions=x.numel() // x.shape[1])}

    def longest(self, tree: Any) -> Path:
        """Longest of the paths to the tensors of ``tree``; empty where the input leads to none."""
        return self._joined(_tensors(tree)).path

    def _joined(self, tensors: Sequence[Tensor]) -> _State:
        """The longest path to any of ``tensors``; pooled where all that vary are."""
        states = [self._states[_storage(x)] for x in tensors if _storage(x) in self._states]
        best = max(states, key=lambda state: state.path.entropy, default=_State())
        return replace(best, pooled=bool(states) and all(state.pooled for state in states))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        whole = packet in _LAYERS or packet is _ATTENTION or func.is_view
        if not whole:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        read = _tensors((args, kwargs))
        varying = any(_storage(x) in self._states for x in read)
        state = self._joined(read)
        result = func(*args, **kwargs)
        if not varying:
            return result
        if packet in _LAYERS and _storage(args[1]) not in self._states:
            state = self._extended(state, args[1], result)
        elif packet in _POOLS:
            ratio = args[0].numel() // max(1, _tensors(result)[0].numel())
            if ratio >= state.positions > 1:
                state = replace(state, pooled=True)
        elif packet in _PRODUCTS:
            self._count(result.numel(), args[-2].shape[-1])
        elif packet in _NORMS:
            self.macs += _NORM_MACS * read[0].numel()
        elif packet is _ATTENTION:
            query, key = args[0].shape, args[1].shape
            self._count(math.prod(query[:-1]) * key[-2], query[-1])
            self._count(result.numel(), key[-2])
        written = _tensors(result)
        self._kept += written
        for x in written:
            known = self._states.get(_storage(x))
            if known is None or state.path.entropy >= known.path.entropy:
                self._states[_storage(x)] = state
        return result

    def _extended(self, state: _State, weight: Tensor, result: Tensor) -> _State:
        width, channels = math.prod(weight.shape[1:]), weight.shape[0]
        self._count(result.numel(), width)
        positions = result.numel() // channels
        if state.pooled and positions == 1:
            return state
        path = Path(state.path.entropy + 0.5 * math.log(width), state.path.layers + 1)
        self.layers.append(Layer(width, channels, positions, path))
        return _State(path, positions)

    def _count(self, outputs: int, products: int) -> None:
        """``outputs`` numbers, each a sum of ``products`` products."""
        self.activations += outputs
        self.macs += outputs * products


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata  # tensors on the meta device have no address


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
