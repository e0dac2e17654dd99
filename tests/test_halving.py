"""Successive halving: who goes on, what is written down, resuming, order of completion."""

from __future__ import annotations

import zlib
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_search import (
    Accuracy,
    MemoryJournal,
    Shuffled,
    bounded_problem,
    brute_force_front,
    summary,
)

from results.store import Journal
from search import InProcessExecutor, Outcome, search
from search.halving import expected
from search.history import Candidate
from search.samplers import NSGA2
from search_space import Architecture, load_space
from supernet.data.evaluation_batches import doubling_batches

PROBLEM = bounded_problem(load_space("digits"))
IMAGES = (8, 8, 16, 32)
HALVINGS = len(IMAGES) - 1
TOTAL = sum(IMAGES)


class Parts:
    """Accuracy by formula, plus what a part's images add to it for all, or for each alone."""

    def __init__(self, for_all: float = 0.0, for_each: float = 0.0, fails: int = 0) -> None:
        self.accuracy = Accuracy(PROBLEM.space)
        self.for_all, self.for_each, self.fails = for_all, for_each, fails
        self.calls: list[tuple[str, int]] = []

    def __call__(self, architecture: Architecture, part: int) -> dict[str, float]:
        digest = architecture.digest
        self.calls.append((digest, part))
        if self.fails and int(digest, 16) % self.fails == part:
            raise ValueError("no luck")
        return {"accuracy": self.of(architecture, part), "validation_images": IMAGES[part]}

    def of(self, architecture: Architecture, part: int) -> float:
        luck = zlib.crc32(f"{architecture.digest} {part}".encode()) / 2**32 - 0.5
        easy = (-1) ** part * (part + 1)
        truth = self.accuracy(architecture)["accuracy"]
        return truth + self.for_all * easy + self.for_each * luck

    def whole(self, architecture: Architecture) -> float:
        values = [self.of(architecture, part) for part in range(len(IMAGES))]
        return float(np.average(values, weights=IMAGES))

    @property
    def images(self) -> int:
        return sum(IMAGES[part] for _, part in self.calls)


def run(evaluate, journal=None, executor=None, **options):
    options = {"num_evaluations": 60, "batch_size": 12, "halvings": HALVINGS} | options
    return search(
        PROBLEM,
        NSGA2(PROBLEM, seed=0),
        executor or InProcessExecutor(evaluate),
        MemoryJournal() if journal is None else journal,
        **options,
    )


def architecture_of(evaluation):
    return Architecture.from_dict(evaluation.architecture)


def test_the_better_half_goes_on_until_all_images_are_seen():
    evaluate = Parts(for_each=0.2)
    result = run(evaluate)
    seen = [sum(part == k for _, part in evaluate.calls) for k in range(len(IMAGES))]
    assert seen == [60, 30, 15, 10]  # of each batch 12, 6, 3, 2
    assert result.stopped_early == 50
    by_images = [int(e.metrics["validation_images"]) for e in result.evaluations]
    assert sorted(by_images) == [8] * 30 + [16] * 15 + [32] * 5 + [TOTAL] * 10
    for evaluation in result.evaluations:
        complete = evaluation.metrics["validation_images"] == TOTAL
        assert evaluation.status == ("ok" if complete else "stopped")
        if complete:
            truth = evaluate.whole(architecture_of(evaluation))
            assert evaluation.metrics["accuracy"] == pytest.approx(truth, abs=1e-12)
    assert result.front
    assert all(e.status == "ok" for e in result.front)


def test_whoever_goes_on_is_dominated_by_nobody_who_does_not():
    evaluate = Parts(for_each=0.2)
    result = run(evaluate, num_evaluations=12)
    first = np.array(
        [(-evaluate.of(architecture_of(e), 0), e.metrics["latency_ms"]) for e in result.evaluations]
    )
    on = np.array([e.metrics["validation_images"] > IMAGES[0] for e in result.evaluations])
    assert on.sum() == 6
    for point in first[on]:
        dominates = (first[~on] <= point).all(axis=1) & (first[~on] < point).any(axis=1)
        assert not dominates.any()
    front = brute_force_front(first)
    assert set(np.flatnonzero(on)) <= front or front <= set(np.flatnonzero(on))


def test_images_that_are_hard_for_all_do_not_count_against_those_who_saw_them():
    evaluate = Parts(for_all=0.02)
    for evaluation in run(evaluate).evaluations:
        truth = evaluate.whole(architecture_of(evaluation))
        assert evaluation.metrics["accuracy"] == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("fails", [0, 9])
