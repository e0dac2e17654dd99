"""Training strategies, each on its own terms: what a step trains, and what depends on what."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from architecture_strategies import WIDTH_UNIT, mixers
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.counts import counts
from search_space import Block, Genes, Macro, SearchSpace, StageSpace, load_space
from search_space.errors import NasError, RunError, UnknownNameError, UsageError
from supernet.sampling import (
    STRATEGIES,
    Banks,
    ComplexitySampler,
    DelayedShrinking,
    MultiArchitectureSampler,
    Observation,
    PerformanceSampler,
    ProgressiveShrinking,
    SandwichSampler,
    StepSubnet,
    SubnetSampler,
    Target,
    UniformSampler,
    make_sampler,
)
from supernet.sampling.banks import CostFunction
from supernet.sampling.complexity import CHUNK, BankWalk
from supernet.sampling.performance import wideness
from supernet.sampling.shrinking import DIMENSIONS, clamp

SPACE = load_space("digits")
MACS = counts(SPACE, 10)["macs"].predict
STEPS = 600


def choices(values: list[int]) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.sampled_from(values), min_size=1).map(lambda found: tuple(sorted(found)))


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Any mixers, any choices of extents; values only, no network is built."""
    blocks = st.builds(Block, mixers(), st.sampled_from([1.0, 2.0, 4.0]))
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


def make(space: SearchSpace, strategy: str, cost: CostFunction, **options) -> SubnetSampler:
    return make_sampler(space, strategy=strategy, total_steps=STEPS, cost=cost, **options)


@pytest.fixture(scope="module")
def banks() -> Banks:
    return Banks.fill(SPACE, MACS, 6, seed=1, population=8192, per_bank=200)


def macs_of(*subnets: StepSubnet) -> np.ndarray:
    return MACS(SPACE.encode([subnet.architecture for subnet in subnets]))


# Of every strategy --------------------------------------------------------------------------

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
    options = {"shrinking": shrinking, "teacher": teacher, "shrink_start": 0.3}
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
    assert other.to_dict() != forth.to_dict() == back.to_dict()
    assert json.loads(json.dumps(forth.to_dict())) == forth.to_dict()


@every_strategy
def test_workers_share_the_ends_and_draw_their_own_between(strategy: str) -> None:
    sampler = make(SPACE, strategy, MACS)
    for step in range(10):
        ranks = [sampler(step, rank) for rank in range(3)]
        for subnets in zip(*ranks, strict=True):
            same = len({subnet.architecture for subnet in subnets}) == 1
            assert len({subnet.role for subnet in subnets}) == 1
            assert same == (subnets[0].role in ("largest", "smallest"))


def test_unknown_names_and_a_missing_cost() -> None:
    with pytest.raises(UnknownNameError, match="'sandwich'"):
        make_sampler(SPACE, strategy="sandwitch", total_steps=1)
    with pytest.raises(UnknownNameError, match="delayed"):
        make_sampler(SPACE, shrinking="delay", total_steps=1)
    for strategy in ("complexity", "performance"):
        with pytest.raises(UsageError, match="give a cost"):
            make_sampler(SPACE, strategy=strategy, total_steps=1)


# Sandwich, uniform, multi-architectural -----------------------------------------------------


def test_only_the_first_of_a_sandwich_learns_from_a_fixed_teacher() -> None:
    first, *others = SandwichSampler(SPACE, 2, teacher=True)(4)
    assert (first.architecture, first.target) == (SPACE.largest, Target.TEACHER)
    assert [subnet.target for subnet in others] == [Target.FIRST] * 3


def test_single_path_is_uniform_over_every_gene() -> None:
    sampler = UniformSampler(SPACE, seed=2)
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
    with pytest.raises(UsageError, match="groups 0"):
        MultiArchitectureSampler(SPACE, groups=0)


# Cost banks ---------------------------------------------------------------------------------


