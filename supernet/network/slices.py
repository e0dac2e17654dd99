"""Slices: small parameters cut out of large ones, and their gradients put back.

    view as named axes → narrow each axis → flatten to the static shape

Weights and gradients may have any memory layout: views of a flat buffer, channels last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from supernet.network.axes import Axes, Axis, Centre, Concat, Product, Sizes, extent, shape


@dataclass(frozen=True)
class _Run:
    """Entries that a dimension of a large parameter and of a small one share.

    A block of ``sizes``. In the large and in the small parameter its axes take ``steps`` entries
    of the dimension each, from ``starts`` on.
    """

    sizes: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]

    def around(self, inner: _Run, counts: tuple[int, int]) -> _Run:
        """The run of a product of which this is the outer factor; the inner has ``counts``."""
        steps = zip(self.steps, inner.steps, counts, strict=True)
        starts = zip(self.starts, inner.starts, counts, strict=True)
        return _Run(
            self.sizes + inner.sizes,
            tuple((*(step * count for step in outer), *within) for outer, within, count in steps),
            tuple(outer * count + within for outer, within, count in starts),
        )


def _runs(axis: Axis, large: Sizes, small: Sizes) -> list[_Run]:
    """One run, unless the axis is a concatenation, whose parts each add one."""
    match axis:
        case int() | str():
            return [_Run((extent(axis, small),), ((1,), (1,)), (0, 0))]
        case Centre(name):
            return [_Run((small[name],), ((1,), (1,)), ((large[name] - small[name]) // 2, 0))]
        case Product(factors):
            result = [_Run((), ((), ()), (0, 0))]
            for factor in factors:
                counts = extent(factor, large), extent(factor, small)
                inner = _runs(factor, large, small)
                result = [outer.around(run, counts) for outer in result for run in inner]
            return result
        case Concat(parts):
            result, ends = [], (0, 0)
            for part in parts:
                for run in _runs(part, large, small):
                    starts = run.starts[0] + ends[0], run.starts[1] + ends[1]
                    result.append(replace(run, starts=starts))
                ends = ends[0] + extent(part, large), ends[1] + extent(part, small)
            return result


def _strides(sizes: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    return tuple(math.prod(sizes[dim + 1 :]) for dim in range(len(sizes)))


@dataclass(frozen=True)
class _Place:
    """Where a block of entries lies in a tensor of ``shape``, whatever its memory layout.

    Of each dimension the ``steps`` that the block's axes take in it, and the first entry.
    """

    shape: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]

    def view(self, tensor: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """The block in ``tensor``, which may be a view itself, as a view of ``sizes``."""
        plain = tensor.is_contiguous()
        strides, offset = self.contiguous if plain else self._within(tensor.stride())
        return tensor.as_strided(sizes, strides, offset + tensor.storage_offset())

    @cached_property
    def contiguous(self) -> tuple[tuple[int, ...], int]:
        """Strides and offset in a contiguous tensor."""
        return self._within(_strides(self.shape))

    def _within(self, strides: Sequence[int]) -> tuple[tuple[int, ...], int]:
        steps = tuple(
            step * stride
            for steps, stride in zip(self.steps, strides, strict=True)
            for step in steps
        )
        return steps, sum(a * b for a, b in zip(self.starts, strides, strict=True))


@dataclass(frozen=True)
class Slice:
    """The part of a large parameter that is a small one of shape ``shape``.

    Attributes:
        blocks: Sizes of each block of entries, and its places in the large and small parameter.
        shape: Of the small parameter.
        whole: Whether one block has the small parameter's very shape.
        run: Whether it is one contiguous run of a contiguous large parameter.
    """

    blocks: tuple[tuple[tuple[int, ...], _Place, _Place], ...]
    shape: tuple[int, ...]
    whole: bool
    run: bool

    @classmethod
    def of(cls, axes: Axes, large: Sizes, small: Sizes) -> Slice:
        """Finds the part of a parameter with ``axes`` that a module of sizes ``small`` uses."""
        blocks = []
        for runs in itertools.product(*(_runs(axis, large, small) for axis in axes)):
            sizes = tuple(itertools.chain.from_iterable(run.sizes for run in runs))
            if math.prod(sizes) > 0:
                there, here = (
                    _Place(
                        shape(axes, extents),
                        tuple(run.steps[k] for run in runs),
                        tuple(run.starts[k] for run in runs),
                    )
                    for k, extents in enumerate((large, small))
                )
                blocks.append((sizes, there, here))
        single = len(blocks) == 1
        run = single and all(
            size == 1 or there == here
            for size, there, here in zip(
                blocks[0][0], *(place.contiguous[0] for place in blocks[0][1:]), strict=True
            )
        )
        small_shape = shape(axes, small)
        return cls(tuple(blocks), small_shape, single and blocks[0][0] == small_shape, run)

    def view(self, large: Tensor) -> Tensor | None:
        """Returns the small parameter as a contiguous view of the large one, where it is one."""
        if not self.run or not large.is_contiguous():
            return None
        offset = self.blocks[0][1].contiguous[1] + large.storage_offset()
        return large.as_strided(self.shape, self._strides, offset)

    @cached_property
    def _strides(self) -> tuple[int, ...]:
        return _strides(self.shape)

    def pairs(self, large: Tensor, small: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields views of the same entries in both, which may have any strides and offsets."""
        for sizes, there, here in self.blocks:
            yield there.view(large, sizes), small if self.whole else here.view(small, sizes)


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
            view = item.view(weight)
            result.append(weight.new_empty(item.shape) if view is None else view)
            if view is None:
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
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            for target, source in item.pairs(weight.grad, grad):
                sources.append(source)
                targets.append(target)
        if sources:
            torch._foreach_add_(targets, sources)
        return (None,) * (1 + len(grads))


def cut(weights: Sequence[Tensor], slices: Sequence[Slice]) -> tuple[Tensor, ...]:
    """Returns the small parameters that lie in ``weights``, contiguous; not to be changed in place.

    In a backward pass their gradients are added to ``.grad`` of the large weights directly, as
    ``Tensor.backward`` would; ``torch.autograd.grad`` does not see through it.
    """
    return _Cut.apply(slices, *weights) if weights else ()
