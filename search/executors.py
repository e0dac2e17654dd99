"""Executors run evaluations; the loop only submits and waits.

A submission carries a ticket, outcomes come back in any order, and an exception in one evaluation
is an outcome too: nothing is lost and nothing else stops. So an executor that completes
out of order on many machines fits the same protocol as this process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from search_space.architecture import Architecture

Evaluate = Callable[[Architecture], Mapping[str, float]]
"""Metrics of one architecture, by name. Must depend on nothing but the architecture."""


@dataclass(frozen=True)
class Outcome:
    """End of one evaluation: its metrics, or the error that it failed with."""

    ticket: int
    metrics: Mapping[str, float]
    seconds: float
    error: str | None = None


class Executor(Protocol):
    """Runs evaluations, possibly many at once and elsewhere."""

    @property
    def capacity(self) -> int:
        """Number of submissions worth holding at once; the loop keeps this many open."""
        ...

    def submit(self, ticket: int, architecture: Architecture) -> None:
        """Take one evaluation; does not wait for it."""
        ...

    def wait(self) -> Outcome:
        """The next evaluation that ends, in whatever order; called only while some are open."""
        ...

    def close(self) -> None:
        """Drop what is still open and free everything held."""
        ...


class InProcessExecutor:
    """Evaluates in this process, one after the other, when waited for.

    Exceptions become outcomes with their type and text; KeyboardInterrupt and SystemExit pass.
    """

    capacity = 1

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._open: deque[tuple[int, Architecture]] = deque()

    def submit(self, ticket: int, architecture: Architecture) -> None:
        self._open.append((ticket, architecture))

    def wait(self) -> Outcome:
        ticket, architecture = self._open.popleft()
        start = time.perf_counter()
        try:
            metrics = {name: float(value) for name, value in self._evaluate(architecture).items()}
        except Exception as error:
            return Outcome(ticket, {}, time.perf_counter() - start, describe(error))
        return Outcome(ticket, metrics, time.perf_counter() - start)

    def close(self) -> None:
        self._open.clear()


def describe(error: BaseException) -> str:
    """Type and first line of an error, for the journal."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
