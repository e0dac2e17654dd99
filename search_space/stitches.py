"""Where trained networks of one family can be stitched together: all routes through them.

A stitch is a linear map from what one network, the front, has after a block to what another, the
end, has before one of its blocks (Pan et al., "Stitchable neural networks", CVPR 2023, and
"Stitched ViTs are flexible vision backbones", ECCV 2024). A route is a network that begins in one
parent and goes over to others at stitches. Parents are numbered from small to large, and here they
are nothing but the numbers of blocks of their stages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from search_space.errors import UsageError

Depths = Sequence[Sequence[int]]
"""Of each parent the numbers of blocks of its stages."""
Pair = tuple[int, int, int]
"""The front's last block, the end's first, and the number of the layer that they share."""


@dataclass(frozen=True, order=True)
class Stitch:
    """A place where a route goes over from one parent to another, within a stage.

    Attributes:
        front: The parent that it leaves.
        end: The parent that it enters.
        stage: Index of the stage, the same in both.
        leave: Index of the last block of the front that runs.
        enter: Index of the first block of the end that runs.
        layer: Stitches of the same parents and stage with the same number share one layer.
    """

    front: int
    end: int
    stage: int
    leave: int
    enter: int
    layer: int

    @property
    def shared(self) -> tuple[int, int, int, int]:
        """What names the layer: parents, stage and number."""
        return self.front, self.end, self.stage, self.layer


@dataclass(frozen=True)
class Route:
    """A network through one or more parents.

    Attributes:
        parent: The one whose stem it has.
        stitches: In order; without any it is the parent itself.
    """

    parent: int
    stitches: tuple[Stitch, ...] = ()

    @property
    def parents(self) -> tuple[int, ...]:
        """The parents in the order in which images pass them."""
        return (self.parent, *(stitch.end for stitch in self.stitches))

    def __str__(self) -> str:
        steps = (f"{s.stage}.{s.leave} > {s.end}: {s.stage}.{s.enter}" for s in self.stitches)
        return " ".join((f"{self.parent}:", *steps))


@dataclass(frozen=True)
class Run:
    """Blocks of one stage of one parent that a route passes one after the other.

    Attributes:
        start: Index of the first.
        stop: Index after the last.
        stitch: By which it is entered; None where the parent's own stage begins.
    """

    parent: int
    stage: int
    start: int
    stop: int
    stitch: Stitch | None


def runs(depths: Depths, route: Route) -> Iterator[Run]:
    """Yields what a route consists of, in the order in which images pass it.

    Raises:
        UsageError: A stitch leads from or to where there is no block, or backwards.
    """
    parent, stage, start, entered = route.parent, 0, 0, None
    for stitch in route.stitches:
        _check(depths, parent, stage, start, stitch)
        for passed in range(stage, stitch.stage):
            yield Run(parent, passed, start, depths[parent][passed], entered)
            start, entered = 0, None
        yield Run(parent, stitch.stage, start, stitch.leave + 1, entered)
        parent, stage, start, entered = stitch.end, stitch.stage, stitch.enter, stitch
    for rest in range(stage, len(depths[parent])):
        yield Run(parent, rest, start, depths[parent][rest], entered)
        start, entered = 0, None


def _check(depths: Depths, parent: int, stage: int, start: int, stitch: Stitch) -> None:
    there = 0 <= stitch.end < len(depths) and stage <= stitch.stage < len(depths[parent])
    first = start if stitch.stage == stage else 0
    if (
        stitch.front != parent
        or not there
        or not first <= stitch.leave < depths[parent][stitch.stage]
        or not 0 <= stitch.enter < depths[stitch.end][stitch.stage]
    ):
        raise UsageError(
            f"{stitch} does not go on from block {start} of stage {stage} of parent {parent}: the "
            f"parents' stages have {[list(each) for each in depths]} blocks. It must leave that "
            "parent there or later, within a stage, and enter a block of the same stage."
        )


# Pairs of blocks within a stage -------------------------------------------------------------------


def paired(depth: int, window: int = 2, stride: int = 1, *, onwards: bool = False) -> list[Pair]:
    """Lists the pairs of blocks of two networks of one depth that a sliding window sees.

    All new pairs of a window share one layer, ``depth − window + 1`` of them where the stride is 1.

    Args:
        depth: Blocks of both.
        window: Blocks that it covers.
        stride: By which it slides.
        onwards: Leaves out pairs by which a route has more blocks than its longer parent, as the
            first edition does in networks of several stages.
    """
    found: dict[tuple[int, int], int] = {}
    layer = 0
    for first in range(0, depth, stride):
        seen = range(first, min(first + window, depth))
        new = [
            pair
            for pair in itertools.product(seen, seen)
            if pair not in found and (pair[0] < pair[1] or not onwards)
        ]
        found |= dict.fromkeys(new, layer)
        layer += bool(new)
    return [(leave, enter, number) for (leave, enter), number in found.items()]


def unpaired(front: int, end: int) -> list[Pair]:
    """Lists pairs of blocks of a network and a deeper one, by nearest neighbours.

    Block m of the deeper one belongs to ⌊m · front / end⌋ of the other, and all pairs of a block of
    the front share one layer.
    """
    nearest = [(m * front // end, m) for m in range(end)]
    return [(leave, enter, leave) for leave, enter in sorted(nearest) if leave < enter]


def _aligned(small: int, large: int) -> list[tuple[int, int]]:
    """Numbers of blocks after which two networks have come equally far, without the ends."""
    return [(done, done * large // small) for done in range(1, small)]


def _towards(front: int, end: int) -> list[Pair]:
    """Pairs from one network to another at equally many parts of both."""
    if front <= end:
        return [(a - 1, b, i) for i, (a, b) in enumerate(_aligned(front, end))]
    return [(b - 1, a, i) for i, (a, b) in enumerate(_aligned(end, front))]


# Routes -------------------------------------------------------------------------------------------


def one_way(depths: Depths, window: int = 2, stride: int = 1) -> list[Route]:
    """Lists the parents and the routes of one stitch from each to the next larger one.

    This is the first edition: 71 networks of three of 12 blocks, and 41 of Swin-T, S and B.
    Networks of several stages are stitched in all but the last.

    Args:
        depths: Blocks of the parents' stages, from the smallest parent to the largest.
        window: As for ``paired``, for stages of equal depth.
        stride: Likewise.

    Raises:
        UsageError: There are less than two parents, or their numbers of stages differ.
    """
    stages = _stages(depths)
    result = [Route(parent) for parent in range(len(depths))]
    for front, stage in itertools.product(range(len(depths) - 1), stages):
        a, b = depths[front][stage], depths[front + 1][stage]
        if a == b:
            pairs = paired(a, window, stride, onwards=len(depths[0]) > 1)
        else:
            pairs = unpaired(a, b) if a < b else _towards(a, b)
        result += [Route(front, (Stitch(front, front + 1, stage, *pair),)) for pair in pairs]
    return result


def two_way(depths: Depths) -> list[Route]:
    """Lists the parents, and routes both ways between neighbours, there and back included.

    This is the second edition: 134 networks of two of 12 and 24 blocks. Stitches are where both
    parents have come equally far, so that a second one may follow wherever it comes later.

    Args:
        depths: As for ``one_way``.

    Raises:
        UsageError: There are less than two parents, or their numbers of stages differ.
    """
    stages = _stages(depths)
    result = [Route(parent) for parent in range(len(depths))]
    for small in range(len(depths) - 1):
        ways = [
            [
                Stitch(front, end, stage, *pair)
                for stage in stages
                for pair in _towards(depths[front][stage], depths[end][stage])
            ]
            for front, end in ((small, small + 1), (small + 1, small))
        ]
        result += [Route(way[0].front, (stitch,)) for way in ways if way for stitch in way]
        for there, back in (ways, ways[::-1]):
            result += [
                Route(first.front, (first, second))
                for first, second in itertools.product(there, back)
                if (second.stage, second.leave) >= (first.stage, first.enter)
            ]
    return result


def _stages(depths: Depths) -> range:
    """The stages in which parents are stitched."""
    counts = {len(each) for each in depths}
    if len(depths) < 2 or len(counts) != 1:
        raise UsageError(
            f"networks of {[list(each) for each in depths]} blocks by stage cannot be stitched: "
            "give two or more, all with the same number of stages."
        )
    return range(max(1, counts.pop() - 1))
