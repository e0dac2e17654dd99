"""The space around a network: each block as it is, narrower, with smaller kernels, or left out.

A trained network that is to fit a device keeps most of what it knows if only parts of it change, so
stages keep their strides and depths, and each position chooses among variants of the block that the
network has there. Whatever is offered unless asked for otherwise can be cut out of the network;
other mixers and larger kernels have to learn first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from search_space.architecture import Architecture, check_entry
from search_space.blocks import BLOCKS, PROJECTION, SKIP, Block, Mixer, Place, hidden_width
from search_space.errors import InvalidArchitectureError, UsageError
from search_space.macro import BLOCK_TRANSITION, feature_sizes
from search_space.mixers import MIXERS
from search_space.registry import Param, ParamValue, is_int, is_number
from search_space.space import SearchSpace
from search_space.stage_space import StageSpace

CHANNELS = 8
"""Inner widths are multiples of this many channels, as vector units and tensor cores want them."""
RESOLUTIONS = (4 / 7, 5 / 7, 6 / 7)
"""Parts of the network's own side: of 224 px these are 128, 160 and 192."""
PADDED = 1.5
"""Largest area of a map that is padded to whole windows, by its own."""


@dataclass(frozen=True)
class Around:
    """What a space around a network offers beside the network itself.

    Args:
        ratios: Parts of the widths inside blocks that are kept (hidden channels of MLPs and of
            convolutional blocks), rounded to multiples of ``CHANNELS``.
        mixer_ratios: Likewise of widths inside mixers: heads of attention, expanded channels of
            separable convolutions. Each goes with each of ``ratios``, so one is enough as a rule.
        smallest_kernel: Odd kernels are offered down to this side.
        largest_kernel: And up to this one; 0 for none above the network's own.
        mixers: Others that blocks with a mixer may have; stages whose width does not suit one do
            without it. None unless given: unlike all others these have no weights to begin with.
        resolutions: Lower image sides; None for those of ``lower_resolutions``.
        skip: Whether blocks may be left out. One that changes the size or the width, or is its
            stage's only one, stays.
        linear: Whether a linear map of each position, a block ``projection``, may stand where a
            block may be left out.
        widths: Parts of the stages' own widths that are offered beside them. None unless given:
            all that reads and writes a stage's maps changes with its width.

    Raises:
        UsageError: A part does not lie between 0 and 1, or a kernel is too small.
    """

    ratios: tuple[float, ...] = (0.75, 0.5, 0.25)
    mixer_ratios: tuple[float, ...] = (0.5,)
    smallest_kernel: int = 3
    largest_kernel: int = 0
    mixers: tuple[Mixer, ...] = ()
    resolutions: tuple[int, ...] | None = None
    skip: bool = True
    linear: bool = True
    widths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("ratios", "mixer_ratios", "widths"):
            for part in getattr(self, name):
                if not is_number(part) or not 0 < part < 1:
                    raise UsageError(
                        f"{name}: {part!r} must lie between 0 and 1, the part of the network's own "
                        "width that is kept; the whole of it is always offered."
                    )
        for name, least in (("smallest_kernel", 1), ("largest_kernel", 0)):
            if not is_int(value := getattr(self, name)) or value < least:
                raise UsageError(f"{name}={value!r} must be an integer of at least {least}.")


def alone(network: Architecture, name: str = "") -> SearchSpace:
    """Makes the space that holds a network and nothing else, by default named after it."""
    stages = tuple(
        StageSpace((s.width,), (s.depth,), tuple((block,) for block in s.blocks), s.stride)
        for s in network.stages
    )
    return SearchSpace(
        name or f"alone-{network.digest}", network.macro, (network.resolution,), stages
    )


