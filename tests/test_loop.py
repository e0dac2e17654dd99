"""The loop: answers against brute force, resuming, failures, bounds."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_search import (
    OBJECTIVES,
    Accuracy,
    Interrupted,
    MemoryJournal,
    Stubborn,
    bounded_problem,
    brute_force_front,
    cost_table,
    every_row,
    interrupted_after,
    run,
    small_space,
    summary,
)

from results.pareto import hypervolume
from results.store import Journal
from search import (
    Constraint,
    InProcessExecutor,
    Objective,
    Problem,
    search,
)
from search.samplers import NSGA2, RandomSearch
from search_space import load_space
from search_space.errors import InfeasibleError, NasError

SPACE = small_space()
ROWS = every_row(SPACE)


def true_points(problem, accuracy):
    rows = ROWS[problem.cheap_violation(ROWS) == 0]
    metrics = {"accuracy": accuracy.of_rows(rows), **problem.cheap_metrics(rows)}
    return rows, problem.objective_values(metrics)


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_the_whole_feasible_space_gives_the_true_front(share):
    problem, accuracy = bounded_problem(SPACE, share), Accuracy(SPACE)
    rows, points = true_points(problem, accuracy)
    result = run(problem, accuracy, num_evaluations=len(ROWS))
    assert result.stopped == "exhausted"
    assert len(result.evaluations) == len(rows)
    true = {SPACE.decode(rows[[i]])[0].digest for i in brute_force_front(points)}
    assert {e.digest for e in result.front} == true
    assert [a.digest for a in SPACE.decode(result.front_genes)] == [e.digest for e in result.front]
    latencies = [e.metrics["latency_ms"] for e in result.front]
    assert latencies == sorted(latencies)


def test_a_quarter_of_the_space_gives_nearly_the_true_hypervolume():
    problem, accuracy = bounded_problem(SPACE, 0.5), Accuracy(SPACE)
    rows, points = true_points(problem, accuracy)
    true = hypervolume(points[list(brute_force_front(points))], problem.reference.tolist())
    found = []
    for seed in range(3):
        result = run(problem, accuracy, seed=seed, num_evaluations=len(rows) // 4)
        found.append(result.hypervolume[-1][1] / true)
    assert max(found) <= 1 + 1e-12
    assert np.median(found) >= 0.98


def test_nsga2_beats_random_search_at_equal_evaluations():
    problem = bounded_problem(load_space("cifar"), 0.4)
    accuracy = Accuracy(problem.space)
    final = {
        make: [
            run(problem, accuracy, seed=s, make=make, num_evaluations=150).hypervolume[-1][1]
            for s in range(5)
        ]
        for make in (NSGA2, RandomSearch)
    }
    assert np.median(final[NSGA2]) > max(final[RandomSearch])


def test_hypervolume_grows_and_is_that_of_the_front():
    problem = bounded_problem(SPACE)
    result = run(problem, Accuracy(SPACE), num_evaluations=100)
    counts, volumes = zip(*result.hypervolume, strict=True)
    assert list(volumes) == sorted(volumes)
    assert counts[-1] == 100
    x, y = np.array([(-e.metrics["accuracy"], e.metrics["latency_ms"]) for e in result.front]).T
    # by slices: along ascending latency, accuracy rises, each slice as wide as its gain
    gain = np.diff(np.concatenate([[0.0], -x]))
    expected = (gain * (result.reference[1] - y)).sum()
    assert volumes[-1] == pytest.approx(expected)


def test_the_same_seed_gives_the_same_run():
    problem = bounded_problem(load_space("digits"))
    runs = [summary(run(problem, Accuracy(problem.space), seed=s)) for s in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


def test_infeasible_architectures_are_never_evaluated():
    problem = bounded_problem(load_space("base"), 0.05)
    accuracy = Accuracy(problem.space)
    space = problem.space
    result = run(problem, accuracy, warm_start=[space.largest, space.smallest])
    bound = problem.constraints[0].maximum
    assert len(accuracy.calls) == len(set(accuracy.calls)) == 60
    assert all(e.metrics["latency_ms"] <= bound for e in result.evaluations)
    assert space.largest.digest not in accuracy.calls


@pytest.mark.parametrize("failing", [False, True])
def test_interrupted_anywhere_and_resumed_equals_uninterrupted(failing, tmp_path):
    problem = bounded_problem(load_space("digits"), 0.4)
    options = {"num_evaluations": 40, "batch_size": 8, "warm_start": [problem.space.smallest]}

    def evaluate(architecture):
        if failing and int(architecture.digest, 16) % 5 == 0:
            raise ValueError("no luck")
        return accuracy(architecture)

    accuracy = Accuracy(problem.space)
    whole = run(problem, evaluate, **options)
    assert whole.failed == sum(e.status == "failed" for e in whole.evaluations)
    assert (whole.failed > 0) == failing
    for cut in range(0, 40, 3):
        dying = interrupted_after(evaluate, cut)
        path = tmp_path / f"{cut}.jsonl"
        with Journal(path) as journal, pytest.raises(Interrupted):
            run(problem, dying, journal, **options)
        with Journal(path) as journal:
            assert len(journal) == cut
            accuracy.calls.clear()
            again = run(problem, evaluate, journal, **options)
            assert len(journal) == 40
        assert again.cached == cut
        assert summary(again) == summary(whole)
        assert len(accuracy.calls) <= 40 - cut


def test_a_finished_run_is_replayed_without_evaluating():
    problem, journal = bounded_problem(SPACE), MemoryJournal()
    first = run(problem, Accuracy(SPACE), journal)

    def never(architecture):
        raise AssertionError("evaluated again")

    again = run(problem, never, journal)
    assert summary(again) == summary(first)
    assert again.cached == 60
    assert len(journal.evaluations) == 60


def test_failures_are_journaled_with_their_error_and_stay_off_the_front():
    problem, journal = bounded_problem(SPACE), MemoryJournal()
    accuracy = Accuracy(SPACE)

    def evaluate(architecture):
        kind = int(architecture.digest, 16) % 6
        if kind == 0:
            raise RuntimeError("boom")
        if kind == 1:
            return {"accuracy": float("nan")}
        if kind == 2:
            return {"loss": 1.0}
        return accuracy(architecture)

    result = run(problem, evaluate, journal)
    errors = {e.error for e in journal if e.status == "failed"}
    assert errors == {
        "RuntimeError: boom",
        "accuracy is nan, not a finite number",
        "the evaluation gave no accuracy",
    }
    assert len(journal.evaluations) == len(result.evaluations) == 60
    assert result.failed == sum(e.status == "failed" for e in journal)
    assert all(e.status == "ok" for e in result.front)
    assert all("latency_ms" in e.metrics for e in journal)


def test_a_broken_evaluation_stops_the_search_early():
    problem, journal = bounded_problem(SPACE), MemoryJournal()

    def evaluate(architecture):
        raise OSError("disk gone")

    with pytest.raises(NasError, match=r"all 12 evaluations so far failed.*disk gone"):
        run(problem, evaluate, journal)
    assert len(journal.evaluations) == 12


def test_infeasible_problems_end_before_any_evaluation():
    table = cost_table(SPACE, "latency")
    problem = Problem(
        SPACE, OBJECTIVES, (Constraint("latency_ms", maximum=1e-3),), {"latency_ms": table}
    )
    accuracy = Accuracy(SPACE)
    with pytest.raises(InfeasibleError, match="fastest"):
        run(problem, accuracy)
    assert accuracy.calls == []


def test_a_sampler_that_repeats_itself_is_stopped_and_told_what_is_known():
    problem, accuracy = bounded_problem(SPACE), Accuracy(SPACE)
    sampler = Stubborn(problem)
    result = search(
        problem, sampler, InProcessExecutor(accuracy), MemoryJournal(), num_evaluations=10
    )
    assert result.stopped == "repeating"
    assert accuracy.calls == [SPACE.smallest.digest]
    objectives, violations = sampler.told[-1]
    np.testing.assert_array_equal(objectives[0], objectives[2])
    assert np.isnan(objectives[1]).all()
    assert violations[0] == violations[2] == 0 < violations[1]


def test_progress_after_every_evaluation():
    problem, reports = bounded_problem(SPACE), []
    result = run(problem, Accuracy(SPACE), on_progress=reports.append)
    assert [r.evaluations for r in reports] == list(range(1, 61))
    assert {r.total for r in reports} == {60}
    best = reports[-1].best
    assert best is not None
    assert best.metrics["accuracy"] == max(e.metrics["accuracy"] for e in result.evaluations)


def test_three_objectives_and_a_single_one():
    tables = {"latency_ms": cost_table(SPACE, "latency"), "macs": cost_table(SPACE, "macs")}
    accuracy = Accuracy(SPACE)
    three = Problem(SPACE, (*OBJECTIVES, Objective("macs", "minimize")), (), tables)
    result = run(three, accuracy, num_evaluations=120)
    assert len(result.front) > len(run(bounded_problem(SPACE, 1.0), accuracy).front)
    single = Problem(SPACE, OBJECTIVES[:1], (), tables)
    result = run(single, accuracy, num_evaluations=250)
    best = accuracy.of_rows(ROWS).max()
    assert result.front[0].metrics["accuracy"] == pytest.approx(best)


def test_an_unbounded_evaluated_objective_takes_its_reference_from_the_first_batch():
    problem = Problem(
        SPACE,
        (Objective("loss", "minimize"), Objective("latency_ms", "minimize")),
        (),
        {"latency_ms": cost_table(SPACE, "latency")},
        evaluated=("loss",),
    )
    accuracy = Accuracy(SPACE)
    result = run(problem, lambda a: {"loss": -np.log(accuracy(a)["accuracy"])})
    first = [e.metrics["loss"] for e in result.evaluations[:12]]
    assert result.reference[0] == max(first)
    assert result.hypervolume[-1][1] > 0
