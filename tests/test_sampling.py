"""Training strategies: what holds for all, the simple ones, and shrinking."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from architecture_strategies import WIDTH_UNIT, mixers
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import MACS, SPACE, STEPS, filled_banks, make
from space_kinds import NAMES, kind_of_space

from predictors.tables.additive import AdditiveTable
from search.samplers.base import enumerate_rows
from search_space import Genes, Macro, SearchSpace, StageSpace, metaformer
from search_space.errors import UsageError
from supernet.training.config import TrainConfig
from supernet.training.strategies import (
    STRATEGIES,
    Banks,
    ComplexitySampler,
    DelayedShrinking,
    MultiArchitectureSampler,
    ProgressiveShrinking,
    SandwichSampler,
    StepSubnet,
    Target,
    make_sampler,
)
from supernet.training.strategies.base import Observation
from supernet.training.strategies.extremes import draw_extremes
from supernet.training.strategies.performance import wideness
from supernet.training.strategies.shrinking import DIMENSIONS, clamp


def choices(values: list[int]) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.sampled_from(values), min_size=1).map(lambda found: tuple(sorted(found)))


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Any mixers, any choices of extents; values only, no network is built."""
    blocks = st.builds(metaformer, mixers(), st.sampled_from([1.0, 2.0, 4.0]))
    stage = st.builds(
        StageSpace,
        choices([WIDTH_UNIT, 2 * WIDTH_UNIT, 3 * WIDTH_UNIT]),
        choices([1, 2, 4]),
        st.lists(blocks, min_size=1, max_size=4, unique=True).map(tuple),
    )
    macro = Macro(stem_kernel=2, stem_stride=2)
    return SearchSpace("drawn", macro, draw(choices([32, 48])), draw(st.tuples(*[stage] * 4)))


def any_cost(genes: Genes) -> np.ndarray:
    return (genes + 2).sum(axis=1).astype(np.float64)


@pytest.fixture(scope="module")
def banks() -> Banks:
    return filled_banks()


# Of every strategy --------------------------------------------------------------------------------


every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
steps = st.integers(0, STEPS - 1)


