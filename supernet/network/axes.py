"""Named axes: how the weights of a smaller module lie inside those of a larger one.

A static module declares, for each parameter, what its dimensions are made of; one generic
function then cuts any smaller configuration out of the shared weights:

    view as named axes → narrow each axis → flatten to the static shape

A dimension is a name (keep the first n), a number (fixed), ``Centre`` (keep the middle n),
``Product`` (view, narrow each factor, flatten) or ``Concat`` (narrow each part). Biases declare
the same axis as the rows of their weight, so the two can never be cut differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Centre:
    """Keep the middle n of the named size: kernels, relative-position tables."""

    name: str


@dataclass(frozen=True)
class Product:
    """A flattened product of axes, as the rows of a fused qkv: (3, heads, head_dim)."""

    factors: tuple[Axis, ...]

    def __init__(self, *factors: Axis) -> None:
        object.__setattr__(self, "factors", factors)


@dataclass(frozen=True)
class Concat:
    """Axes one after the other, as the outputs of a projection that is split afterwards."""

    parts: tuple[Axis, ...]

    def __init__(self, *parts: Axis) -> None:
        object.__setattr__(self, "parts", parts)


Axis: TypeAlias = str | int | Centre | Product | Concat
Axes: TypeAlias = tuple[Axis, ...]


class StaticModule(nn.Module):
    """A plain fixed network module that declares its axes and its costs.

    Subclasses are written as for a fixed network and hold no buffers: constants are made from
    the input's shape, so that a module on the meta device can serve as a template.
    """

    def axes(self) -> dict[str, Axes]:
        """For every parameter by name, one axis per dimension."""
        raise NotImplementedError

    def sizes(self) -> dict[str, int]:
        """The value of every name used in ``axes``."""
        raise NotImplementedError

    def macs(self, size: int) -> int:
        """Multiply-adds of convolutions, linear layers and matrix products for one image.

        ``size`` is the side of the square input map (of the image, for a stem).
        """
        raise NotImplementedError

    def activations(self, size: int) -> int:
        """Output elements of the same operators for one image, as fvcore counts them."""
        raise NotImplementedError


def extent(axis: Axis, sizes: Sizes) -> int:
    """Length of a dimension made of ``axis``."""
    match axis:
        case int():
            return axis
        case str():
            return sizes[axis]
        case Centre(name):
            return sizes[name]
        case Product(factors):
            return math.prod(extent(factor, sizes) for factor in factors)
        case Concat(parts):
            return sum(extent(part, sizes) for part in parts)


def shape(axes: Axes, sizes: Sizes) -> tuple[int, ...]:
    """Shape of a parameter with ``axes``."""
    return tuple(extent(axis, sizes) for axis in axes)


@dataclass(frozen=True)
class Box:
    """A block of entries that a small parameter and the large one share, as strided views."""

    sizes: tuple[int, ...]
    large_strides: tuple[int, ...]
    large_offset: int
    small_strides: tuple[int, ...]
    small_offset: int


def boxes(axes: Axes, large: Sizes, small: Sizes) -> list[Box]:
    """Where the entries of a small parameter lie in the large one, both contiguous.

    One box unless an axis is a concatenation, whose parts each add one.
    """
    return [box for box in _boxes(axes, large, small) if math.prod(box.sizes) > 0]


def _boxes(axes: Sequence[Axis], large: Sizes, small: Sizes) -> list[Box]:
    result = [Box((), (), 0, (), 0)]
    for axis in axes:
        n_large, n_small = extent(axis, large), extent(axis, small)
        result = [
            Box(
                outer.sizes + inner.sizes,
                tuple(s * n_large for s in outer.large_strides) + inner.large_strides,
                outer.large_offset * n_large + inner.large_offset,
                tuple(s * n_small for s in outer.small_strides) + inner.small_strides,
                outer.small_offset * n_small + inner.small_offset,
            )
            for outer in result
            for inner in _axis_boxes(axis, large, small)
        ]
    return result


def _axis_boxes(axis: Axis, large: Sizes, small: Sizes) -> list[Box]:
    match axis:
        case int():
            return [Box((axis,), (1,), 0, (1,), 0)]
        case str():
            return [Box((small[axis],), (1,), 0, (1,), 0)]
        case Centre(name):
            return [Box((small[name],), (1,), (large[name] - small[name]) // 2, (1,), 0)]
        case Product(factors):
            return _boxes(factors, large, small)
        case Concat(parts):
            result, at_large, at_small = [], 0, 0
            for part in parts:
                for box in _axis_boxes(part, large, small):
                    large_offset = box.large_offset + at_large
                    small_offset = box.small_offset + at_small
                    result.append(
                        replace(box, large_offset=large_offset, small_offset=small_offset)
                    )
                at_large += extent(part, large)
                at_small += extent(part, small)
            return result


@dataclass(frozen=True)
class Slice:
    """How a small parameter of shape ``shape`` lies in a large one.

    ``whole`` is the one box that has the small parameter's very shape, if there is one;
    ``run`` says that it is one contiguous run of the large parameter.
    """

    boxes: tuple[Box, ...]
    shape: tuple[int, ...]
    whole: Box | None
    run: bool

    @classmethod
    def of(cls, axes: Axes, large: Sizes, small: Sizes) -> Slice:
        where, small_shape = tuple(boxes(axes, large, small)), shape(axes, small)
        run = len(where) == 1 and all(
            a == b or size == 1
            for size, a, b in zip(
                where[0].sizes, where[0].large_strides, where[0].small_strides, strict=True
            )
        )
        if run:  # products and all, it is the small shape at an offset
            strides = tuple(math.prod(small_shape[dim + 1 :]) for dim in range(len(small_shape)))
            where = (Box(small_shape, strides, where[0].large_offset, strides, 0),)
        whole = where[0] if len(where) == 1 and where[0].sizes == small_shape else None
        return cls(where, small_shape, whole, run)

    def pairs(self, large: Tensor, small: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of the same entries in both."""
        if self.whole is not None:
            box = self.whole
            yield large.as_strided(box.sizes, box.large_strides, box.large_offset), small
            return
        small = small.contiguous()
        for box in self.boxes:
            yield (
                large.as_strided(box.sizes, box.large_strides, box.large_offset),
                small.as_strided(box.sizes, box.small_strides, box.small_offset),
            )


