"""Search spaces: the encoding, the operators and the size."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_space import (
    Architecture,
    Genes,
    Macro,
    Mixer,
    SearchSpace,
    Stage,
    StageSpace,
    load_space,
    metaformer,
    space_names,
)
from search_space.errors import InvalidArchitectureError
from search_space.stage_space import INACTIVE

seeds = st.integers(0, 2**32 - 1)
spaces = st.sampled_from([*space_names(), "small"])


@lru_cache
def preset(name: str) -> SearchSpace:
    return small_space() if name == "small" else load_space(name)


def small_space() -> SearchSpace:
    """240 architectures: small enough to list."""
    pooling = metaformer(Mixer.of("pooling"), 2.0)
    convolution = metaformer(Mixer.of("depthwise_conv", kernel=3), 2.0)
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
    heavy = metaformer(Mixer.of("pooling"), 4.0)
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
    fixed = StageSpace((16,), (2,), (metaformer(Mixer.of("pooling"), 2.0),))
    space = SearchSpace("one", Macro(), (64,), (fixed,) * 4)
    rng = np.random.default_rng(0)
    genes = space.sample(rng, 3)
    assert space.size == 1
    assert space.smallest == space.largest
    np.testing.assert_array_equal(space.mutate(genes, rng), genes)  # nothing else exists
