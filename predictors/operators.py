"""The operators that a module launches, with what each computes, moves and connects.

A module is run once on the meta device, where tensors have shapes and strides but no data, under
a dispatch mode that sees every operator, so a new mixer needs no formula. What only looks at the
same memory in another way launches nothing; what must copy does. Operators whose inputs are all
constants (masks, index tables) are left out: modules compute them once.

One multiply-add counts as 1 ("MACs"), and activations are the output elements of convolutions,
linear layers and matrix products, both as fvcore counts them with handles for attention. Bytes are
those of all operands read once and all results written once, the least without fusion.
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
from torch.utils.flop_counter import flop_registry

from search_space import ModuleSpec
from search_space.components import input_shape
from search_space.errors import UsageError
from supernet.network.layers import fold_batch_norms
from supernet.network.mixers import build_mixer, mixer_class
from supernet.network.modules import build_module

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.conv1d, _aten.conv2d, _aten.convolution)
_LAYERS = {packet.__name__ for packet in (_aten.linear, *_CONVOLUTIONS)}
_NORMS = (_aten.layer_norm, _aten.group_norm, _aten.native_layer_norm, _aten.native_group_norm)
# composites that a GPU runs as one kernel; all other composites are taken apart
_WHOLE = {
    *(_aten.linear, _aten.conv1d, _aten.conv2d, _aten.scaled_dot_product_attention),
    *(_aten.layer_norm, _aten.group_norm, _aten.batch_norm, _aten.softmax),
}
_POINTWISE = {_aten.add, _aten.sub, _aten.mul, _aten.gelu, _aten.silu, _aten.sigmoid}


@dataclass(frozen=True)
class Operand:
    """A tensor that an operator reads or writes: the memory behind it, as a number, its shape."""

    storage: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """One launch of a kernel.

    ``macs`` are multiply-adds, 5 an element for norms as in published figures; ``activations``
    output elements of products, 0 for the rest; ``bytes`` are read and written. Operands are in the
    order of the arguments: the second that a layer reads are its weights.
    """

    name: str
    macs: int
    activations: int
    bytes: int
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]

    @property
    def layer(self) -> bool:
        """Whether it is a linear layer or a convolution."""
        return self.name in _LAYERS

    @property
    def flops(self) -> int:
        """Operations of products, 2 per multiply-add, none for the rest."""
        return 2 * self.macs if self.activations else 0

    @property
    def kind(self) -> str:
        """``matrix`` products run on tensor cores, ``vector`` ones (depthwise) do not.

        ``memory`` operators only move data.
        """
        if not self.activations:
            return "memory"
        depthwise = self.layer and self.name != "linear" and self.reads[1].shape[1] == 1
        return "vector" if depthwise else "matrix"


@lru_cache(maxsize=65536)
def operators(
    spec: ModuleSpec, in_size: int, batch_size: int = 1, precision: str = "fp32"
) -> tuple[Operator, ...]:
    """Lists what a component launches for ``batch_size`` square inputs of side ``in_size``.

    Batch norms are folded into the layers beside them, as in whatever runs after training.
    Operators of a MetaFormer block's mixer come first, those around it afterwards: both are found
    once for all blocks that share them, which is exact since a mixer gets and returns contiguous
    maps. Of a component in int8 they are those of its float twin.
    """
    spec = spec.in_float
    shape, dtype = input_shape(spec, in_size, batch_size), DTYPES[precision]
    options = spec.as_dict()
    if options["style"] != "metaformer":
        return trace(lambda: fold_batch_norms(build_module(spec)), shape, dtype)[0]
    mixer, params = options.pop("mixer"), options.pop("params")

    def around() -> nn.Module:
        block = build_module(spec)
        block.mixer = _Nothing()
        return fold_batch_norms(block)

    inside = (mixer, params, shape, dtype)
    # by the other options only: which mixer a block has does not matter to what is around it
    outside = (*options.items(), mixer_class(mixer).inside_mlp, shape, dtype)
    for key, build in (
        (inside, lambda: fold_batch_norms(build_mixer(mixer, options["dim"], **dict(params)))),
        (outside, around),
    ):
        if key not in _parts:
            launched, _, outputs = trace(build, shape, dtype)
            if [output.shape for output in outputs] != [shape]:
                raise UsageError(
                    f"mixer {mixer!r} makes {[output.shape for output in outputs]} of a map of "
                    f"shape {shape}; it must return one map (batch, height, width, dim) of the "
                    "same shape."
                )
            _parts[key] = launched
    return _parts[inside] + _parts[outside]


_parts: dict[tuple[object, ...], tuple[Operator, ...]] = {}


class _Nothing(nn.Module):
    """Replaces a mixer: a map of the same shape at no cost."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view_as(x)


