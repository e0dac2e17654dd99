"""Evaluations on Ray: one actor a worker, each of which builds its evaluator once.

Workers may die, hang, or be cut off with their machine. Nothing here waits for a particular one:
results are collected as they come, whoever gives none in time counts as lost and is replaced, and
what it held goes to another. Only a candidate that loses worker after worker is given up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from search.executors.base import Evaluate, Outcome, attempt, describe
from search.executors.on_ray.time_limit import TimeLimit
from search_space.architecture import Architecture
from search_space.errors import RunError, UsageError
from supernet.cluster.connection import connected, cpu_share, nodes, room

logger = logging.getLogger(__name__)

LOSSES = 2  # workers that a candidate may lose before it counts as the cause
NODE_LOSSES = 5  # the same where whole machines were lost, which is rarely a candidate's doing
START_FAILURES = 3  # in a row, with no worker at work, before the search ends
START_TIMEOUT_S = 300.0
MIN_PAUSE_S, MAX_PAUSE_S = 0.25, 30.0  # before the next try, doubled each time
_POLL_S = 1.0
_CLOSE_S = 5.0


class _Actor:
    """Runs in a worker's process."""

    def start(self, factory: Callable[[], Evaluate]) -> tuple[str, float]:
        """Builds the evaluator; returns the id of this node, and the seconds it took."""
        begun = time.monotonic()
        self._evaluate = factory()
        return str(ray.get_runtime_context().get_node_id()), time.monotonic() - begun

    def evaluate(self, ticket: int, architecture: Architecture, part: int | None) -> Outcome:
        return attempt(self._evaluate, ticket, architecture, part)


@dataclass
class _Worker:
    """Holds what is known here of a worker.

    Attributes:
        since: Monotonic time at which it began what it does now.
        node: Where it runs; empty until it has started.
        ticket: Of the candidate that it evaluates; None while it starts or is idle.
    """

    actor: Any
    since: float
    node: str = ""
    ticket: int | None = None


@dataclass
class _Open:
    """Holds a candidate without an outcome, with the reasons for which workers were lost on it."""

    architecture: Architecture
    part: int | None
    begun: float | None = None
    losses: list[str] = field(default_factory=list)
    node_losses: list[str] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)  # where it was lost


