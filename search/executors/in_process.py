"""The executor without processes: evaluations are made here, one after the other."""

from __future__ import annotations

from collections import deque

from search.executors.base import Evaluate, Outcome, attempt
from search_space.architecture import Architecture


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
