"""Expected hypervolume improvement against the definition and sampling; candidates of a model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic_search import bounded_problem, cost_table, every_row, small_space

from results.pareto import hypervolume
from search.samplers.acquisition import (
    MOST_BOXES,
    boxes,
    expected_hypervolume_improvement,
    expected_improvement,
)
from search.samplers.evolution import evolve
from search.samplers.ranking import best_first
from search.samplers.surrogate import priced, priced_optima

SPACE = small_space()
coordinates = st.integers(0, 6).map(float)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_of_known_points_it_is_the_gain_of_hypervolume(objectives, data):
    front = data.draw(
        arrays(float, (data.draw(st.integers(0, 6)), objectives), elements=coordinates)
    )
    points = data.draw(arrays(float, (3, objectives), elements=coordinates))
    reference = np.full(objectives, 5.0)
    before = hypervolume(front, reference.tolist())
    expected = [hypervolume(np.vstack([front, p]), reference.tolist()) - before for p in points]
    found = expected_hypervolume_improvement(points, np.zeros_like(points), boxes(front, reference))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_of_uncertain_points_it_is_the_mean_gain(objectives):
    rng = np.random.default_rng(0)
    front, reference = rng.random((6, objectives)), np.full(objectives, 1.1)
    free, before = boxes(front, reference), hypervolume(front, reference.tolist())
    mean, deviation = rng.random((4, objectives)), rng.uniform(0.02, 0.4, (4, objectives))
    deviation[1, -1] = 0.0  # a cheap objective is known
    found = expected_hypervolume_improvement(mean, deviation, free)
    for k in range(4):
        drawn = rng.normal(mean[k], deviation[k], (6000, objectives))
        gains = [hypervolume(np.vstack([front, p]), reference.tolist()) - before for p in drawn]
        assert abs(found[k] - np.mean(gains)) < 5 * np.std(gains) / np.sqrt(len(gains)) + 1e-12


def test_expected_improvement_is_an_integral():
    grid = np.linspace(-30, 30, 2_000_001)
    for mean, deviation, level in [(0.3, 0.5, 0.1), (2.0, 1.0, -1.0), (-1.0, 0.2, 3.0)]:
        density = np.exp(-0.5 * ((grid - mean) / deviation) ** 2) / deviation / np.sqrt(2 * np.pi)
        integral = (np.maximum(level - grid, 0) * density).sum() * (grid[1] - grid[0])
        found = expected_improvement(np.array(mean), np.array(deviation), np.array(level))
        assert found == pytest.approx(integral, rel=1e-6)


def test_boxes_of_two_objectives_are_strips():
    free = boxes(np.array([[0.0, 2.0], [1.0, 1.0], [1.5, 1.5]]), np.array([3.0, 3.0]))
    assert len(free.upper) == 3  # the last point is dominated


@pytest.mark.parametrize("objectives", [3, 4, 5])
def test_boxes_stay_few_however_many_points_and_objectives(objectives):
    points = np.random.default_rng(0).dirichlet(np.ones(objectives), 400)  # all non-dominated
    free = boxes(points, np.full(objectives, 2.0))
    assert len(free.upper) <= (2 * 400 + 1 if objectives == 3 else MOST_BOXES)
    # a point far better than all gains everything, known or not
    ideal = np.zeros((1, objectives))
    expected = 2.0**objectives - hypervolume(points, [2.0] * objectives)
    gain = float(expected_hypervolume_improvement(ideal, ideal, free)[0])
    assert gain == pytest.approx(expected) if objectives == 3 else gain >= expected


def test_optima_at_a_price_are_those_of_counting():
    gain, cost = cost_table(SPACE, "gain"), cost_table(SPACE, "cost")
    rows = every_row(SPACE)
    for price in (0.0, 0.4, 1.0, 3.0):
        value = gain.predict(rows) - price * cost.predict(rows)
        table = priced(gain, cost, price)
        np.testing.assert_allclose(table.predict(rows), value)
        assert table.predict(table.argmax()[None])[0] == pytest.approx(value.max())


def test_priced_optima_are_corners_of_the_front():
    gain, cost = cost_table(SPACE, "gain"), cost_table(SPACE, "cost")
    rows, found = every_row(SPACE), priced_optima(gain, cost)
    assert len(found) > 3
    for row in found:
        better = (gain.predict(rows) > gain.predict(row[None]) + 1e-12) & (
            cost.predict(rows) < cost.predict(row[None]) - 1e-12
        )
        assert not better.any()


def test_breeding_finds_the_promised_front():
    problem = bounded_problem(SPACE, 0.4)
    gain, cost = cost_table(SPACE, "gain"), problem.tables["latency_ms"]
    rows = every_row(SPACE)
    rows = rows[problem.cheap_violation(rows) == 0]

    def promise(genes):
        return np.stack([-gain.predict(genes), cost.predict(genes)], axis=1), np.zeros(len(genes))

    rng = np.random.default_rng(0)

    def accept(genes):
        return genes[problem.cheap_violation(genes) == 0]

    start = SPACE.sample(rng, 60)
    *_, (last, _) = evolve(problem, start, promise, rng, size=60, generations=13, accept=accept)
    bred = last.genes[best_first(last.objectives, last.violations)]
    assert (problem.cheap_violation(bred) == 0).all()
    assert len(np.unique(bred, axis=0)) == len(bred)
    points, every = promise(bred)[0], promise(rows)[0]
    reference = every.max(axis=0).tolist()
    assert hypervolume(points, reference) > 0.97 * hypervolume(every, reference)
    assert not (every < points[0]).all(axis=1).any()  # best ranks first