def test_banks_hold_only_subnets_of_their_range(banks: Banks) -> None:
    assert len(banks) == 6
    np.testing.assert_allclose(banks.edges[1:] / banks.edges[:-1], banks.edges[1] / banks.edges[0])
    seen = set()
    for bank, (rows, costs) in enumerate(zip(banks.rows, banks.costs, strict=True)):
        assert 0 < len(rows) <= 200
        np.testing.assert_array_equal(MACS(rows), costs)
        np.testing.assert_array_equal(SPACE.encode(SPACE.decode(rows)), rows)
        assert (np.diff(costs) >= 0).all()
        assert costs[0] >= banks.edges[bank]
        assert costs[-1] < banks.edges[bank + 1] or bank == 5
        seen |= set(map(tuple, rows.tolist()))
    assert banks.costs[-1][-1] <= banks.edges[-1]
    assert len(seen) == sum(map(len, banks.rows))
    # other draws are other banks, for the checkpoint's identity
    again = Banks.fill(SPACE, MACS, 6, seed=1, population=8192, per_bank=200)
    assert again.digest == banks.digest
    assert Banks.fill(SPACE, MACS, 6, seed=2, population=8192).digest != banks.digest


def test_banks_reach_where_uniform_draws_do_not() -> None:
    """Even the ends have many subnets, though hardly any of as many uniform draws lies there."""
    space = load_space("cifar")
    macs = counts(space, 10)["macs"].predict
    filled = Banks.fill(space, macs, 8, population=20_000)
    uniform = macs(space.sample(np.random.default_rng(0), 20_000))
    alone = np.histogram(uniform, filled.edges)[0]
    assert len(filled) == 8
    assert alone[0] == 0
    assert alone[-1] < 50
    assert min(len(rows) for rows in filled.rows) > 200
    assert filled.edges[0] <= macs(space.encode([space.smallest]))[0]
    assert filled.edges[-1] >= macs(space.encode([space.largest]))[0]


def test_given_edges_and_joined_ranges() -> None:
    costs = np.unique(MACS(SPACE.sample(np.random.default_rng(0), 3000)))
    low, middle, high = np.quantile(costs, [0.1, 0.5, 0.9])
    top = 10 * MACS(SPACE.encode([SPACE.largest]))[0]

    def fill(*edges: float) -> Banks:
        return Banks.fill(SPACE, MACS, edges=edges, population=4096)

    assert fill(low, middle, high).edges.tolist() == [low, middle, high]
    assert all(low <= cost <= high for cost in np.concatenate(fill(low, middle, high).costs))
    # ranges without rows: the lowest, two between, the highest
    edges = (0.1, 0.5, 2, 3, 3.5, 5, 9)
    joined = Banks.fill(SPACE, lambda rows: np.where(MACS(rows) < middle, 1.0, 4.0), edges=edges)
    assert joined.edges.tolist() == [0.1, 2, 9]
    assert [set(found.tolist()) for found in joined.costs] == [{1.0}, {4.0}]
    constant = Banks.fill(SPACE, lambda rows: np.full(len(rows), 3.0), 5, population=100)
    assert len(constant) == 1

    for wrong in ((1.0,), (2.0, 2.0), (3.0, 1.0)):
        with pytest.raises(UsageError, match="ascending"):
            fill(*wrong)
    with pytest.raises(UsageError, match="those found cost"):
        fill(top, 2 * top)
    with pytest.raises(UsageError, match="positive"):
        Banks.fill(SPACE, lambda rows: MACS(rows) - middle, population=100)
    with pytest.raises(UsageError, match="not finite"):
        Banks.fill(SPACE, lambda rows: np.full(len(rows), np.nan), population=100)
    with pytest.raises(UsageError, match="0 banks"):
        Banks.fill(SPACE, MACS, 0)


# Complexity-aware ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_banks", [1, 2, 5, 8])
def test_walk_moves_to_adjacent_banks_and_visits_all_alike(num_banks: int) -> None:
    walk = BankWalk(num_banks, seed=3)
    visited = np.array([walk(step) for step in range(8 * CHUNK)])
    moves = np.diff(visited)
    assert set(moves) <= {-1, 0, 1}
    shares = np.bincount(visited, minlength=num_banks) / len(visited)
    np.testing.assert_allclose(shares, 1 / num_banks, atol=0.05)
    if num_banks > 2:
        inner = moves[(visited[:-1] > 0) & (visited[:-1] < num_banks - 1)]
        for move in (-1, 0, 1):
            assert np.mean(inner == move) == pytest.approx(1 / 3, abs=0.02)
    # of the step only, whatever was asked before
    assert BankWalk(num_banks, seed=3)(5 * CHUNK + 7) == visited[5 * CHUNK + 7]


