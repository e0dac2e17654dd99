"""Protocol of executors, the outcome of one evaluation, and the executor without processes.

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

Evaluate = Callable[..., Mapping[str, float]]
"""Metrics of one architecture, by name: ``evaluate(architecture)``, or ``evaluate(architecture,
part)`` for one part of the images. Must depend on nothing else."""


@dataclass(frozen=True)
class Outcome:
    """Holds the end of one evaluation: its metrics, or the error that it failed with."""

    ticket: int
    metrics: Mapping[str, float]
    seconds: float
    error: str | None = None


class Executor(Protocol):
    """Runs evaluations, possibly many at once and elsewhere.

    Everything submitted has exactly one outcome, unless the executor is closed before.
    """

    def submit(self, ticket: int, architecture: Architecture, part: int | None = None) -> None:
        """Takes one evaluation, to be begun in the order of submission; does not wait for it."""
        ...

    def wait(self) -> Outcome:
        """Waits for the next evaluation that ends, in whatever order; only while some are open."""
        ...

    def close(self) -> None:
        """Drops what is still open and frees everything held; a second call does nothing."""
        ...


def attempt(
    evaluate: Evaluate, ticket: int, architecture: Architecture, part: int | None = None
) -> Outcome:
    """Makes one evaluation here and now.

    Exceptions become outcomes with their type and text; KeyboardInterrupt and SystemExit pass.
    """
    start = time.perf_counter()
    try:
        figures = evaluate(architecture) if part is None else evaluate(architecture, part)
        metrics = {name: float(value) for name, value in figures.items()}
    except Exception as error:
        return Outcome(ticket, {}, time.perf_counter() - start, describe(error))
    return Outcome(ticket, metrics, time.perf_counter() - start)


def describe(error: BaseException) -> str:
    """Gives type and first line of an error, for the journal."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class InProcessExecutor:
    """Evaluates in this process, in the order of submission, when waited for (see ``attempt``).

    Example:
        >>> executor = InProcessExecutor(lambda architecture: {"depth": sum(architecture.depths)})
        >>> executor.submit(0, space.largest)
        >>> executor.wait().metrics
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._open: deque[tuple[int, Architecture, int | None]] = deque()

    def submit(self, ticket: int, architecture: Architecture, part: int | None = None) -> None:
        self._open.append((ticket, architecture, part))

    def wait(self) -> Outcome:
        return attempt(self._evaluate, *self._open.popleft())

    def close(self) -> None:
        self._open.clear()
