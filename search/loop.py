"""The search loop: ask, look up or evaluate, write down, tell.

The journal is the loop's memory, so resuming is replaying: with the same seed the sampler asks
for the same architectures, those in the journal are answered from it, and the first unknown one
continues the search to the very front that an uninterrupted run finds. Each batch is told in the
order asked, whatever the order in which an executor completes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from results.journal import Evaluation
from results.pareto import hypervolume, non_dominated
from search.executors import Executor, Outcome
from search.feasibility import check_feasible
from search.problem import Problem, Values
from search.samplers.base import Sampler
from search_space.architecture import Architecture
from search_space.errors import NasError
from search_space.space import Genes

MAX_STALE_ROUNDS = 20


class EvaluationLog(Protocol):
    """What the loop needs of ``results.store.Journal``."""

    def get(self, digest: str) -> Evaluation | None: ...

    def append(self, evaluation: Evaluation) -> None: ...


@dataclass(frozen=True)
class Progress:
    """State of a search after an evaluation.

    Attributes:
        evaluations, total: finished, and the most there will be.
        cached, failed: how many of the finished came from the journal, and failed.
        last: the evaluation that was just finished.
        hypervolume: of the front after the last whole batch.
        best: best feasible evaluation by the first objective so far.
    """

    evaluations: int
    total: int
    cached: int
    failed: int
    last: Evaluation
    hypervolume: float
    best: Evaluation | None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        front: feasible, non-dominated evaluations, sorted by the last objective, best first.
        front_genes: their rows, shape (len(front), genes).
        evaluations: all, in the order asked.
        hypervolume: (evaluations so far, hypervolume) after each batch.
        reference: reference point of the hypervolume, minimised, shape (objectives,).
        cached: number of evaluations answered from the journal.
        stopped: ``budget`` spent, space ``exhausted``, or sampler ``repeating`` itself.
    """

    front: tuple[Evaluation, ...]
    front_genes: Genes
    evaluations: tuple[Evaluation, ...]
    hypervolume: tuple[tuple[int, float], ...]
    reference: Values
    cached: int
    stopped: str

    @property
    def failed(self) -> int:
        """Number of evaluations that failed."""
        return sum(evaluation.status == "failed" for evaluation in self.evaluations)