def trace(
    build: Callable[[], nn.Module], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> tuple[tuple[Operator, ...], Operand, Any]:
    """Runs what ``build`` makes on one input of ``shape``.

    Returns:
        The operators in the order of their launch, the input, and the outputs.
    """
    with torch.device("meta"):
        module = build().eval().to(dtype)
        x = torch.empty(*shape, dtype=dtype)
    recorder = _Recorder([x, *module.parameters(), *module.buffers()])
    # under inference mode composite operators, such as linear, are seen before they are split
    with torch.inference_mode(), recorder:
        result = module(x)
    return tuple(recorder.launched), _operands([x])[0], _operands(_tensors(result))


class _Recorder(TorchDispatchMode):
    """Lists what is launched while it is active.

    What is made from nothing else than tensors that are no ``inputs`` is a constant.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.launched: list[Operator] = []
        self._kept = list(inputs)  # alive, so that no storage's number is used again
        self._variable = {_storage(x) for x in self._kept}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, packet = kwargs or {}, func._overloadpacket
        whole = packet in _WHOLE or packet in _POINTWISE or packet in flop_registry
        if not (whole or func.is_view):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        read = _tensors((args, kwargs))
        result = _shaped(packet, args, read)
        if result is None:
            result = func(*args, **kwargs)
        if packet in _CONVOLUTIONS and result.ndim == 4 and args[0].stride(1) == 1:
            # as cuDNN does; on the meta device a slice of channels would lose the layout
            result = result.contiguous(memory_format=torch.channels_last)
        written = _tensors(result)
        sources = {_storage(x) for x in read}
        if sources.isdisjoint(self._variable):
            return result
        self._kept += written
        self._variable.update(map(_storage, written))
        looks = sources.issuperset(map(_storage, written)) and not func._schema.is_mutable
        if not looks:
            if packet is _aten.linear and not args[0].is_contiguous():
                self._record("clone", 0, 0, args[:1], args[:1])
            self._record(packet.__name__, *_work(packet, args, kwargs, result), read, written)
        return result

    def _record(
        self, name: str, macs: int, activations: int, read: Sequence[Tensor], written: Any
    ) -> None:
        moved = _bytes(read) + _bytes(written)
        operands = _operands(read), _operands(written)
        self.launched.append(Operator(name, macs, activations, moved, *operands))


def _shaped(packet: Any, args: tuple[Any, ...], read: Sequence[Tensor]) -> Tensor | None:
    """Makes the result of frequent operators, for which PyTorch takes much longer."""
    x = read[0] if read else None
    if x is None or any(other.dtype != x.dtype for other in read):
        return None
    if packet is _aten.linear:
        return x.new_empty(*x.shape[:-1], len(args[1]))
    if packet is _aten.layer_norm:
        return x.new_empty(x.shape)
    if packet in _POINTWISE and x.is_floating_point():
        likes = [other for other in read if other.shape == x.shape]
        smaller = torch.broadcast_shapes(*(other.shape for other in read)) == x.shape
        if smaller and all(other.stride() == x.stride() for other in likes):
            return torch.empty_like(x)
    return None


def _work(packet: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> tuple[int, int]:
    """Counts multiply-adds and activations."""
    if packet in _NORMS:
        return 5 * args[0].numel(), 0  # as fvcore counts
    if packet in (_aten.linear, _aten.conv1d, _aten.conv2d):
        return result.numel() * math.prod(args[1].shape[1:]), result.numel()
    if packet is _aten.scaled_dot_product_attention:
        (*queries, channels), keys = args[0].shape, args[1].shape[-2]
        scores = math.prod(queries) * keys
        return scores * (channels + args[2].shape[-1]), scores + result.numel()
    if packet in flop_registry:
        flops = flop_registry[packet](*args, **kwargs, out_val=result)
        return int(flops) // 2, _tensors(result)[0].numel()
    return 0, 0


def _operands(tensors: Iterable[Tensor]) -> tuple[Operand, ...]:
    return tuple(Operand(_storage(x), tuple(x.shape)) for x in tensors)


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