def test_walk_does_not_repeat_its_moves() -> None:
    walk = BankWalk(10**6, seed=3)  # so wide that it meets no end
    moves = np.diff([walk(step) for step in range(3 * CHUNK + 1)]).reshape(3, CHUNK)
    assert all(np.mean(a == b) < 0.4 for a, b in itertools.combinations(moves, 2))


def smallest_extents(subnet: StepSubnet) -> bool:
    found, wanted = subnet.architecture, SPACE.smallest
    return (found.resolution, found.widths, found.depths) == (
        wanted.resolution,
        wanted.widths,
        wanted.depths,
    )


def test_complexity_aware_steps_stay_within_a_bank(banks: Banks) -> None:
    sampler = ComplexitySampler(banks, 3, seed=5)
    before = None
    for step in range(300):
        largest, *members, smallest = sampler(step)
        assert (largest.role, largest.target) == ("largest", Target.LABELS)
        assert largest.architecture == SPACE.largest
        assert (smallest.role, smallest.target) == ("smallest", Target.PEERS)
        assert {subnet.target for subnet in members} == {Target.FIRST}
        (bank,) = {subnet.bank for subnet in members}
        assert before is None or abs(bank - before) <= 1
        before = bank
        cost = macs_of(*members)
        assert (cost >= banks.edges[bank]).all()
        assert (cost <= banks.edges[bank + 1]).all()
        assert len({subnet.architecture for subnet in members}) == 3
        # 6 banks: one smallest for two of them each, at the lower end of the lower one
        lower = bank // 2 * 2
        if lower == 0:
            assert smallest_extents(smallest)
        else:
            assert macs_of(smallest)[0] <= np.quantile(banks.costs[lower], 0.06)
            assert macs_of(smallest)[0] >= banks.edges[lower]
        assert smallest.bank is None


def test_with_a_fixed_teacher_only_the_smallest_learns_from_peers(banks: Banks) -> None:
    found = ComplexitySampler(banks, 3, teacher=True)(11)
    assert [subnet.role for subnet in found] == ["random"] * 3 + ["smallest"]
    assert [subnet.target for subnet in found] == [Target.TEACHER] * 3 + [Target.PEERS]


# Performance-aware --------------------------------------------------------------------------


def strangers(banks: Banks, n: int) -> list[StepSubnet]:
    """Subnets that are in no bank, so that one knows them for remembered when they are drawn."""
    known = {tuple(row) for rows in banks.rows for row in rows.tolist()}
    rows = np.unique(SPACE.sample(np.random.default_rng(99), 4 * n), axis=0)
    fresh = [row for row in rows if tuple(row.tolist()) not in known]
    return [
        StepSubnet(role="random", architecture=architecture, bank=0)
        for architecture in SPACE.decode(np.stack(fresh[:n]))
    ]


def seen(subnets: list[StepSubnet], losses: list[float], bank: int) -> list[Observation]:
    return [
        Observation(subnet=replace(subnet, bank=bank), relative_loss=loss)
        for subnet, loss in zip(subnets, losses, strict=True)
    ]


def test_exploitation_grows_by_sixths_once_a_bank_is_half_full(banks: Banks) -> None:
    sampler = PerformanceSampler(banks, STEPS)
    subnets = strangers(banks, 75)
    sampler.observe(0, seen(subnets[:74], [0.0] * 74, 2))
    assert sampler.exploitation(2, 0) == 0
    sampler.observe(1, seen(subnets[74:], [0.0], 2))
    expected = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95]
    for part, share in enumerate(expected):
        for step in (100 * part, 100 * part + 99):
            assert sampler.exploitation(2, step) == pytest.approx(share)
    assert sampler.exploitation(1, STEPS - 1) == 0
    # the heaviest bank remembers 50
    sampler.observe(2, seen(subnets[:25], [0.0] * 25, 5))
    assert sampler.exploitation(5, 0) == pytest.approx(0.2)


