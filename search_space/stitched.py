"""Routes through networks of one family as architectures of their own.

Where the width changes, a stage is split in two at the stitch: the second one has stride 1, and a
linear map leads to its width, ``macro.projection: linear`` or, where blocks are the transitions, a
block ``projection``. Where it does not, the stage goes on after such a block. Blocks whose windows
are shifted at every second position keep the parity of theirs, by a skipped one before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from search_space.architecture import Architecture, Stage
from search_space.blocks import PROJECTION, SKIP, Block
from search_space.errors import UsageError
from search_space.macro import BLOCK_TRANSITION, LINEAR, Macro
from search_space.mixers import MIXERS
from search_space.stitches import Route, Run, Stitch, one_way, runs, two_way

Origin = tuple[int, str] | Stitch
"""Where a module comes from: a parent and its path there, or a stitch."""

_OF_STEM = {name for name in Macro.__dataclass_fields__ if name.startswith("stem")}
_FREE = {"layer_scale", "projection"}  # an initial value, and what parents themselves seldom need


@dataclass(frozen=True)
class Stitched:
    """A route through parents as an architecture.

    Attributes:
        architecture: The network.
        origins: Of each of its modules, by path.
    """

    architecture: Architecture
    origins: Mapping[str, Origin]


@dataclass
class _Draft:
    """A stage in the making; ``origins`` are of its blocks, ``entry`` of its transition."""

    width: int
    stride: int | None
    entry: Origin | None
    blocks: list[Block] = field(default_factory=list)
    origins: list[Origin | None] = field(default_factory=list)

    def add(self, block: Block, origin: Origin | None) -> None:
        self.blocks.append(block)
        self.origins.append(origin)


def stitched(parents: Sequence[Architecture], route: Route) -> Stitched:
    """Makes the architecture of a route through parents.

    Example:
        The first block of a stage of one network, then all but the first of a wider one::

            route = Route(0, (Stitch(0, 1, stage=1, leave=0, enter=1, layer=0),))
            stitched([known("swin_t"), known("swin_b")], route).architecture

    Args:
        parents: Architectures of one family.
        route: Which of their blocks it has.

    Raises:
        UsageError: The parents are not of one family, or the route does not lead through them.
    """
    if not all(0 <= parent < len(parents) for parent in route.parents):
        raise UsageError(f"{route} leads through a parent that is none of the {len(parents)}.")
    used = [parents[index] for index in dict.fromkeys(route.parents)]
    for other in used[1:]:
        _check_family(used[0], other)
    first, last = parents[route.parent], parents[route.parents[-1]]
    macro = replace(last.macro, **{name: getattr(first.macro, name) for name in _OF_STEM})
    drafts: list[_Draft] = []
    for run in runs([parent.depths for parent in parents], route):
        _add_run(drafts, parents[run.parent], run, macro)
    if any(isinstance(draft.entry, Stitch) for draft in drafts):
        macro = replace(macro, projection=LINEAR)
        for parent in used:
            _check_projections(parent)
    stages = tuple(Stage(draft.width, tuple(draft.blocks), draft.stride) for draft in drafts)
    architecture = Architecture(macro, first.resolution, stages)
    return Stitched(architecture, dict(_origins(route, drafts)))


def routes_of(parents: Sequence[Architecture]) -> dict[Architecture, Route]:
    """All networks of one or two stitches between neighbours, of both editions, and the parents.

    Args:
        parents: Architectures of one family, from the smallest to the largest.

    Raises:
        UsageError: They are of different families, or one is there twice.
    """
    for other in parents[1:]:
        _check_family(parents[0], other)
    if len(set(parents)) < len(parents):
        raise UsageError(
            "one network is there twice, and between equal ones there is nothing to find; give "
            "networks of different width or depth."
        )
    depths = [parent.depths for parent in parents]
    found: dict[Architecture, Route] = {}
    for route in dict.fromkeys((*one_way(depths), *two_way(depths))):
        found.setdefault(stitched(parents, route).architecture, route)
    return found


def _add_run(drafts: list[_Draft], parent: Architecture, run: Run, macro: Macro) -> None:
    stage = parent.stages[run.stage]
    if run.stitch is None:
        entry = run.parent, f"stages.{run.stage}.downsample"
        drafts.append(_Draft(stage.width, parent.strides[run.stage], entry))
    else:
        by_block = macro.downsample == BLOCK_TRANSITION
        if by_block and run.start == 0:
            raise UsageError(
                f"{run.stitch} enters a stage whose first block is its transition; enter a later "
                "block."
            )
        widens = drafts[-1].width != stage.width
        if widens:
            drafts.append(_Draft(stage.width, 1, None if by_block else run.stitch))
        if by_block or not widens:
            drafts[-1].add(Block.of(PROJECTION), run.stitch)
        blocks = stage.blocks[run.start : run.stop]
        alternate = any(b.mixer is not None and MIXERS[b.mixer.name].alternates for b in blocks)
        if alternate and (len(drafts[-1].blocks) - run.start) % 2 == 1:
            drafts[-1].add(Block.of(SKIP), None)
    for index in range(run.start, run.stop):
        drafts[-1].add(stage.blocks[index], (run.parent, f"stages.{run.stage}.blocks.{index}"))


def _origins(route: Route, drafts: Sequence[_Draft]) -> Iterator[tuple[str, Origin]]:
    yield "stem", (route.parent, "stem")
    for i, draft in enumerate(drafts):
        if draft.entry is not None:
            yield f"stages.{i}.downsample", draft.entry
        for j, (block, origin) in enumerate(zip(draft.blocks, draft.origins, strict=True)):
            if origin is not None and not block.skipped:
                yield f"stages.{i}.blocks.{j}", origin
    yield "head", (route.parents[-1], "head")


def _check_family(a: Architecture, b: Architecture) -> None:
    """Raises UsageError where maps of two networks cannot take each other's place."""
    of_ends = {name for name in Macro.__dataclass_fields__ if name.startswith("head")}
    names = [item.name for item in fields(Macro)]
    ours, theirs = (
        {
            "resolution": one.resolution,
            "sides of maps": one.sizes,
            "strides": one.strides,
            **{n: getattr(one.macro, n) for n in names if n not in _OF_STEM | of_ends | _FREE},
            "layer_scale": one.macro.layer_scale > 0,
        }
        for one in (a, b)
    )
    different = [
        f"{key} is {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]
    ]
    if different:
        raise UsageError(
            f"{a.digest} and {b.digest} cannot be stitched: {'; '.join(different)}. Give networks "
            "of one family at one resolution."
        )


def _check_projections(parent: Architecture) -> None:
    """Raises UsageError for a network whose own stages of stride 1 have the style's transition."""
    for i, (stride, before) in enumerate(zip(parent.strides, parent.widths_before, strict=True)):
        if stride == 1 and before != parent.widths[i] and parent.macro.projection != LINEAR:
            raise UsageError(
                f"{parent.digest} cannot be stitched to networks of other widths: its stage {i} "
                f"goes from {before} to {parent.widths[i]} channels with stride 1 and a "
                f"{parent.macro.downsample} transition, which would become a linear one."
            )