@given(
    spaces(),
    st.sampled_from(STRATEGIES),
    st.sampled_from(["none", "delayed", "progressive"]),
    steps,
    st.integers(0, 3),
    st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_every_subnet_is_of_the_space(
    space: SearchSpace, strategy: str, shrinking: str, step: int, rank: int, teacher: bool
) -> None:
    options = {
        "shrinking": shrinking,
        "teacher": "resnet18" if teacher else None,
        "shrink_start": 0.3,
    }
    sampler = make(space, strategy, any_cost, **options)
    found = sampler(step, rank)
    assert found
    assert all(space.contains(subnet.architecture) for subnet in found)
    assert found[0].target in (Target.LABELS, Target.TEACHER)
    assert teacher or all(subnet.target is not Target.TEACHER for subnet in found)
    assert len(found) == len(sampler(step, rank + 1))


@every_strategy
@pytest.mark.parametrize("shrinking", ["none", "delayed", "progressive"])
def test_a_step_depends_on_seed_step_and_rank_only(strategy: str, shrinking: str) -> None:
    keys = [(step, rank) for step in (0, 3, 70, STEPS - 1) for rank in (0, 2)]
    forth, back = (make(SPACE, strategy, MACS, shrinking=shrinking, seed=3) for _ in range(2))
    drawn = {key: forth(*key) for key in keys}
    assert {key: back(*key) for key in reversed(keys)} == drawn
    other = make(SPACE, strategy, MACS, shrinking=shrinking, seed=4)
    assert other(STEPS - 1) != drawn[STEPS - 1, 0]
    assert repr(other) != repr(forth) == repr(back)


@every_strategy
def test_workers_share_the_ends_and_draw_their_own_between(strategy: str) -> None:
    sampler = make(SPACE, strategy, MACS)
    for step in range(10):
        ranks = [sampler(step, rank) for rank in range(3)]
        for subnets in zip(*ranks, strict=True):
            same = len({subnet.architecture for subnet in subnets}) == 1
            assert len({subnet.role for subnet in subnets}) == 1
            assert same == (subnets[0].role in ("largest", "smallest"))


def test_a_missing_cost() -> None:
    for strategy in ("complexity", "performance"):
        with pytest.raises(UsageError, match="give a cost"):
            make_sampler(SPACE, TrainConfig(strategy=strategy), 1)


# Sandwich, uniform, multi-architectural -----------------------------------------------------------


def test_only_the_first_of_a_sandwich_learns_from_a_fixed_teacher() -> None:
    first, *others = SandwichSampler(SPACE, 2, teacher=True)(4)
    assert (first.architecture, first.target) == (SPACE.largest, Target.TEACHER)
    assert [subnet.target for subnet in others] == [Target.FIRST] * 3


def test_single_path_is_uniform_over_every_gene() -> None:
    sampler = MultiArchitectureSampler(SPACE, 1, seed=2)
    drawn = [sampler(step) for step in range(1500)]
    assert {len(subnets) for subnets in drawn} == {1}
    genes = SPACE.encode([subnets[0].architecture for subnets in drawn])
    for column in (0, *SPACE.width_columns, *(SPACE.width_columns + 1)):
        count = int(SPACE.cardinalities[column])
        shares = np.bincount(genes[:, column], minlength=count) / len(genes)
        # five standard deviations
        np.testing.assert_allclose(shares, 1 / count, atol=5 * np.sqrt(0.25 / len(genes)))


def test_groups_of_a_batch_train_subnets_of_their_own() -> None:
    found = MultiArchitectureSampler(SPACE, groups=4, seed=1)(7)
    assert [subnet.part for subnet in found] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert len({subnet.architecture for subnet in found}) == 4
    assert {subnet.target for subnet in found} == {Target.LABELS}
    taught = MultiArchitectureSampler(SPACE, groups=2, teacher=True)(7)
    assert {subnet.target for subnet in taught} == {Target.TEACHER}


# Shrinking ----------------------------------------------------------------------------------------


def test_delayed_shrinking_trains_the_largest_alone_until_its_start() -> None:
    inner = SandwichSampler(SPACE, 2, seed=1)
    sampler = DelayedShrinking(inner, SPACE, total_steps=100, start=0.4, epsilon=0.1)
    for step in range(40):
        (only,) = sampler(step, rank=1)
        assert (only.architecture, only.target) == (SPACE.largest, Target.LABELS)
        assert (only.lr_factor, only.regularised) == (1.0, True)
    for step, factor in ((40, 0.1), (55, 0.55), (69, 0.97), (70, 1.0), (99, 1.0)):
        first, *others = sampler(step, rank=1)
        assert (first.architecture, first.lr_factor) == (SPACE.largest, 1.0)
        assert [subnet.lr_factor for subnet in others] == pytest.approx([factor] * 3)
        plain = [replace(subnet, lr_factor=1.0) for subnet in (first, *others)]
        assert tuple(plain) == inner(step, rank=1)
    taught = DelayedShrinking(inner, SPACE, total_steps=100, teacher=True)
    assert [subnet.target for subnet in taught(0)] == [Target.TEACHER]
    at_once = DelayedShrinking(inner, SPACE, total_steps=100, start=0.0)
    assert len(at_once(0)) == 4


def smaller_in(subnet: StepSubnet) -> set[str]:
    """Dimensions in which a subnet is not as large as the space allows; by architecture."""
    result = set()
    if subnet.architecture.resolution != SPACE.resolutions[-1]:
        result.add("kernel")
    for stage, allowed in zip(subnet.architecture.stages, SPACE.stages, strict=True):
        if stage.width != allowed.widths[-1]:
            result.add("width")
        if stage.depth != allowed.depths[-1]:
            result.add("depth")
        for block in stage.blocks:
            alike = [b for b in allowed.blocks if b.mixer.name == block.mixer.name]
            if block["mlp_ratio"] != max(b["mlp_ratio"] for b in alike):
                result.add("mlp_ratio")
            if block.mixer.params != max(b.mixer.params for b in alike):
                result.add("kernel")
    return result


def test_progressive_shrinking_releases_one_dimension_after_the_other() -> None:
    inner = SandwichSampler(SPACE, 3, seed=2)
    sampler = ProgressiveShrinking(inner, SPACE, total_steps=100)
    starts = {0: [], 10: ["kernel"], 20: ["depth"], 35: ["mlp_ratio"], 50: ["width"]}
    released: set[str] = set()
    smaller: set[str] = set()
    mixer_names = set()
    for step in range(100):
        if step in starts:
            # all that was released before was made use of
            assert smaller == released
            released |= set(starts[step])
            smaller = set()
        found = sampler(step, rank=1)
        assert sampler.released(step) == released
        assert (found[0].architecture, found[0].role) == (SPACE.largest, "largest")
        for subnet in found:
            assert smaller_in(subnet) <= released
            smaller |= smaller_in(subnet)
        if step < 10:
            mixer_names |= {
                block.mixer.name
                for subnet in found
                for stage in subnet.architecture.stages
                for block in stage.blocks
            }
        assert smaller_in(found[1]) == released  # the smallest of what is released
        assert [s.target for s in found] == [s.target for s in inner(step, rank=1)]
        if step >= 50:
            assert found == inner(step, rank=1)
    assert mixer_names == {block.mixer.name for block in SPACE.stages[0].blocks}
    assert [step for step in range(100) if sampler.sorts_channels(step)] == [35, 50]


@given(spaces(), st.integers(0, 2**32 - 1), st.sets(st.sampled_from(DIMENSIONS)))
@settings(max_examples=40, deadline=None)
def test_clamped_rows_are_valid_and_clamped_for_good(
    space: SearchSpace, seed: int, released: set[str]
) -> None:
    genes = space.sample(np.random.default_rng(seed), 20)
    once = clamp(space, genes, frozenset(released))
    assert space.encode(space.decode(once)).tolist() == once.tolist()
    np.testing.assert_array_equal(clamp(space, once, frozenset(released)), once)
    np.testing.assert_array_equal(clamp(space, genes, frozenset(DIMENSIONS)), genes)
    for before, after in zip(space.decode(genes), space.decode(once), strict=True):
        for stage, larger in zip(before.stages, after.stages, strict=True):
            assert larger.width == stage.width or "width" not in released
            assert larger.depth == stage.depth or "depth" not in released
            # each block keeps what is released, and a new one repeats one of the stage
            for j, block in enumerate(larger.blocks):
                own = stage.blocks[j % stage.depth]
                assert block.mixer.name == own.mixer.name
                assert block.mixer == own.mixer or "kernel" not in released
                assert block["mlp_ratio"] == own["mlp_ratio"] or "mlp_ratio" not in released
    largest = space.encode([space.largest])
    np.testing.assert_array_equal(clamp(space, largest, frozenset(released)), largest)


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_trains_spaces_of_every_sort(name: str) -> None:
    space = kind_of_space(name)
    cost = AdditiveTable.build(space, 10, lambda spec, size: len(str(spec)) + size).predict
    for strategy, shrinking in itertools.product(STRATEGIES, ("none", "delayed", "progressive")):
        sampler = make(space, strategy, cost, shrinking=shrinking)
        for step in range(0, STEPS, 71):
            found = sampler(step)
            assert all(space.contains(subnet.architecture) for subnet in found)
            losses = [
                Observation(subnet=subnet, relative_loss=float(i)) for i, subnet in enumerate(found)
            ]
            sampler.observe(step, losses)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("released", [(), ("kernel",), ("mlp_ratio", "width"), ("depth",)])
def test_clamping_fills_what_is_skipped_until_depth_is_released(
    name: str, released: tuple[str, ...]
) -> None:
    space = kind_of_space(name)
    rows = enumerate_rows(space)
    once = clamp(space, rows, frozenset(released))
    np.testing.assert_array_equal(space.encode(space.decode(once)), once)
    np.testing.assert_array_equal(clamp(space, once, frozenset(released)), once)
    np.testing.assert_array_equal(clamp(space, rows, frozenset(DIMENSIONS)), rows)
    if "depth" not in released:
        for architecture in space.decode(once):
            assert architecture.depths == tuple(stage.max_depth for stage in space.stages)
            assert not any(b.skipped for stage in architecture.stages for b in stage.blocks)


def test_the_ends_of_a_space_skip_all_they_may_or_nothing() -> None:
    space, rng = kind_of_space("skip"), np.random.default_rng(0)
    present = [
        np.hstack([space.present(draw_extremes(space, rng, 50, heaviest=end), i) for i in (0, 1)])
        for end in (False, True)
    ]
    np.testing.assert_array_equal(present[0], np.tile([False, False, True, False, False], (50, 1)))
    assert present[1].all()
    np.testing.assert_allclose(
        wideness(space, space.encode([space.largest])), np.mean(np.log([16 / 2, 16 / 3]))
    )


def test_a_clamped_subnet_has_left_its_bank(banks: Banks) -> None:
    inner = ComplexitySampler(banks, 3, seed=1)
    sampler = ProgressiveShrinking(inner, SPACE, total_steps=100)
    for step in (0, 15, 30, 45):
        drawn, clamped = inner(step), sampler(step)
        assert drawn != clamped
        for before, after in zip(drawn, clamped, strict=True):
            kept = before.architecture == after.architecture
            assert after.bank == (before.bank if kept else None)
    assert [subnet.bank for subnet in sampler(99)] == [subnet.bank for subnet in inner(99)]


def test_schedules_nest_either_way() -> None:
    inner = SandwichSampler(SPACE, 2, seed=1)
    options = {"total_steps": 100}
    one = ProgressiveShrinking(
        DelayedShrinking(inner, SPACE, start=0.3, **options), SPACE, **options
    )
    other = DelayedShrinking(
        ProgressiveShrinking(inner, SPACE, **options), SPACE, start=0.3, **options
    )
    for step in range(100):
        assert one(step) == other(step)
        assert one.sorts_channels(step) == other.sorts_channels(step) == (step in (35, 50))
    assert [len(other(step)) for step in (29, 30)] == [1, 4]


@pytest.mark.parametrize("epsilon", [0.0, 1.5])
def test_impossible_schedules(epsilon: float) -> None:
    with pytest.raises(UsageError, match=f"epsilon {epsilon:g}"):
        DelayedShrinking(MultiArchitectureSampler(SPACE), SPACE, total_steps=9, epsilon=epsilon)
