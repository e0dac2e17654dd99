"""Banks of cost and the strategies that draw from them, each on its own terms."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from sampling_cases import MACS, SPACE, STEPS, filled_banks, macs_of

from predictors.counts import counts
from search_space import load_space
from search_space.errors import RunError, UsageError
from supernet.training.strategies import (
    Banks,
    ComplexitySampler,
    DelayedShrinking,
    Observation,
    PerformanceSampler,
    StepSubnet,
    SubnetSampler,
    Target,
)
from supernet.training.strategies.complexity import CHUNK, BankWalk
from supernet.training.strategies.performance import wideness


@pytest.fixture(scope="module")
def banks() -> Banks:
    return filled_banks()


# Cost banks ---------------------------------------------------------------------------------------


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
    assert repr(again) == repr(banks)
    assert repr(Banks.fill(SPACE, MACS, 6, seed=2, population=8192)) != repr(banks)


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


def test_joined_ranges() -> None:
    middle = np.median(MACS(SPACE.sample(np.random.default_rng(0), 3000)))
    # between the two costs are ranges without rows
    joined = Banks.fill(
        SPACE, lambda rows: np.where(MACS(rows) < middle, 1.0, 16.0), 4, population=4096
    )
    np.testing.assert_allclose(joined.edges, [1, 2, 16])
    assert [set(costs.tolist()) for costs in joined.costs] == [{1.0}, {16.0}]
    constant = Banks.fill(SPACE, lambda rows: np.full(len(rows), 3.0), 5, population=100)
    assert len(constant) == 1

    with pytest.raises(UsageError, match="positive"):
        Banks.fill(SPACE, lambda rows: MACS(rows) - middle, population=100)
    with pytest.raises(UsageError, match="not finite"):
        Banks.fill(SPACE, lambda rows: np.full(len(rows), np.nan), population=100)


# Complexity-aware ---------------------------------------------------------------------------------


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


# Performance-aware --------------------------------------------------------------------------------


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
    sampler = PerformanceSampler(banks, total_steps=STEPS)
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
    sampler = PerformanceSampler(banks, 3, total_steps=6000, seed=8)
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
    sampler = PerformanceSampler(one, 1, total_steps=STEPS, seed=3, heaviest_capacity=4)
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
    sampler = PerformanceSampler(banks, total_steps=STEPS, capacity=3)
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
    taught, in_place = (
        PerformanceSampler(banks, 2, total_steps=STEPS, teacher=t) for t in (True, False)
    )
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
        sampler = PerformanceSampler(one, 3, total_steps=STEPS, candidates=candidates)
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
        inner = PerformanceSampler(
            banks, 3, total_steps=60, seed=1, capacity=8, heaviest_capacity=4
        )
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
    fewer = PerformanceSampler(Banks.fill(SPACE, MACS, 2, population=100), total_steps=60)
    with pytest.raises(RunError, match="6 banks"):
        fewer.load_state_dict(stopped.state_dict())