def around(parent: Architecture, options: Around | None = None, name: str = "") -> SearchSpace:
    """Makes the space around a network.

    Example:
        A third of the blocks of ConvNeXt-T left out is one of the points of::

            space = around(known("convnext_t"), name="around-convnext_t")
            assert space.largest == known("convnext_t")

    Args:
        parent: The network.
        options: What is offered beside it; None for the defaults.
        name: Of the space; ``around-`` and the network's digest if empty.

    Returns:
        A space whose choices are listed from light to heavy by their channels inside, then by their
        kernels, with the network's own as the last of each, so that ``largest`` is the network.

    Raises:
        UsageError: A resolution is not below the network's, or a mixer suits no block.
        InvalidSpaceError: A resolution is too small for the network's stages.
    """
    options = options or Around()
    places = dict(_places(parent))
    enters = parent.macro.downsample == BLOCK_TRANSITION
    _check_mixers(parent, options.mixers)
    widths = [_widths(stage.width, stage.blocks, options) for stage in parent.stages]
    stem = parent.macro.stem_width
    befores = [(stem,) if stem else widths[0], *widths[:-1]]
    stages = []
    for i, stage in enumerate(parent.stages):
        positions = []
        for j, block in enumerate(stage.blocks):
            choices = _choices(places[i, j], block, options)
            free = not (enters and j == 0) or _may_skip(parent.strides[i], befores[i], widths[i])
            if options.skip and free and stage.depth > 1 and not block.skipped:
                linear = Block.of(PROJECTION)
                least = (linear,) if options.linear and linear not in choices else ()
                choices = (Block.of(SKIP), *least, *choices)
            positions.append(choices)
        stages.append(StageSpace(widths[i], (stage.depth,), tuple(positions), stage.stride))
    resolutions = _resolutions(parent, options.resolutions)
    return SearchSpace(name or f"around-{parent.digest}", parent.macro, resolutions, tuple(stages))


# Blocks -----------------------------------------------------------------------------------------


def inner_widths(architecture: Architecture) -> dict[str, dict[str, int]]:
    """Returns the channels inside each block that is there.

    They are by the block's path, ``stages.0.blocks.1``, and by the parameter that decides them:
    those that the space around a network cuts.
    """
    result = {}
    for (i, j), place in _places(architecture):
        block = architecture.stages[i].blocks[j]
        if not block.skipped:
            own = {key: _inside(place, block, key)(float(block[key])) for key in _ratios_of(block)}
            result[f"stages.{i}.blocks.{j}"] = own | _inside_mixer(place, block.mixer)
    return result


def _inside_mixer(place: Place, mixer: Mixer | None) -> dict[str, int]:
    if mixer is None:
        return {}
    return {key: hidden_width(place.width, mixer[key]) for key in MIXERS[mixer.name].ratios}


def _places(architecture: Architecture) -> Iterator[tuple[tuple[int, int], Place]]:
    """Where each block sits, by the numbers of its stage and position."""
    enters = architecture.macro.downsample == BLOCK_TRANSITION
    for i, stage in enumerate(architecture.stages):
        before, stride = architecture.widths_before[i], architecture.strides[i]
        for j in range(stage.depth):
            entry = (before, stride) if enters and j == 0 else (stage.width, 1)
            yield (i, j), Place(architecture.macro, entry[0], stage.width, entry[1], j)


def _ratios_of(block: Block) -> list[str]:
    """Parameters of a block, besides its mixer's, that scale a width on its path."""
    kind = BLOCKS[block.kind]
    # one that may be 0 is of an extra beside the path
    return [key for key in kind.ratios if kind.params[key].minimum > 0]


