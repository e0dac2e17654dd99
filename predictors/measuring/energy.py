"""Energy by the processor's own counters (RAPL), where Linux shows them.

A counter is of a whole package: cores, caches and whatever else runs there, waiting included. Each
component runs again and again until the counters have moved for long enough, with nothing taken
off, so measure on a machine that does nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from predictors.measuring.bench import Progress, WeightPool, entry_subject, steady
from predictors.measuring.runtimes import find_runtime
from predictors.tables.additive import Entry
from predictors.tables.conditions import Conditions

ROOT = Path("/sys/class/powercap")
SECONDS = 0.2  # of runs between two readings; counters move every millisecond
_MICRO = 1e-6


class Counters:
    """Counters of energy of all packages, found below ``root``.

    Example:
        >>> counters = Counters()
        >>> if counters:
        ...     before = counters.read()
        ...     work()
        ...     counters.joules(before, counters.read())
    """

    def __init__(self, root: Path | None = None) -> None:
        self.files: list[tuple[Path, int]] = []
        for folder in sorted((root or ROOT).glob("*:*")):
            # a package is one level deep; what is deeper, cores or memory, is a part of it
            if folder.name.count(":") > 1:
                continue
            try:
                if not (folder / "name").read_text().startswith("package"):
                    continue
                int((folder / "energy_uj").read_text())  # root's alone on many machines
                span = int((folder / "max_energy_range_uj").read_text())
            except (OSError, ValueError):
                continue
            self.files.append((folder / "energy_uj", span))

    def __bool__(self) -> bool:
        return bool(self.files)

    def read(self) -> list[int]:
        """Reads all counters, microjoules."""
        return [int(file.read_text()) for file, _ in self.files]

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """What was used between two readings, of which a counter passed its end once at most."""
        return _MICRO * sum(
            last - first if last >= first else last - first + span
            for first, last, (_, span) in zip(before, after, self.files, strict=True)
        )


def measure_energy(
    entries: Sequence[Entry],
    conditions: Conditions,
    counters: Counters,
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress | None = None,
) -> dict[Entry, float]:
    """Measures the joules of components for one image.

    Args:
        entries: Components with the sides of their inputs.
        conditions: What they run under, on this machine's CPU.
        counters: That can be read.
        seconds: For which each runs.
        clock: That the seconds are of.
        progress: Called after each component.
    """
    runtime, pool = find_runtime(conditions.runtime), WeightPool(conditions)
    result: dict[Entry, float] = {}
    begin = clock()
    with steady(conditions):
        for done, (spec, size) in enumerate(entries, 1):
            subject = entry_subject(spec, size, conditions, pool)
            run = runtime.prepare(subject.module, subject.images, conditions)
            run()
            runs, start, before = 0, clock(), counters.read()
            while runs == 0 or clock() - start < seconds:
                run()
                runs += 1
            used = counters.joules(before, counters.read())
            result[spec, size] = used / (runs * conditions.batch_size)
            if progress is not None:
                left = (clock() - begin) / done * (len(entries) - done)
                progress(done, len(entries), left)
    return result
