"""Display of a running command: phases, progress with remaining time, warnings.

All of it goes to standard error. On a terminal a phase is a live bar; elsewhere (logs, CI) it is
a line now and then.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from search_space.units import format_duration

LINE_SECONDS = 15.0
RATE_SECONDS = 20.0
POINTS = 200  # of the work's course that are kept


class Remaining:
    """Remaining time from the rate of the later half of the work, of twenty seconds at least.

    So it follows a pace that changes, and the pause at an epoch's end counts by its share. Where
    work moves in jumps, it is the rate of the last two of them at least, and a jump that is late
    makes it slower.
    """

    def __init__(self) -> None:
        self._changes: deque[tuple[float, float]] = deque()
        self._began = time.monotonic()

    def __call__(self, done: float, total: float) -> float | None:
        """Seconds, or None while there is no rate yet."""
        now, changes = time.monotonic(), self._changes
        window = max(RATE_SECONDS, (now - self._began) / 2)
        if not changes or done != changes[-1][1]:
            if len(changes) > 2 and now - changes[-2][0] < window / POINTS:
                changes.pop()
            changes.append((now, done))
        while len(changes) > 3 and now - changes[1][0] > window:
            changes.popleft()
        (start, before), (end, after) = changes[0], changes[-1]
        if after <= before or end - start < 0.5:
            return None
        interval = (end - start) / (len(changes) - 1)
        if now - end > interval:
            return (total - after) * (now - start) / (after - before)
        return max(0.0, (total - after) * (end - start) / (after - before) - (now - end))


class PhaseProgress:
    """Progress of one phase; call it with done, total, a short text, and seconds left if known."""

    def __init__(self, console: Console, name: str) -> None:
        self._console, self._name = console, name
        self._remaining = Remaining()
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if console.live:
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("[dim]{task.fields[text]}"),
                console=console.rich,
                transient=True,
            )
            self._task = self._bar.add_task(name, left="", text="", total=None)
            self._bar.start()

    def __call__(
        self, done: float, total: float, text: str = "", seconds_left: float | None = None
    ) -> None:
        left_s = self._remaining(done, total) if seconds_left is None else seconds_left
        left = "" if left_s is None else f"{format_duration(left_s)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, left=left, text=text)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            parts = [f"{self._name}: {done:.0f} of {total:.0f}", left, text]
            self._console.say("  " + ", ".join(part for part in parts if part))

    def rounds(self, done: int, total: int, seconds_left: float | None) -> None:
        """Progress of a measurement."""
        self(done, total, "rounds", seconds_left)

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()


class Console:
    """Writes to standard error; ``quiet`` leaves only warnings.

    Example:
        >>> with Console().phase("counting") as progress:
        ...     for i in range(1000):
        ...         progress(i, 1000)
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.rich = RichConsole(file=sys.stderr, highlight=False, soft_wrap=True)
        self.live = self.rich.is_terminal and not quiet

    def say(self, text: str) -> None:
        """Print a line, unless ``quiet``."""
        if not self.quiet:
            self.rich.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.rich.print(f"warning: {text}", style="yellow", markup=False)

    @contextmanager
    def python_warnings(self) -> Iterator[None]:
        """Python's warnings are warnings here, without the line of code that gave them."""
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest: self.warn(str(message))
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[PhaseProgress]:
        """A named part of the work, with its duration at the end."""
        self.say(f"{name} …")
        start = time.monotonic()
        progress = PhaseProgress(self, name)
        try:
            yield progress
        finally:
            progress.stop()
        self.say(f"{name}: {format_duration(time.monotonic() - start)}")
