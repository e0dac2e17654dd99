"""History of a search, in memory only, since the journal can rebuild it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from results.journal import Evaluation
from results.pareto import hypervolume, non_dominated
from search.executors import Outcome
from search.problem import Problem, Values
from search_space.architecture import Architecture
from search_space.errors import NasError
from search_space.stage_space import Genes


@dataclass(frozen=True)
class Progress:
    """State of a search after an evaluation.

    Attributes:
        evaluations, total: finished, and the most there will be.
        cached, failed: how many of the finished came from the journal, and failed.
        last: the evaluation that was just finished.
        hypervolume: of the front of the evaluations that the sampler was told of.
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
    """The result of a search.

    Attributes:
        front: feasible, non-dominated evaluations, sorted by the last objective, best first.
        front_genes: their rows, shape (len(front), genes).
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

    @property
    def stopped_early(self) -> int:
        """Number of candidates given up after a part of the images."""
        return sum(evaluation.status == "stopped" for evaluation in self.evaluations)


@dataclass(eq=False)
class Candidate:
    """An architecture that was asked for, and what becomes of it.

    Attributes:
        index: its place in the order asked.
        cheap: metrics by table.
        outcomes: one for each part of the images so far.
        evaluation: what the journal holds of it; None while it is open.
        objectives, violation: of the evaluation: minimised, shape (objectives,).
    """

    index: int
    key: bytes
    architecture: Architecture
    cheap: Mapping[str, float]
    outcomes: list[Outcome] = field(default_factory=list)
    evaluation: Evaluation | None = None
    objectives: Values = field(default_factory=lambda: np.zeros(0))
    violation: float = math.inf

    @property
    def on_front(self) -> bool:
        """Whether it may be: feasible, and judged on all images."""
        return self.violation == 0 and self.record.status == "ok"

    @property
    def record(self) -> Evaluation:
        """What the journal holds of it."""
        assert self.evaluation is not None
        return self.evaluation


@dataclass
class History:
    """Everything known of a search of at most ``total`` evaluations.

    A reference point that the problem leaves open is fixed after ``first`` evaluations, or as
    soon after as one is feasible; and the first ``first`` must not all fail.
    """

    problem: Problem
    total: int
    first: int
    evaluations: list[Evaluation] = field(default_factory=list)  # told ones, in the order asked
    volumes: list[tuple[int, float]] = field(default_factory=list)
    num_finished: int = 0
    cached: int = 0
    failed: int = 0
    reference: Values | None = None

    def __post_init__(self) -> None:
        self._asked: set[bytes] = set()
        self._known: dict[bytes, Candidate] = {}
        self._best: Candidate | None = None
        self._front = np.zeros((0, len(self.problem.objectives)))  # of the told ones
        self._worst = np.full(len(self.problem.objectives), np.nan)
        if not np.isnan(self.problem.reference).any():
            self.reference = self.problem.reference

    @property
    def room(self) -> int:
        """Number of evaluations that may still be asked for."""
        return self.total - len(self._asked)

    def new_candidates(self, rows: Genes) -> list[Candidate]:
        """Rows never asked before that meet the cheap constraints, at most ``room``."""
        feasible = rows[self.problem.cheap_violation(rows) == 0]
        places = {row.tobytes(): i for i, row in reversed(list(enumerate(feasible)))}
        new = sorted((i, key) for key, i in places.items() if key not in self._asked)[: self.room]
        chosen = feasible[np.array([i for i, _ in new], dtype=np.int64)]
        cheap = self.problem.cheap_metrics(chosen)
        candidates = [
            Candidate(
                index=len(self._asked) + i,
                key=key,
                architecture=architecture,
                cheap={name: float(values[i]) for name, values in cheap.items()},
            )
            for i, ((_, key), architecture) in enumerate(
                zip(new, self.problem.space.decode(chosen), strict=True)
            )
        ]
        self._asked.update(candidate.key for candidate in candidates)
        return candidates

    def finish(self, candidate: Candidate, evaluation: Evaluation, *, cached: bool) -> None:
        """Take in an evaluation; figures of the journal win over those of the tables."""
        (objectives,), (violation,) = self._values([evaluation])
        candidate.evaluation = evaluation
        candidate.objectives, candidate.violation = objectives, float(violation)
        self._known[candidate.key] = candidate
        self.num_finished += 1
        self.cached += cached
        self.failed += evaluation.status == "failed"
        if candidate.on_front and not np.isnan(objectives[0]):
            # of equals the one asked first, whichever ended first
            rank = (objectives[0], evaluation.index)
            best = self._best
            if best is None or rank < (best.objectives[0], best.record.index):
                self._best = candidate

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """Add finished candidates to the told ones, in the order asked.

        Raises:
            NasError: All evaluations up to now failed, and they are ``first`` or more.
        """
        if not candidates:
            return
        self.evaluations += [candidate.record for candidate in candidates]
        points = np.array([each.objectives for each in candidates if each.on_front])
        if len(points):
            self._worst = np.fmax(self._worst, np.fmax.reduce(points, axis=0))
            front = np.concatenate([self._front, points])
            self._front = front[non_dominated(front)]
        if self.reference is None and len(self.evaluations) >= self.first:
            self._fix_reference()
        self.volumes.append((len(self.evaluations), self._volume()))
        count = len(self.evaluations)
        if count >= max(2, self.first) and all(e.status == "failed" for e in self.evaluations):
            raise NasError(
                f"all {count} evaluations so far failed, the last one with: "
                f"{self.evaluations[-1].error}. Fix the cause and start a new run; failed "
                "evaluations stay in this run's journal and are not repeated."
            )

    def results(self, rows: Genes) -> tuple[Values, Values]:
        """The results of rows to tell: NaN and the cheap violation where not evaluated."""
        objectives = np.full((len(rows), len(self.problem.objectives)), np.nan)
        violations = self.problem.cheap_violation(rows)
        for i, row in enumerate(rows):
            known = self._known.get(row.tobytes())
            if known is not None:
                objectives[i], violations[i] = known.objectives, known.violation
        return objectives, violations

    def progress(self, last: Evaluation) -> Progress:
        return Progress(
            evaluations=self.num_finished,
            total=self.total,
            cached=self.cached,
            failed=self.failed,
            last=last,
            hypervolume=self.volumes[-1][1] if self.volumes else 0.0,
            best=None if self._best is None else self._best.evaluation,
        )

    def result(self, stopped: str) -> SearchResult:
        if self.reference is None and self.volumes:  # it ended before ``first`` evaluations
            self._fix_reference()
            self.volumes[-1] = (len(self.evaluations), self._volume())
        may = sorted((c for c in self._known.values() if c.on_front), key=lambda c: c.index)
        points = np.array([c.objectives for c in may]).reshape(-1, len(self.problem.objectives))
        front = np.flatnonzero(non_dominated(points))
        front = front[np.lexsort(points[front].T)]
        members = [may[i] for i in front]
        return SearchResult(
            front=tuple(member.record for member in members),
            front_genes=self.problem.space.encode([member.architecture for member in members]),
            evaluations=tuple(self.evaluations),
            hypervolume=tuple(self.volumes),
            reference=self.problem.reference if self.reference is None else self.reference,
            cached=self.cached,
            stopped=stopped,
        )

    def _values(self, evaluations: Sequence[Evaluation]) -> tuple[Values, Values]:
        """Minimised objectives (n, objectives) and violations (n,); failed ones are NaN and ∞."""
        metrics = {
            name: np.array([e.metrics.get(name, np.nan) for e in evaluations], dtype=np.float64)
            for name in self.problem.metrics
        }
        failed = np.array([evaluation.status == "failed" for evaluation in evaluations], bool)
        objectives = self.problem.objective_values(metrics)
        violations = self.problem.violation(metrics)
        return (
            np.where(failed[:, None], np.nan, objectives),
            np.where(failed, np.inf, violations),
        )

    def _fix_reference(self) -> None:
        """Take the worst values so far where the problem leaves the reference open."""
        reference = self.problem.reference
        reference = np.where(np.isnan(reference), self._worst, reference)
        if not np.isnan(reference).any():
            self.reference = reference

    def _volume(self) -> float:
        if self.reference is None:
            return 0.0
        return hypervolume(self._front, self.reference.tolist())
