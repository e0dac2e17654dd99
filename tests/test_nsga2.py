"""Constrained NSGA-II: ranking, crowding, proposals, state."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_search import bounded_problem, small_space

from search.samplers import NSGA2
from search.samplers.proposals import spread
from search.samplers.ranking import constrained_ranks, crowding_distance
from search_space import load_space

SPACE = small_space()

values = st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan")])
points = st.lists(
    st.tuples(values, values, st.sampled_from([0.0, 0.0, 0.5, 1.0, float("inf")])), max_size=14
)


def dominates(a, b):
    """Constraint domination of Deb et al. 2002; a failed point is worse than all others."""
    (x, v), (y, w) = a, b
    a_failed = not np.isfinite(v) or (v == 0 and np.isnan(x).any())
    b_failed = not np.isfinite(w) or (w == 0 and np.isnan(y).any())
    if a_failed or b_failed:
        return not a_failed
    if v > 0 or w > 0:
        return v < w
    return bool((x <= y).all() and (x < y).any())


@given(points)
@settings(max_examples=150, deadline=None)
def test_ranks_are_those_of_peeling_front_by_front(drawn):
    objectives = np.array([p[:2] for p in drawn]).reshape(-1, 2)
    violations = np.array([p[2] for p in drawn])
    expected = np.zeros(len(drawn), dtype=int)
    left, rank = list(range(len(drawn))), 0
    both = list(zip(objectives, violations, strict=True))
    while left:
        front = [i for i in left if not any(dominates(both[j], both[i]) for j in left)]
        expected[front] = rank
        left, rank = [i for i in left if i not in front], rank + 1
    np.testing.assert_array_equal(constrained_ranks(objectives, violations), expected)


def test_crowding_of_a_hand_made_front():
    objectives = np.array([[0, 10], [1, 6], [4, 2], [10, 0], [5, 5], [np.nan, 1]], dtype=float)
    ranks = np.array([0, 0, 0, 0, 1, 2])
    crowding = crowding_distance(objectives, ranks)
    np.testing.assert_allclose(crowding[1:3], [4 / 10 + 8 / 10, 9 / 10 + 6 / 10])
    assert np.isinf(crowding[[0, 3, 4]]).all()
    assert crowding[5] == 0


def test_crowding_gives_equal_points_one_distance():
    objectives = np.array([[0, 2], [1, 1], [1, 1], [2, 0]], dtype=float)
    crowding = crowding_distance(objectives, np.zeros(4, dtype=int))
    assert sorted(crowding[1:3]) == [0, 2]


def test_ten_thousand_points_are_ranked_exactly():
    """A front is non-dominated and every later point is dominated by the front before it."""
    rng = np.random.default_rng(0)
    objectives, violations = rng.random((10_000, 2)), np.zeros(10_000)
    violations[::3] = rng.random(len(violations[::3]))
    ranks = constrained_ranks(objectives, violations)
    assert ranks[violations == 0].max() < ranks[violations > 0].min()
    for rank in (0, 1, 20):
        front = objectives[ranks == rank]
        behind = objectives[ranks == rank + 1]
        assert not (front[:, None] < front[None]).all(axis=2).any()
        assert (front[:, None] <= behind[None]).all(axis=2).any(axis=0).all()
    assert np.isfinite(crowding_distance(objectives, ranks)).any()


def test_spread_takes_from_every_part_of_the_range():
    rows = np.arange(1000)[:, None]
    cost = np.concatenate([np.full(990, 0.5), np.linspace(0, 1, 10)])
    chosen = spread(rows, cost, 20, np.random.default_rng(0))[:, 0]
    assert len(set(chosen.tolist())) == 20
    assert set(range(990, 1000)) - {994, 995} <= set(chosen.tolist())


def test_seed_decides():
    problem = bounded_problem(load_space("digits"))
    one, same, other = (NSGA2(problem, seed=seed).ask(20) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_first_population_covers_the_feasible_latencies():
    problem = bounded_problem(load_space("base"), 0.5)
    table, bound = problem.tables["latency_ms"], problem.constraints[0].maximum
    assert bound is not None
    latency = table.predict(NSGA2(problem, seed=0, population=24).ask(24))
    low = float(table.predict(table.argmin()[None])[0])
    thirds = np.floor((latency - low) / (bound - low) * 3)
    assert {0, 1, 2} <= set(thirds.tolist())


def test_told_points_breed_even_if_not_asked_for():
    problem = bounded_problem(SPACE)
    sampler = NSGA2(problem, seed=0, population=8)
    rows = SPACE.encode([SPACE.smallest])
    sampler.tell(rows, np.array([[-0.9, 1.0]]), np.zeros(1))
    asked = np.concatenate([sampler.ask(8), sampler.ask(8)])
    assert not (asked == rows).all(axis=1).any()
    assert len(asked) == 16
