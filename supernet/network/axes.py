"""Named axes: how the weights of a smaller module lie inside those of a larger one.

A static module declares, for each parameter, what its dimensions are made of. A dimension is a name
(keep the first n), a number (fixed), ``Centre`` (keep the middle n), ``Product`` (view, narrow each
factor, flatten) or ``Concat`` (narrow each part). ``slices`` cuts any smaller configuration out of
shared weights by that alone. Biases declare the same axis as the rows of their weight, so the two
can never be cut differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

Sizes = Mapping[str, int]
STATISTICS = ("running_mean", "running_var")  # buffers of batch norms


@dataclass(frozen=True)
class Centre:
    """A named size of which the middle n are kept: kernels, relative-position tables."""

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
    """A plain fixed network module that declares its axes.

    Subclasses are written as for a fixed network, initialise themselves in their constructor, and
    hold no buffers but the averages of batch norms: constants are made from the input's shape, so
    that a module on the meta device can serve as a template. In training, a residual branch is
    dropped with probability ``drop_path_rate``, which whoever calls the module sets.

    Example:
        A layer of which any number of channels and any odd kernel can be cut out of a larger one::

            class Depthwise(StaticModule):
                def __init__(self, dim: int, kernel: int) -> None:
                    super().__init__()
                    self.dim, self.kernel = dim, kernel
                    self.taps = nn.Parameter(torch.zeros(dim, 1, kernel, kernel))

                def axes(self) -> dict[str, Axes]:
                    return {"taps": ("dim", 1, Centre("kernel"), Centre("kernel"))}

                def sizes(self) -> dict[str, int]:
                    return {"dim": self.dim, "kernel": self.kernel}
    """

    drop_path_rate: float = 0.0

    def axes(self) -> dict[str, Axes]:
        """Returns one axis per dimension for every parameter by name."""
        raise NotImplementedError

    def sizes(self) -> dict[str, int]:
        """Returns the value of every name used in ``axes``."""
        raise NotImplementedError

    def permutable(self) -> tuple[frozenset[str], ...]:
        """Returns disjoint sets of names in ``axes`` whose entries may be re-ordered, each as one.

        Whatever the order, the module computes the same, but for ``dim`` and ``out_dim``, whose
        order is that of the channels that it reads and writes. None unless declared.
        """
        return ()


def extent(axis: Axis, sizes: Sizes) -> int:
    """Returns the length of a dimension made of ``axis``."""
    match axis:
        case int():
            return axis
        case (str() as name) | Centre(name):
            return sizes[name]
        case Product(factors):
            return math.prod(extent(factor, sizes) for factor in factors)
        case Concat(parts):
            return sum(extent(part, sizes) for part in parts)


def shape(axes: Axes, sizes: Sizes) -> tuple[int, ...]:
    """Returns the shape of a parameter with ``axes``."""
    return tuple(extent(axis, sizes) for axis in axes)


def names(axis: Axis) -> set[str]:
    """Returns the names that ``axis`` is made of."""
    match axis:
        case int():
            return set()
        case (str() as name) | Centre(name):
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
    """Re-orders a named axis in every parameter that has it.

    Sorting channels by importance this way keeps a network's function as long as every
    parameter along the axis is among them.

    Args:
        parameters: Tensors by name.
        axes: Of each parameter.
        sizes: Of the names in the axes.
        name: The axis to re-order.
        order: For each new entry, the old one that it has.

    Returns:
        All parameters; those without the axis are the same tensors.

    Raises:
        ValueError: ``order`` is no permutation of the axis' entries.
    """
    if sorted(order) != list(range(sizes[name])):
        raise ValueError(
            f"{list(order)} is not a permutation of the {sizes[name]} entries of {name}"
        )
    return {
        key: take(tensor, axes[key], sizes, {name: order}) for key, tensor in parameters.items()
    }


def take(tensor: Tensor, axes: Axes, sizes: Sizes, kept: Mapping[str, Sequence[int]]) -> Tensor:
    """Returns the entries of a parameter that are left when names keep some of theirs.

    Args:
        tensor: The parameter.
        axes: Of its dimensions.
        sizes: Of the names in the axes.
        kept: By name, the entries that it keeps, in their new order; all of other names.

    Returns:
        A new tensor, or the same one where none of its names is among them.
    """
    for dim, axis in enumerate(axes):
        if not names(axis).isdisjoint(kept):
            chosen = torch.tensor(positions(axis, sizes, kept), device=tensor.device)
            tensor = tensor.index_select(dim, chosen)
    return tensor


def positions(axis: Axis, sizes: Sizes, kept: Mapping[str, Sequence[int]]) -> list[int]:
    """Returns the positions of a dimension that are left, as ``take`` keeps them."""
    match axis:
        case (str() as name) | Centre(name) if name in kept:
            return list(kept[name])
        case Product(factors):
            result = [0]
            for factor in factors:
                n = extent(factor, sizes)
                inner = positions(factor, sizes, kept)
                result = [outer * n + i for outer in result for i in inner]
            return result
        case Concat(parts):
            result, start = [], 0
            for part in parts:
                result += [start + i for i in positions(part, sizes, kept)]
                start += extent(part, sizes)
            return result
        case _:
            return list(range(extent(axis, sizes)))


def entries(axis: Axis, sizes: Sizes, name: str) -> list[int]:
    """Returns the entry of ``name`` that each position of a dimension belongs to, −1 for none."""
    match axis:
        case str() if axis == name:
            return list(range(sizes[name]))
        case Product(factors):
            result = [-1]
            for factor in factors:
                inner = entries(factor, sizes, name)
                result = [max(outer, entry) for outer in result for entry in inner]
            return result
        case Concat(parts):
            return [entry for part in parts for entry in entries(part, sizes, name)]
        case _:
            return [-1] * extent(axis, sizes)


def renamed(axis: Axis, rename: Callable[[str], str]) -> Axis:
    """Returns an axis with other names in the place of its own."""
    match axis:
        case int():
            return axis
        case str():
            return rename(axis)
        case Centre(name):
            return Centre(rename(name))
        case Product(factors):
            return Product(*(renamed(factor, rename) for factor in factors))
        case Concat(parts):
            return Concat(*(renamed(part, rename) for part in parts))


def prefixed(prefix: str, axes: Mapping[str, Axes]) -> dict[str, Axes]:
    """Returns a child module's axes under its parent's parameter names."""
    return {f"{prefix}.{key}": value for key, value in axes.items()}


def problem_of(module: StaticModule) -> str | None:
    """Says what a module declares wrongly, and what to do, or returns None."""
    axes, sizes = module.axes(), module.sizes()
    used = {name for row in axes.values() for axis in row for name in names(axis)}
    if not used <= sizes.keys():
        return f"axes() has {', '.join(sorted(used - sizes.keys()))}, but sizes() does not; add it"
    for name, parameter in module.named_parameters():
        declared = shape(axes[name], sizes) if name in axes else None
        if declared != parameter.shape:
            return (
                f"parameter {name} has shape {tuple(parameter.shape)}, but axes() and sizes() say "
                f"{declared}; declare every parameter with its dimensions (the name 'hidden' in a "
                "mixer is that of the block's MLP)"
            )
    if unknown := axes.keys() - dict(module.named_parameters()):
        return f"axes() has {min(unknown)}, which is no parameter; leave it out"
    if any(not name.endswith(STATISTICS) for name, _ in module.named_buffers()):
        return "it holds buffers; make constants from the input's shape instead"
    for together in module.permutable():
        if not together <= used or len({sizes[name] for name in together}) > 1:
            return f"permutable() joins {sorted(together)}, which are no axes of one size"
    return None