def test_interrupted_anywhere_and_resumed_equals_uninterrupted(fails, tmp_path):
    """A cut within a batch repeats what the batch needs, and writes nothing twice."""
    kept = MemoryJournal()
    whole = run(Parts(for_each=0.2, fails=fails), kept)
    assert (whole.failed > 0) == bool(fails)
    for cut in (0, 5, 12, 17, 43, 59, 60):
        path = tmp_path / f"{cut}.jsonl"
        with Journal(path) as journal:
            for evaluation in kept.evaluations[:cut]:
                journal.append(evaluation)
        with Journal(path) as journal:
            evaluate = Parts(for_each=0.2, fails=fails)
            again = run(evaluate, journal)
            assert len(journal) == 60
        assert again.cached == cut
        assert summary(again) == summary(whole)
        assert len({digest for digest, _ in evaluate.calls}) == 60 - cut // 12 * 12


@settings(max_examples=10, deadline=None)
@given(order=st.integers(0, 999), batch_size=st.integers(1, 9), more=st.integers(0, 20))
def test_the_order_of_completion_does_not_matter(order, batch_size, more):
    options = {"batch_size": batch_size, "window": batch_size + more, "num_evaluations": 40}
    evaluate = Parts(for_each=0.2, fails=17)
    one = run(evaluate, **options)
    journal = MemoryJournal()
    other = run(evaluate, journal, Shuffled(evaluate, order), **options)
    assert summary(other) == summary(one)
    assert sorted(e.index for e in journal) == list(range(40))


def test_what_is_expected_of_a_stopped_candidate_is_possible():
    """Nine of ten right in the first half: at best 95 of 100 overall, and at worst 45."""

    def trial(index, *parts):
        metrics = [{"accuracy": a, "loss": b, "validation_images": 50} for a, b in parts]
        outcomes = [Outcome(index, m, 1.0) for m in metrics]
        return Candidate(index, b"", load_space("digits").smallest, {}, outcomes)

    stopped = trial(0, (0.9, 0.2))
    easier = [trial(1, (0.2, 3.0), (0.8, 1.0))]  # moves by +0.3 and −1.0
    metrics = expected(stopped, easier).metrics
    assert metrics == pytest.approx({"accuracy": 0.95, "loss": 0.1, "validation_images": 50})
    harder = [trial(1, (1.0, 0.1), (0.0, 0.7))]  # by −0.5 and +0.3
    metrics = expected(stopped, harder).metrics
    assert metrics == pytest.approx({"accuracy": 0.45, "loss": 0.5, "validation_images": 50})
    alike = [trial(1, (0.5, 0.5), (0.54, 0.5))]
    assert expected(stopped, alike).metrics["accuracy"] == pytest.approx(0.92)


def test_the_balanced_accuracy_of_a_part_may_exceed_1_but_not_that_of_all():
    """Of four images three are of one class, so one of the other counts 2 and these 2/3 each."""

    def trial(index, *parts):
        metrics = [{"balanced_accuracy": value, "validation_images": 2} for value in parts]
        outcomes = [Outcome(index, m, 1.0) for m in metrics]
        return Candidate(index, b"", load_space("digits").smallest, {}, outcomes)

    def value(stopped, finished):
        return expected(trial(0, stopped), [trial(1, *finished)]).metrics["balanced_accuracy"]

    common, both = 2 / 3, 4 / 3  # all right in a part of the common class, and of both classes
    recalls = 2 / 3, 1.0  # one image of the common class was wrong
    assert value(common / 2, (common / 2, both)) == pytest.approx(np.mean(recalls))
    assert value(both, (common / 2, both)) == pytest.approx(1.0)
    assert value(both, (both, common)) == pytest.approx(1.0)


def test_a_batch_that_fails_as_a_whole_is_written_down():
    def broken(architecture, part):
        raise OSError("disk gone")

    journal = MemoryJournal()
    with pytest.raises(Exception, match=r"all 12 evaluations so far failed.*disk gone"):
        run(broken, journal)
    assert [e.status for e in journal] == ["failed"] * 12


def test_a_metric_that_is_missing_or_not_finite_is_a_failure_and_not_stopped_early():
    def evaluate(architecture, part):
        kind = int(architecture.digest, 16) % 3
        metrics = Parts()(architecture, part)
        if kind == 0:
            metrics["accuracy"] = float("nan")
        return metrics

    statuses = {
        (e.status, bool(np.isnan(e.metrics["accuracy"]))) for e in run(evaluate).evaluations
    }
    assert statuses == {("ok", False), ("stopped", False), ("failed", True)}


class Split:
    resolution = 8

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


@given(count=st.integers(16, 500), doublings=st.integers(0, 4))
def test_parts_double_and_are_spread_evenly(count, doublings):
    parts = [list(b.chosen) for b in doubling_batches(Split(count), doublings)]
    assert len(parts) == doublings + 1
    assert sorted(chain.from_iterable(parts)) == list(range(count))
    for k in range(1, doublings + 1):
        before = sorted(chain.from_iterable(parts[:k]))
        assert abs(len(parts[k]) - len(before)) <= 1
        assert len(set(np.diff(sorted(before + parts[k])))) == 1
