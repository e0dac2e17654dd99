"""Every rule of an architecture and its message, for values and for plain forms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from architecture_strategies import change, small
from hypothesis import given, settings
from hypothesis import strategies as st

from search_space import (
    MIXERS,
    Architecture,
    Block,
    Macro,
    Mixer,
    MixerSpec,
    Stage,
    known,
    known_names,
    metaformer,
)
from search_space.errors import (
    CorruptFileError,
    InvalidArchitectureError,
    NasError,
    UnknownNameError,
)
from search_space.macro import TRANSITIONS


def block(name: str = "pooling", ratio: Any = 2.0, **params: Any) -> Block:
    return metaformer(Mixer.of(name, **params), ratio)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mixer.of("pooling", kernel=4), ["pooling", "kernel=4", "odd"]),
        (lambda: Mixer.of("pooling", kernel=0), ["kernel=0", "at least 1"]),
        (lambda: Mixer.of("pooling", kernel=3.0), ["kernel=3.0", "integer"]),
        (lambda: Mixer.of("pooling", kernel=True), ["kernel=True", "integer"]),
        (lambda: Mixer.of("pooling", kernel="3"), ["kernel='3'", "integer"]),
        (lambda: Mixer.of("gnconv", order=9), ["gnconv", "order=9", "at most 8"]),
        (lambda: Mixer.of("focal_modulation", post_norm=1), ["post_norm=1", "true or false"]),
        (lambda: block(ratio=0), ["mlp_ratio=0", "positive number"]),
        (lambda: block(ratio=-1.5), ["mlp_ratio=-1.5", "positive number"]),
        (lambda: block(ratio="4"), ["mlp_ratio='4'", "positive number"]),
        (lambda: block(ratio=True), ["mlp_ratio=True", "positive number"]),
        (lambda: block(ratio=float("inf")), ["mlp_ratio=inf", "positive number"]),
        (lambda: block(ratio=float("nan")), ["mlp_ratio=nan", "positive number"]),
        (lambda: Stage(0, (block(),)), ["width=0", "positive integer"]),
        (lambda: Stage(16.0, (block(),)), ["width=16.0", "positive integer"]),
        (lambda: Stage(True, (block(),)), ["width=True", "positive integer"]),
        (lambda: Stage(16, ()), ["at least one block"]),
        (
            lambda: Stage(48, (block(), block("window_attention", head_dim=32))),
            ["width=48", "window_attention", "multiple of 32"],
        ),
        (lambda: Stage(20, (block("gnconv", order=4),)), ["width=20", "gnconv", "multiple of 8"]),
        (lambda: Macro(stem_kernel=0), ["stem_kernel=0", "positive integer"]),
        (lambda: Macro(stem_stride=1.0), ["stem_stride=1.0", "positive integer"]),
        (lambda: Macro(stem_kernel=2), ["stem_kernel=2", "stride 4"]),
        (lambda: Macro(stem="conv_act"), ["stem_kernel=4", "odd", "'conv_act'", "take 3"]),
        (lambda: Macro(stem="convs"), ["stem_kernel=4", "odd", "'convs'"]),
        (
            lambda: Macro(stem="conv_pool", stem_kernel=7, stem_stride=3),
            ["stem_stride=3", "even", "'conv_pool'", "take 2 or 4"],
        ),
        (lambda: Macro(stem_norm=1), ["stem_norm=1", "flag"]),
        (lambda: Macro(downsample_kernel=1), ["downsample_kernel=1", "at least 2"]),
        (lambda: Macro(norm_eps=0), ["norm_eps=0", "positive number"]),
        (lambda: Macro(norm_eps="1e-6"), ["norm_eps='1e-6'", "positive number"]),
        (lambda: Macro(head_norm_eps=-1e-6), ["head_norm_eps=-1e-06", "positive number"]),
        (lambda: Macro(layer_scale=-0.1), ["layer_scale=-0.1", "0 (none) or a positive number"]),
        (lambda: Macro(layer_scale=float("nan")), ["layer_scale=nan", "positive number"]),
        (lambda: replace(small(), resolution=0), ["resolution=0", "positive integer"]),
        (lambda: replace(small(), resolution=32.0), ["resolution=32.0", "positive integer"]),
        (lambda: replace(small(), stages=()), ["at least one stage"]),
        (
            lambda: replace(small(), resolution=15),
            ["resolution=15", "too small", "(7, 3, 1, 0)", "take a larger one"],
        ),
    ],
)
def test_broken_rule_says_value_and_rule(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(InvalidArchitectureError) as info:
        make()
    for word in words:
        assert word in str(info.value)


@pytest.mark.parametrize(
    ("make", "wrong", "nearest", "every"),
    [
        (
            lambda: Mixer.of("windw_attention"),
            "windw_attention",
            "window_attention",
            MIXERS.names(),
        ),
        (lambda: Mixer.of("pooling", kernl=3), "kernl", "kernel", ["kernel"]),
        (lambda: Macro(downsample="merging"), "merging", "patch_merging", TRANSITIONS.names()),
        (lambda: Macro(norm="layernorm"), "layernorm", "layer_norm", ["group_norm"]),
        (lambda: Macro(head_norm="after"), "after", "after_pool", ["before_pool"]),
        (lambda: known("swin_tt"), "swin_tt", "swin_t", known_names()),
    ],
)
def test_unknown_name_says_the_nearest_and_all(
    make: Callable[[], object], wrong: str, nearest: str, every: list[str]
) -> None:
    with pytest.raises(UnknownNameError) as info:
        make()
    message = str(info.value)
    assert repr(wrong) in message
    assert f"Did you mean {nearest!r}?" in message
    assert all(name in message for name in every)


def test_a_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown mixer 'xyzzy'\. Known: ") as info:
        Mixer.of("xyzzy")
    assert "Did you mean" not in str(info.value)


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (change("resolutoin", to=1), ["architecture", "'resolutoin'", "mean 'resolution'"]),
        (change("macro", "norms", to=1), ["macro", "'norms'", "mean 'norm"]),
        (change("stages", 1, "widht", to=1), ["stages[1]", "'widht'", "mean 'width'"]),
        (change("stages", 1, "blocks", 0, "kernl", to=3), ["stages[1].blocks[0]", "'kernel'"]),
        (
            change("stages", 1, "blocks", 0, "mlp_ration", to=3),
            ["stages[1].blocks[0]", "'mlp_ration'", "mean 'mlp_ratio'"],
        ),
        (change("stages", 1, "blocks", 0, "name", to=3), ["stages[1].blocks[0]", "'name'"]),
        (change("stages", 1, "blocks", 0, 7, to=3), ["stages[1].blocks[0]", "'7'"]),
        (
            change("stages", 0, "blocks", 0, "mixer", to="poling"),
            ["stages[0].blocks[0]: unknown mixer 'poling'", "mean 'pooling'"],
        ),
        (change("stages", 0, "blocks", 0, "mixer", to=None), ["unknown mixer 'None'"]),
        (
            change("stages", 2, "blocks", 0, "kernel", to=6),
            ["stages[2].blocks[0]: gnconv: kernel=6 must be odd"],
        ),
        (change("stages", 3, "width", to=65), ["stages[3]: width=65", "multiple of 8"]),
        (change("stages", 3, "blocks", to=[]), ["stages[3]:", "at least one block"]),
        (change("stages", 3, "blocks", to="x"), ["stages[3]", "list 'blocks'"]),
        (change("stages", 3, "blocks", to=[5]), ["stages[3].blocks[0]", "mapping, got 5"]),
        (change("stages", 2, to=None), ["stages[2]", "mapping, got None"]),
        (change("stages", to={}), ["'stages' must be a list"]),
        (change("macro", to=3), ["macro", "mapping, got 3"]),
        (change("resolution", to=...), ["'resolution' is missing"]),
        (change("stages", to=...), ["'stages' is missing"]),
        (change("stages", 0, "width", to=...), ["stages[0]", "'width'"]),
        (
            change("stages", 0, "blocks", 0, "mixer", to=...),
            ["stages[0].blocks[0]", "'mixer' is missing"],
        ),
    ],
)
def test_wrong_plain_form_says_where(
    apply: Callable[[dict[str, Any]], None], words: list[str]
) -> None:
    form = copy.deepcopy(small().to_dict())
    apply(form)
    with pytest.raises((InvalidArchitectureError, UnknownNameError)) as info:
        Architecture.from_dict(form)
    for word in words:
        assert word in str(info.value)


@pytest.mark.parametrize("form", [None, [], "swin_t", 3])
def test_not_a_mapping(form: object) -> None:
    with pytest.raises(InvalidArchitectureError, match="expected a mapping"):
        Architecture.from_dict(form)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
places = st.sampled_from(
    [
        ("macro",),
        ("resolution",),
        ("stages",),
        ("stages", 0),
        ("stages", 1, "width"),
        ("stages", 1, "blocks"),
        ("stages", 2, "blocks", 0),
        ("stages", 3, "blocks", 0, "mixer"),
        ("stages", 3, "blocks", 0, "window"),
        ("stages", 3, "blocks", 0, "mlp_ratio"),
        *(("macro", key) for key in small().to_dict()["macro"]),
    ]
)


@given(places, json_values)
@settings(max_examples=150, deadline=None)
def test_any_json_gives_an_architecture_or_our_error(place: tuple[Any, ...], value: Any) -> None:
    form = copy.deepcopy(small().to_dict())
    change(*place, to=value)(form)
    try:
        architecture = Architecture.from_dict(form)
    except NasError:
        return
    assert Architecture.from_dict(architecture.to_dict()) == architecture


def test_left_out_parameters_take_defaults() -> None:
    form = small().to_dict()
    form["stages"][0]["blocks"] = [{"mixer": "gnconv"}]
    mixer = Architecture.from_dict(form).stages[0].blocks[0].mixer
    assert mixer == Mixer.of("gnconv", order=3, kernel=7)
    assert mixer["order"] == 3
    assert Architecture.from_dict(form).stages[0].blocks[0]["mlp_ratio"] == 4.0


def test_altered_content_is_refused() -> None:
    form = {"digest": small().digest, **small().to_dict()}
    assert Architecture.from_dict(form) == small()
    form["resolution"] = 48
    with pytest.raises(CorruptFileError) as info:
        Architecture.from_dict(form)
    for word in (small().digest, replace(small(), resolution=48).digest, "delete the digest line"):
        assert word in str(info.value)


def test_mixer_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="'pooling' is registered already"):
        MIXERS.add(MixerSpec("pooling", {}))
    assert MIXERS["window_attention"].alternates
