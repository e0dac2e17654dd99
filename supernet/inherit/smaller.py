"""Which modules are smaller copies of which, and cutting them out.

A module is a smaller copy of another if they differ in nothing but numbers of units and sides of
kernels: hidden channels of an MLP or a convolutional block, heads, channels of squeeze-excite. Both
are known by what the module declares (``network.axes``): units are the entries of names that may
be re-ordered, so any of them may be kept; of a kernel the middle is. A larger kernel is the same
one within zeros, and computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from search_space.components import ModuleSpec
from supernet.network.axes import (
    STATISTICS,
    Axes,
    Axis,
    Centre,
    Concat,
    Product,
    StaticModule,
    names,
    take,
)
from supernet.network.templates import template

Kept = Mapping[str, Sequence[int]]
"""By name, the entries that a smaller copy keeps, ascending."""


@dataclass(frozen=True)
class Difference:
    """What makes a module a smaller copy of another.

    Attributes:
        units: Names of which it has fewer entries, in the sets that only go together.
        kernels: Names of kernels that have another side.
        same_units: The spec of the larger module with the smaller one's kernels.
    """

    units: tuple[frozenset[str], ...]
    kernels: frozenset[str]
    same_units: ModuleSpec


def difference(spec: ModuleSpec, of: ModuleSpec) -> Difference | None:
    """Returns what makes ``spec`` a smaller copy of ``of``; None where it is none.

    Options of the two may differ only if the module's sizes say so: another activation makes
    another module, and so does a kernel without weights.
    """
    small, large = template(spec), template(of)
    before, after = large.sizes(), small.sizes()
    if small.axes() != large.axes() or before.keys() != after.keys():
        return None
    changed = {name for name, size in before.items() if size != after[name]}
    sets = tuple(names for names in inner_units(large) if names & changed)
    kernels = frozenset(changed - set().union(*sets))
    if any(after[name] >= before[name] for names in sets for name in names):
        return None
    if not all(_is_odd_middle(large, name, before[name], after[name]) for name in kernels):
        return None
    options, theirs = dict(_flat(spec)), dict(_flat(of))
    same_units = theirs
    for key in {*options, *theirs}:
        if options.get(key) == theirs.get(key):
            continue
        alone = template(_spec(spec.kind, _replaced(theirs, key, options))).sizes()
        says = {name for name, size in before.items() if size != alone.get(name)}
        if not says:
            return None
        if says <= kernels:
            same_units = _replaced(same_units, key, options)
    return Difference(sets, kernels, _spec(spec.kind, same_units))


def cut(large: StaticModule, small: StaticModule, kept: Kept | None = None) -> None:
    """Fills a smaller copy with the larger module's weights and averages of batch norms.

    Args:
        large: The module.
        small: Its smaller copy, of which all parameters and averages are set.
        kept: Of each name of which it has fewer units, the entries that it keeps.
    """
    axes = large.axes()
    kept = with_middles(large, small, kept or {})
    state = small.state_dict()
    with torch.no_grad():
        for name, value in large.state_dict().items():
            prefix, _, last = name.rpartition(".")
            of = axes[f"{prefix}.weight" if last in STATISTICS else name]
            value = take(value, of, large.sizes(), kept)
            state[name].copy_(_within_zeros(value, of, state[name]))


def with_middles(large: StaticModule, small: StaticModule, kept: Kept) -> dict[str, Sequence[int]]:
    """Adds to what units are kept the middle of each kernel that is smaller."""
    before, after = large.sizes(), small.sizes()
    result = dict(kept)
    for axes in large.axes().values():
        for name in {name for axis in axes for name in centres(axis)}:
            if after[name] < before[name]:
                start = (before[name] - after[name]) // 2
                result[name] = range(start, start + after[name])
    return result


def inner_units(module: StaticModule) -> list[frozenset[str]]:
    """Lists the sets of names inside a module of which any entries may be kept, together."""
    return [names for names in module.permutable() if not names & {"dim", "out_dim"}]


def _within_zeros(value: Tensor, axes: Axes, target: Tensor) -> Tensor:
    """Pads larger kernels."""
    margins = [
        (there - here) // 2 if isinstance(axis, Centre) else 0
        for axis, here, there in zip(axes, value.shape, target.shape, strict=True)
    ]
    return F.pad(value, [m for margin in reversed(margins) for m in (margin, margin)])


def _is_odd_middle(module: StaticModule, name: str, before: int, after: int) -> bool:
    """Whether a name is a kernel or table of which the middle is kept, or may be put into zeros."""
    used = [axis for axes in module.axes().values() for axis in axes if name in names(axis)]
    if not used or before % 2 == 0 or after % 2 == 0:
        return False
    if after > before:
        return all(isinstance(axis, Centre) for axis in used)
    return all(name in centres(axis) for axis in used)


def centres(axis: Axis) -> set[str]:
    """Names of an axis of which the middle is kept."""
    match axis:
        case Centre(name):
            return {name}
        case Product(parts) | Concat(parts):
            return set().union(*(centres(part) for part in parts))
        case _:
            return set()


Key = tuple[str, ...]


def _flat(spec: ModuleSpec) -> Iterator[tuple[Key, Any]]:
    """The options of a spec, those of its mixer one by one."""
    for name, value in spec.options:
        if isinstance(value, tuple):
            yield (name,), ()
            yield from (((name, key), inner) for key, inner in value)
        else:
            yield (name,), value


def _replaced(options: Mapping[Key, Any], key: Key, by: Mapping[Key, Any]) -> dict[Key, Any]:
    """Options with one of others; those that have their default may be left out."""
    rest = {name: value for name, value in options.items() if name != key}
    return {**rest, key: by[key]} if key in by else rest


def _spec(kind: str, flat: Mapping[Key, Any]) -> ModuleSpec:
    """The spec of flat options."""
    options = {key[0]: value for key, value in flat.items() if len(key) == 1}
    for name in {key[0] for key in flat if len(key) > 1}:
        inner = {key[1]: value for key, value in flat.items() if key[0] == name and len(key) > 1}
        options[name] = tuple(sorted(inner.items()))
    return ModuleSpec.of(kind, **options)