def test_share_of_remembered_subnets_follows_the_schedule(banks: Banks) -> None:
    # a training so long that each sixth has thousands of draws
    sampler = PerformanceSampler(banks, 6000, 3, seed=8)
    subnets = strangers(banks, 80)
    for bank, count in enumerate([80] * 5 + [30]):
        sampler.observe(0, seen(subnets[:count], [0.0] * count, bank))
    known = {subnet.architecture for subnet in subnets}
    for part, share in enumerate([0.2, 0.35, 0.5, 0.65, 0.8, 0.95]):
        drawn = [
            subnet.architecture in known
            for step in range(1000 * part, 1000 * part + 200)
            for subnet in sampler(step)
            if subnet.bank is not None
        ]
        assert len(drawn) == 600
        # five standard deviations
        assert np.mean(drawn) == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 600))


def test_memory_is_drawn_by_softmax_of_the_loss() -> None:
    one = Banks.fill(SPACE, MACS, 1, population=200, per_bank=50)
    sampler = PerformanceSampler(one, STEPS, 1, seed=3, heaviest_capacity=4)
    subnets, losses = strangers(one, 4), [0.0, 0.5, 1.0, 3.0]
    sampler.observe(0, seen(subnets, losses, 0))
    counted = dict.fromkeys((subnet.architecture for subnet in subnets), 0)
    for rank in range(1500):  # ranks draw on their own, so one step is enough
        found = sampler(STEPS - 1, rank)[1].architecture
        if found in counted:
            counted[found] += 1
    shares = np.array(list(counted.values())) / sum(counted.values())
    expected = np.exp(-np.array(losses)) / np.exp(-np.array(losses)).sum()
    np.testing.assert_allclose(shares, expected, atol=0.06)


def test_the_worst_gives_way_and_a_row_seen_again_is_renewed(banks: Banks) -> None:
    sampler = PerformanceSampler(banks, STEPS, capacity=3)
    subnets = strangers(banks, 6)
    sampler.observe(0, seen(subnets[:3], [0.3, 0.9, 0.5], 1))
    sampler.observe(1, seen(subnets[3:5], [0.4, 0.8], 1))  # 0.4 for 0.9; 0.8 is the worst
    assert sorted(sampler.memory[1].values()) == [0.3, 0.4, 0.5]
    sampler.observe(2, seen(subnets[:1], [0.7], 1))
    assert sorted(sampler.memory[1].values()) == [0.4, 0.5, 0.7]
    rows = SPACE.encode([subnets[i].architecture for i in (0, 2, 3)])
    assert set(sampler.memory[1]) == {tuple(row) for row in rows.tolist()}
    assert not any(memory for bank, memory in enumerate(sampler.memory) if bank != 1)
    ends = [StepSubnet(role="largest", architecture=SPACE.largest)]
    sampler.observe(3, [Observation(subnet=ends[0], relative_loss=-1.0)])
    assert sorted(sampler.memory[1].values()) == [0.4, 0.5, 0.7]


def test_losses_with_a_fixed_teacher_are_relative_to_each_workers_smallest(banks: Banks) -> None:
    a, b, c, d = strangers(banks, 4)
    end = StepSubnet(role="smallest", architecture=SPACE.smallest)
    step = [
        *seen([a, b], [0.0, 0.2], 1),
        Observation(subnet=end, relative_loss=0.5),
        *seen([c, d], [0.0, -0.1], 1),
        Observation(subnet=end, relative_loss=1.0),
    ]
    taught, in_place = (PerformanceSampler(banks, STEPS, 2, teacher=t) for t in (True, False))
    for sampler in (taught, in_place):
        sampler.observe(0, step)
        rows = SPACE.encode([subnet.architecture for subnet in (a, b, c, d)])
        assert list(sampler.memory[1]) == [tuple(row) for row in rows.tolist()]
    assert list(taught.memory[1].values()) == pytest.approx([-0.5, -0.3, -1.0, -1.1])
    assert list(in_place.memory[1].values()) == pytest.approx([0.0, 0.2, 0.0, -0.1])