def _choices(place: Place, block: Block, options: Around) -> tuple[Block, ...]:
    """The variants of a block from light to heavy, itself the last."""
    kind = BLOCKS[block.kind]
    ratios = {
        key: _ratios(
            float(block[key]), kind.params[key], _inside(place, block, key), options.ratios
        )
        for key in _ratios_of(block)
    }
    kernels = _kernels(kind.params, dict(block.params), options)
    found: dict[Block, tuple[int, bool, float]] = {}
    for mixer, inside, near in _mixers(place, block.mixer, options):
        own = mixer is None or block.mixer is None or mixer.name == block.mixer.name
        for params, channels, size in _product(dict(block.params), ratios, kernels):
            variant = Block.of(block.kind, mixer, **params)
            found.setdefault(variant, (inside + channels, own, near * size))
    del found[block]
    return *sorted(found, key=found.__getitem__), block


def _mixers(
    place: Place, own: Mixer | None, options: Around
) -> Iterator[tuple[Mixer | None, int, float]]:
    """Mixers of a block, with their channels inside and the part that kernels keep of their sides.

    Others than its own are given as many channels, since they say nothing of them.
    """
    if own is None:
        yield None, 0, 1.0
        return
    rules, params = MIXERS[own.name], dict(own.params)
    ratios = {
        key: _ratios(
            float(own[key]),
            rules.params[key],
            lambda ratio: hidden_width(place.width, ratio),
            options.mixer_ratios,
            math.lcm(CHANNELS, own.width_multiple),
        )
        for key in rules.ratios
    }
    kernels = _kernels(rules.params, params, options)
    for values, channels, size in _product(params, ratios, kernels):
        yield Mixer.of(own.name, **values), channels, size
    for mixer in options.mixers:
        if place.width % mixer.width_multiple == 0:
            yield mixer, sum(max(widths.values()) for widths in ratios.values()), 1.0


def _product(
    params: dict[str, ParamValue],
    ratios: Mapping[str, Mapping[float, int]],
    kernels: Mapping[str, Sequence[int]],
) -> Iterator[tuple[dict[str, ParamValue], int, float]]:
    """All combinations of parameters, with their channels inside and what kernels keep."""
    for some in itertools.product(*(widths.items() for widths in ratios.values())):
        channels = sum(width for _, width in some)
        chosen = {key: ratio for key, (ratio, _) in zip(ratios, some, strict=True)}
        for sides in itertools.product(*kernels.values()):
            odd = dict(zip(kernels, sides, strict=True))
            near = math.prod(side / float(params[key]) for key, side in odd.items())
            yield {**params, **chosen, **odd}, channels, near


def _inside(place: Place, block: Block, key: str) -> Callable[[float], int]:
    """The inner width that a block's parameter stands for, as a function of it.

    It is what the block's module is given: the integer among its options that the parameter
    decides, or by definition a multiple of the block's width where the module makes it itself.
    """
    make, params = BLOCKS[block.kind].options, dict(block.params)

    def options(ratio: float) -> Mapping[str, object]:
        return make(place, {**params, key: ratio})

    own, other = options(float(block[key])), options(2 * float(block[key]))
    names = [name for name, value in own.items() if is_int(value) and value != other[name]]
    if not names:
        return lambda ratio: hidden_width(place.width, ratio)
    return lambda ratio: int(str(options(ratio)[names[0]]))


def _ratios(
    own: float,
    rule: Param,
    inside: Callable[[float], int],
    parts: Sequence[float],
    multiple: int = CHANNELS,
) -> dict[float, int]:
    """Values of a ratio that keep parts of an inner width, and its own, with the channels kept.

    They are a multiple of channels, and a value has no more decimals than that needs.
    """
    whole = inside(own)
    result = {own: whole}
    for part in parts:
        channels = max(multiple, math.floor(part * whole / multiple + 0.5) * multiple)
        if channels < whole:
            exact = own * channels / whole
            rounded = (round(exact, decimals) for decimals in range(8))
            ratio = next((r for r in rounded if r > 0 and inside(r) == channels), exact)
            if rule.problem(ratio) is None:
                result[ratio] = channels
    return result


