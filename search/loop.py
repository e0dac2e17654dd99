"""The search loop: ask, look up or evaluate, write down, tell.

Candidates are asked for in small batches whenever a window of candidates that are asked for and
not yet told has room, and batches are told in the order asked, whatever the order in which their
evaluations end. So the candidates depend on the seed, the window and the size of a batch, never on
timing or on the number of workers.

The journal is the loop's memory, and resuming is replaying: with the same seed the sampler asks
for the same architectures, those in the journal are answered from it, and the first unknown ones
continue the search to the very front that an uninterrupted run finds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from results.journal import Evaluation, Status
from search.executors import Executor, Outcome
from search.feasibility import check_feasible
from search.halving import better_half, expected, of_all_parts
from search.history import Candidate, History, Progress, SearchResult
from search.problem import Problem
from search.samplers.base import Sampler
from search_space.architecture import Architecture
from search_space.errors import UsageError
from search_space.stage_space import Genes

MAX_STALE_BATCHES = 20
RARE_MEMBERS = 8  # evaluated first where the limits leave hardly any


class EvaluationLog(Protocol):
    """The part of a journal that the loop needs; ``results.journal.Journal`` is one."""

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
    halvings: int = 0,
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
        halvings: how often a batch is halved before its last candidates see all images
            (``search.halving``); what evaluates must know as many parts of the images and one more.
        warm_start: architectures that are evaluated first, before anything is asked for, as far
            as they lie in the space and meet the cheap constraints.

    Raises:
        InfeasibleError: The cheap constraints cannot be met; before any evaluation.
        UsageError: A batch does not fit into the window.
        NasError: All evaluations of the first window failed.

    Example:
        >>> executor = InProcessExecutor(evaluator)
        >>> result = search(problem, NSGA2(problem), executor, journal, num_evaluations=100)
    """
    window = batch_size if window is None else window
    if not 1 <= batch_size <= window:
        raise UsageError(
            f"window={window}, batch_size={batch_size}: a batch holds at least one candidate and "
            "fits into the window; make the window larger or the batch smaller."
        )
    members, rare = check_feasible(problem, members=min(RARE_MEMBERS, num_evaluations))
    history = History(problem, num_evaluations, first=min(window, num_evaluations))
    loop = _Loop(sampler, executor, journal, history, batch_size, window, halvings, on_progress)
    known = [a for a in warm_start if problem.space.contains(a)]
    try:
        first = problem.space.encode(known)
        # members that are rare are proposed by no sampler that does not know some
        stopped = loop.run(np.concatenate([first, members]) if rare else first)
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
    """Rows asked for together; told together once no candidate of them is open.

    Attributes:
        running: on their way, and those of them that saw all images, in the end.
        stopped: given up after a part of the images.
    """

    rows: Genes
    candidates: list[Candidate]
    num_open: int = 0
    running: list[Candidate] = field(default_factory=list)
    stopped: list[Candidate] = field(default_factory=list)


@dataclass(eq=False)
class _Loop:
    """The state of a search: batches that are not told yet, and open candidates by ticket."""

    sampler: Sampler
    executor: Executor
    journal: EvaluationLog
    history: History
    batch_size: int
    window: int
    halvings: int
    on_progress: Callable[[Progress], None] | None
    _untold: deque[_Batch] = field(default_factory=deque)
    _open: dict[int, tuple[_Batch, Candidate]] = field(default_factory=dict)

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
        known = [self.journal.get(c.architecture.digest) for c in batch.candidates]
        # who goes on is decided among all of a batch: a part of it in the journal says nothing
        again = self.halvings > 0 and None in known
        for candidate, evaluation in zip(batch.candidates, known, strict=True):
            if evaluation is None or again:
                batch.running.append(candidate)
            else:
                self._finish(candidate, evaluation, cached=True)
        self._submit(batch, part=0)

    def _submit(self, batch: _Batch, part: int) -> None:
        for candidate in batch.running:
            self._open[candidate.index] = batch, candidate
            batch.num_open += 1
            self.executor.submit(
                candidate.index, candidate.architecture, part if self.halvings else None
            )

    def _tell_first(self) -> bool:
        """Wait for the batch asked for first and tell it; whether anything in it was new."""
        batch = self._untold[0]
        while batch.num_open:
            outcome = self.executor.wait()
            owner, candidate = self._open.pop(outcome.ticket)
            candidate.outcomes.append(outcome)
            owner.num_open -= 1
            if not self.halvings:
                self._write(candidate, outcome)
            elif not owner.num_open:
                self._halve(owner)
        self._untold.popleft()
        self.sampler.tell(batch.rows, *self.history.results(batch.rows))
        self.history.tell(batch.candidates)
        return bool(batch.candidates)

    def _halve(self, batch: _Batch) -> None:
        """All that run have seen the same images: the better half goes on, or all are written."""
        problem = self.history.problem
        for each in batch.running.copy():
            outcome = of_all_parts(each)
            if outcome.error or _unusable(problem, {**each.cheap, **outcome.metrics}):
                batch.running.remove(each)
                self._write(each, outcome)
        parts = len(batch.running[0].outcomes) if batch.running else math.inf
        if parts <= self.halvings:
            better = better_half(problem, batch.running)
            batch.stopped += [each for each in batch.running if each not in better]
            batch.running = better
            self._submit(batch, int(parts))
            return
        for each in batch.running:
            self._write(each, of_all_parts(each))
        for each in batch.stopped:
            self._write(each, expected(each, batch.running), status="stopped")

    def _write(self, candidate: Candidate, outcome: Outcome, status: Status = "ok") -> None:
        """Into the journal, unless it is there: then that is what counts."""
        known = self.journal.get(candidate.architecture.digest)
        evaluation = known or _record(self.history.problem, candidate, outcome, status)
        if known is None:
            self.journal.append(evaluation)
        self._finish(candidate, evaluation, cached=known is not None)

    def _finish(self, candidate: Candidate, evaluation: Evaluation, *, cached: bool) -> None:
        self.history.finish(candidate, evaluation, cached=cached)
        if self.on_progress:
            self.on_progress(self.history.progress(evaluation))


def _record(problem: Problem, candidate: Candidate, outcome: Outcome, status: Status) -> Evaluation:
    """The journal's record of an outcome; a metric that is missing or not finite is a failure."""
    metrics = {**candidate.cheap, **outcome.metrics}
    error = outcome.error or _unusable(problem, metrics)
    return Evaluation(
        digest=candidate.architecture.digest,
        architecture=candidate.architecture.to_dict(),
        metrics=metrics,
        index=candidate.index,
        status=status if error is None else "failed",
        error=error,
        seconds=outcome.seconds,
    )


def _unusable(problem: Problem, metrics: Mapping[str, float]) -> str | None:
    """The metrics that the problem needs and that are missing or not finite; None without any."""
    said = (
        f"{name} is {metrics[name]}, not a finite number"
        if name in metrics
        else f"the evaluation gave no {name}"
        for name in problem.needs_evaluation
        if not np.isfinite(metrics.get(name, np.nan))
    )
    return ", ".join(said) or None
