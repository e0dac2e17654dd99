"""Additive tables against direct sums over components and against brute force."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest

from predictors.tables.additive import AdditiveTable, entries
from search_space import (
    Macro,
    Mixer,
    ModuleSpec,
    SearchSpace,
    StageSpace,
    components,
    load_space,
    metaformer,
    space_names,
)


def fake_cost(spec: ModuleSpec, in_size: int) -> float:
    """Any number that differs between entries."""
    return zlib.crc32(f"{spec}@{in_size}".encode()) / 2**32


def direct_sum(architecture, num_classes: int) -> float:
    chain = components(architecture, num_classes)
    return sum(fake_cost(item.spec, item.in_size) for item in chain)


@pytest.fixture(scope="module")
def small_space() -> SearchSpace:
    """A few thousand architectures, shifted and unshifted windows, two resolutions."""
    blocks = (
        metaformer(Mixer.of("pooling"), 2.0),
        metaformer(Mixer.of("window_attention", window=4, head_dim=8), 2.0),
    )
    stages = (
        StageSpace((8, 16), (1, 2), blocks),
        StageSpace((8, 24), (1,), blocks),
        StageSpace((16, 24), (1, 3), blocks),
        StageSpace((16, 32), (1,), blocks[:1]),
    )
    return SearchSpace("small", Macro(stem_kernel=2, stem_stride=2), (16, 24), stages)


def all_genes(space: SearchSpace) -> np.ndarray:
    rows = []
    for row in itertools.product(*(range(c) for c in space.cardinalities)):
        rows.append(row)
    genes = np.array(rows, dtype=np.int64)
    return np.unique(np.where(space.active(genes), genes, -1), axis=0)


@pytest.mark.parametrize("name", space_names())
def test_prediction_is_the_sum_over_components(name: str) -> None:
    space = load_space(name)
    table = AdditiveTable.build(space, 10, fake_cost, scale=1.5, offset=0.25)
    genes = space.sample(np.random.default_rng(0), 40)
    expected = [0.25 + 1.5 * direct_sum(a, 10) for a in space.decode(genes)]
    np.testing.assert_allclose(table.predict(genes), expected, rtol=1e-12)


def test_entries_are_exactly_what_architectures_ask_for(small_space: SearchSpace) -> None:
    asked = {
        (item.spec, item.in_size)
        for architecture in small_space.decode(all_genes(small_space))
        for item in components(architecture, 7)
    }
    listed = entries(small_space, 7)
    assert len(listed) == len(set(listed))
    assert set(listed) == asked


def test_cost_is_asked_once_per_entry(small_space: SearchSpace) -> None:
    asked: list[tuple[ModuleSpec, int]] = []

    def cost(spec: ModuleSpec, in_size: int) -> float:
        asked.append((spec, in_size))
        return 1.0

    AdditiveTable.build(small_space, 7, cost)
    assert asked == entries(small_space, 7)


@pytest.mark.parametrize("classes", range(8))  # also varies the fake costs
def test_extremes_equal_brute_force(small_space: SearchSpace, classes: int) -> None:
    table = AdditiveTable.build(
        small_space, classes + 1, lambda s, n: fake_cost(s, n + 100 * classes) - 0.3, scale=0.5
    )
    genes = all_genes(small_space)
    assert len(genes) == small_space.size
    values = table.predict(genes)
    low, high = table.argmin(), table.argmax()
    assert small_space.decode(np.stack([low, high]))  # valid rows
    np.testing.assert_allclose(table.predict(np.stack([low, high])), [values.min(), values.max()])


def test_breakdown_adds_up_and_names_components(small_space: SearchSpace) -> None:
    table = AdditiveTable.build(small_space, 7, fake_cost, scale=2.0, offset=0.125)
    row = small_space.sample(np.random.default_rng(1), 1)
    parts = table.breakdown(row[0])
    assert sum(value for _, value in parts) == pytest.approx(table.predict(row)[0])
    (architecture,) = small_space.decode(row)
    paths = [item.path for item in components(architecture, 7)]
    assert [path for path, _ in parts] == [*paths, "correction"]


def test_population_larger_than_a_chunk(small_space: SearchSpace) -> None:
    table = AdditiveTable.build(small_space, 7, fake_cost)
    genes = small_space.sample(np.random.default_rng(2), 20_000)
    picks = [0, 8191, 8192, 19_999]
    np.testing.assert_array_equal(table.predict(genes)[picks], table.predict(genes[picks]))
    assert table.predict(genes[:0]).shape == (0,)
