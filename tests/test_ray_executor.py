"""Evaluations on Ray: the same search as in process, whatever dies, hangs or is cut off.

One small cluster of two nodes on this machine serves all tests.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from ray_evaluations import Faulty, run_search
from synthetic_search import Accuracy, MemoryJournal, small_space

from results.journal import read_journal
from results.store import Journal
from search import InProcessExecutor, Outcome
from search.executors.on_ray import RayExecutor, time_limit
from search.executors.on_ray.time_limit import TimeLimit
from search_space import Architecture, load_space
from search_space.errors import RunError, UsageError
from supernet.cluster.connection import connected, nodes

SPACE = load_space("digits")
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    head = {
        "num_cpus": 1,
        "include_dashboard": False,
        "_system_config": {
            "health_check_initial_delay_ms": 500,
            "health_check_period_ms": 500,
            "health_check_failure_threshold": 4,
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))  # workers import what they evaluate from here
        made = Cluster(initialize_head=True, head_node_args=head)
        made.add_node(num_cpus=1)
        with connected(made.address):
            yield made
        made.shutdown()


def some(count: int, seed: int = 0) -> list[Architecture]:
    rows = SPACE.sample(np.random.default_rng(seed), 2 * count)
    return list({a.digest: a for a in SPACE.decode(rows)}.values())[:count]


def outcomes(executor: RayExecutor, architectures: list[Architecture]) -> list[Outcome]:
    """One each, by ticket."""
    for ticket, architecture in enumerate(architectures):
        executor.submit(ticket, architecture)
    ended = [executor.wait() for _ in architectures]
    assert sorted(outcome.ticket for outcome in ended) == list(range(len(architectures)))
    return sorted(ended, key=lambda outcome: outcome.ticket)


def summary(evaluations: Any) -> dict[str, tuple[int, str, float | None]]:
    """What a journal holds, without times, processes and order."""
    return {e.digest: (e.index, e.status, e.metrics.get("accuracy")) for e in evaluations}


def digests(result: Any) -> list[str]:
    return [evaluation.digest for evaluation in result.front]


@pytest.fixture
def start(cluster: Cluster) -> Iterator[Callable[..., RayExecutor]]:
    """Executors on the cluster, closed after the test."""
    made: list[RayExecutor] = []

    def make(factory: Any, workers: int = 2, **options: Any) -> RayExecutor:
        made.append(RayExecutor(factory, workers=workers, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.close()
    assert ray.is_initialized()  # it was there before


def test_a_search_finds_what_it_finds_in_process(start, tmp_path):
    factory = Faulty(SPACE, tmp_path, sleep=0.005, together=2)
    here = run_search(InProcessExecutor(Accuracy(SPACE)), MemoryJournal(), 60)
    executor, journal = start(factory), MemoryJournal()
    there = run_search(executor, journal, 60)
    assert digests(there) == digests(here)
    assert there.hypervolume == here.hypervolume
    assert summary(there.evaluations) == summary(here.evaluations) == summary(journal)
    assert len(journal.evaluations) == 60
    # the evaluator was built once in each worker, and both nodes worked
    built = {int(path.stem): path.read_text() for path in tmp_path.glob("*.pid")}
    assert {e.metrics["pid"] for e in journal} == set(built)
    assert len(built) == len(set(built.values())) == 2
    assert executor.num_restarts == 0


def test_errors_deaths_and_hangs_cost_the_candidates_that_cause_them_only(start, tmp_path):
    """Self-inflicted, at every try or on the first one only."""
    architectures = some(12)
    kinds = ["raise", "exit", "hang", "die once", "stop once"]
    faults = {a.digest: kind for a, kind in zip(architectures[2:], kinds, strict=False)}
    executor = start(Faulty(SPACE, tmp_path, faults), timeout_s=2.0)
    ended = outcomes(executor, architectures)
    accuracy = Accuracy(SPACE)
    errors = {}
    for architecture, outcome in zip(architectures, ended, strict=True):
        fault = faults.get(architecture.digest, "")
        if fault in ("raise", "exit", "hang"):
            assert outcome.metrics == {}
            errors[fault] = outcome.error
        else:
            assert outcome.error is None, fault
            assert outcome.metrics["accuracy"] == accuracy(architecture)["accuracy"]
    assert errors["raise"] == "ValueError: no luck"
    assert errors["exit"].startswith("WorkerLostError: 2 workers were lost on it: ActorDiedError")
    assert errors["hang"] == (
        "WorkerLostError: 2 workers were lost on it: no result after 2 s; no result after 2 s"
    )
    assert executor.num_restarts == 2 + 2 + 1 + 1


def test_the_limit_of_an_evaluation_is_learnt():
    limit = TimeLimit()
    assert limit.seconds == 60
    limit.built(12.0)
    limit.built(5.0)
    assert limit.seconds == 240
    # a guess doubles, is not the candidate's fault, and ends at an hour
    guesses = [240.0, 480.0, 960.0, 1920.0]
    for guess in guesses:
        assert limit.seconds == guess
        assert not limit.reached(guess)
    assert not limit.reached(240.0)  # of another worker, which began earlier
    assert limit.seconds == 3600
    assert limit.reached(3600)
    for seconds in (9.0, 1.0, 8.0):
        limit.ended(seconds)
    assert limit.seconds == 160
    assert limit.reached(160)
    assert TimeLimit(2.0).seconds == 2.0
    assert TimeLimit(2.0).reached(2.0)


def test_first_evaluations_that_hang_do_not_stall_a_search(start, tmp_path, monkeypatch):
    """The first on each worker hangs, one of them for ever; nothing has ended by then."""
    monkeypatch.setattr(time_limit, "FLOOR_S", 1.0)
    monkeypatch.setattr(time_limit, "STARTS", 0.0)
    architectures = some(6)
    faults = {architectures[0].digest: "hang once", architectures[1].digest: "hang"}
    executor = start(Faulty(SPACE, tmp_path, faults))
    ended = outcomes(executor, architectures)
    assert [outcome.error is None for outcome in ended] == [True, False, True, True, True, True]
    assert "2 workers were lost on it: no result after" in str(ended[1].error)


def test_machines_that_die_or_are_cut_off_cost_nothing_but_time(cluster, start, tmp_path):
    """Cut off: Ray's daemon and the worker are stopped, connections stay open, nobody answers."""
    bad = {}
    for what in ("kill", "stop"):
        node = cluster.add_node(num_cpus=1)
        bad[node.node_id] = what, node
    doomed, cut_off = bad
    faults = {node_id: what for node_id, (what, _) in bad.items()}
    factory = Faulty(SPACE, tmp_path, bad_nodes=faults, together=4)
    executor = start(factory, workers=4, timeout_s=3.0)
    ended = outcomes(executor, some(16))
    stopped = [pid for pid, where in factory.workers().items() if where == cut_off]
    assert len(stopped) == 1
    for _, node in bad.values():
        cluster.remove_node(node, allow_graceful=False)
    os.kill(stopped[0], signal.SIGKILL)
    assert [outcome.error for outcome in ended] == [None] * 16
    assert doomed in {path.read_text() for path in tmp_path.glob("*.pid")}
    assert executor.num_restarts >= 2


