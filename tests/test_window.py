"""Candidates that are open at once: any order of completion, resuming, busy workers."""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_search import (
    Accuracy,
    Interrupted,
    MemoryJournal,
    Shuffled,
    Stubborn,
    bounded_problem,
    interrupted_after,
    run,
    small_space,
    summary,
)

from results.store import Journal
from search import search, window_for
from search.executors.base import attempt
from search.samplers import NSGA2, RandomSearch
from search_space import load_space
from search_space.errors import UsageError

SPACE = small_space()


DIGITS = bounded_problem(load_space("digits"))


def shuffled_run(evaluate, order, journal=None, **options):
    executor = Shuffled(evaluate, order)
    journal = MemoryJournal() if journal is None else journal
    result = search(DIGITS, NSGA2(DIGITS, seed=0), executor, journal, num_evaluations=60, **options)
    return result, executor, journal


@settings(max_examples=12, deadline=None)
@given(
    batch_size=st.integers(1, 9),
    more=st.integers(0, 20),
    orders=st.lists(st.integers(0, 999), min_size=2, max_size=2, unique=True),
    warm=st.booleans(),
)
def test_the_order_of_completion_does_not_matter(batch_size, more, orders, warm):
    window = batch_size + more
    options = {"batch_size": batch_size, "window": window}
    if warm:
        options["warm_start"] = [DIGITS.space.smallest]
    accuracy = Accuracy(DIGITS.space)
    one = run(DIGITS, accuracy, **options)
    for order in orders:
        other, executor, journal = shuffled_run(accuracy, order, **options)
        assert summary(other) == summary(one)
        assert executor.most <= window
        assert len({e.digest for e in journal}) == len(journal.evaluations) == 60
        assert sorted(e.index for e in journal) == list(range(60))
    if window > 1:
        assert [e.index for e in journal] != list(range(60))


class Recorded:
    """Random search that writes down what the loop wants of it."""

    def __init__(self, problem):
        self.inner, self.calls = RandomSearch(problem), []

    def ask(self, n):
        self.calls.append(("ask", n))
        return self.inner.ask(n)

    def tell(self, genes, objectives, violations):
        self.calls.append(("tell", len(genes)))
        self.inner.tell(genes, objectives, violations)


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 7),
    more=st.integers(0, 15),
    total=st.integers(1, 40),
    order=st.integers(0, 99),
)
def test_the_window_is_as_full_as_it_may_be_whatever_ends_first(batch_size, more, total, order):
    """Against the schedule by counting: ask whenever a batch fits, tell the oldest otherwise."""
    window = batch_size + more
    expected, untold, asked = [], deque(), 0
    while untold or asked < total:
        size = min(batch_size, total - asked)
        if asked < total and sum(untold) + size <= window:
            expected.append(("ask", size))
            untold.append(size)
            asked += size
        else:
            expected.append(("tell", untold.popleft()))
    sampler = Recorded(DIGITS)
    executor = Shuffled(Accuracy(DIGITS.space), order)
    options = {"num_evaluations": total, "batch_size": batch_size, "window": window}
    search(DIGITS, sampler, executor, MemoryJournal(), **options)
    assert sampler.calls == expected


class Clockwork:
    """An executor of ``workers`` in a time of its own; evaluations take what ``seconds`` says."""

    def __init__(self, evaluate, workers, seconds):
        self.evaluate, self.seconds = evaluate, seconds
        self.free, self.now, self.work = workers, 0.0, 0.0
        self.queue, self.running = deque(), []

    def submit(self, ticket, architecture, part=None):
        self.queue.append((ticket, architecture))
        self._begin()

    def _begin(self):
        while self.free and self.queue:
            ticket, architecture = self.queue.popleft()
            takes = self.seconds(architecture)
            self.work += takes
            self.free -= 1
            heapq.heappush(self.running, (self.now + takes, ticket, architecture))

    def wait(self):
        self.now, ticket, architecture = heapq.heappop(self.running)
        self.free += 1
        self._begin()
        return attempt(self.evaluate, ticket, architecture)

    def close(self):
        self.queue.clear()


@pytest.mark.parametrize(
    ("workers", "batch_size"), [(1, 12), (2, 1), (2, 12), (8, 4), (64, 4), (64, 12)]
)
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_a_window_for_some_workers_keeps_them_busy(workers, batch_size, spread):
    """Evaluations take 1 to ``spread`` seconds, by architecture; random search asks."""

    def seconds(architecture):
        return 1 + (spread - 1) * int(architecture.digest, 16) / 16**12

    executor = Clockwork(Accuracy(DIGITS.space), workers, seconds)
    search(
        DIGITS,
        RandomSearch(DIGITS),
        executor,
        MemoryJournal(),
        num_evaluations=12 * workers + 36,
        batch_size=batch_size,
        window=window_for(workers, batch_size),
    )
    last = spread * workers  # at the end the last ones leave the others without work
    assert executor.work >= 0.97 * (executor.now * workers - last)


@pytest.mark.parametrize("cut", [0, 1, 7, 23, 59])
def test_interrupted_with_a_window_and_resumed_equals_uninterrupted(cut, tmp_path):
    options = {"batch_size": 3, "window": 11}
    accuracy = Accuracy(DIGITS.space)
    whole, _, _ = shuffled_run(accuracy, 1, **options)
    dying = interrupted_after(accuracy, cut)
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal, pytest.raises(Interrupted):
        shuffled_run(dying, 2, journal, **options)
    with Journal(path) as journal:
        again, _, _ = shuffled_run(accuracy, 3, journal, **options)
        assert len(journal) == 60
    assert again.cached == cut
    assert summary(again) == summary(whole)


def test_what_is_open_is_dropped_when_a_search_breaks_off():
    def dying(architecture):
        raise Interrupted

    executor = Shuffled(dying)
    with pytest.raises(Interrupted):
        search(DIGITS, NSGA2(DIGITS), executor, MemoryJournal(), num_evaluations=60, window=30)
    assert executor.most == 24
    assert executor.open == []


def test_a_batch_must_fit_into_the_window():
    with pytest.raises(UsageError, match=r"window=4, batch_size=5: .*make the window larger"):
        run(DIGITS, Accuracy(DIGITS.space), batch_size=5, window=4)
    with pytest.raises(UsageError, match="batch_size=0"):
        run(DIGITS, Accuracy(DIGITS.space), batch_size=0)


def test_a_sampler_that_repeats_itself_in_a_window_is_told_what_is_under_way():
    problem, accuracy = bounded_problem(SPACE), Accuracy(SPACE)
    sampler = Stubborn(problem)
    result = search(
        problem,
        sampler,
        Shuffled(accuracy),
        MemoryJournal(),
        num_evaluations=10,
        batch_size=3,
        window=9,
    )
    assert result.stopped == "repeating"
    assert accuracy.calls == [SPACE.smallest.digest]
    assert all(np.isfinite(objectives[0]).all() for objectives, _ in sampler.told)