class _Cut(torch.autograd.Function):
    """Small parameters out of large ones, all in one node of the graph.

    What is one contiguous run of a large parameter is a view of it, the rest is copied: kernels
    then see the very layout of an extracted network.

    Gradients go straight into ``.grad`` of the large ones: a gradient as large as the shared
    weight for every subnet that uses a corner of it would cost more memory traffic than the
    subnet itself.
    """

    @staticmethod
    def forward(ctx: Any, slices: Sequence[Slice], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.slices, ctx.weights = slices, weights
        result: list[Tensor] = []
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        for item, weight in zip(slices, weights, strict=True):
            if item.run:
                box = item.boxes[0]
                result.append(weight.as_strided(box.sizes, box.large_strides, box.large_offset))
                continue
            result.append(weight.new_empty(item.shape))
            for source, target in item.pairs(weight, result[-1]):
                sources.append(source)
                targets.append(target)
        if sources:
            torch._foreach_copy_(targets, sources)
        return tuple(result)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        for item, weight, grad in zip(ctx.slices, ctx.weights, grads, strict=True):
            if grad is None or not weight.requires_grad:
                continue
            total = weight.grad
            if total is None:
                total = torch.zeros_like(weight, memory_format=torch.contiguous_format)
                weight.grad = total
            for target, source in item.pairs(total, grad):
                sources.append(source)
                targets.append(target)
        if sources:
            torch._foreach_add_(targets, sources)
        return (None,) * (1 + len(grads))


def cut(weights: Sequence[Tensor], slices: Sequence[Slice]) -> tuple[Tensor, ...]:
    """The small parameters that lie in ``weights``, contiguous; not to be changed in place.

    In a backward pass their gradients are added to ``.grad`` of the large weights directly, as
    ``Tensor.backward`` would; ``torch.autograd.grad`` does not see through it.
    """
    return _Cut.apply(slices, *weights) if weights else ()


def names(axis: Axis) -> set[str]:
    """Names that ``axis`` is made of."""
    match axis:
        case int():
            return set()
        case str():
            return {axis}
        case Centre(name):
            return {name}
        case Product(items) | Concat(items):
            return set().union(*(names(item) for item in items))


def permute(
    parameters: Mapping[str, Tensor],
    axes: Mapping[str, Axes],
    sizes: Sizes,
    name: str,
    order: Sequence[int],
) -> dict[str, Tensor]:
    """Re-order the named axis in every parameter that has it.

    Sorting channels by importance this way keeps a network's function as long as every
    parameter along the axis is given. Parameters without the axis are returned as they are.
    """
    if sorted(order) != list(range(sizes[name])):
        raise ValueError(
            f"{list(order)} is not a permutation of the {sizes[name]} entries of {name}"
        )

    def positions(axis: Axis) -> list[int]:
        match axis:
            case str() if axis == name:
                return list(order)
            case Product(factors):
                kept = [0]
                for factor in factors:
                    n = extent(factor, sizes)
                    kept = [k * n + i for k in kept for i in positions(factor)]
                return kept
            case Concat(parts):
                result, start = [], 0
                for part in parts:
                    result += [start + i for i in positions(part)]
                    start += extent(part, sizes)
                return result
            case _:
                return list(range(extent(axis, sizes)))

    result = {}
    for key, tensor in parameters.items():
        for dim, axis in enumerate(axes[key]):
            if name in names(axis):
                chosen = torch.tensor(positions(axis), device=tensor.device)
                tensor = tensor.index_select(dim, chosen)
        result[key] = tensor
    return result


def prefixed(prefix: str, axes: Mapping[str, Axes]) -> dict[str, Axes]:
    """Axes of a child module under its parent's parameter names."""
    return {f"{prefix}.{key}": value for key, value in axes.items()}
