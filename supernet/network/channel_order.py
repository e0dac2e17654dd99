"""Sorting of the supernet's channels by importance, so that narrow subnets keep the best.

A narrow subnet has the first channels of each axis. Before widths shrink (Cai et al., "Once-for-
all", 2020) channels are re-ordered by the L1 norm of the weights that write or read them: along
the residual stream of each stage, the hidden units of each MLP, the heads of each attention and
whatever else a mixer has. The largest subnets compute what they did.

Axes are named within a module, which declares beside them which may be re-ordered, and which of
them only together (``permutable``). An axis that is not declared stays as it is. Where
configurations of a mixer tie other axes, or use fewer entries at the full width (a larger head_dim
has fewer heads), entries move only among those that all of them treat alike.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_space.blocks import BLOCKS, Block
from search_space.components import (
    ModuleSpec,
    block_spec,
    head_spec,
    stem_spec,
    transition_spec,
)
from search_space.space import SearchSpace
from supernet.network.axes import Axis, Concat, Product, entries, permute
from supernet.network.supernet import Supernet, shared_name
from supernet.network.templates import template

Key = tuple[str, str]
"""An axis of the supernet: where its name is known (a stage, a block, a mixer), and the name."""


@dataclass(frozen=True)
class ChannelGroup:
    """Entries ``start`` to ``stop`` of ``axes``, which are the same channels in all of them."""

    axes: tuple[Key, ...]
    start: int
    stop: int


class ChannelLayout:
    """The channels of a supernet that may change places.

    Attributes:
        groups: All of them, by place.
        uses: For each shared parameter, its axes by their names in the module.
    """

    def __init__(self, supernet: Supernet) -> None:
        self.supernet = supernet
        self.uses: dict[str, dict[str, Key]] = defaultdict(dict)
        extents: dict[Key, set[int]] = defaultdict(set)
        ties: list[tuple[Key, Key, int]] = []
        fixed: set[Key] = set()
        for module in _largest_modules(supernet.space, supernet.num_classes):
            keys = module.keys()
            for shared, local in module.shared_axes():
                self.uses[shared].update({name: keys[name] for name in local})
            if not module.largest:
                continue
            sizes, sets = template(module.spec).sizes(), template(module.spec).permutable()
            free = set().union(*sets)
            for together in sets:
                first, *others = sorted(together)
                assert all(sizes[name] == sizes[first] for name in others)
                ties += [(keys[first], keys[name], sizes[name]) for name in others]
            for name, key in keys.items():
                if sizes[name] > 0:
                    extents[key].add(sizes[name])
                    if name not in free:
                        fixed.add(key)
        self.groups = list(_groups(extents, ties, fixed))

    def importance(self, group: ChannelGroup) -> Tensor:
        """Sums the weights that write or read each channel: (stop − start,), float64.

        Weights are parameters of two dimensions or more; all that have the axis are summed.
        """
        parameters = dict(self.supernet.named_parameters())
        total = torch.zeros(group.stop - group.start, dtype=torch.float64)
        for shared, uses in self.uses.items():
            weight = parameters[shared].detach()
            for name, key in uses.items():
                if weight.ndim < 2 or key not in group.axes:
                    continue
                axes, sizes = self.supernet.axes[shared], self.supernet.sizes[shared]
                for dim, axis in enumerate(axes):
                    of = torch.tensor(entries(axis, sizes, name))
                    inside = (of >= group.start) & (of < group.stop)
                    if inside.any():
                        others = [d for d in range(weight.ndim) if d != dim]
                        norms = weight.abs().sum(others, dtype=torch.float64).cpu()
                        total.index_add_(0, of[inside] - group.start, norms[inside])
        return total


@torch.no_grad()
def sort_channels(
    supernet: nn.Module, states: Mapping[str, Mapping[str, Tensor]] | None = None
) -> None:
    """Sorts all channel groups of a ``Supernet`` by falling importance, in place.

    Largest subnets of every mixer keep their function to rounding, smaller ones change theirs.

    Args:
        supernet: The supernet.
        states: Of an optimiser or a moving average, by parameter and name; tensors of the
            parameter's shape are permuted alike. Factored moments have other shapes and stay.
    """
    assert isinstance(supernet, Supernet)
    layout = ChannelLayout(supernet)
    orders: dict[Key, list[int]] = {}
    for group in layout.groups:
        falling = layout.importance(group).argsort(descending=True, stable=True)
        moved = [group.start + entry for entry in falling.tolist()]
        for key in group.axes:
            order = orders.setdefault(key, [])
            assert len(order) == group.start
            order += moved
    for shared, parameter in supernet.named_parameters():
        axes, sizes = supernet.axes[shared], supernet.sizes[shared]
        for tensor in (parameter, *(states or {}).get(shared, {}).values()):
            if tensor.shape != parameter.shape:
                continue
            result: Tensor = tensor
            for name, key in layout.uses[shared].items():
                if key in orders and len(orders[key]) <= sizes[name]:
                    order = [*orders[key], *range(len(orders[key]), sizes[name])]
                    result = permute({shared: result}, {shared: axes}, sizes, name, order)[shared]
            tensor.copy_(result)


# Which axes are the same --------------------------------------------------------------------


@dataclass(frozen=True)
class _Module:
    """A module of a largest subnet, with the beginning of the residual stream that a name is."""

    path: str
    spec: ModuleSpec
    streams: Mapping[str, str]
    largest: bool = True

    def shared_axes(self) -> Iterator[tuple[str, set[str]]]:
        """The shared parameters of the module and the names that their axes have."""
        for name, axes in template(self.spec).axes().items():
            local = set().union(*(_channel_names(axis) for axis in axes))
            yield shared_name(self.path, name, self.spec), local

    def keys(self) -> dict[str, Key]:
        """The axis that each name of the module stands for.

        A name in the own weights of a mixer or of a kind of block is theirs, another the place's.
        """
        result: dict[str, Key] = {}
        options = self.spec.as_dict()
        own = f"{self.path}.{options['style']}", f"{self.path}.mixer.{options.get('mixer')}"
        for shared, local in self.shared_axes():
            scope = next((name for name in own if shared.startswith(f"{name}.")), self.path)
            for name in local:
                stream = self.streams.get(name)
                result[name] = (scope, name) if stream is None else (stream, "dim")
        return result


def _largest_modules(space: SearchSpace, num_classes: int) -> Iterator[_Module]:
    """Modules of the largest subnets: full widths, each sort of block as wide inside as it gets."""
    macro, widths = space.macro, [stage.widths[-1] for stage in space.stages]
    streams = list(_streams(space))
    yield _Module("stem", stem_spec(macro, widths[0]), {"dim": streams[0][0]})
    for i, (stage, stride) in enumerate(zip(space.stages, space.strides, strict=True)):
        before, (into, stream) = space.widths_before[i][-1], streams[i]
        # widest first; where the largest subnet has no transition, others may
        for width, width_in in itertools.product(stage.widths[::-1], space.widths_before[i][::-1]):
            spec = transition_spec(macro, width_in, width, stride)
            if spec is not None and (i or macro.stem_width or stride > 1):
                names = {"dim": into, "out_dim": stream}
                of_largest = (width_in, width) == (before, widths[i])
                yield _Module(f"stages.{i}.downsample", spec, names, of_largest)
                break
        for j, choices in enumerate(stage.positions):
            largest: dict[Block, Block] = {}
            for block in choices:
                best = largest.setdefault(block.without_ratios, block)
                if block.ratios > best.ratios:
                    largest[block.without_ratios] = block
            enters = j == 0 and space.enters_by_block
            entry = (before, stride) if enters else (widths[i], 1)
            for block in largest.values():
                spec = block_spec(macro, widths[i], block, j, *entry)
                if spec is not None:
                    names = {"dim": into if enters else stream, "out_dim": stream}
                    yield _Module(f"stages.{i}.blocks.{j}", spec, names)
    yield _Module("head", head_spec(macro, widths[-1], num_classes), {"dim": streams[-1][1]})


def _streams(space: SearchSpace) -> Iterator[tuple[str, str]]:
    """For each stage the places where the residual streams begin that it reads and writes.

    A stage goes on with the stream before it unless a transition or a block begins another in the
    largest subnet.
    """
    into = "stem"
    for i, (stage, stride) in enumerate(zip(space.stages, space.strides, strict=True)):
        if space.enters_by_block:
            begins = all(BLOCKS[block.kind].strided for block in stage.positions[0])
        else:
            begins = stride > 1 or space.widths_before[i][-1] != stage.widths[-1]
        stream = f"stages.{i}" if begins else into
        yield into, stream
        into = stream


def _groups(
    extents: Mapping[Key, set[int]], ties: list[tuple[Key, Key, int]], fixed: set[Key]
) -> Iterator[ChannelGroup]:
    """Entries that every largest subnet treats alike.

    Axes that are tied anywhere are cut at every extent that one of them has. Of a piece, those
    move together that are tied so far.
    """
    for component in _connected(extents, ((a, b) for a, b, _ in ties)):
        if component & fixed:
            continue
        bounds = sorted({0}.union(*(extents[key] for key in component)))
        for start, stop in itertools.pairwise(bounds):
            alive = [key for key in component if max(extents[key]) > start]
            tied = ((a, b) for a, b, length in ties if a in component and length > start)
            for together in _connected(alive, tied):
                yield ChannelGroup(tuple(sorted(together)), start, stop)


def _connected(keys: Iterable[Key], pairs: Iterable[tuple[Key, Key]]) -> list[set[Key]]:
    """Connected components, in the order of their first keys."""
    of = {key: {key} for key in keys}
    for a, b in pairs:
        if of[a] is not of[b]:
            of[a] |= of[b]
            for key in of[b]:
                of[key] = of[a]
    return list({id(component): component for component in of.values()}.values())


def _channel_names(axis: Axis) -> set[str]:
    """Names of ``axis`` but those that are positions, of which the middle is kept."""
    match axis:
        case str():
            return {axis}
        case Product(items) | Concat(items):
            return set().union(*(_channel_names(item) for item in items))
        case _:
            return set()
