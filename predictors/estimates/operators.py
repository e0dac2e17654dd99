"""The operators that a component launches on a GPU, with what each computes and moves.

A component is run once on the meta device, where tensors have shapes and strides but no data,
under a dispatch mode that sees every operator. Nothing here knows any mixer, so a newly
registered one needs no code. An operator that only looks at the same memory in another way
(``permute``, most of ``reshape``) launches nothing; one that must copy does. Operators whose
inputs are all constants (masks, index tables) are left out: modules compute them once.

Floating-point operations follow ``torch.utils.flop_counter``: 2 per multiply-add of matrix
products, convolutions and attention, none for the rest. Bytes are those of all operands read
once and all results written once, the least that any kernel without fusion has to move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_flop_count

from predictors.measuring.bench import DTYPES
from search_space import ModuleSpec
from search_space.components import input_shape
from supernet.network.mixers import build_mixer, register_mixer
from supernet.network.modules import build_module

_aten = torch.ops.aten


@dataclass(frozen=True)
class Operator:
    """One launch of a kernel.

    Args:
        name: Name of the operator, such as ``linear``.
        kind: ``matrix`` products run on tensor cores, ``vector`` ones (depthwise convolutions)
            do not, ``memory`` operators only move data.
        flops: Floating-point operations, 2 per multiply-add.
        bytes: Bytes that are read and written.
    """

    name: str
    kind: str
    flops: int
    bytes: int


@lru_cache(maxsize=65536)
def operators(
    spec: ModuleSpec, in_size: int, batch_size: int = 1, precision: str = "fp32"
) -> tuple[Operator, ...]:
    """Lists what a component launches for ``batch_size`` square inputs of side ``in_size``.

    Operators of a block's mixer come first, those around it afterwards: both are found once
    for all blocks that share them, which makes a space's thousands of blocks a matter of
    seconds. That is exact since a mixer gets and returns contiguous maps.
    """
    options = spec.as_dict()
    if "mixer" not in options:
        shape = input_shape(spec, in_size, batch_size)
        return _trace(lambda: build_module(spec), shape, precision)
    mixer, dim, params = options.pop("mixer"), options["dim"], options.pop("params")

    def around() -> nn.Module:
        block = build_module(spec)
        block.mixer = _Nothing()
        return block

    size = in_size, batch_size, precision
    inside = (mixer, dim, params, *size)
    # by the other options only: which mixer a block has does not matter to what is around it
    outside = (*options.items(), register_mixer[mixer].inside_mlp, *size)
    shape = (batch_size, in_size, in_size, dim)
    inner = _shared(inside, lambda: build_mixer(mixer, dim, **dict(params)), shape, precision)
    return inner + _shared(outside, around, shape, precision)


_traces: dict[tuple[object, ...], tuple[Operator, ...]] = {}


def _shared(
    key: tuple[object, ...], build: Callable[[], nn.Module], shape: Sequence[int], precision: str
) -> tuple[Operator, ...]:
    if key not in _traces:
        _traces[key] = _trace(build, shape, precision)
    return _traces[key]


class _Nothing(nn.Module):
    """Replaces a mixer: a map of the same shape at no cost."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view_as(x)


def _trace(
    build: Callable[[], nn.Module], shape: Sequence[int], precision: str
) -> tuple[Operator, ...]:
    dtype = DTYPES[precision]
    with torch.device("meta"):
        module = build().eval().to(dtype)
        x = torch.empty(*shape, dtype=dtype)
    recorder = _Recorder([x, *module.parameters(), *module.buffers()])
    # under inference mode composite operators, such as linear, are seen before they are split
    with torch.inference_mode(), recorder:
        module(x)
    return tuple(recorder.launched)


class _Recorder(TorchDispatchMode):
    """Lists what is launched while it is active.

    Args:
        inputs: Tensors that differ from run to run; what is made from nothing else than other
            tensors is a constant.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.launched: list[Operator] = []
        self._kept = list(inputs)  # alive, so that no storage's address is used again
        self._variable = {_storage(x) for x in self._kept}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if not (packet in _WHOLE or packet in flop_registry or func.is_view):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if packet in _CONVOLUTIONS and args[0].stride(1) == 1:
            # as cuDNN does; on the meta device a slice of channels would lose the layout
            result = result.contiguous(memory_format=torch.channels_last)
        read, written = _tensors((args, kwargs)), _tensors(result)
        if not any(_storage(x) in self._variable for x in read):
            return result
        self._kept += written
        self._variable.update(_storage(x) for x in written)
        sources = {_storage(x) for x in read}
        looks = all(_storage(x) in sources for x in written) and not func._schema.is_mutable
        if not looks:
            self._record(packet, args, kwargs, result, read, written)
        return result

    def _record(
        self,
        packet: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        read: list[Tensor],
        written: list[Tensor],
    ) -> None:
        moved, flops = _bytes(read) + _bytes(written), 0
        if packet in _WHOLE:
            flops = _WHOLE[packet](args, result)
            if packet is _aten.linear and not args[0].is_contiguous():
                self.launched.append(Operator("clone", "memory", 0, 2 * _bytes(args[:1])))
        elif packet in flop_registry:
            flops = int(flop_registry[packet](*args, **kwargs, out_val=result))
        kind = "matrix" if flops else "memory"
        if flops and packet in _CONVOLUTIONS and args[1].shape[1] == 1:
            kind = "vector"
        self.launched.append(Operator(packet.__name__, kind, flops, moved))


def _linear_flops(args: tuple[Any, ...], result: Tensor) -> int:
    return 2 * result.numel() * int(args[1].shape[1])


def _conv_flops(args: tuple[Any, ...], result: Tensor) -> int:
    return int(conv_flop_count(list(args[0].shape), list(args[1].shape), list(result.shape)))


def _attention_flops(args: tuple[Any, ...], result: Tensor) -> int:
    return int(sdpa_flop_count(*(x.shape for x in args[:3])))


def _no_flops(args: tuple[Any, ...], result: Any) -> int:
    return 0


# composite operators that a GPU runs as one kernel; all other composites are taken apart
_WHOLE: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    _aten.linear: _linear_flops,
    _aten.conv1d: _conv_flops,
    _aten.conv2d: _conv_flops,
    _aten.scaled_dot_product_attention: _attention_flops,
    _aten.layer_norm: _no_flops,
    _aten.group_norm: _no_flops,
    _aten.softmax: _no_flops,
}
_CONVOLUTIONS = (_aten.conv1d, _aten.conv2d, _aten.convolution)


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata  # tensors on the meta device have no address


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Size of the memory behind ``tensors``; expanded axes repeat the same memory."""
    return sum(
        math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
        * x.element_size()
        for x in tensors
    )