class Driver:
    """A search in a process of its own, on the cluster."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, str(TESTS / "ray_evaluations.py"), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self) -> None:
        said = self.process.communicate()
        assert self.process.returncode == 0, said
        assert said == ("", "")  # Ray is quiet, whatever happens to it


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_until(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Poll until ``what`` holds or the process is over; its own end is the only deadline."""
    while not what() and process.poll() is None:
        time.sleep(0.005)


def test_the_driver_is_killed_and_the_search_goes_on_elsewhere(cluster, start, tmp_path):
    journal = tmp_path / "journal.jsonl"
    driver = Driver(cluster.address, journal, tmp_path, 2, 500, 0.02)
    wait_until(lambda: lines(journal) >= 20, driver.process)
    driver.kill()
    killed_at = lines(journal)
    assert 20 <= killed_at < 500
    with Journal(journal) as opened:
        again = run_search(start(Faulty(SPACE, tmp_path)), opened, 200)
    whole = run_search(InProcessExecutor(Accuracy(SPACE)), MemoryJournal(), 200)
    assert again.cached == len(read_journal(journal)) - (200 - again.cached)
    assert digests(again) == digests(whole)
    assert summary(again.evaluations) == summary(whole.evaluations)


def test_a_worker_that_cannot_be_built_is_reported_with_its_reason(start):
    with pytest.raises(RunError, match=r"no worker could be started, 3 tries.*no weights here"):
        outcomes(start(broken_factory, workers=2), some(1))