def search(
    problem: Problem,
    sampler: Sampler,
    executor: Executor,
    journal: EvaluationLog,
    *,
    num_evaluations: int,
    batch_size: int = 12,
    warm_start: Sequence[Architecture] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Search with at most ``num_evaluations`` evaluations, journaled ones included.

    Candidates that miss a cheap constraint are never evaluated; failed and non-finite evaluations
    are journaled with their error and count as evaluations. Architectures of ``warm_start`` that
    lie in the space and meet the cheap constraints are evaluated first.

    Raises InfeasibleError before any evaluation where the cheap constraints cannot be met, and
    NasError where all evaluations of the first batch failed.
    """
    check_feasible(problem)
    state = _State(problem, num_evaluations)
    first = problem.space.encode([a for a in warm_start if problem.space.contains(a)])
    stopped, stale = "budget", 0
    for round_ in itertools.count():
        room = num_evaluations - len(state.evaluations)
        if room <= 0:
            break
        rows = first if round_ == 0 else sampler.ask(min(batch_size, room))
        if len(rows) == 0:
            if round_ == 0:
                continue
            stopped = "exhausted"
            break
        before = len(state.evaluations)
        _evaluate_batch(state, rows, executor, journal, room, on_progress)
        sampler.tell(rows, *state.results(rows))
        if len(state.evaluations) > before:
            stale = 0
            state.record_hypervolume()
            state.stop_if_nothing_works()
        elif round_ > 0:
            stale += 1
            if stale >= MAX_STALE_ROUNDS:
                stopped = "repeating"
                break
    return state.result(stopped)


def _evaluate_batch(
    state: _State,
    rows: Genes,
    executor: Executor,
    journal: EvaluationLog,
    room: int,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Evaluate the new feasible rows, each written to the journal as soon as it ends."""
    candidates = state.new_candidates(rows, room)
    waiting: list[_Candidate] = []
    for candidate in candidates:
        known = journal.get(candidate.architecture.digest)
        if known is None:
            waiting.append(candidate)
            continue
        state.finish(candidate, known, cached=True)
        if on_progress:
            on_progress(state.progress(known))
    for candidate, outcome in _run(executor, waiting):
        evaluation = _record(state.problem, candidate, outcome)
        journal.append(evaluation)
        state.finish(candidate, evaluation, cached=False)
        if on_progress:
            on_progress(state.progress(evaluation))
    state.evaluations += [candidate.evaluation for candidate in candidates]


@dataclass
class _Candidate:
    index: int
    key: bytes
    row: Genes
    architecture: Architecture
    cheap: dict[str, float]
    finished: Evaluation | None = None

    @property
    def evaluation(self) -> Evaluation:
        assert self.finished is not None
        return self.finished


def _run(executor: Executor, waiting: Sequence[_Candidate]) -> Iterator[tuple[_Candidate, Outcome]]:
    """Keep the executor full until all are done; what is open is dropped on any way out."""
    by_ticket = {candidate.index: candidate for candidate in waiting}
    todo, num_open = iter(waiting), 0
    try:
        for _ in waiting:
            for candidate in itertools.islice(todo, max(1, executor.capacity) - num_open):
                executor.submit(candidate.index, candidate.architecture)
                num_open += 1
            outcome = executor.wait()
            num_open -= 1
            yield by_ticket.pop(outcome.ticket), outcome
    except BaseException:
        executor.close()
        raise


def _record(problem: Problem, candidate: _Candidate, outcome: Outcome) -> Evaluation:
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


@dataclass
class _State:
    """Everything that a search has learnt; kept in memory only, the journal can rebuild it."""

    problem: Problem
    total: int
    evaluations: list[Evaluation] = field(default_factory=list)  # of whole batches, as asked
    history: list[tuple[int, float]] = field(default_factory=list)
    known: dict[bytes, Evaluation] = field(default_factory=dict)
    cached: int = 0
    failed: int = 0
    best: Evaluation | None = None
    reference: Values | None = None

    def new_candidates(self, rows: Genes, room: int) -> list[_Candidate]:
        """Rows not evaluated before that meet the cheap constraints, at most ``room``."""
        feasible = rows[self.problem.cheap_violation(rows) == 0]
        keys = {row.tobytes(): i for i, row in reversed(list(enumerate(feasible)))}
        new = sorted(i for key, i in keys.items() if key not in self.known)[:room]
        chosen = feasible[np.array(new, dtype=np.int64)]
        cheap = self.problem.cheap_metrics(chosen)
        start = len(self.evaluations)
        return [
            _Candidate(
                index=start + i,
                key=chosen[i].tobytes(),
                row=chosen[i],
                architecture=architecture,
                cheap={name: float(values[i]) for name, values in cheap.items()},
            )
            for i, architecture in enumerate(self.problem.space.decode(chosen))
        ]

    def finish(self, candidate: _Candidate, evaluation: Evaluation, *, cached: bool) -> None:
        # what the journal holds wins over the tables: it is what earlier decisions were made on
        candidate.finished = evaluation
        self.known[candidate.key] = evaluation
        self.cached += cached
        self.failed += evaluation.status == "failed"
        objectives, violations = self.values([evaluation])
        if violations[0] == 0 and not np.isnan(objectives[0, 0]):
            best = None if self.best is None else self.values([self.best])[0][0, 0]
            if best is None or objectives[0, 0] < best:
                self.best = evaluation

    def values(self, evaluations: Sequence[Evaluation]) -> tuple[Values, Values]:
        """Minimised objectives (n, objectives) and violations (n,); failed ones are NaN and ∞."""
        metrics = _columns(self.problem, [evaluation.metrics for evaluation in evaluations])
        failed = np.array([evaluation.status == "failed" for evaluation in evaluations], bool)
        objectives = self.problem.objective_values(metrics)
        violations = self.problem.violation(metrics)
        return (
            np.where(failed[:, None], np.nan, objectives),
            np.where(failed, np.inf, violations),
        )

    def results(self, rows: Genes) -> tuple[Values, Values]:
        """What to tell of rows: results where evaluated, else NaN and the cheap violation."""
        objectives = np.full((len(rows), len(self.problem.objectives)), np.nan)
        violations = self.problem.cheap_violation(rows)
        for i, row in enumerate(rows):
            evaluation = self.known.get(row.tobytes())
            if evaluation is not None:
                (objectives[i],), (violations[i],) = self.values([evaluation])
        return objectives, violations

    def record_hypervolume(self) -> None:
        objectives, violations = self.values(self.evaluations)
        points = objectives[violations == 0]
        if self.reference is None:
            reference = self.problem.reference
            if np.isnan(reference).any() and len(points):
                # an evaluated metric without a bound: the worst of the first feasible batch
                reference = np.where(np.isnan(reference), np.nanmax(points, axis=0), reference)
            if not np.isnan(reference).any():
                self.reference = reference
        volume = 0.0
        if self.reference is not None:
            volume = hypervolume(points, self.reference.tolist())
        self.history.append((len(self.evaluations), volume))

    def stop_if_nothing_works(self) -> None:
        if self.failed == len(self.evaluations) and len(self.history) == 1 and self.failed > 1:
            raise NasError(
                f"all {self.failed} evaluations of the first batch failed, the last one with: "
                f"{self.evaluations[-1].error}. Fix the cause and start a new run; failed "
                "evaluations stay in this run's journal and are not repeated."
            )

    def progress(self, last: Evaluation) -> Progress:
        volume = self.history[-1][1] if self.history else 0.0
        return Progress(
            len(self.known), self.total, self.cached, self.failed, last, volume, self.best
        )

    def result(self, stopped: str) -> SearchResult:
        objectives, violations = self.values(self.evaluations)
        feasible = np.flatnonzero(violations == 0)
        front = feasible[non_dominated(objectives[feasible])]
        front = front[np.lexsort(objectives[front].T)]
        members = tuple(self.evaluations[i] for i in front)
        genes = self.problem.space.encode([Architecture.from_dict(e.architecture) for e in members])
        return SearchResult(
            front=members,
            front_genes=genes,
            evaluations=tuple(self.evaluations),
            hypervolume=tuple(self.history),
            reference=self.problem.reference if self.reference is None else self.reference,
            cached=self.cached,
            stopped=stopped,
        )


def _columns(problem: Problem, metrics: Sequence[Mapping[str, float]]) -> dict[str, Values]:
    return {
        name: np.array([values.get(name, np.nan) for values in metrics], dtype=np.float64)
        for name in problem.metrics
    }
