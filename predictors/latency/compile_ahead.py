"""Compiling entries in parallel processes before they are timed in this one.

Only for runtimes whose compiler keeps results on disk (inductor): the processes fill its cache,
and this process then loads from there instead of compiling. Each is this module run as a
program: it reads what to compile as JSON from standard input and prints a line for each entry
that is done. What fails there is compiled, and its error raised, in the calling process.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

from predictors.additive import Entry
from predictors.latency.devices import Conditions
from predictors.latency.table import spec_from_json, spec_to_json

Job = tuple[Entry, int]
"""An entry, and how many copies of it form the module; 0 for the entry as it is."""


def compile_ahead(
    jobs: Sequence[Job],
    conditions: Conditions,
    workers: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> int:
    """Compile ``jobs`` in ``workers`` processes; returns how many were compiled.

    ``progress(done, total, eta_s)`` is told jobs, and the seconds that the rest takes.
    """
    begin, done = time.monotonic(), 0
    lines: queue.Queue[str | None] = queue.Queue()
    command = [sys.executable, "-m", "predictors.latency.compile_ahead"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for _ in range(workers)
    ]
    try:
        for i, process in enumerate(processes):
            assert process.stdin is not None
            assert process.stdout is not None
            share = [(spec_to_json(spec), size, n) for (spec, size), n in jobs[i::workers]]
            task = {"conditions": conditions.to_dict(), "jobs": share}
            threading.Thread(target=_listen, args=(process.stdout, lines), daemon=True).start()
            try:
                json.dump(task, process.stdin)
                process.stdin.close()
            except BrokenPipeError:  # it died early: its share is compiled by the caller
                continue
        running = workers
        while running:
            line = lines.get()
            if line is None:
                running -= 1
                continue
            done += 1
            if progress is not None:
                left = (len(jobs) - done) * (time.monotonic() - begin) / done
                progress(done, len(jobs), left)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return done


def _listen(output: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in output:
        if line.startswith("compiled"):
            lines.put(line)
    lines.put(None)


def _work(task: dict[str, Any]) -> None:
    """What a process does: prepare each job's module as the profile will, and forget it."""
    import torch._inductor.config

    from predictors.latency.entry_plan import copies_subject
    from predictors.latency.measure import WeightPool, entry_subject, steady
    from predictors.latency.runtimes import find_runtime

    torch._inductor.config.compile_threads = 1  # the processes are the parallelism
    conditions = Conditions.from_dict(task["conditions"])
    runtime, pool = find_runtime(conditions.runtime), WeightPool(conditions)
    with steady(conditions):
        for text, in_size, copies in task["jobs"]:
            entry = spec_from_json(text), in_size
            if copies:
                subject = copies_subject(*entry, copies, conditions, pool)
            else:
                subject = entry_subject(*entry, conditions, pool)
            try:
                runtime.prepare(subject.module, subject.images, conditions)
            except Exception as error:  # raised again, with its reason, where it is timed
                print(f"failed {error}", flush=True)
            else:
                print("compiled", flush=True)
            torch._dynamo.reset()


if __name__ == "__main__":
    _work(json.load(sys.stdin))