def broken_factory() -> Any:
    raise FileNotFoundError("no weights here")


def test_no_workers_is_refused():
    with pytest.raises(UsageError, match="workers=0 must be at least 1"):
        RayExecutor(broken_factory, workers=0)


def supernet_evaluations() -> tuple[Any, Any, list[Architecture]]:
    """A factory for other processes, the evaluator that it stands for, and what to evaluate."""
    torch = pytest.importorskip("torch")
    from search.evaluator import SupernetEvaluator, SupernetFactory
    from supernet import Supernet

    torch.manual_seed(0)
    space = small_space()
    supernet = Supernet(space, num_classes=3).eval()
    parts = [[(torch.randn(8, 3, 24, 24), torch.randint(0, 3, (8,)))] for _ in range(2)]
    architectures = space.decode(space.sample(np.random.default_rng(0), 3))
    threads = torch.get_num_threads()
    factory = SupernetFactory.of(supernet, parts, threads=threads)
    return factory, SupernetEvaluator(supernet, parts), architectures


def test_a_supernet_s_factory_holds_everything_and_works_on_memory_that_it_must_not_write():
    factory, here, architectures = supernet_evaluations()
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(factory, protocol=5, buffer_callback=buffers.append)
    shared = [bytes(buffer.raw()) for buffer in buffers]  # as Ray does it: read-only, not copied
    held = sum(weight.nbytes for weight in factory.weights.values())
    held += sum(x.nbytes + y.nbytes for part in factory.parts for x, y in part)
    assert sum(map(len, shared)) >= held > 10 * len(pickled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        there = pickle.loads(pickled, buffers=shared)()
    for architecture in architectures:
        assert there(architecture) == here(architecture)
        assert there(architecture, 1) == here(architecture, 1)


def test_images_too_many_for_memory_are_left_to_the_workers(monkeypatch):
    torch = pytest.importorskip("torch")
    from search.evaluator import SupernetFactory
    from supernet import Supernet

    supernet = Supernet(small_space(), num_classes=3)
    batches = [(torch.zeros(4, 3, 24, 24), torch.zeros(4, dtype=torch.int64)) for _ in range(2)]
    one = 4 * 3 * 24 * 24 * 4
    for limit, held in ((2 * one, np.ndarray), (2 * one - 1, torch.Tensor)):
        monkeypatch.setattr("supernet.data.splits.MEMORY_LIMIT_BYTES", limit)
        factory = SupernetFactory.of(supernet, [batches])
        assert isinstance(next(iter(factory.parts[0]))[0], held)


@pytest.mark.slow
def test_a_supernet_is_evaluated_there_as_here(start):
    factory, here, architectures = supernet_evaluations()
    ended = outcomes(start(factory, workers=1), architectures)
    for outcome, architecture in zip(ended, architectures, strict=True):
        assert outcome.error is None
        assert outcome.metrics == pytest.approx(here(architecture), rel=1e-6)


# Connections --------------------------------------------------------------------------------------


def test_another_cluster_than_the_one_in_use_is_refused(cluster):
    refused = pytest.raises(RunError, match=f"uses the Ray cluster at {cluster.address} already")
    with connected(cluster.address), refused, connected("127.0.0.1:1"):
        raise AssertionError
    assert ray.is_initialized()


def test_a_cluster_that_is_gone_is_reported(cluster, monkeypatch):
    assert len(nodes()) == 2

    def gone():
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "nodes", gone)
    with pytest.raises(RunError, match=r"not answer any more: nobody there.*--resume"):
        nodes()


