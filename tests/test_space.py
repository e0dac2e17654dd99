"""Search spaces: the encoding, the operators, the size and the presets' promises."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.counts import count_architecture, count_entry
from search_space import (
    Architecture,
    Block,
    Genes,
    Macro,
    Mixer,
    SearchSpace,
    Stage,
    StageSpace,
    known,
    load_space,
    mixer_names,
    space_names,
)
from search_space.architecture import feature_sizes
from search_space.components import block_spec, downsample_spec, head_spec, stem_spec
from search_space.errors import InvalidArchitectureError, InvalidSpaceError, UnknownNameError
from search_space.space import INACTIVE

seeds = st.integers(0, 2**32 - 1)
spaces = st.sampled_from([*space_names(), "small"])


@lru_cache
def preset(name: str) -> SearchSpace:
    return small_space() if name == "small" else load_space(name)


def small_space() -> SearchSpace:
    """240 architectures: small enough to list."""
    pooling = Block(Mixer.of("pooling"), 2.0)
    convolution = Block(Mixer.of("depthwise_conv", kernel=3), 2.0)
    fixed = StageSpace((16,), (1,), (pooling,))
    return SearchSpace(
        "small",
        Macro(stem_kernel=2, stem_stride=2),
        (16, 24),
        (
            StageSpace((8, 16), (1, 2), (pooling, convolution)),
            fixed,
            fixed,
            StageSpace((16,), (1, 3), (pooling, convolution)),
        ),
    )


def listed(space: SearchSpace) -> list[Architecture]:
    """All architectures, from the definition and without the encoding."""
    stages = [
        [
            Stage(width, blocks)
            for width in stage.widths
            for depth in stage.depths
            for blocks in itertools.product(stage.blocks, repeat=depth)
        ]
        for stage in space.stages
    ]
    return [
        Architecture(space.macro, resolution, chosen)
        for resolution in space.resolutions
        for chosen in itertools.product(*stages)
    ]


def assert_canonical(space: SearchSpace, genes: Genes) -> None:
    """Valid, and what ``encode`` gives for the architectures that it means."""
    assert genes.dtype == np.int64
    assert genes.shape[1] == space.num_genes
    np.testing.assert_array_equal(space.encode(space.decode(genes)), genes)


# Encoding -----------------------------------------------------------------------------------


@given(spaces, seeds)
@settings(max_examples=25, deadline=None)
def test_decode_inverts_encode(name: str, seed: int) -> None:
    space = preset(name)
    architectures = space.decode(space.sample(np.random.default_rng(seed), 4))
    assert space.decode(space.encode(architectures)) == architectures
    assert all(space.contains(architecture) for architecture in architectures)


def test_size_and_encoding_cover_the_whole_space() -> None:
    space = small_space()
    everything = listed(space)
    assert space.size == len(everything) == len(set(everything)) == 240
    genes = space.encode(everything)
    assert len(np.unique(genes, axis=0)) == 240
    assert space.decode(genes) == everything


def test_layout_of_a_row() -> None:
    space = small_space()
    pooling, convolution = space.stages[0].blocks
    architecture = Architecture(
        space.macro,
        24,
        (
            Stage(16, (convolution,)),
            Stage(16, (pooling,)),
            Stage(16, (pooling,)),
            Stage(16, (pooling, convolution, pooling)),
        ),
    )
    row = [1, *(1, 0, 1, INACTIVE), *(0, 0, 0), *(0, 0, 0), *(0, 1, 0, 1, 0)]
    np.testing.assert_array_equal(space.encode([architecture]), [row])
    assert space.num_genes == len(row)
    assert space.width_columns.tolist() == [1, 5, 8, 11]
    assert space.block_columns(3) == slice(13, 16)
    assert space.cardinalities.tolist() == [2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]


def test_no_architectures_is_no_rows() -> None:
    space = preset("digits")
    assert space.encode([]).shape == (0, space.num_genes)
    assert space.decode(space.encode([])) == []
    rng = np.random.default_rng(0)
    none = space.sample(rng, 0)
    assert space.mutate(none, rng).shape == space.crossover(none, none, rng).shape == none.shape


@pytest.mark.parametrize(
    ("column", "value"), [(0, 2), (0, -1), (1, 2), (2, -1), (2, 2), (3, 2), (3, -1), (4, 0), (4, 5)]
)
def test_genes_out_of_range_are_refused(column: int, value: int) -> None:
    space = small_space()
    genes = space.encode([space.smallest])  # depth 1: column 4 is inactive
    space.decode(genes)
    genes[0, column] = value
    with pytest.raises(InvalidArchitectureError, match="out of range for space 'small'"):
        space.decode(genes)


@pytest.mark.parametrize("shape", [(16,), (1, 15), (1, 17), (1, 1, 16)])
def test_genes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArchitectureError, match=r"expected \(n, 16\)"):
        small_space().decode(np.zeros(shape, dtype=np.int64))


def test_contains_and_encode_say_what_lies_outside() -> None:
    space = small_space()
    inside = space.smallest
    stage = inside.stages[0]
    heavy = Block(Mixer.of("pooling"), 4.0)
    outside = [
        (replace(inside, resolution=32), ["resolution 32", "16, 24"]),
        (replace(inside, macro=replace(space.macro, norm_eps=1e-5)), ["macro style"]),
        (replace(inside, stages=(replace(stage, width=24), *inside.stages[1:])), ["24", "8, 16"]),
        (
            replace(inside, stages=(Stage(8, stage.blocks * 3), *inside.stages[1:])),
            ["stages[0] depth 3", "1, 2"],
        ),
        (
            replace(inside, stages=(Stage(8, (heavy,)), *inside.stages[1:])),
            ["stages[0].blocks[0]", "pooling", "depthwise_conv"],
        ),
    ]
    assert space.contains(inside)
    for architecture, words in outside:
        assert not space.contains(architecture)
        with pytest.raises(InvalidArchitectureError, match="small") as info:
            space.encode([inside, architecture])
        for word in words:
            assert word in str(info.value)


# Operators ----------------------------------------------------------------------------------


@given(spaces, seeds, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=30, deadline=None)
def test_operators_give_canonical_rows(name: str, seed: int, rate: float) -> None:
    space, rng = preset(name), np.random.default_rng(seed)
    parents = space.sample(rng, 6)
    assert_canonical(space, parents)
    before = parents.copy()
    mutated = space.mutate(parents, rng, rate)
    assert_canonical(space, mutated)
    assert (mutated != parents).any(axis=1).all()
    children = space.crossover(parents, parents[::-1], rng)
    assert_canonical(space, children)
    np.testing.assert_array_equal(parents, before)


@given(spaces, seeds)
@settings(max_examples=20, deadline=None)
def test_same_seed_same_rows(name: str, seed: int) -> None:
    space = preset(name)

    def run() -> list[Genes]:
        rng = np.random.default_rng(seed)
        first, second = space.sample(rng, 4), space.sample(rng, 4)
        return [first, space.mutate(first, rng), space.crossover(first, second, rng)]

    for one, other in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(one, other)


@given(spaces, seeds)
@settings(max_examples=30, deadline=None)
def test_crossover_takes_every_gene_from_a_parent(name: str, seed: int) -> None:
    space, rng = preset(name), np.random.default_rng(seed)
    first, second = space.sample(rng, 12), space.sample(rng, 12)
    child = space.crossover(first, second, rng)
    active = child != INACTIVE
    assert np.all(((child == first) | (child == second))[active])
    np.testing.assert_array_equal(space.crossover(first, first, rng), first)


def test_crossover_mixes_stages_and_genes() -> None:
    space, rng = preset("cifar"), np.random.default_rng(0)
    first, second = (np.repeat(space.sample(rng, 1), 400, axis=0) for _ in range(2))
    child = space.crossover(first, second, rng)
    whole = np.ones(len(child), dtype=bool)
    for i in range(4):
        columns = slice(int(space.width_columns[i]), space.block_columns(i).stop)
        from_first = (child[:, columns] == first[:, columns]).all(axis=1)
        from_second = (child[:, columns] == second[:, columns]).all(axis=1)
        whole &= from_first | from_second
    assert 0.4 < whole.mean() < 0.65
    assert len(np.unique(child[whole], axis=0)) > 8
    assert len(np.unique(child, axis=0)) > 100


@given(spaces, seeds)
@settings(max_examples=20, deadline=None)
def test_mutation_at_rate_one_changes_every_gene_that_can(name: str, seed: int) -> None:
    space, rng = preset(name), np.random.default_rng(seed)
    parents = space.sample(rng, 6)
    mutated = space.mutate(parents, rng, 1.0)
    kept = (parents != INACTIVE) & (mutated != INACTIVE) & (space.cardinalities > 1)
    assert np.all((mutated != parents)[kept])


@given(spaces, seeds)
@settings(max_examples=20, deadline=None)
def test_mutation_at_rate_zero_changes_one_gene(name: str, seed: int) -> None:
    space, rng = preset(name), np.random.default_rng(seed)
    parents = space.sample(rng, 12)
    mutated = space.mutate(parents, rng, 0.0)
    # blocks that only one of the two has come or go with the depth
    both = (parents != INACTIVE) & (mutated != INACTIVE)
    assert ((mutated != parents) & both).sum(axis=1).tolist() == [1] * 12


def test_mutation_rate_is_what_it_says() -> None:
    space, rng = preset("tiny"), np.random.default_rng(0)
    parents = space.sample(rng, 3000)
    mutated = space.mutate(parents, rng, 0.3)
    both = (parents != INACTIVE) & (mutated != INACTIVE) & (space.cardinalities > 1)
    assert (mutated != parents)[both].mean() == pytest.approx(0.3, abs=0.01)


def test_sampling_and_mutation_reach_the_whole_space() -> None:
    space, rng = small_space(), np.random.default_rng(0)
    assert len(np.unique(space.sample(rng, 8000), axis=0)) == 240
    reached = space.encode([space.smallest])
    for _ in range(60):
        steps = space.mutate(np.repeat(reached, 4, axis=0), rng, 0.2)
        reached = np.unique(np.concatenate([reached, steps]), axis=0)
    assert len(reached) == 240


def test_sampling_is_uniform_per_gene() -> None:
    space = preset("digits")
    genes = space.sample(np.random.default_rng(0), 20_000)
    for column, choices in enumerate(space.cardinalities):
        active = genes[:, column][genes[:, column] != INACTIVE]
        shares = np.bincount(active, minlength=choices) / len(active)
        # five standard deviations of a share
        assert np.all(abs(shares - 1 / choices) < 5 * np.sqrt(1 / choices / len(active)))


def test_a_space_of_one_architecture() -> None:
    fixed = StageSpace((16,), (2,), (Block(Mixer.of("pooling"), 2.0),))
    space = SearchSpace("one", Macro(), (64,), (fixed,) * 4)
    rng = np.random.default_rng(0)
    genes = space.sample(rng, 3)
    assert space.size == 1
    assert space.smallest == space.largest
    np.testing.assert_array_equal(space.mutate(genes, rng), genes)  # nothing else exists


@pytest.mark.parametrize("name", space_names())
def test_neighbours_differ_in_one_parameter(name: str) -> None:
    for stage in preset(name).stages:
        for i, near in enumerate(stage.neighbours):
            one = stage.blocks[i].to_dict()
            expected = [
                j
                for j, block in enumerate(stage.blocks)
                if block.mixer.name == one["mixer"]
                and sum(one[key] != value for key, value in block.to_dict().items()) == 1
            ]
            assert near.tolist() == (expected or [i])


# Presets ------------------------------------------------------------------------------------


def lightest_and_heaviest(space: SearchSpace, resolution: int) -> tuple[int, int]:
    """Bounds on MACs: each part on its own as light, or as heavy, as it can be."""
    macro, sizes = space.macro, feature_sizes(space.macro, resolution)
    low = high = 0
    stems = [count_entry(stem_spec(macro, w), resolution).macs for w in space.stages[0].widths]
    heads = [
        count_entry(head_spec(macro, w, 1000), sizes[-1]).macs for w in space.stages[-1].widths
    ]
    parts = [stems, heads]
    for i, stage in enumerate(space.stages):
        if i > 0:
            before = space.stages[i - 1].widths
            parts.append(
                [
                    count_entry(downsample_spec(macro, a, b), sizes[i - 1]).macs
                    for a in (before[0], before[-1])
                    for b in (stage.widths[0], stage.widths[-1])
                ]
            )
        blocks = [
            count_entry(block_spec(macro, width, block, 0), sizes[i]).macs
            for width in (stage.widths[0], stage.widths[-1])
            for block in stage.blocks
        ]
        parts.append([min(blocks) * stage.depths[0], max(blocks) * stage.depths[-1]])
    for values in parts:
        low, high = low + min(values), high + max(values)
    return low, high


@pytest.mark.parametrize("name", space_names())
def test_smallest_and_largest_are_extreme(name: str) -> None:
    space = preset(name)
    assert space.contains(space.smallest)
    assert space.contains(space.largest)
    smallest, largest = (count_architecture(a) for a in (space.smallest, space.largest))
    samples = space.decode(space.sample(np.random.default_rng(0), 60))
    for sample in samples:
        count = count_architecture(sample)
        for metric in ("macs", "num_params"):
            assert smallest[metric] <= count[metric] <= largest[metric]
    assert smallest["macs"] == lightest_and_heaviest(space, space.resolutions[0])[0]
    # on maps smaller than a window other mixers are the heaviest, by very little
    bound = lightest_and_heaviest(space, space.resolutions[-1])[1]
    assert 0.99 * bound <= largest["macs"] <= bound


@pytest.mark.parametrize(
    ("name", "reference", "low", "high"), [("tiny", "swin_t", 0.8, 1.5), ("base", "swin_b", 1, 2)]
)
def test_largest_reaches_the_published_cost(
    name: str, reference: str, low: float, high: float
) -> None:
    largest = count_architecture(preset(name).largest)["macs"]
    assert low <= largest / count_architecture(known(reference))["macs"] <= high


@pytest.mark.parametrize(
    ("name", "resolutions"),
    [("digits", (16, 24)), ("cifar", (32, 32)), ("tiny", (160, 224)), ("base", (192, 256))],
)
def test_presets_are_what_they_describe(name: str, resolutions: tuple[int, int]) -> None:
    space = preset(name)
    assert space.name == name
    assert (space.resolutions[0], space.resolutions[-1]) == resolutions
    mixers = {block.mixer.name for stage in space.stages for block in stage.blocks}
    if name == "digits":
        assert mixers == {"pooling", "depthwise_conv", "window_attention"}
    else:
        assert mixers == set(mixer_names())
    assert space.size > 1e12  # worth searching


@pytest.mark.parametrize("name", space_names())
def test_plain_form_round_trips(name: str) -> None:
    space = preset(name)
    again = SearchSpace.from_dict(space.to_dict())
    assert again == space
    assert again.digest == space.digest
    renamed = SearchSpace.from_dict({**space.to_dict(), "name": "other"})
    assert renamed.digest == space.digest
    assert len({preset(other).digest for other in space_names()}) == len(space_names())


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
    space = SearchSpace.from_dict(definition())
    attention = [Mixer.of("window_attention", window=window, head_dim=8) for window in (2, 4)]
    mixers = [Mixer.of("pooling"), *attention]
    expected = tuple(Block(mixer, ratio) for mixer in mixers for ratio in (2.0, 4.0))
    assert space.resolutions == (16,)
    assert space.stages == (StageSpace((16, 32), (2,), expected),) * 4
    assert space.size == (2 * 6**2) ** 4


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        *parents, last = path
        for key in parents:
            data = data[key]
        if to is ...:
            del data[last]
        else:
            data[last] = to

    return apply


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (change("resolutions", to=1), ["unknown key 'resolutions'", "resolution"]),
        (change("resolution", to=...), ["'resolution' is missing"]),
        (change("name", to=...), ["'name' is missing"]),
        (change("stages", to=...), ["'stages' is missing"]),
        (change("stages", to=None), ["'stages' must be a list", "None"]),
        (change("stages", to=[]), ["4 stages", "not 0"]),
        (change("stages", 1, to=3), ["stages[1]", "mapping", "3"]),
        (change("stages", 1, "widht", to=3), ["stages[1]", "unknown key 'widht'", "width, depth"]),
        (change("stages", 1, "depth", to=...), ["stages[1]", "'depth' is missing"]),
        (change("stages", 1, "blocks", to=[]), ["stages[1]", "either 'blocks' or 'mixers'"]),
        (change("stages", 1, "mixers", to=...), ["stages[1]", "either 'blocks' or 'mixers'"]),
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
        (change("stages", 1, "depth", to=True), ["depth [True]", "positive integers"]),
        (change("stages", 1, "width", to=[12]), ["stages[1]", "width=12", "multiple of 8"]),
        (change("stages", 1, "mlp_ratio", to=[0]), ["stages[1]", "mlp_ratio=0", "positive"]),
        (change("resolution", to=[24, 16]), ["resolution [24, 16]", "ascending"]),
        (change("resolution", to=["16", 24]), ["resolution ['16', 24]", "positive integers"]),
        (change("resolution", to=[8]), ["resolution 8", "too small", "take a larger"]),
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
        SearchSpace.from_dict(data)
    for word in words:
        assert word in str(info.value)


@pytest.mark.parametrize("entry", ["window_atention", {"window_atention": {"window": 4}}])
def test_unknown_mixer_says_the_nearest_and_all(entry: Any) -> None:
    data = definition()
    data["stages"][3]["mixers"].append(entry)
    with pytest.raises(UnknownNameError) as info:
        SearchSpace.from_dict(data)
    message = str(info.value)
    assert "stages[3]: unknown mixer 'window_atention'" in message
    assert "Did you mean 'window_attention'?" in message
    assert all(name in message for name in mixer_names())


@pytest.mark.parametrize("key", ["windw", "name", 4])
def test_unknown_mixer_parameter_says_all(key: Any) -> None:
    data = definition()
    data["stages"][3]["mixers"] = [{"window_attention": {key: [4]}}]
    with pytest.raises(UnknownNameError) as info:
        SearchSpace.from_dict(data)
    for word in ("stages[3]", repr(str(key)), "head_dim, window"):
        assert word in str(info.value)


def test_unknown_macro_style() -> None:
    data = definition()
    data["macro"]["downsample"] = "patch_merge"
    with pytest.raises(UnknownNameError, match="Did you mean 'patch_merging'"):
        SearchSpace.from_dict(data)