def test_exploration_prefers_wide_to_deep() -> None:
    one = Banks.fill(SPACE, MACS, 1, population=300, per_bank=40)
    depths = np.array([np.prod(a.depths) for a in SPACE.decode(one.rows[0])], dtype=float)
    widths = np.array([np.prod(a.widths) for a in SPACE.decode(one.rows[0])], dtype=float)
    aspect = np.log(widths / depths) / 4
    np.testing.assert_allclose(wideness(SPACE, one.rows[0]), aspect)
    drawn = {}
    for candidates in (1, 5, 2000):
        sampler = PerformanceSampler(one, STEPS, 3, candidates=candidates)
        drawn[candidates] = wideness(
            SPACE,
            SPACE.encode(
                [s.architecture for step in range(100) for s in sampler(step) if s.bank == 0]
            ),
        )
    assert drawn[1].mean() == pytest.approx(aspect.mean(), abs=0.1)
    # best of five of 40: the expected maximum, from order statistics
    share = np.arange(1, 41) / 40
    weights = np.diff(np.concatenate([[0], share**5]))
    assert drawn[5].mean() == pytest.approx((np.sort(aspect) * weights).sum(), abs=0.1)
    np.testing.assert_allclose(drawn[2000], aspect.max())


def test_a_resumed_strategy_draws_what_the_undisturbed_one_would(banks: Banks) -> None:
    def observed(sampler: SubnetSampler, step: int) -> None:
        sampler.observe(
            step,
            [
                Observation(subnet=subnet, relative_loss=float(np.sin(17 * step + i + 5 * rank)))
                for rank in range(2)
                for i, subnet in enumerate(sampler(step, rank))
            ],
        )

    def fresh() -> SubnetSampler:
        inner = PerformanceSampler(banks, 60, 3, seed=1, capacity=8, heaviest_capacity=4)
        return DelayedShrinking(inner, SPACE, total_steps=60, start=0.1)

    undisturbed, stopped = fresh(), fresh()
    for step in range(40):
        observed(undisturbed, step)
        observed(stopped, step)
    resumed = fresh()
    assert resumed(45) != undisturbed(45)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for step in range(40, 60):
        assert [resumed(step, rank) for rank in (0, 1)] == [
            undisturbed(step, rank) for rank in (0, 1)
        ]
        observed(undisturbed, step)
        observed(resumed, step)
    assert resumed.state_dict() == undisturbed.state_dict()
    fewer = PerformanceSampler(Banks.fill(SPACE, MACS, 2, population=100), 60)
    with pytest.raises(RunError, match="6 banks"):
        fewer.load_state_dict(stopped.state_dict())


# Shrinking ----------------------------------------------------------------------------------


def test_delayed_shrinking_trains_the_largest_alone_until_its_start() -> None:
    inner = SandwichSampler(SPACE, 2, seed=1)
    sampler = DelayedShrinking(inner, SPACE, total_steps=100, start=0.4, epsilon=0.1, ramp=0.5)
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
            if block.mlp_ratio != max(b.mlp_ratio for b in alike):
                result.add("mlp_ratio")
            if block.mixer.params != max(b.mixer.params for b in alike):
                result.add("kernel")
    return result


def test_progressive_shrinking_releases_one_dimension_after_the_other() -> None:
    inner = SandwichSampler(SPACE, 3, seed=2)
    sampler = ProgressiveShrinking(inner, SPACE, total_steps=100, starts=(0.1, 0.2, 0.4, 0.7))
    starts = {0: [], 10: ["kernel"], 20: ["depth"], 40: ["mlp_ratio"], 70: ["width"]}
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
        if step >= 70:
            assert found == inner(step, rank=1)
    assert mixer_names == {block.mixer.name for block in SPACE.stages[0].blocks}
    assert [step for step in range(100) if sampler.sorts_channels(step)] == [40, 70]


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
                assert block.mlp_ratio == own.mlp_ratio or "mlp_ratio" not in released
    largest = space.encode([space.largest])
    np.testing.assert_array_equal(clamp(space, largest, frozenset(released)), largest)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 1.0}, "start"),
        ({"epsilon": 0.0}, "epsilon 0"),
        ({"ramp": 1.5}, "ramp 1.5"),
        ({"total_steps": 0}, "total_steps 0"),
    ],
)
def test_impossible_schedules(options: dict, message: str) -> None:
    inner = UniformSampler(SPACE)
    with pytest.raises(NasError, match=message):
        DelayedShrinking(inner, SPACE, **{"total_steps": 9, **options})
    with pytest.raises(UsageError, match="ascending"):
        ProgressiveShrinking(inner, SPACE, total_steps=9, starts=(0.2, 0.1, 0.3, 0.4))
