"""Small valid architectures, one by hand and Hypothesis strategies, for tests of what one is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from search_space import Architecture, Block, Macro, Mixer, Stage, metaformer
from search_space.architecture import DOWNSAMPLES, HEAD_NORMS, NORMS

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


@st.composite
def mixers(draw: st.DrawFn) -> Mixer:
    odd = st.sampled_from([1, 3, 5, 7])
    name = draw(
        st.sampled_from(
            ["window_attention", "focal_modulation", "gnconv", "pooling", "depthwise_conv"]
        )
    )
    if name == "window_attention":
        window = draw(st.integers(1, 16))
        return Mixer.of(name, window=window, head_dim=draw(st.sampled_from([1, 4, 8, 16])))
    if name == "focal_modulation":
        levels, post_norm = draw(st.integers(1, 4)), draw(st.booleans())
        return Mixer.of(name, levels=levels, window=draw(odd), post_norm=post_norm)
    if name == "gnconv":
        return Mixer.of(name, order=draw(st.integers(1, 5)), kernel=draw(odd))
    return Mixer.of(name, kernel=draw(odd))


@st.composite
def macros(draw: st.DrawFn) -> Macro:
    stride = draw(st.integers(1, 4))
    downsample = draw(st.sampled_from(DOWNSAMPLES))
    eps = st.floats(1e-8, 1e-2)
    return Macro(
        stem_kernel=stride + draw(st.integers(0, 4)),
        stem_stride=stride,
        stem_norm=draw(st.booleans()),
        downsample=downsample,
        downsample_kernel=draw(st.integers(2, 5)),
        norm=draw(st.sampled_from(NORMS)),
        norm_eps=draw(eps),
        layer_scale=draw(st.one_of(st.just(0.0), st.floats(1e-8, 1.0))),
        head_norm=draw(st.sampled_from(HEAD_NORMS)),
        head_norm_eps=draw(eps),
    )


def architectures() -> st.SearchStrategy[Architecture]:
    """Valid architectures of at most 12 blocks; values only, no network is built."""
    blocks = st.builds(Block, mixers(), st.floats(0.25, 8.0))
    stages = st.builds(
        Stage,
        st.integers(1, 8).map(lambda n: n * WIDTH_UNIT),
        st.lists(blocks, min_size=1, max_size=3).map(tuple),
    )
    return st.builds(Architecture, macros(), st.integers(32, 256), st.tuples(*[stages] * 4))


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
