"""Architectures as values: round trips, identity, and every rule with its message."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import yaml
from architecture_strategies import architectures
from hypothesis import given, settings
from hypothesis import strategies as st

from search_space import (
    Architecture,
    Block,
    Macro,
    Mixer,
    MixerSpec,
    Stage,
    components,
    dump_architecture,
    known,
    known_names,
    mixer_names,
    mixer_spec,
    register_mixer_spec,
)
from search_space.architecture import DOWNSAMPLES, conv_padding, conv_size, feature_sizes
from search_space.errors import (
    CorruptFileError,
    InvalidArchitectureError,
    NasError,
    UnknownNameError,
)


def small() -> Architecture:
    """One block a stage, every mixer but one."""
    blocks = (
        Block(Mixer.of("pooling"), 2),
        Block(Mixer.of("depthwise_conv", kernel=5), 2),
        Block(Mixer.of("gnconv", order=2), 3),
        Block(Mixer.of("window_attention", window=4, head_dim=8), 4),
    )
    stages = tuple(Stage(16 * (i + 1), (block,)) for i, block in enumerate(blocks))
    return Architecture(Macro(stem_kernel=2, stem_stride=2), 32, stages)


# Round trips --------------------------------------------------------------------------------


@given(architectures())
@settings(max_examples=40, deadline=None)
def test_round_trips(architecture: Architecture) -> None:
    forms = [
        architecture.to_dict(),
        json.loads(json.dumps(architecture.to_dict())),
        json.loads(architecture.canonical_json()),
        yaml.safe_load(dump_architecture(architecture)),
    ]
    for form in forms:
        back = Architecture.from_dict(form)
        assert back == architecture
        assert hash(back) == hash(architecture)
        assert back.canonical_json() == architecture.canonical_json()
        assert back.digest == architecture.digest


@given(architectures(), architectures())
@settings(max_examples=40, deadline=None)
def test_equal_exactly_where_json_and_digest_are(a: Architecture, b: Architecture) -> None:
    assert (a == b) == (a.canonical_json() == b.canonical_json()) == (a.digest == b.digest)


@pytest.mark.parametrize("name", known_names())
def test_known_designs_round_trip(name: str) -> None:
    assert Architecture.from_dict(known(name).to_dict()) == known(name)


def test_known_digests_are_distinct() -> None:
    assert len({known(name).digest for name in known_names()}) == len(known_names())


# Identity -----------------------------------------------------------------------------------


def test_digests_of_today_stay() -> None:
    # stores, tables and exports written by earlier versions are found by these
    assert known("swin_t").digest == "8b95100c8202"
    assert small().digest == "c2aa1078b7e9"


def test_digest_is_the_hash_of_sorted_compact_json() -> None:
    text = small().canonical_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert "\n" not in text


def test_digest_does_not_depend_on_the_process() -> None:
    program = "from search_space import known; print(known('swin_t').digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {known("swin_t").digest}


def test_numbers_that_are_equal_give_equal_digests() -> None:
    one = replace(small(), macro=Macro(stem_kernel=2, stem_stride=2, layer_scale=0, norm_eps=1))
    other = replace(one, macro=replace(one.macro, layer_scale=-0.0, norm_eps=1.0))
    assert one == other
    assert one.canonical_json() == other.canonical_json()
    assert Block(Mixer.of("pooling"), 2) == Block(Mixer.of("pooling"), 2.0)
    assert small().to_dict()["stages"][0]["blocks"][0]["mlp_ratio"] == 2.0


@pytest.mark.parametrize(
    "change",
    [
        lambda a: replace(a, resolution=33),
        lambda a: replace(a, macro=replace(a.macro, norm_eps=2e-6)),
        lambda a: replace(a, stages=(replace(a.stages[0], width=17), *a.stages[1:])),
        lambda a: replace(
            a, stages=(Stage(16, (Block(Mixer.of("pooling", kernel=5), 2),)), *a.stages[1:])
        ),
        lambda a: replace(a, stages=(Stage(16, a.stages[0].blocks * 2), *a.stages[1:])),
    ],
)
def test_every_part_counts(change: Callable[[Architecture], Architecture]) -> None:
    assert change(small()) != small()
    assert change(small()).digest != small().digest


def test_immutable() -> None:
    architecture = small()
    for target, name in [
        (architecture, "resolution"),
        (architecture.macro, "norm"),
        (architecture.stages[0], "width"),
        (architecture.stages[0].blocks[0], "mlp_ratio"),
        (architecture.stages[0].blocks[0].mixer, "name"),
    ]:
        with pytest.raises(FrozenInstanceError):
            setattr(target, name, 1)
    form = architecture.to_dict()
    form["stages"][0]["width"] = 1
    form["macro"]["norm"] = "none"
    assert architecture == small()


def test_description() -> None:
    assert str(known("swin_t")) == "8b95100c8202 (224 px: 96×2, 192×2, 384×6, 768×2)"
    assert known("convnext_t").depths == (3, 3, 9, 3)
    assert known("poolformer_s12").widths == (64, 128, 320, 512)


# Rules --------------------------------------------------------------------------------------


def block(name: str = "pooling", ratio: Any = 2.0, **params: Any) -> Block:
    return Block(Mixer.of(name, **params), ratio)


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
        (lambda: Mixer("gnconv", (("order", 2),)), ["gnconv", "kernel, order", "got order"]),
        (
            lambda: Mixer("gnconv", (("order", 2), ("kernel", 7))),
            ["exactly the parameters kernel, order", "got order, kernel"],
        ),
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
        (lambda: Macro(stem_norm=1), ["stem_norm=1", "flag"]),
        (lambda: Macro(downsample_kernel=1), ["downsample_kernel=1", "at least 2"]),
        (
            lambda: Macro(downsample="patch_merging", downsample_kernel=3),
            ["downsample_kernel=3", "2 when merging"],
        ),
        (lambda: Macro(norm_eps=0), ["norm_eps=0", "positive number"]),
        (lambda: Macro(norm_eps="1e-6"), ["norm_eps='1e-6'", "positive number"]),
        (lambda: Macro(head_norm_eps=-1e-6), ["head_norm_eps=-1e-06", "positive number"]),
        (lambda: Macro(layer_scale=-0.1), ["layer_scale=-0.1", "0 (none) or a positive number"]),
        (lambda: Macro(layer_scale=float("nan")), ["layer_scale=nan", "positive number"]),
        (lambda: replace(small(), resolution=0), ["resolution=0", "positive integer"]),
        (lambda: replace(small(), resolution=32.0), ["resolution=32.0", "positive integer"]),
        (lambda: replace(small(), stages=small().stages[:3]), ["4 stages", "not 3"]),
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
    ("make", "asked", "nearest", "every"),
    [
        (lambda: Mixer.of("windw_attention"), "windw_attention", "window_attention", mixer_names()),
        (lambda: Mixer.of("pooling", kernl=3), "kernl", "kernel", ["kernel"]),
        (lambda: Macro(downsample="merging"), "merging", "patch_merging", DOWNSAMPLES),
        (lambda: Macro(norm="layernorm"), "layernorm", "layer_norm", ["group_norm"]),
        (lambda: Macro(head_norm="after"), "after", "after_pool", ["before_pool"]),
        (lambda: known("swin_tt"), "swin_tt", "swin_t", known_names()),
    ],
)
def test_unknown_name_says_the_nearest_and_all(
    make: Callable[[], object], asked: str, nearest: str, every: list[str]
) -> None:
    with pytest.raises(UnknownNameError) as info:
        make()
    message = str(info.value)
    assert repr(asked) in message
    assert f"Did you mean {nearest!r}?" in message
    assert all(name in message for name in every)


def test_a_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown mixer 'xyzzy'\. Known: ") as info:
        Mixer.of("xyzzy")
    assert "Did you mean" not in str(info.value)


def set_at(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(form: dict[str, Any]) -> None:
        *parents, last = path
        for key in parents:
            form = form[key]
        form[last] = to

    return change


def without(key: str, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(form: dict[str, Any]) -> None:
        for step in path:
            form = form[step]
        del form[key]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_at("resolutoin", to=1), ["architecture", "'resolutoin'", "mean 'resolution'"]),
        (set_at("macro", "norms", to=1), ["macro", "'norms'", "mean 'norm"]),
        (set_at("stages", 1, "widht", to=1), ["stages[1]", "'widht'", "mean 'width'"]),
        (set_at("stages", 1, "blocks", 0, "kernl", to=3), ["stages[1].blocks[0]", "'kernel'"]),
        (
            set_at("stages", 1, "blocks", 0, "mlp_ration", to=3),
            ["stages[1].blocks[0]", "'mlp_ration'", "mean 'mlp_ratio'"],
        ),
        (set_at("stages", 1, "blocks", 0, "name", to=3), ["stages[1].blocks[0]", "'name'"]),
        (set_at("stages", 1, "blocks", 0, 7, to=3), ["stages[1].blocks[0]", "'7'"]),
        (
            set_at("stages", 0, "blocks", 0, "mixer", to="poling"),
            ["stages[0].blocks[0]: unknown mixer 'poling'", "mean 'pooling'"],
        ),
        (set_at("stages", 0, "blocks", 0, "mixer", to=None), ["unknown mixer 'None'"]),
        (
            set_at("stages", 2, "blocks", 0, "kernel", to=6),
            ["stages[2].blocks[0]: gnconv: kernel=6 must be odd"],
        ),
        (set_at("stages", 3, "width", to=65), ["stages[3]: width=65", "multiple of 8"]),
        (set_at("stages", 3, "blocks", to=[]), ["stages[3]:", "at least one block"]),
        (set_at("stages", 3, "blocks", to="x"), ["stages[3]", "list 'blocks'"]),
        (set_at("stages", 3, "blocks", to=[5]), ["stages[3].blocks[0]", "mapping, got 5"]),
        (set_at("stages", 2, to=None), ["stages[2]", "mapping, got None"]),
        (set_at("stages", to={}), ["'stages' must be a list"]),
        (set_at("macro", to=3), ["macro", "mapping, got 3"]),
        (without("resolution"), ["'resolution' is missing"]),
        (without("stages"), ["'stages' is missing"]),
        (without("width", "stages", 0), ["stages[0]", "'width'"]),
        (without("mixer", "stages", 0, "blocks", 0), ["stages[0].blocks[0]", "'mixer' is missing"]),
    ],
)
def test_wrong_plain_form_says_where(
    change: Callable[[dict[str, Any]], None], words: list[str]
) -> None:
    form = copy.deepcopy(small().to_dict())
    change(form)
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
    set_at(*place, to=value)(form)
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
    assert Architecture.from_dict(form).stages[0].blocks[0].mlp_ratio == 4.0


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
        register_mixer_spec(MixerSpec("pooling", {}))
    assert mixer_spec("window_attention").alternates


# Sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", range(1, 9))
def test_conv_size_is_torch_s(kernel: int) -> None:
    torch = pytest.importorskip("torch")
    for stride in range(1, min(kernel, 4) + 1):
        conv = torch.nn.Conv2d(
            1, 1, kernel, stride, conv_padding(kernel, stride), device="meta", dtype=torch.float32
        )
        for size in range(kernel, 40):
            image = torch.empty(1, 1, size, size, device="meta")
            assert conv(image).shape[-1] == conv_size(size, kernel, stride)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 4), (2, 2), (7, 4), (3, 2), (3, 1), (5, 2)])
def test_conv_size_of_divisible_images(kernel: int, stride: int) -> None:
    assert [conv_size(stride * n, kernel, stride) for n in (3, 8, 56)] == [3, 8, 56]


@given(architectures())
@settings(max_examples=25, deadline=None)
def test_feature_sizes_are_those_of_the_chain(architecture: Architecture) -> None:
    torch = pytest.importorskip("torch")
    macro, side = architecture.macro, architecture.resolution
    x = torch.empty(1, 1, side, side, device="meta")
    sizes = []
    for i in range(4):
        kernel, stride = (
            (macro.stem_kernel, macro.stem_stride) if i == 0 else (macro.downsample_kernel, 2)
        )
        if i > 0 and macro.downsample == "patch_merging":  # odd maps are padded by one
            x = torch.nn.functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        conv = torch.nn.Conv2d(1, 1, kernel, stride, conv_padding(kernel, stride), device="meta")
        x = conv(x)
        sizes.append(x.shape[-1])
    assert tuple(sizes) == feature_sizes(macro, side)


@given(architectures(), st.floats(0, 0.5))
@settings(max_examples=25, deadline=None)
def test_components_are_the_chain(architecture: Architecture, rate: float) -> None:
    chain = components(architecture, num_classes=7, drop_path_rate=rate)
    expected = ["stem"]
    for i, stage in enumerate(architecture.stages):
        expected += [f"stages.{i}.downsample"] * (i > 0)
        expected += [f"stages.{i}.blocks.{j}" for j in range(stage.depth)]
    assert [item.path for item in chain] == [*expected, "head"]
    sizes = feature_sizes(architecture.macro, architecture.resolution)
    assert chain[0].in_size == architecture.resolution
    assert chain[-1].in_size == sizes[-1]
    blocks = [item for item in chain if item.spec.kind == "block"]
    for item in blocks:
        stage, position = (int(part) for part in item.path.split(".")[1::2])
        options = item.spec.as_dict()
        assert item.in_size == sizes[stage]
        assert options["dim"] == architecture.widths[stage]
        shifted = dict(options["params"]).get("shifted")
        mixer = architecture.stages[stage].blocks[position].mixer.name
        assert shifted == (position % 2 == 1 if mixer == "window_attention" else None)
    rates = [item.spec.as_dict()["drop_path"] for item in blocks]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(rate)
    steps = [b - a for a, b in itertools.pairwise(rates)]
    assert steps == pytest.approx([rate / len(steps)] * len(steps))
