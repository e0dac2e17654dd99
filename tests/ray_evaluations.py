"""What workers in other processes evaluate in the tests: known answers, and faults on demand."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synthetic_search import Accuracy, bounded_problem

from results.store import Journal
from search import SearchResult, search
from search.executors import Executor
from search.executors.on_ray import RayExecutor
from search.samplers import NSGA2
from search_space import Architecture, SearchSpace, load_space

BATCH, WINDOW = 3, 11


def node_id() -> str:
    import ray  # not at the top: ours is the one to import it, and keep it quiet

    return str(ray.get_runtime_context().get_node_id())


@dataclass(frozen=True)
class Faulty:
    """Factory of evaluations by formula that misbehave as asked.

    Attributes:
        folder: where workers leave a file named by their process, with the node in it.
        faults: by digest: ``raise``, ``exit``, ``die``, ``hang`` or ``stop``; with `` once``, on
            the first try only.
        bad_nodes: by id: what evaluations that land there do to it, ``kill`` or ``stop``.
        sleep: seconds that an evaluation takes.
        together: workers that must be there before any of them begins.
    """

    space: SearchSpace
    folder: Path
    faults: Mapping[str, str] = field(default_factory=dict)
    bad_nodes: Mapping[str, str] = field(default_factory=dict)
    sleep: float = 0.0
    together: int = 1

    def __call__(self) -> Callable[[Architecture], Mapping[str, float]]:
        accuracy = Accuracy(self.space)
        (self.folder / f"{os.getpid()}.new").write_text(node_id())
        os.rename(self.folder / f"{os.getpid()}.new", self.folder / f"{os.getpid()}.pid")
        while len(list(self.folder.glob("*.pid"))) < self.together:
            time.sleep(0.01)

        def evaluate(architecture: Architecture) -> Mapping[str, float]:
            fault, _, once = self.faults.get(architecture.digest, "").partition(" ")
            if fault and (not once or self.first(architecture.digest)):
                misbehave(fault)
            if what := self.bad_nodes.get(node_id()):
                harm_node(what)
            time.sleep(self.sleep)
            return {**accuracy(architecture), "pid": os.getpid()}

        return evaluate

    def first(self, name: str) -> bool:
        """Whether nobody asked for this name before, in any process."""
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def workers(self) -> dict[int, str]:
        """Living workers by process, with their node."""
        found = {int(path.stem): path.read_text() for path in self.folder.glob("*.pid")}
        return {pid: node for pid, node in found.items() if Path(f"/proc/{pid}").exists()}


def misbehave(fault: str) -> None:
    if fault == "raise":
        raise ValueError("no luck")
    if fault == "exit":
        os._exit(3)
    if fault == "hang":
        time.sleep(3600)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)


def harm_node(what: str) -> None:
    """Kill or stop the machine that this runs on: its Ray daemon, then this worker."""
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[what]
    os.kill(os.getppid(), number)
    os.kill(os.getpid(), number)


def run_search(executor: Executor, journal: Journal, evaluations: int) -> SearchResult:
    """The search that all of these tests make, on whatever executor."""
    problem = bounded_problem(load_space("digits"))
    return search(
        problem,
        NSGA2(problem, seed=0),
        executor,
        journal,
        num_evaluations=evaluations,
        batch_size=BATCH,
        window=WINDOW,
    )


def drive(
    address: str, journal: Path, folder: Path, workers: int, evaluations: int, sleep: float
) -> None:
    """Be the driver of a search on a cluster; two workers share a CPU."""
    factory = Faulty(load_space("digits"), folder, sleep=sleep, together=workers)
    executor = RayExecutor(factory, workers=workers, address=address, num_cpus=0.5)
    with Journal(journal) as opened:
        run_search(executor, opened, evaluations)
    executor.close()


if __name__ == "__main__":
    _, where, to, marks, *numbers, pause = sys.argv
    drive(where, Path(to), Path(marks), *map(int, numbers), float(pause))
