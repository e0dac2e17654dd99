"""Small valid architectures, one by hand and Hypothesis strategies, for tests of what one is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from search_space import BLOCKS, Architecture, Block, Macro, Mixer, Stage, metaformer
from search_space.architecture import default_stride
from search_space.blocks import ACTIVATIONS
from search_space.macro import (
    HEAD_NORMS,
    HEADS,
    NORMS,
    PADDINGS,
    PROJECTIONS,
    SHORTCUTS,
    STEMS,
    TRANSITIONS,
)

_RATIO = st.floats(0.25, 6.0)
WIDTH_UNIT = 16  # suits every mixer below


def small() -> Architecture:
    """One block a stage, every mixer but one."""
    blocks = (
        metaformer(Mixer.of("pooling"), 2),
        metaformer(Mixer.of("depthwise_conv", kernel=5), 2),
        metaformer(Mixer.of("gnconv", order=2), 3),
        metaformer(Mixer.of("window_attention", window=4, head_dim=8), 4),
    )
    stages = tuple(Stage(16 * (i + 1), (block,)) for i, block in enumerate(blocks))
    return Architecture(Macro(stem_kernel=2, stem_stride=2), 32, stages)


def _heads(draw: st.DrawFn) -> dict[str, Any]:
    ratio = draw(st.sampled_from([1, 1, 0.3, 0.5, 2]))
    return {"head_dim": draw(st.sampled_from([1, 4, 8, 16])), "head_ratio": ratio}


@st.composite
def mixers(draw: st.DrawFn) -> Mixer:
    odd = st.sampled_from([1, 3, 5, 7])
    name = draw(
        st.sampled_from(
            [
                *("window_attention", "focal_modulation", "gnconv", "pooling", "depthwise_conv"),
                *("attention", "separable_conv"),
            ]
        )
    )
    if name == "window_attention":
        window = draw(st.integers(1, 16))
        return Mixer.of(name, window=window, **_heads(draw))
    if name == "attention":
        return Mixer.of(name, **_heads(draw))
    if name == "separable_conv":
        return Mixer.of(name, expansion=draw(_RATIO), kernel=draw(odd))
    if name == "focal_modulation":
        levels, post_norm = draw(st.integers(1, 4)), draw(st.booleans())
        return Mixer.of(name, levels=levels, window=draw(odd), post_norm=post_norm)
    if name == "gnconv":
        return Mixer.of(name, order=draw(st.integers(1, 5)), kernel=draw(odd))
    return Mixer.of(name, kernel=draw(odd))


@st.composite
def macros(draw: st.DrawFn) -> Macro:
    stem = draw(st.sampled_from(STEMS.names()))
    free = stem in ("conv", "conv_act", "conv_act_conv")
    stride = draw(st.sampled_from([1, 2, 3, 4] if free else [2, 4, 6]))
    eps = st.floats(1e-8, 1e-2)
    head = draw(st.sampled_from(HEADS.names()))
    return Macro(
        stem=stem,
        stem_kernel=stride + draw(st.integers(0, 4))
        if stem == "conv"
        else draw(st.sampled_from([1, 3, 7])),
        stem_stride=stride,
        stem_norm=draw(st.booleans()),
        stem_width=draw(st.sampled_from([0, 0, 8, 24])),
        downsample=draw(st.sampled_from(TRANSITIONS.names())),
        downsample_kernel=draw(st.integers(2, 5)),
        norm=draw(st.sampled_from(NORMS)),
        norm_eps=draw(eps),
        layer_scale=draw(st.one_of(st.just(0.0), st.floats(1e-8, 1.0))),
        head_norm=draw(st.sampled_from(HEAD_NORMS)),
        head_norm_eps=draw(eps),
        head=head,
        head_width=0 if head == "linear" else draw(st.integers(1, 64)),
        head_conv_width=draw(st.integers(1, 64)) if head == "conv_hidden" else 0,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        conv_norm=draw(st.sampled_from(NORMS)),
        conv_activation=draw(st.sampled_from(ACTIVATIONS)),
        padding=draw(st.sampled_from(PADDINGS)),
        shortcut=draw(st.sampled_from(SHORTCUTS)),
        block_norm=draw(st.sampled_from(["as_norm", *NORMS])),
        bias=draw(st.booleans()),
        projection=draw(st.sampled_from(PROJECTIONS)),
    )


@st.composite
def blocks(draw: st.DrawFn, strided: bool = False) -> Block:
    """A block of any kind, or of those that can enter a stage."""
    kinds = [name for name in BLOCKS if BLOCKS[name].strided or not strided]
    kind = draw(st.sampled_from(kinds))
    if kind == "skip":
        return Block.of(kind)
    if kind == "metaformer":
        return metaformer(draw(mixers()), draw(_RATIO), *(draw(st.booleans()) for _ in range(3)))
    rules = BLOCKS[kind].params
    params: dict[str, Any] = {}
    for name, rule in rules.items():
        if rule.choices == ACTIVATIONS:
            params[name] = draw(st.sampled_from(ACTIVATIONS))
        elif rule.odd:
            params[name] = draw(st.sampled_from([1, 3, 5]))
        elif name in ("expansion", "ratio", "conv_expansion"):
            params[name] = draw(_RATIO)
    if "squeeze" in rules:
        params["squeeze"] = draw(st.sampled_from([0.0, 0.25, 1.5]))
    if "gate" in rules:
        params["gate"] = draw(st.sampled_from(["sigmoid", "hard_sigmoid"]))
    if "eca" in rules:
        params["eca"] = draw(st.booleans())
    mixer = draw(mixers()) if BLOCKS[kind].has_mixer else None
    return Block.of(kind, mixer, **params)


@st.composite
def architectures(draw: st.DrawFn, sides: tuple[int, int] = (64, 256)) -> Architecture:
    """Valid architectures of one to five stages; values only, no network is built."""
    macro = draw(macros())
    stages = []
    for _ in range(draw(st.integers(1, 5))):
        items = draw(st.lists(blocks(), min_size=0, max_size=2))
        first = draw(blocks(strided=macro.downsample == "block"))
        width = WIDTH_UNIT * draw(st.integers(1, 8))
        stages.append(Stage(width, (first, *items), draw(st.sampled_from([None, None, 1, 2]))))
    strides = [stage.stride or default_stride(i) for i, stage in enumerate(stages)]
    least = macro.stem_stride * math.prod(strides)  # leaves a position in each stage
    resolution = draw(st.integers(max(sides[0], least), max(sides[1], least)))
    return Architecture(macro, resolution, tuple(stages))


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    """A change of an entry of a plain form; ``...`` deletes it."""

    def apply(data: dict[str, Any]) -> None:
        *parents, last = path
        for key in parents:
            data = data[key]
        if to is ...:
            del data[last]
        else:
            data[last] = to

    return apply
