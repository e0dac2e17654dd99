"""Searches in processes of their own, which are killed: what tests of ``kill -9`` share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results.export.write import read_export
from results.journal import read_journal

PHASE_SECONDS = 240.0
# Real measurements, but shorter, and samples saved every fraction of a second.
SCRIPT = """
import sys
from unittest import mock
from tiny_job import quick_measurements
from nas.cli.main import main
sys.argv[0] = "nas"
with mock.patch("predictors.measuring.profile.SAVE_SECONDS", 0.3), quick_measurements(2.0):
    main()
"""


@dataclass
class Process:
    """A search under way; ``said`` grows by its lines on standard error."""

    arguments: list[str]
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())

    def wait_for(self, what: Callable[[], bool]) -> bool:
        """Whether ``what`` came true while the process ran."""
        begin = time.monotonic()
        while not what():
            if self.process.poll() is not None:
                return what()
            assert time.monotonic() - begin < PHASE_SECONDS, self.said
            time.sleep(0.001)
        return True

    def kill(self) -> bool:
        """Whether it was still running."""
        running = self.process.poll() is None
        self.process.kill()
        self.process.communicate()
        self._reader.join()
        return running

    def finish(self) -> dict[str, Any]:
        """Its JSON; it must end well."""
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        code = self.process.wait()
        self._reader.join()
        assert code == 0, self.said
        result: dict[str, Any] = json.loads(out)
        return result


def whole_lines(journal: Path) -> bytes:
    """The journal up to its last newline: what a kill must not take away."""
    if not journal.exists():
        return b""
    content = journal.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def everything_visible_is_whole(run: Path) -> None:
    """After a kill at any moment, whatever has its final name can be read."""
    assert json.loads((run / "manifest.json").read_text())["status"] == "running"
    if (run / "evaluations.jsonl").exists():
        read_journal(run / "evaluations.jsonl")
    for name in ("measured.json", "result.json"):
        if (run / name).exists():
            json.loads((run / name).read_text())
    for folder in (run / "export").iterdir():
        if not folder.name.startswith("."):
            read_export(folder)
