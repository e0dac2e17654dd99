"""The search loop: ask, look up or evaluate, write down, tell.

There are no waves. Candidates are asked for in small batches whenever a window of candidates
that are asked for and not yet told has room, and batches are told in the order asked, whatever
the order in which their evaluations end. So what is asked for depends on the seed, the window
and the size of a batch, never on timing or on the number of workers.

The journal is the loop's memory, and resuming is replaying: with the same seed the sampler asks
for the same architectures, those in the journal are answered from it, and the first unknown ones
continue the search to the very front that an uninterrupted run finds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from results.journal import Evaluation
from search.executors import Executor, Outcome
from search.feasibility import check_feasible
from search.history import Candidate, History, Progress, SearchResult
from search.problem import Problem
from search.samplers.base import Sampler
from search_space.architecture import Architecture
from search_space.errors import UsageError
from search_space.space import Genes

MAX_STALE_BATCHES = 20


class EvaluationLog(Protocol):
    """What the loop needs of ``results.store.Journal``."""

    def get(self, digest: str) -> Evaluation | None: ...

    def append(self, evaluation: Evaluation) -> None: ...


def search(
    problem: Problem,
    sampler: Sampler,
    executor: Executor,
    journal: EvaluationLog,
    *,
    num_evaluations: int,
    batch_size: int = 12,
    window: int | None = None,
    warm_start: Sequence[Architecture] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Search with at most ``num_evaluations`` evaluations, journaled ones included.

    Candidates that miss a cheap constraint are never evaluated; failed and non-finite evaluations
    are journaled with their error and count as evaluations. The executor stays open, except
    where this raises: then what it still holds is dropped.

    Args:
        batch_size: candidates asked for, and told, at once.
        window: candidates that may be asked for and not yet told, at least ``batch_size``; that
            by default, so each batch is told before the next is asked for. Several workers are
            kept busy by ``window_for``.
        warm_start: architectures that are evaluated first, before anything is asked for, as far
            as they lie in the space and meet the cheap constraints.

    Raises InfeasibleError before any evaluation where the cheap constraints cannot be met,
    UsageError where a batch does not fit into the window, and NasError where all evaluations of
    the first window failed.
    """
    window = batch_size if window is None else window
    if not 1 <= batch_size <= window:
        raise UsageError(
            f"window={window}, batch_size={batch_size}: a batch holds at least one candidate and "
            "fits into the window; make the window larger or the batch smaller."
        )
    check_feasible(problem)
    history = History(problem, num_evaluations, first=min(window, num_evaluations))
    loop = _Loop(sampler, executor, journal, history, batch_size, window, on_progress)
    known = [a for a in warm_start if problem.space.contains(a)]
    try:
        stopped = loop.run(problem.space.encode(known))
    except BaseException:
        executor.close()
        raise
    return history.result(stopped)


def window_for(workers: int, batch_size: int) -> int:
    """A window that keeps ``workers`` busy: one batch for a single worker, else more.

    With one worker there is nothing to overlap, and telling before asking serves the search
    best. More need two candidates each beside the oldest batch, which holds the window until
    its slowest candidate has ended; that suffices where none takes over thrice as long as others.
    Batches much larger than ``workers`` make the window wide for nothing.
    """
    if workers == 1:
        return batch_size
    return batch_size * (1 + math.ceil(2 * workers / batch_size))


@dataclass
class _Batch:
    """Rows asked for together; told together once no candidate of them is open."""

    rows: Genes
    candidates: list[Candidate]
    num_open: int = 0


class _Loop:
    def __init__(
        self,
        sampler: Sampler,
        executor: Executor,
        journal: EvaluationLog,
        history: History,
        batch_size: int,
        window: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.sampler = sampler
        self.executor = executor
        self.journal = journal
        self.history = history
        self.batch_size = batch_size
        self.window = window
        self.on_progress = on_progress
        self._untold: deque[_Batch] = deque()
        self._open: dict[int, tuple[_Batch, Candidate]] = {}  # by ticket

    def run(self, warm_start: Genes) -> str:
        """Ask, evaluate and tell until nothing is left to do; why it stopped."""
        if len(warm_start):
            self._add(warm_start)
            self._tell_first()
        stale = 0
        while stale < MAX_STALE_BATCHES:
            self._ask()
            if not self._untold:
                return "exhausted" if self.history.room > 0 else "budget"
            stale = 0 if self._tell_first() else stale + 1
        while self._untold:
            self._tell_first()
        return "repeating"

    def _ask(self) -> None:
        """Fill the window, as far as the sampler has something to propose."""
        waiting = sum(len(batch.rows) for batch in self._untold)
        while (room := self.history.room) > 0:
            size = min(self.batch_size, room)
            if waiting + size > self.window:
                return
            rows = self.sampler.ask(size)
            if len(rows) == 0:
                return
            self._add(rows)
            waiting += len(rows)

    def _add(self, rows: Genes) -> None:
        """Hand the new feasible rows to the executor, or answer them from the journal."""
        batch = _Batch(rows, self.history.new_candidates(rows))
        self._untold.append(batch)
        for candidate in batch.candidates:
            known = self.journal.get(candidate.architecture.digest)
            if known is not None:
                self._finish(candidate, known, cached=True)
                continue
            self._open[candidate.index] = batch, candidate
            batch.num_open += 1
            self.executor.submit(candidate.index, candidate.architecture)

    def _tell_first(self) -> bool:
        """Wait for the batch asked for first and tell it; whether anything in it was new."""
        batch = self._untold[0]
        while batch.num_open:
            outcome = self.executor.wait()
            owner, candidate = self._open.pop(outcome.ticket)
            evaluation = _record(self.history.problem, candidate, outcome)
            self.journal.append(evaluation)
            owner.num_open -= 1
            self._finish(candidate, evaluation, cached=False)
        self._untold.popleft()
        self.sampler.tell(batch.rows, *self.history.results(batch.rows))
        self.history.tell(batch.candidates)
        return bool(batch.candidates)

    def _finish(self, candidate: Candidate, evaluation: Evaluation, *, cached: bool) -> None:
        self.history.finish(candidate, evaluation, cached=cached)
        if self.on_progress:
            self.on_progress(self.history.progress(evaluation))


def _record(problem: Problem, candidate: Candidate, outcome: Outcome) -> Evaluation:
    """The journal's record of an outcome; a metric that is missing or not finite is a failure."""
    metrics = {**candidate.cheap, **outcome.metrics}
    error = outcome.error
    if error is None:
        wrong = [n for n in problem.needs_evaluation if not np.isfinite(metrics.get(n, np.nan))]
        if wrong:
            error = ", ".join(
                f"{name} is {metrics[name]}, not a finite number"
                if name in metrics
                else f"the evaluation gave no {name}"
                for name in wrong
            )
    return Evaluation(
        digest=candidate.architecture.digest,
        architecture=candidate.architecture.to_dict(),
        metrics=metrics,
        index=candidate.index,
        status="ok" if error is None else "failed",
        error=error,
        seconds=outcome.seconds,
    )
