"""Two threads at most, so that tests beside each other do not fight for cores; shared fixtures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiny_job import Job

os.environ.setdefault("OMP_NUM_THREADS", "2")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes, and they inherit what the first set
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command has it
# One for all clusters: Ray reads a process's token once, and speaks to no cluster with another.
os.environ.setdefault("RAY_AUTH_TOKEN", "0123456789abcdef" * 2)

# Imports are within the fixtures: torch is to see the number of threads, and only tests that need
# these are to wait for it.


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of one thread are the same whatever else runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a space file, and a cache of its own."""
    from tiny_job import fresh_job

    return fresh_job(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Job:
    from tiny_job import finished_job

    return finished_job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def finished(finished_once: Job, tmp_path: Path) -> Iterator[Job]:
    """A folder with a space file and a finished run; made once, so change only copies of it."""
    cache = tmp_path / "cache"  # a copy too, so that no test's measurements reach another
    shutil.copytree(finished_once.cache, cache)
    with finished_once.surroundings(cache):
        yield finished_once
