"""Problems with known answers for the search tests: real additive tables, accuracy by formula."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from predictors.tables.additive import AdditiveTable
from results.journal import Evaluation
from search import Constraint, InProcessExecutor, Objective, Problem, SearchResult, search
from search.executors.base import Evaluate, attempt
from search.samplers import NSGA2
from search_space import Architecture, Genes, ModuleSpec, SearchSpace
from search_space.space_definition import space_from_dict

OBJECTIVES = (Objective("accuracy", "maximize"), Objective("latency_ms", "minimize"))


def small_space() -> SearchSpace:
    """1,536 architectures of macro style and resolution that suit 16 px images."""
    blocks = {"blocks": [{"mixer": "pooling", "mlp_ratio": 2}, {"mixer": "pooling"}]}
    return space_from_dict(
        {
            "name": "small",
            "macro": {"stem_kernel": 2, "stem_stride": 2},
            "resolution": [16, 24],
            "stages": [
                {"width": [8, 16], "depth": 1, **blocks},
                {"width": [16, 24], "depth": 1, **blocks},
                {"width": [24, 32], "depth": [1, 2], **blocks},
                {"width": [32, 48], "depth": 1, **blocks},
            ],
        }
    )


def every_row(space: SearchSpace) -> Genes:
    """All rows of a small space by plain counting, shape (size, genes)."""
    every = itertools.product(*(range(c) for c in space.cardinalities))
    rows = np.array(list(every), dtype=np.int64)
    rows = np.where(space.active(rows), rows, -1)
    return np.unique(rows, axis=0)


def cost_table(space: SearchSpace, salt: str, growth: float = 1.0) -> AdditiveTable:
    """Table of positive costs that look random and lean towards growing with every option."""

    def cost(spec: ModuleSpec, size: int) -> float:
        noise = zlib.crc32(f"{salt}{spec}{size}".encode()) / 2**32
        numbers = [float(v) for v in spec.as_dict().values() if isinstance(v, (int, float))]
        return 0.02 + 0.1 * noise + growth * 1e-3 * sum(numbers)

    return AdditiveTable.build(space, 10, cost)


class Accuracy:
    """Accuracy that is monotone in an additive score: separable, so easy to reason about."""

    def __init__(self, space: SearchSpace, salt: str = "accuracy") -> None:
        self.table = cost_table(space, salt)
        self.calls: list[str] = []

    def of_rows(self, genes: Genes) -> np.ndarray:
        return 1 - np.exp(-self.table.predict(genes))

    def __call__(self, architecture: Architecture) -> dict[str, float]:
        self.calls.append(architecture.digest)
        row = self.table.space.encode([architecture])
        return {"accuracy": float(self.of_rows(row)[0])}


def bounded_problem(space: SearchSpace, share: float = 0.5) -> Problem:
    """Accuracy against latency, under a bound at ``share`` of the way from fastest to slowest."""
    table = cost_table(space, "latency")
    low, high = table.predict(np.stack([table.argmin(), table.argmax()]))
    bound = Constraint("latency_ms", maximum=float(low + share * (high - low)))
    return Problem(space, OBJECTIVES, (bound,), {"latency_ms": table})


class MemoryJournal:
    """A journal without a disk; refuses an architecture twice, as the real one does."""

    def __init__(self, evaluations: list[Evaluation] | None = None) -> None:
        self.evaluations = list(evaluations or [])

    def get(self, digest: str) -> Evaluation | None:
        return next((e for e in self.evaluations if e.digest == digest), None)

    def append(self, evaluation: Evaluation) -> None:
        assert self.get(evaluation.digest) is None
        self.evaluations.append(evaluation)

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(self.evaluations)


def brute_force_front(points: np.ndarray) -> set[int]:
    """Indices of minimised points that nothing dominates, straight from the definition."""
    no_worse = (points[:, None] <= points[None]).all(axis=2)
    better = (points[:, None] < points[None]).any(axis=2)
    return set(np.flatnonzero(~(no_worse & better).any(axis=0)).tolist())


def run(
    problem: Problem,
    evaluate: Evaluate,
    journal: Any = None,
    *,
    seed: int = 0,
    make: Any = NSGA2,
    **options: Any,
) -> SearchResult:
    """A whole search in process, of 60 evaluations unless told otherwise."""
    options.setdefault("num_evaluations", 60)
    return search(
        problem,
        make(problem, seed=seed),
        InProcessExecutor(evaluate),
        MemoryJournal() if journal is None else journal,
        **options,
    )


def summary(result: SearchResult) -> str:
    """All of a result but how long things took."""
    drop = [(e.digest, e.index, e.status, dict(e.metrics)) for e in result.evaluations]
    return repr((drop, [e.digest for e in result.front], result.hypervolume))


def interrupted_after(evaluate: Evaluate, count: int) -> Evaluate:
    """``evaluate`` for so many calls; the next one ends the search as Ctrl-C would."""
    calls = itertools.count()

    def dying(architecture: Architecture) -> Any:
        if next(calls) == count:
            raise Interrupted
        return evaluate(architecture)

    return dying


class Interrupted(BaseException):
    """As Ctrl-C would."""

    """Stands for the process's end."""


class Stubborn:
    """A sampler from elsewhere: repeats itself, and asks for what cannot be."""

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        self.problem = problem
        self.told: list[tuple[Any, Any]] = []
        space = problem.space
        self.rows = space.encode([space.smallest, space.largest, space.smallest])

    def ask(self, n: int) -> Genes:
        return self.rows[:n]

    def tell(self, genes: Genes, objectives: Any, violations: Any) -> None:
        self.told.append((objectives, violations))


class Shuffled:
    """An executor that holds all that is submitted and completes it in a random order."""

    def __init__(self, evaluate: Evaluate, seed: int = 0) -> None:
        self.evaluate, self.most = evaluate, 0
        self.open: list[tuple[int, Architecture, int | None]] = []
        self.rng = np.random.default_rng(seed)

    def submit(self, ticket: int, architecture: Architecture, part: int | None = None) -> None:
        self.open.append((ticket, architecture, part))
        self.most = max(self.most, len(self.open))

    def wait(self) -> Any:
        return attempt(self.evaluate, *self.open.pop(self.rng.integers(len(self.open))))

    def close(self) -> None:
        self.open.clear()
