"""How spaces are defined: the presets' promises, and wrong definitions with their messages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from architecture_strategies import change

from predictors.counts import count_architecture, counts
from search_space import (
    MIXERS,
    Mixer,
    StageSpace,
    known,
    load_space,
    metaformer,
    space_names,
)
from search_space.errors import InvalidArchitectureError, InvalidSpaceError, UnknownNameError
from search_space.space_definition import space_from_dict

# Presets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", space_names())
def test_smallest_and_largest_are_extreme(name: str) -> None:
    space = load_space(name)
    assert space.contains(space.smallest)
    assert space.contains(space.largest)
    smallest, largest = (count_architecture(a) for a in (space.smallest, space.largest))
    samples = space.decode(space.sample(np.random.default_rng(0), 60))
    for sample in samples:
        count = count_architecture(sample)
        for metric in ("macs", "num_params"):
            assert smallest[metric] <= count[metric] <= largest[metric]
    macs = counts(space)["macs"]
    low, high = macs.predict(np.stack([macs.argmin(), macs.argmax()]))
    assert smallest["macs"] == low
    # where windows do not divide maps, or are larger, others are heavier by a little
    assert 0.95 * high <= largest["macs"] <= high


@pytest.mark.parametrize(
    ("name", "reference", "low", "high"), [("tiny", "swin_t", 0.8, 1.5), ("base", "swin_b", 1, 2.5)]
)
def test_largest_reaches_the_published_cost(
    name: str, reference: str, low: float, high: float
) -> None:
    largest = count_architecture(load_space(name).largest)["macs"]
    assert low <= largest / count_architecture(known(reference))["macs"] <= high


@pytest.mark.parametrize(
    ("name", "resolutions"),
    [("digits", (16, 24)), ("cifar", (32, 32)), ("tiny", (160, 224)), ("base", (192, 256))],
)
def test_presets_are_what_they_describe(name: str, resolutions: tuple[int, int]) -> None:
    space = load_space(name)
    assert space.name == name
    assert (space.resolutions[0], space.resolutions[-1]) == resolutions
    mixers = {block.mixer.name for stage in space.stages for block in stage.blocks}
    if name == "digits":
        assert mixers == {"pooling", "depthwise_conv", "window_attention"}
    else:
        assert mixers == {
            "depthwise_conv",
            "focal_modulation",
            "gnconv",
            "pooling",
            "window_attention",
        }
    assert space.size > 1e12  # worth searching


@pytest.mark.parametrize("name", space_names())
def test_plain_form_round_trips(name: str) -> None:
    space = load_space(name)
    again = space_from_dict(space.to_dict())
    assert again == space
    assert again.digest == space.digest
    renamed = space_from_dict({**space.to_dict(), "name": "other"})
    assert renamed.digest == space.digest
    assert len({load_space(other).digest for other in space_names()}) == len(space_names())


# Definitions --------------------------------------------------------------------------------


def definition() -> dict[str, Any]:
    stage = {
        "width": [16, 32],
        "depth": 2,
        "mixers": ["pooling", {"window_attention": {"window": [2, 4], "head_dim": 8}}],
        "mlp_ratio": [2, 4],
    }
    return {
        "name": "mine",
        "description": "for people",
        "macro": {"stem_kernel": 2, "stem_stride": 2},
        "resolution": 16,
        "stages": [copy.deepcopy(stage) for _ in range(4)],
    }


def test_definition_is_the_product_of_its_lists() -> None:
    space = space_from_dict(definition())
    attention = [Mixer.of("window_attention", window=window, head_dim=8) for window in (2, 4)]
    mixers = [Mixer.of("pooling"), *attention]
    expected = tuple(metaformer(mixer, ratio) for mixer in mixers for ratio in (2.0, 4.0))
    assert space.resolutions == (16,)
    assert space.stages == tuple(StageSpace((16, 32), (2,), expected, i) for i in (1, 2, 2, 2))
    assert space.size == (2 * 6**2) ** 4


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (change("resolutions", to=1), ["unknown key 'resolutions'", "resolution"]),
        (change("resolution", to=...), ["'resolution' is missing"]),
        (change("name", to=...), ["'name' is missing"]),
        (change("name", to=None), ["name None must be text", "name: mine"]),
        (change("name", to=""), ["name '' must be text"]),
        (change("name", to=["a"]), ["name ['a'] must be text"]),
        (change("stages", to=...), ["'stages' is missing"]),
        (change("stages", to=None), ["'stages' must be a list", "None"]),
        (change("stages", to=[]), ["at least one stage"]),
        (change("stages", 1, to=3), ["stages[1]", "mapping", "3"]),
        (change("stages", 1, "widht", to=3), ["stages[1]", "unknown key 'widht'", "width, depth"]),
        (change("stages", 1, "depth", to=...), ["stages[1]", "'depth' is missing"]),
        (change("stages", 1, "blocks", to=[]), ["stages[1]", "give one of 'blocks', 'mixers'"]),
        (change("stages", 1, "mixers", to=...), ["stages[1]", "give one of 'blocks', 'mixers'"]),
        (change("stages", 1, "mixers", to="pooling"), ["'mixers' must be a list", "'pooling'"]),
        (change("stages", 1, "mixers", to=[]), ["stages[1]", "distinct and at least one"]),
        (change("stages", 1, "mixers", to=["pooling"] * 2), ["distinct"]),
        (change("stages", 1, "mixers", to=[None]), ["None is not a mixer", "write a name"]),
        (change("stages", 1, "mixers", to=[{"pooling": 3}]), ["'pooling' must be a mapping"]),
        (change("stages", 1, "width", to=[32, 16]), ["stages[1]", "width [32, 16]", "ascending"]),
        (change("stages", 1, "width", to=[16, 16]), ["width [16, 16]", "without repetition"]),
        (change("stages", 1, "width", to=["a", 16]), ["width ['a', 16]", "positive integers"]),
        (change("stages", 1, "width", to=[[16]]), ["width [[16]]", "positive integers"]),
        (change("stages", 1, "depth", to=[0, 1]), ["depth [0, 1]", "positive integers"]),
        (change("stages", 1, "depth", to=[]), ["depth []", "not empty"]),
        (change("stages", 1, "depth", to=10**6), ["stages[1]", "1000000 is more than 1000"]),
        (change("stages", 1, "depth", to=900), ["[2, 900, 2, 2]", "more than 1e300", "smaller"]),
        (change("stages", 1, "depth", to=True), ["depth [True]", "positive integers"]),
        (change("stages", 1, "width", to=[12]), ["stages[1]", "width=12", "multiple of 8"]),
        (change("stages", 1, "mlp_ratio", to=[0]), ["stages[1]", "mlp_ratio=0", "positive"]),
        (change("resolution", to=[24, 16]), ["resolution [24, 16]", "ascending"]),
        (change("resolution", to=["16", 24]), ["resolution ['16', 24]", "positive integers"]),
        (change("resolution", to=[8]), ["resolution=8 ", "too small", "take a larger"]),
        (change("macro", "stem_kernel", to=1), ["stem_kernel=1", "stride 2"]),
        (
            change("stages", 2, "mixers", 1, to={"window_attention": {"window": [2.5]}}),
            ["stages[2]", "window=2.5", "integer"],
        ),
    ],
)
def test_broken_definition_says_where_and_why(
    apply: Callable[[dict[str, Any]], None], words: list[str]
) -> None:
    data = definition()
    apply(data)
    with pytest.raises((InvalidSpaceError, InvalidArchitectureError)) as info:
        space_from_dict(data)
    for word in words:
        assert word in str(info.value)


@pytest.mark.parametrize("entry", ["window_atention", {"window_atention": {"window": 4}}])
def test_unknown_mixer_says_the_nearest_and_all(entry: Any) -> None:
    data = definition()
    data["stages"][3]["mixers"].append(entry)
    with pytest.raises(UnknownNameError) as info:
        space_from_dict(data)
    message = str(info.value)
    assert "stages[3]: unknown mixer 'window_atention'" in message
    assert "Did you mean 'window_attention'?" in message
    assert all(name in message for name in MIXERS.names())


@pytest.mark.parametrize("key", ["windw", "name", 4])
def test_unknown_mixer_parameter_says_all(key: Any) -> None:
    data = definition()
    data["stages"][3]["mixers"] = [{"window_attention": {key: [4]}}]
    with pytest.raises(UnknownNameError) as info:
        space_from_dict(data)
    for word in ("stages[3]", repr(str(key)), "head_dim, head_ratio, "):
        assert word in str(info.value)


def test_unknown_macro_style() -> None:
    data = definition()
    data["macro"]["downsample"] = "patch_merge"
    with pytest.raises(UnknownNameError, match="Did you mean 'patch_merging'"):
        space_from_dict(data)
