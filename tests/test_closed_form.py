"""Fronts by closed forms: the true front of a space that can be counted, and nothing outside."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_search import cost_table, every_row, small_space

from results.pareto import non_dominated
from search import Constraint, Objective, Problem
from search.closed_form import scored_front
from search_space import Genes


def problem(maximum: float | None = None) -> Problem:
    space = small_space()
    constraints = () if maximum is None else (Constraint("latency_ms", maximum=maximum),)
    return Problem(
        space,
        (Objective("score", "maximize"), Objective("latency_ms", "minimize")),
        constraints,
        {"latency_ms": cost_table(space, "latency")},
        evaluated=("score",),
    )


def score(genes: Genes) -> np.ndarray:
    return cost_table(small_space(), "score", growth=2.0).predict(genes)


@pytest.mark.parametrize("share", [0.1, 0.6, None])
def test_the_front_is_the_true_one(share: float | None) -> None:
    rows = every_row(small_space())
    latency = problem().tables["latency_ms"].predict(rows)
    limit = None if share is None else float(np.quantile(latency, share))
    asked = problem(limit)
    objectives = np.stack([-score(rows), latency], axis=1)
    feasible = objectives if limit is None else objectives[latency <= limit]
    expected = feasible[non_dominated(feasible)]
    found = scored_front(asked, score, population=200, generations=60, seed=1)
    assert found.objectives.shape == (len(found.genes), 2)
    np.testing.assert_allclose(
        np.unique(found.objectives, axis=0), np.unique(expected, axis=0), rtol=1e-9
    )
    assert np.all(np.diff(found.objectives[:, 1]) >= 0)
    assert asked.cheap_violation(found.sample).max() == 0
    assert found.num_seen > len(found.genes)


def test_the_same_seed_finds_the_same_and_progress_is_told() -> None:
    told: list[int] = []
    first, again, other = (
        scored_front(
            problem(),
            score,
            population=16,
            generations=5,
            seed=seed,
            progress=lambda done, total, best: told.append(done),
        )
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.genes, again.genes)
    np.testing.assert_array_equal(first.sample, again.sample)
    assert not np.array_equal(first.sample, other.sample)
    assert told == [1, 2, 3, 4, 5] * 3


def test_rows_without_a_score_are_never_on_the_front() -> None:
    def partial(genes: Genes) -> np.ndarray:
        return np.where(genes[:, 0] == 0, score(genes), np.nan)

    found = scored_front(problem(), partial, population=64, generations=20)
    assert len(found.genes) > 0
    assert np.all(found.genes[:, 0] == 0)


def test_rows_to_start_from_are_used() -> None:
    rows = every_row(small_space())
    best = rows[int(np.argmax(score(rows)))]
    found = scored_front(problem(), score, population=4, generations=1, start=best[None])
    assert any(np.array_equal(best, row) for row in found.genes)