class RayExecutor:
    """Evaluates on ``workers`` Ray actors, each of which takes one candidate at a time.

    A worker that dies, or gives nothing within the timeout, is killed and replaced; its candidate
    goes to another, on another machine if one is free. A candidate on which 2 workers were lost
    (or 5, where their machines died) fails with the reasons; an exception in an evaluation is its
    outcome. No candidate has two outcomes, since a lost worker is not listened to any more.

    Example:
        >>> executor = RayExecutor(make_evaluate, workers=4)
        >>> executor.submit(0, space.largest)
        >>> executor.wait().metrics
        >>> executor.close()

    Args:
        factory: Called once in each worker, gives the function that evaluates. Pickled into
            Ray's object store once; NumPy arrays that it holds are shared by the workers of a
            machine, read-only.
        address: See ``supernet.cluster.connection.connected``.
        num_cpus, num_gpus: Of each worker, for Ray's placement; fractions share. CPUs by default
            an equal share of what the cluster has (Ray sets ``OMP_NUM_THREADS`` by it).
        timeout_s: For one evaluation; by default learnt, see ``TimeLimit``.
        start_timeout_s: For a worker to start and build its evaluator.

    Raises:
        RunError: Ray cannot be reached, or this machine lacks what one worker needs; ``wait``
            raises it where no worker can be started.
    """

    def __init__(
        self,
        factory: Callable[[], Evaluate],
        *,
        workers: int,
        address: str | None = None,
        num_cpus: float | None = None,
        num_gpus: float = 0.0,
        timeout_s: float | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        if workers < 1:
            raise UsageError(f"workers={workers} must be at least 1.")
        self.workers = workers
        self._limit_of_evaluations = TimeLimit(timeout_s)
        self.start_timeout_s = start_timeout_s
        self.num_restarts = 0  # workers replaced so far
        with ExitStack() as stack:
            alone = stack.enter_context(connected(address))
            free = nodes().values()
            self.num_cpus = cpu_share(free, workers, num_gpus) if num_cpus is None else num_cpus
            self.num_gpus = num_gpus
            if alone and not room(free, {"CPU": self.num_cpus, "GPU": num_gpus}):
                raise RunError(f"this machine has no room for a worker: {self._shortage()}.")
            self._factory = ray.put(factory)
            self._connection = stack.pop_all()
        self._actor_class: Any = ray.remote(_Actor).options(
            num_cpus=self.num_cpus,
            num_gpus=num_gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._queue: deque[int] = deque()
        self._open: dict[int, _Open] = {}
        self._ended: deque[Outcome] = deque()
        self._busy: dict[Any, _Worker] = {}  # starting or evaluating, by what they will return
        self._idle: list[_Worker] = []
        self._start_failures: list[str] = []  # in a row
        self._next_start = 0.0
        self._closed = False
        self._start_missing()

    # The protocol -----------------------------------------------------------------------------

    def submit(self, ticket: int, architecture: Architecture, part: int | None = None) -> None:
        self._open[ticket] = _Open(architecture, part)
        self._queue.append(ticket)
        self._hand_out()

    def wait(self) -> Outcome:
        while True:
            self._start_missing()
            self._collect()
            self._expire()
            self._hand_out()  # before the caller does anything else: whoever is free works on
            if self._ended:
                return self._ended.popleft()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        actors = [worker.actor for worker in (*self._busy.values(), *self._idle)]
        for held in (self._queue, self._open, self._busy, self._idle, self._ended):
            held.clear()
        del self._factory
        _kill(actors).join(_CLOSE_S)
        self._connection.close()

    # Work -------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Gives the candidates that wait to the workers that are free."""
        while self._queue and self._idle:
            ticket = self._queue.popleft()
            candidate = self._open[ticket]
            now = time.monotonic()
            worker = min(self._idle, key=lambda idle: idle.node in candidate.nodes)
            self._idle.remove(worker)
            worker.ticket, worker.since = ticket, now
            candidate.begun = now if candidate.begun is None else candidate.begun
            task = ticket, candidate.architecture, candidate.part
            self._busy[worker.actor.evaluate.remote(*task)] = worker

    def _collect(self) -> None:
        """Takes in all that has ended; waits for a moment where nothing has."""
        ended: list[Any] = []
        if self._busy:
            ended, _ = ray.wait(list(self._busy), num_returns=len(self._busy), timeout=0)
        if not ended and not self._ended:
            if self._busy:
                ended, _ = ray.wait(list(self._busy), num_returns=1, timeout=self._patience())
            else:
                time.sleep(max(0.0, min(_POLL_S, self._next_start - time.monotonic())))
        for reference in ended:
            self._end(self._busy.pop(reference), reference)

    def _end(self, worker: _Worker, reference: Any) -> None:
        try:
            value = ray.get(reference, timeout=_CLOSE_S)
        except RayTaskError as error:  # raised by our code in the worker, which lives on
            self._lose(worker, describe(error.cause or error))
        except RayError as error:
            self._lose(worker, describe(error))
        else:
            if worker.ticket is None:
                worker.node, seconds = value
                self._limit_of_evaluations.built(seconds)
                self._start_failures.clear()
                self._next_start = 0.0
            else:
                if value.error is None:
                    self._limit_of_evaluations.ended(value.seconds)
                del self._open[worker.ticket]
                self._ended.append(value)
                worker.ticket = None
            self._idle.append(worker)

    def _expire(self) -> None:
        """Gives up workers that have been at it for too long."""
        now = time.monotonic()
        limits = {reference: self._limit(worker) for reference, worker in self._busy.items()}
        late = [ref for ref, worker in self._busy.items() if now > worker.since + limits[ref]]
        if not late:
            return
        # it may be this process that was late: what has ended by now is not lost
        ended, hung = ray.wait(late, num_returns=len(late), timeout=0)
        for reference in ended:
            self._end(self._busy.pop(reference), reference)
        for reference in hung:
            worker = self._busy.pop(reference)
            limit = limits[reference]
            what = "no result" if worker.ticket is not None else "not started"
            blamed = worker.ticket is None or self._limit_of_evaluations.reached(limit)
            self._lose(worker, f"{what} after {limit:.3g} s", blamed=blamed)

    def _patience(self) -> float:
        """Gives the seconds until the next worker would be given up, a second at most."""
        end = min(worker.since + self._limit(worker) for worker in self._busy.values())
        return max(0.0, min(_POLL_S, end - time.monotonic()))

    def _limit(self, worker: _Worker) -> float:
        starting = worker.ticket is None
        return self.start_timeout_s if starting else self._limit_of_evaluations.seconds

    # Losses -----------------------------------------------------------------------------------

    def _lose(self, worker: _Worker, reason: str, *, blamed: bool = True) -> None:
        """Kills what is left of a worker that is gone or given up, and retries its candidate.

        A candidate that is not to blame comes again after the others, which may teach the limit.
        """
        _kill([worker.actor])
        self.num_restarts += 1
        living = nodes()
        # of a machine that died, the workers that had nothing to do are gone as well
        self._idle = [idle for idle in self._idle if idle.node in living]
        if worker.ticket is None:
            self._start_failed(reason)
            return
        candidate = self._open[worker.ticket]
        candidate.nodes.add(worker.node)
        if not blamed:
            logger.info("%s had %s and comes again", candidate.architecture.digest, reason)
            self._queue.append(worker.ticket)
            return
        if worker.node in living:
            candidate.losses.append(reason)
        else:
            candidate.node_losses.append(f"its node died ({reason})")
        losses = [*candidate.losses, *candidate.node_losses]
        given_up = len(candidate.losses) >= LOSSES or len(losses) >= NODE_LOSSES
        logger.info("a worker was lost on %s: %s", candidate.architecture.digest, reason)
        if not given_up:
            self._queue.appendleft(worker.ticket)
            return
        assert candidate.begun is not None
        seconds = time.monotonic() - candidate.begun
        error = f"WorkerLostError: {len(losses)} workers were lost on it: {'; '.join(losses)}"
        self._ended.append(Outcome(worker.ticket, {}, seconds, error))
        del self._open[worker.ticket]

    # Starting ---------------------------------------------------------------------------------

    def _start_missing(self) -> None:
        """Asks Ray for as many workers as there should be; they are ready when Ray says so."""
        if time.monotonic() < self._next_start:
            return
        while len(self._busy) + len(self._idle) < self.workers:
            actor = self._actor_class.remote()
            self._busy[actor.start.remote(self._factory)] = _Worker(actor, time.monotonic())

    def _start_failed(self, reason: str) -> None:
        """Tries again after a pause that grows; raises where no worker works or could start."""
        self._start_failures.append(reason)
        count = len(self._start_failures)
        logger.info("a worker did not start: %s", reason)
        pause = min(MAX_PAUSE_S, MIN_PAUSE_S * 2.0 ** min(count, 10))
        self._next_start = time.monotonic() + pause
        at_work = self._idle or any(worker.node for worker in self._busy.values())
        if count >= max(START_FAILURES, self.workers) and not at_work:
            raise RunError(
                f"no worker could be started, {count} tries, the last one with: {reason}. "
                f"{self._shortage()}."
            )

    def _shortage(self) -> str:
        each = (f"{n.get('CPU', 0):g} and {n.get('GPU', 0):g}" for n in nodes().values())
        have = ", ".join(each) or "none"
        return (
            f"Each worker asks for {self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs; the nodes of "
            f"the cluster have {have}"
        )


def _kill(actors: Iterable[Any]) -> threading.Thread:
    """Kills actors without waiting: the machine of one may answer late or never."""

    def kill() -> None:
        for actor in actors:
            try:
                ray.kill(actor, no_restart=True)
            except Exception as error:  # it is dead already, or Ray is
                logger.debug("cannot kill %s: %s", actor, error)

    thread = threading.Thread(target=kill, name="kill workers", daemon=True)
    thread.start()
    return thread