ALONE = """
from search.executors.on_ray import RayExecutor
from search_space.errors import RunError
for address in {addresses!r}:
    try:
        RayExecutor(print, workers=1, address=address)
    except RunError as error:
        print(error)
from pathlib import Path
from ray_evaluations import Faulty, run_search
from search_space import load_space
from synthetic_search import MemoryJournal
import ray
factory = Faulty(load_space("digits"), Path({folder!r}), together=2)
executor = RayExecutor(factory, workers=2)
run_search(executor, MemoryJournal(), 20)
print("workers", len(factory.workers()))
executor.close()
executor.close()
print("left", ray.is_initialized())
"""


def alone(script: str) -> list[str]:
    """What a process that knows no cluster prints; nothing of it is an error."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(TESTS)},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout.splitlines()


@pytest.mark.slow
def test_a_ray_of_its_own_is_quiet_and_ends_with_the_executor(tmp_path):
    """In a process without a cluster; addresses where nobody is are refused at once."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # taken, but not listening
        closed = f"127.0.0.1:{nobody.getsockname()[1]}"
        addresses = [closed, "ray://127.0.0.1:10001"]
        said = alone(ALONE.format(addresses=addresses, folder=str(tmp_path)))
    assert said[0].startswith(f"nothing answers at {closed} (")
    assert "must be 'auto' or the head's HOST or HOST:PORT" in said[1]
    assert said[2:] == ["workers 2", "left False"]
    assert not Faulty(SPACE, tmp_path).workers()


TOO_LARGE = """
from search.executors.on_ray import RayExecutor
from search_space.errors import RunError
import ray
try:
    RayExecutor(print, workers=1, num_gpus=64)
except RunError as error:
    print(error)
print("left", ray.is_initialized())
"""


@pytest.mark.slow
def test_a_machine_without_room_for_a_worker_is_refused_at_once():
    said = alone(TOO_LARGE)
    assert "no room for a worker: Each worker asks for 1 CPUs and 64 GPUs" in said[0]
    assert said[1] == "left False"


# Faults at random ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_searches_with_workers_a_node_and_the_driver_killed(cluster, tmp_path):
    """500 evaluations each; every kill at a random moment. ``NAS_TEST_SEARCHES=20`` for more."""
    searches = int(os.environ.get("NAS_TEST_SEARCHES", "3"))
    whole = run_search(InProcessExecutor(Accuracy(SPACE)), MemoryJournal(), 500)
    rng = random.Random(6)
    hits = 0
    for trial in range(searches):
        doomed = cluster.add_node(num_cpus=1)
        folder = tmp_path / str(trial)
        folder.mkdir()
        journal, factory = folder / "journal.jsonl", Faulty(SPACE, folder)
        arguments = (cluster.address, journal, folder, 3, 500, 0.015)
        driver = Driver(*arguments)
        kills = ["worker", "worker", "node", "driver"]
        rng.shuffle(kills)
        moments = sorted(rng.sample(range(5, 450), len(kills)))
        for kill, moment in zip(kills, moments, strict=True):
            wait_until(lambda moment=moment, path=journal: lines(path) >= moment, driver.process)
            hits += lines(journal) < 500
            if kill == "worker" and factory.workers():
                os.kill(rng.choice(sorted(factory.workers())), signal.SIGKILL)
            elif kill == "node":
                doomed.kill_raylet()
            elif kill == "driver":
                driver.kill()
                driver = Driver(*arguments)
        driver.finish()
        evaluations = read_journal(journal)
        assert len(evaluations) == len({e.digest for e in evaluations}) == 500
        assert summary(evaluations) == summary(whole.evaluations)
        with Journal(journal) as opened:
            replayed = run_search(InProcessExecutor(broken_factory), opened, 500)
        assert digests(replayed) == digests(whole)
        cluster.remove_node(doomed, allow_graceful=False)
    assert hits >= 3 * searches  # of four kills each, in the middle of a search
