"""What closed-form proxies see of a network: weighted layers and the longest path through them.

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
from dataclasses import dataclass
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
        channels: output channels.
        positions: output positions of one image (the product of its sides).
        path: longest path from the input to this layer's output.
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
    """Structure of ``module``, which lies on the meta device, for one input of ``shape``.

    Layers that see a single position of a larger map, as squeeze-and-excitation and a
    classifier do, are left out, as in DeepMAD.
    """
    x = torch.empty(*shape, device="meta")
    recorder = _Recorder(x)
    with torch.inference_mode(), recorder:
        result = module(x)
    num_params = sum(parameter.numel() for parameter in module.parameters())
    return Structure(
        tuple(recorder.layers),
        recorder.longest([result]),
        num_params,
        recorder.macs,
        recorder.activations,
    )


class _Recorder(TorchDispatchMode):
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.macs = self.activations = 0
        self._kept = [x]  # alive, so that no storage is used again
        self._paths = {_storage(x): Path()}

    def longest(self, tree: Any) -> Path:
        """Longest of the paths to the tensors of ``tree``; empty where the input leads to none."""
        paths = [self._paths[_storage(x)] for x in _tensors(tree) if _storage(x) in self._paths]
        return max(paths, key=lambda path: path.entropy, default=Path())

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
        varying = any(_storage(x) in self._paths for x in read)
        path = self.longest(read)
        result = func(*args, **kwargs)
        if not varying:
            return result
        if packet in _LAYERS and _storage(args[1]) not in self._paths:
            path = self._extended(path, args[1], result)
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
            known = self._paths.get(_storage(x), Path())
            self._paths[_storage(x)] = max(known, path, key=lambda each: each.entropy)
        return result

    def _extended(self, path: Path, weight: Tensor, result: Tensor) -> Path:
        width, channels = math.prod(weight.shape[1:]), weight.shape[0]
        self._count(result.numel(), width)
        positions = result.numel() // channels
        if positions == 1 and self._kept[0].numel() > self._kept[0].shape[1]:
            return path
        path = Path(path.entropy + 0.5 * math.log(width), path.layers + 1)
        self.layers.append(Layer(width, channels, positions, path))
        return path

    def _count(self, outputs: int, products: int) -> None:
        """``outputs`` numbers, each a sum of ``products`` products."""
        self.activations += outputs
        self.macs += outputs * products


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata  # tensors on the meta device have no address


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
