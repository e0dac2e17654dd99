"""What every sampler keeps to, whatever its method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_search import (
    OBJECTIVES,
    Accuracy,
    bounded_problem,
    brute_force_front,
    cost_table,
    every_row,
    small_space,
)

from results.pareto import hypervolume
from search import Objective, Problem
from search.samplers import SAMPLERS, make_sampler
from search.samplers.archive import Archive, Judged
from search.samplers.evolution import RegularisedEvolution
from search.samplers.local_search import LocalSearch
from search.samplers.proposals import neighbours
from search_space import load_space
from search_space.errors import UnknownNameError, UsageError

SPACE = small_space()
NAMES = [*SAMPLERS, "optuna-TPE", "optuna-NSGAII"]
OURS = [name for name in NAMES if not name.startswith("optuna")]


def judge(problem, accuracy, rows):
    metrics = {"accuracy": accuracy.of_rows(rows), **problem.cheap_metrics(rows)}
    return problem.objective_values(metrics), problem.violation(metrics)


@pytest.mark.parametrize(
    ("name", "space", "share"),
    [*((name, "digits", 0.3) for name in NAMES), *((name, "base", 0.03) for name in OURS[:5])],
)
def test_proposals_are_feasible_new_and_valid(name, space, share):
    problem = bounded_problem(load_space(space), share)
    sampler, accuracy = (
        make_sampler(name, problem, population=12, budget=40),
        Accuracy(problem.space),
    )
    seen: set[bytes] = set()
    waiting = []
    for n in (12, 1, 5, 12, 3):
        rows = sampler.ask(n)
        assert rows.shape == (n, problem.space.num_genes)
        assert (problem.cheap_violation(rows) == 0).all()
        problem.space.decode(rows)  # raises where a row is not valid
        keys = {row.tobytes() for row in rows}
        assert len(keys) == n
        assert not keys & seen
        seen |= keys
        waiting.append(rows)
        if len(waiting) == 2:  # one chunk is always outstanding
            told = waiting.pop(0)
            sampler.tell(told, *judge(problem, accuracy, told))


@pytest.mark.parametrize("name", OURS)
def test_a_sampler_ends_when_all_is_asked(name):
    problem = bounded_problem(SPACE, 0.08)
    sampler, count = make_sampler(name, problem, budget=100), 0
    for _ in range(200):
        rows = sampler.ask(20)
        if len(rows) == 0:
            break
        count += len(rows)
        sampler.tell(rows, np.zeros((len(rows), 2)), np.zeros(len(rows)))
    assert len(sampler.ask(20)) == 0
    assert count == np.count_nonzero(problem.cheap_violation(every_row(SPACE)) == 0)


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides(name):
    problem = bounded_problem(load_space("digits"))
    one, same, other = (make_sampler(name, problem, seed=seed).ask(9) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_three_objectives_with_two_evaluated():
    problem = Problem(
        SPACE,
        (*OBJECTIVES, Objective("energy", "minimize")),
        bounded_problem(SPACE, 0.6).constraints,
        {"latency_ms": cost_table(SPACE, "latency")},
        ("accuracy", "energy"),
    )
    accuracy, energy = (Accuracy(SPACE, salt) for salt in ("accuracy", "energy"))

    def outcome(rows):
        metrics = {
            "accuracy": accuracy.of_rows(rows),
            "energy": energy.of_rows(rows),
            **problem.cheap_metrics(rows),
        }
        return problem.objective_values(metrics), problem.violation(metrics)

    every, violations = outcome(every_row(SPACE))
    reference = every.max(axis=0).tolist()
    best = hypervolume(every[violations == 0], reference)
    assert best > 0
    for name in ("nsga2", "evolution", "surrogate"):
        sampler, found = make_sampler(name, problem, population=16), []
        for _ in range(6):
            rows = sampler.ask(12)
            objectives, missed = outcome(rows)
            sampler.tell(rows, objectives, missed)
            found.append(objectives[missed == 0])
        share = hypervolume(np.concatenate(found), reference) / best
        assert share > (0.85 if name == "surrogate" else 0.5), name


def test_a_single_objective_under_a_limit_ends_near_the_optimum():
    problem = Problem(
        SPACE,
        (Objective("accuracy", "maximize"),),
        bounded_problem(SPACE, 0.4).constraints,
        bounded_problem(SPACE, 0.4).tables,
    )
    accuracy, every = Accuracy(SPACE), every_row(SPACE)
    best = accuracy.of_rows(every[problem.cheap_violation(every) == 0]).max()
    # evolutions vary with the seed, so that their mean is judged; 96 random rows reach 0.982
    for name, seeds, least in (
        ("nsga2", 16, 0.99),
        ("evolution", 16, 0.985),
        ("local", 1, 0.96),
        ("surrogate", 1, 0.99),
        ("surrogate-additive", 1, 0.99),
    ):
        found = np.zeros(seeds)
        for seed in range(seeds):
            sampler = make_sampler(name, problem, population=12, seed=seed)
            for _ in range(12):
                rows = sampler.ask(8)
                objectives, violations = judge(problem, accuracy, rows)
                sampler.tell(rows, objectives, violations)
                found[seed] = max(found[seed], -objectives.min())
        assert found.mean() >= least * best, name


def test_unknown_samplers_and_useless_storages_are_named():
    problem = bounded_problem(SPACE)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'nsga2'.*optuna-TPE"):
        make_sampler("nsga22", problem)
    with pytest.raises(UnknownNameError, match=r"'TPF'.*Did you mean 'TPE'"):
        make_sampler("optuna-TPF", problem)
    with pytest.raises(UsageError, match="no use to the sampler 'nsga2'"):
        make_sampler("nsga2", problem, storage="sqlite:///x.db")


# Regularised evolution ----------------------------------------------------------------------------


def test_only_the_youngest_breed():
    problem = bounded_problem(SPACE, 1.0)
    sampler = RegularisedEvolution(problem, population=4, tournament=4)
    old, young = every_row(SPACE)[:1], every_row(SPACE)[1000:1004]
    sampler.tell(old, np.array([[-9.0, 0.0]]), np.zeros(1))  # the best of all, but too old
    sampler.tell(young, np.full((4, 2), 1.0), np.zeros(4))
    assert sampler._winners(50).max() <= 3
    np.testing.assert_array_equal(sampler._kept.genes, young)


def test_tournaments_prefer_feasible_then_near_along_their_direction():
    problem = bounded_problem(SPACE, 1.0)
    sampler = RegularisedEvolution(problem, population=4, tournament=64)
    rows = every_row(SPACE)[:4]
    objectives = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [-9.0, -9.0]])
    sampler.tell(rows, objectives, np.array([0.0, 0.0, 0.0, 0.5]))
    winners = sampler._winners(200)
    assert set(winners.tolist()) == {0, 1}  # each end wins its directions, nothing else any
    sampler.tell(rows, np.full((4, 2), np.nan), np.array([np.inf, 3.0, 1.0, 2.0]))
    assert set(sampler._winners(50).tolist()) == {2}  # none is feasible: the least violation


# Local search -------------------------------------------------------------------------------------


def test_neighbours_are_all_rows_one_gene_away():
    every = every_row(SPACE)
    problem = bounded_problem(SPACE)
    depth = SPACE.width_columns + 1
    for row in every[:: len(every) // 40]:
        found = neighbours(problem, row)
        SPACE.decode(found)
        assert len(np.unique(found, axis=0)) == len(found)
        same_depth = (every[:, depth] == row[depth]).all(axis=1)
        apart = (every != row).sum(axis=1)
        expected = {r.tobytes() for r in every[same_depth & (apart == 1)]}
        kept = (found[:, depth] == row[depth]).all(axis=1)
        assert {r.tobytes() for r in found[kept]} == expected
        deeper = found[~kept]
        assert len(deeper) == (SPACE.cardinalities[depth] - 1).sum()
        for other in deeper:  # an added block copies the last one
            start = SPACE.block_columns(2).start
            assert other[start] == row[start]
            assert other[start + 1] in (-1, row[start])


def test_local_search_looks_around_each_member_of_the_front_in_turn():
    problem = bounded_problem(SPACE, 1.0)
    sampler = LocalSearch(problem)
    rows = every_row(SPACE)[[10, 700, 1500]]
    sampler.tell(rows, np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 2.0]]), np.zeros(3))
    asked = sampler._propose(6)
    around = [{r.tobytes() for r in neighbours(problem, row)} for row in rows]
    counts = [sum(r.tobytes() in near for r in asked) for near in around]
    assert counts[:2] == [3, 3]  # the third is dominated
    total = len(around[0] | around[1]) - 6
    assert len(sampler._propose(10_000)) == total - sum(
        r.tobytes() in around[0] | around[1] for r in rows
    )
    assert len(sampler._propose(1)) == 0


# Archive ------------------------------------------------------------------------------------------

results = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan")]),
        st.sampled_from([0.0, 1.0, 2.0, 3.0]),
        st.sampled_from([0.0, 0.0, 1.0, float("inf")]),
    ),
    max_size=60,
)


@given(results, st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_the_archive_keeps_latest_results_and_their_front(drawn, chunk):
    problem = bounded_problem(SPACE)
    archive, rows = Archive(problem), every_row(SPACE)
    latest: dict[int, tuple] = {}
    for start in range(0, len(drawn), chunk):
        part = drawn[start : start + chunk]
        told = np.array([p[1:] for p in part])
        archive.tell(Judged(rows[[p[0] for p in part]], told[:, :2], told[:, 2]))
        latest.update({p[0]: p for p in part})
    np.testing.assert_array_equal(archive.results.genes, rows[list(latest)])
    known = {i: p for i, p in latest.items() if p[3] == 0 and not np.isnan(p[1])}
    points = np.array([p[1:3] for p in known.values()]).reshape(-1, 2)
    expected = {list(known)[k] for k in brute_force_front(points)} if known else set()
    assert {list(latest)[k] for k in archive.front} == expected