def _kernels(
    rules: Mapping[str, Param], params: Mapping[str, ParamValue], options: Around
) -> dict[str, list[int]]:
    """Sides of each kernel, which is an odd parameter, in ascending order."""
    result = {}
    for key, rule in rules.items():
        if rule.odd:
            own = int(params[key])
            least = min(own, max(options.smallest_kernel, int(rule.minimum)) | 1)
            most = max(own, min(options.largest_kernel, rule.maximum or options.largest_kernel))
            result[key] = list(range(least, int(most) + 1, 2))
    return result


def _may_skip(stride: int, before: tuple[int, ...], widths: tuple[int, ...]) -> bool:
    """Whether nothing may stand where a block enters a stage."""
    try:
        check_entry(0, stride, before, widths, [Block.of(SKIP)])
    except InvalidArchitectureError:
        return False
    return True


def _check_mixers(parent: Architecture, mixers: Sequence[Mixer]) -> None:
    """Raises UsageError for a mixer that suits no block."""
    widths = sorted({s.width for s in parent.stages if any(block.mixer for block in s.blocks)})
    for mixer in mixers:
        if not any(width % mixer.width_multiple == 0 for width in widths):
            having = f"have {', '.join(map(str, widths))} channels" if widths else "do not exist"
            raise UsageError(
                f"mixer {mixer.name} suits no block of {parent.digest}: it needs a block with a "
                f"mixer and a multiple of {mixer.width_multiple} channels, and such blocks "
                f"{having}; take another mixer, or leave it out."
            )


# Widths and resolutions ---------------------------------------------------------------------------


def _widths(own: int, blocks: Sequence[Block], options: Around) -> tuple[int, ...]:
    """Widths of a stage in ascending order, which suit all its blocks, its own the last."""
    needed = [block.width_multiple for block in blocks]
    multiple = math.lcm(CHANNELS, *needed, *(m.width_multiple for m in options.mixers if needed))
    found = {max(1, math.floor(part * own / multiple + 0.5)) * multiple for part in options.widths}
    return (*sorted(width for width in found if width < own), own)


def lower_resolutions(parent: Architecture) -> tuple[int, ...]:
    """Returns up to three lower image sides for a network, ascending.

    They are the nearest to ``RESOLUTIONS`` among multiples of half of the network's whole stride
    that leave every map a position, and that attention in windows does not pad by half.
    """
    strides = math.prod(parent.strides)
    whole = parent.macro.stem_stride * strides
    unit = whole // 2 if strides % 2 == 0 else whole
    least = max(whole, parent.resolution // 2)
    suiting = [
        side
        for side in range(-(-least // unit) * unit, parent.resolution, unit)
        if _suits(parent, side)
    ]
    nearest = (
        min(suiting, key=lambda side: abs(side - part * parent.resolution))
        for part in RESOLUTIONS
        if suiting
    )
    return tuple(sorted(set(nearest)))


def _suits(parent: Architecture, resolution: int) -> bool:
    sizes = feature_sizes(parent.macro, parent.strides, resolution)
    if min(sizes) < 1:
        return False
    for stage, size in zip(parent.stages, sizes, strict=True):
        for mixer in {block.mixer for block in stage.blocks if block.mixer is not None}:
            rule = MIXERS[mixer.name].params.get("window")
            if rule is not None and not rule.odd:  # an odd one slides, others tile the map
                window = min(int(mixer["window"]), size)
                if (-(-size // window) * window) ** 2 > PADDED * size**2:
                    return False
    return True


def _resolutions(parent: Architecture, wanted: Sequence[int] | None) -> tuple[int, ...]:
    lower = lower_resolutions(parent) if wanted is None else tuple(sorted(set(wanted)))
    lower = tuple(side for side in lower if side != parent.resolution)
    if lower and lower[-1] > parent.resolution:
        raise UsageError(
            f"resolution {lower[-1]} is above the network's own of {parent.resolution}, which is "
            "the largest of a space around it; leave it out, or take the network at a higher one."
        )
    return *lower, parent.resolution
