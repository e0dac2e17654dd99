"""What driving a search costs: scaling over Ray workers, and the driver's time per evaluation.

    python benchmarks/executors.py [--workers 1 2 64] [--rounds 10] [--evaluations 10000]

Scaling: evaluations that sleep for a second, on 1, 2 and 64 workers of this machine, ``rounds``
for each worker, by the search loop with NSGA-II and a journal on disk. Efficiency is the work done
over wall time × workers, from the moment when the last worker is ready to the last result.

Driver: the same loop with evaluations that cost nothing, in process without a disk, and on Ray with
one; what is left is ask, tell, bookkeeping, the journal (flushed to the disk each time) and
transport. Figures per evaluation.

Figures go to ``benchmarks/results/executors.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from predictors.counts import counts
from results.journal import Evaluation, Journal
from search import Executor, InProcessExecutor, Objective, Problem, SearchResult, search, window_for
from search.executors.on_ray import RayExecutor
from search.loop import EvaluationLog
from search.problem import Values
from search.samplers import NSGA2
from search_space import Architecture, load_space
from search_space.stage_space import Genes

BATCH = 4
LAST = 1000  # evaluations at the end, whose ask and tell are reported apart


@dataclass(frozen=True)
class Sleeping:
    """Factory of evaluations that take ``seconds``; returns once ``workers`` are there.

    Each worker leaves a file in ``folder`` when it is ready; the last one lets all of them go.
    """

    folder: Path
    workers: int
    seconds: float

    def __call__(self) -> Callable[[Architecture], Mapping[str, float]]:
        (self.folder / str(os.getpid())).touch()
        if len(list(self.folder.iterdir())) >= self.workers:
            self.go.touch()
        while not self.go.exists():
            time.sleep(0.02)
        return self.evaluate

    def evaluate(self, architecture: Architecture) -> Mapping[str, float]:
        if self.seconds:
            time.sleep(self.seconds)
        return {"accuracy": int(architecture.digest, 16) / 16**12}

    @property
    def go(self) -> Path:
        return self.folder / "go"

    @property
    def ready(self) -> float:
        """Time (as of the clock) at which the last worker was ready."""
        return self.go.stat().st_mtime


class Timed:
    """A sampler, and the seconds that each of its calls took."""

    def __init__(self, sampler: NSGA2) -> None:
        self.sampler = sampler
        self.asks: list[tuple[int, float]] = []
        self.tells: list[tuple[int, float]] = []

    def ask(self, n: int) -> Genes:
        begin = time.perf_counter()
        rows = self.sampler.ask(n)
        self.asks.append((len(rows), time.perf_counter() - begin))
        return rows

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        begin = time.perf_counter()
        self.sampler.tell(genes, objectives, violations)
        self.tells.append((len(genes), time.perf_counter() - begin))


def last_ms(calls: list[tuple[int, float]]) -> float:
    """Milliseconds per candidate over the last ``LAST`` candidates."""
    rows = np.array([count for count, _ in calls])
    recent = np.cumsum(rows[::-1])[::-1] <= LAST
    seconds = np.array([seconds for _, seconds in calls])
    return float(1e3 * seconds[recent].sum() / rows[recent].sum())


def problem() -> Problem:
    space = load_space("tiny")
    objectives = Objective("accuracy", "maximize"), Objective("macs", "minimize")
    return Problem(space, objectives, tables={"macs": counts(space)["macs"]})


class Unwritten:
    """A journal without a disk."""

    def __init__(self) -> None:
        self.evaluations: dict[str, Evaluation] = {}

    def get(self, digest: str) -> Evaluation | None:
        return self.evaluations.get(digest)

    def append(self, evaluation: Evaluation) -> None:
        self.evaluations[evaluation.digest] = evaluation


def run(
    executor: Executor,
    journal: EvaluationLog,
    count: int,
    *,
    window: int,
    population: int = 24,
) -> tuple[SearchResult, Timed, float]:
    """A search; result, sampler, seconds."""
    posed = problem()
    sampler = Timed(NSGA2(posed, seed=0, population=population))
    options = {"num_evaluations": count, "batch_size": BATCH, "window": window}
    begin = time.perf_counter()
    result = search(posed, sampler, executor, journal, **options)
    seconds = time.perf_counter() - begin
    assert len(result.evaluations) == count
    assert result.failed == 0
    return result, sampler, seconds


def run_on_ray(workers: int, seconds: float, count: int) -> tuple[SearchResult, float]:
    """A search with a journal on disk; result, and seconds since all workers were ready."""
    with (
        tempfile.TemporaryDirectory() as marks,
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder) / "journal.jsonl") as journal,
    ):
        factory = Sleeping(Path(marks), workers, seconds)
        executor = RayExecutor(factory, workers=workers, start_timeout_s=1800)
        result, _, _ = run(executor, journal, count, window=window_for(workers, BATCH))
        wall = time.time() - factory.ready
        assert executor.num_restarts == 0
        executor.close()
    return result, wall


def scaling(workers: int, rounds: int) -> dict[str, float]:
    result, wall = run_on_ray(workers, 1.0, workers * rounds)
    work = sum(evaluation.seconds for evaluation in result.evaluations)
    return {
        "workers": workers,
        "evaluations": len(result.evaluations),
        "wall_s": wall,
        "efficiency": work / (wall * workers),
    }


def driver_in_process(count: int, population: int) -> dict[str, float]:
    executor = InProcessExecutor(Sleeping(Path(), 1, 0.0).evaluate)
    _, sampler, seconds = run(
        executor, Unwritten(), count, window=window_for(64, BATCH), population=population
    )
    return {
        "population": population,
        "evaluations": count,
        "all_ms": 1e3 * seconds / count,
        "ask_ms": last_ms(sampler.asks),
        "tell_ms": last_ms(sampler.tells),
    }


def driver_on_ray(count: int) -> dict[str, float]:
    """All of it on two workers, and what of that the journal takes by itself."""
    result, wall = run_on_ray(2, 0.0, count)
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder) / "journal.jsonl") as journal,
    ):
        begin = time.perf_counter()
        for evaluation in result.evaluations:
            journal.append(evaluation)
        written = time.perf_counter() - begin
    return {
        "workers": 2,
        "evaluations": count,
        "all_ms": 1e3 * wall / count,
        "journal_ms": 1e3 * written / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 64])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=10_000)
    options = parser.parse_args()

    in_process = [driver_in_process(options.evaluations, size) for size in (24, 100)]
    print(f"driver, in process, figures per evaluation (ask and tell: the last {LAST})")
    for row in in_process:
        print(
            f"  population {row['population']:4}: all {row['all_ms']:.3f} ms, of which "
            f"ask {row['ask_ms']:.3f} ms and tell {row['tell_ms']:.3f} ms"
        )
    on_ray = driver_on_ray(options.evaluations // 10)
    print(
        f"driver, 2 workers on Ray: all {on_ray['all_ms']:.3f} ms, of which journal "
        f"{on_ray['journal_ms']:.3f} ms"
    )
    rows = []
    print("workers  evaluations   wall s  efficiency")
    for workers in options.workers:
        row = scaling(workers, options.rounds)
        rows.append(row)
        print(
            f"{row['workers']:7}  {row['evaluations']:11}  {row['wall_s']:7.2f}  "
            f"{row['efficiency']:10.1%}"
        )
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "ray": version("ray"),
            "numpy": version("numpy"),
        },
        "cpus": os.cpu_count(),
        "batch_size": BATCH,
        "seconds_an_evaluation": 1.0,
        "scaling": rows,
        "driver_in_process": in_process,
        "driver_on_ray": on_ray,
    }
    path = Path(__file__).parent / "results" / "executors.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
