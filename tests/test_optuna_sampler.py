"""Optuna behind ask and tell: storage, constraints, conditional parameters, continuing."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from synthetic_search import OBJECTIVES, Accuracy, bounded_problem, every_row, small_space

from search import Problem
from search.samplers import make_sampler, optuna_sampler
from search.samplers.optuna_parameters import block_names, parameters_of, row_of
from search.samplers.optuna_sampler import OptunaSampler, optuna_names
from search_space import load_space
from search_space.errors import RunError, UsageError

SPACE = small_space()


def judge(problem, rows):
    accuracy = Accuracy(problem.space)
    metrics = {"accuracy": accuracy.of_rows(rows), **problem.cheap_metrics(rows)}
    return problem.objective_values(metrics), problem.violation(metrics)


def turns(sampler, problem, count, n=4):
    asked = []
    for _ in range(count):
        rows = sampler.ask(n)
        sampler.tell(rows, *judge(problem, rows))
        asked.append(rows)
    return np.concatenate(asked)


def evaluated(study):
    """Complete trials whose results are finite: those that were not rejected when suggested."""
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    return [t for t in trials if np.isfinite(t.values).all()]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "gp" else name
        for name in sorted(set(optuna_names()) - {"cmaes"})
    ],
)
def test_every_sampler_of_optuna_works(name):
    problem = bounded_problem(SPACE, 0.5)
    sampler = make_sampler(f"optuna-{name}", problem)
    rows = turns(sampler, problem, 4, n=4)
    assert rows.shape == (16, SPACE.num_genes)
    assert len(np.unique(rows, axis=0)) == 16
    assert (problem.cheap_violation(rows) == 0).all()


def test_cma_es_searches_for_one_objective():
    pytest.importorskip("cmaes")
    problem = Problem(SPACE, OBJECTIVES[:1], (), bounded_problem(SPACE).tables)
    sampler = OptunaSampler(problem, sampler="CmaEs")
    rows = turns(sampler, problem, 4, n=6)
    assert len(np.unique(rows, axis=0)) == len(evaluated(sampler.study)) == 24
    generations = [t for t in sampler.study.trials if any("cma" in key for key in t.system_attrs)]
    assert generations  # its own numbers, not the fallback's


def test_rows_and_parameters_are_each_others_inverse():
    space = load_space("digits")
    for row in space.sample(np.random.default_rng(0), 50):
        parameters = parameters_of(space, row)
        np.testing.assert_array_equal(row_of(space, parameters), row)
        assert len(parameters) == space.active(row[None]).sum()
        parameters.popitem()
        assert row_of(space, parameters) is None
    for stage in space.stages:
        names = block_names(stage.blocks)
        assert len(set(names)) == len(stage.blocks)


def test_a_study_in_sqlite_opens_with_optuna(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    problem = bounded_problem(SPACE, 0.3)
    sampler = make_sampler("optuna-TPE", problem, storage=url, study="mine")
    rows = turns(sampler, problem, 2, n=2)
    study = optuna.load_study(study_name="mine", storage=url)
    assert study.metric_names == ["accuracy", "latency_ms"]
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    trials = evaluated(study)
    objectives, _ = judge(problem, rows)
    np.testing.assert_allclose([t.values for t in trials], objectives * [-1.0, 1.0])
    for trial, row in zip(trials, rows, strict=True):
        assert trial.params == parameters_of(SPACE, row)  # no blocks beyond the depth
        assert trial.user_attrs["architecture"] == SPACE.decode(row[None])[0].digest
        assert all(value <= 0 for value in trial.constraints.values())
    assert study.best_trials
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        row = row_of(SPACE, trial.params)
        bound = problem.constraints[0].maximum
        slack = (problem.tables["latency_ms"].predict(row[None])[0] - bound) / bound
        assert trial.constraints == {"latency_ms maximum": pytest.approx(slack)}


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_stored_study_is_continued_without_counting_twice(kind, tmp_path):
    in_memory = "sqlite:///file:continued?mode=memory&cache=shared&uri=true"
    place = in_memory if kind == "sqlite" else str(tmp_path / "s.log")
    problem = bounded_problem(SPACE, 0.3)
    first = OptunaSampler(problem, storage=place)
    told = turns(first, problem, 2, n=2)
    lost = first.ask(1)  # the process dies before it is told
    again = OptunaSampler(problem, storage=place)
    replayed = again.ask(5)
    np.testing.assert_array_equal(replayed, np.concatenate([told, lost]))
    again.tell(replayed, *judge(problem, replayed))
    study = again.study
    assert len(evaluated(study)) == 5
    assert not study.get_trials(states=(TrialState.RUNNING,))
    fresh = turns(again, problem, 1, n=2)
    assert len(np.unique(np.concatenate([replayed, fresh]), axis=0)) == 7
    assert len(evaluated(study)) == 7


def test_a_locked_database_is_waited_for_then_ends_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(optuna_sampler, "ATTEMPT_SECONDS", 0.05)
    monkeypatch.setattr(optuna_sampler, "RETRY_SECONDS", 0.01)
    url, said = f"sqlite:///{tmp_path / 'study.db'}", []
    holder = sqlite3.connect(tmp_path / "study.db", isolation_level=None, check_same_thread=False)

    def say(text):
        said.append(text)
        if len(said) == 2:
            holder.execute("COMMIT")

    problem = bounded_problem(SPACE)
    sampler = OptunaSampler(problem, sampler="random", storage=url, say=say)
    turns(sampler, problem, 1, n=2)
    holder.execute("BEGIN EXCLUSIVE")
    turns(sampler, problem, 1, n=2)
    assert len(said) == 2
    assert "is locked by another program" in said[0]
    assert len(evaluated(sampler.study)) == 4  # nothing was lost or counted twice
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(optuna_sampler, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(RunError, match=r"has been locked by another program for .*--resume"):
        sampler.ask(2)


def test_a_database_that_is_locked_when_opened_is_waited_for_and_called_so(tmp_path, monkeypatch):
    for name, seconds in (("ATTEMPT", 0.01), ("RETRY", 0.01), ("PATIENCE", 0.2)):
        monkeypatch.setattr(optuna_sampler, f"{name}_SECONDS", seconds)
    holder, said = sqlite3.connect(tmp_path / "study.db", isolation_level=None), []
    holder.execute("CREATE TABLE other (x)")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match=r"has been locked by another program .*close what holds"):
        optuna_sampler.open_storage(f"sqlite:///{tmp_path / 'study.db'}", said.append)
    assert "is locked by another program" in said[0]
    holder.close()


def test_searches_that_create_one_database_at_once_all_succeed(tmp_path):
    url, barrier, problem = f"sqlite:///{tmp_path / 'one.db'}", Barrier(6), bounded_problem(SPACE)

    def search(number):
        barrier.wait()
        sampler = OptunaSampler(problem, sampler="random", storage=url, study=f"s{number}")
        return len(turns(sampler, problem, 1, n=1))

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(search, range(6))) == [1] * 6
    assert len(optuna.get_all_study_names(url)) == 6


def test_a_study_of_something_else_is_refused(tmp_path):
    place = str(tmp_path / "s.log")
    problem = bounded_problem(SPACE, 0.5)
    turns(OptunaSampler(problem, storage=place), problem, 1, n=1)
    with pytest.raises(RunError, match="another search space"):
        OptunaSampler(bounded_problem(load_space("digits")), storage=place)
    single = Problem(SPACE, OBJECTIVES[:1], (), problem.tables)
    with pytest.raises(RunError, match=r"has objectives maximize, minimize; this problem"):
        OptunaSampler(single, storage=place)
    OptunaSampler(single, storage=place, study="other").ask(1)


def test_mistakes_are_named(tmp_path):
    problem = bounded_problem(SPACE)
    with pytest.raises(UsageError, match="CmaEs searches for one objective"):
        OptunaSampler(problem, sampler="CmaEs")
    with pytest.raises(RunError, match="cannot be opened"):
        OptunaSampler(problem, storage=f"sqlite:///{tmp_path}/no/such/folder/study.db")


def test_infeasible_and_repeated_suggestions_are_told_to_optuna():
    """All that is feasible is asked for, so that many suggestions are rejected or known."""
    problem = bounded_problem(replace(SPACE, stages=SPACE.stages[:2]), 0.4)
    sampler = OptunaSampler(problem, sampler="random")
    rows = turns(sampler, problem, 4)
    feasible = problem.cheap_violation(every_row(problem.space)) == 0
    assert len(rows) == np.count_nonzero(feasible) > 8
    trials = sampler.study.get_trials()
    assert sum(t.user_attrs.get("repeated", False) for t in trials) > 0
    rejected = [
        t for t in trials if t.state == TrialState.COMPLETE and not np.isfinite(t.values[0])
    ]
    assert len(rejected) > 8
    for trial in rejected:
        assert trial.constraints["latency_ms maximum"] > 0
        assert trial.values[0] == -np.inf  # accuracy is maximised
        assert np.isfinite(trial.values[1])
    assert len(evaluated(sampler.study)) == len(rows)


def test_a_small_space_is_exhausted():
    problem = bounded_problem(SPACE, 0.08)
    sampler, count = OptunaSampler(problem, sampler="random"), 0
    while len(rows := sampler.ask(20)):
        sampler.tell(rows, *judge(problem, rows))
        count += len(rows)
    assert count == np.count_nonzero(problem.cheap_violation(every_row(SPACE)) == 0)


def test_what_was_not_asked_for_or_failed_is_told_as_it_is():
    problem = Problem(SPACE, OBJECTIVES, (), bounded_problem(SPACE).tables)
    sampler = OptunaSampler(problem, sampler="NSGAII")
    own = sampler.ask(2)
    rows = np.concatenate([every_row(SPACE)[:2], own])
    objectives = np.array([[-0.5, 1.0], [-0.95, 2.0], [np.nan, np.nan], [-0.99, 3.0]])
    sampler.tell(rows, objectives, np.array([0.0, 0.0, np.inf, 0.0]))
    by_row = {row_of(SPACE, t.params).tobytes(): t for t in sampler.study.get_trials()}
    trials = [by_row[row.tobytes()] for row in rows]
    states = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert [t.state for t in trials] == states
    assert trials[0].values == [0.5, 1.0]
    sampler.tell(rows, objectives, np.zeros(4))  # again: nothing is counted twice
    assert len(sampler.study.get_trials()) == 4
