"""A job that is tiny but whole: a space of 256 networks, known latencies, and the command."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from nas.cli.main import main
from predictors.measuring.bench import Limits
from predictors.measuring.profile import check_architectures, profile
from predictors.measuring.remeasure import measure_networks
from predictors.measuring.this_machine import local_conditions
from predictors.tables.additive import entries
from predictors.tables.correction import CheckNetwork, Correction
from predictors.tables.folder import table_path
from predictors.tables.latency_table import EntryLatency, LatencyTable
from results.journal import read_journal
from search_space import Architecture, Block, SearchSpace, Stage, components, load_space

SPACE = """\
name: pebble
macro: {stem_kernel: 2, stem_stride: 2}
resolution: 16
stages:
  - {width: [8, 16], depth: 1, mixers: [pooling, depthwise_conv], mlp_ratio: 2}
  - {width: [8, 16], depth: 1, mixers: [pooling, depthwise_conv], mlp_ratio: 2}
  - {width: [16, 24], depth: 1, mixers: [pooling, depthwise_conv], mlp_ratio: 2}
  - {width: [16, 24], depth: 1, mixers: [pooling, depthwise_conv], mlp_ratio: 2}
"""
DIGITS_CLASSES = 10
EVALUATIONS = 12  # of a Job's searches
FAILED, USAGE, INFEASIBLE, INTERRUPTED = 1, 2, 3, 130
QUICK = Limits(min_rounds=3, max_rounds=6, min_seconds=0.3)
SCALE, OFFSET_MS = 1.25, 0.5


def write_space(folder: Path) -> Path:
    path = folder / "pebble.yaml"
    path.write_text(SPACE)
    return path


def fresh_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a space file, and a cache of its own."""
    for name in [name for name in os.environ if name.startswith("NAS_")]:
        monkeypatch.delenv(name)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    write_space(work)
    return work


def every_architecture(space: SearchSpace) -> Iterator[Architecture]:
    """All networks of a space with one resolution and depth 1, by plain counting."""
    choices = [itertools.product(stage.widths, stage.blocks) for stage in space.stages]
    for combination in itertools.product(*choices):
        stages = tuple(Stage(width, (as_block(block),)) for width, block in combination)
        yield Architecture(space.macro, space.resolutions[0], stages)


def as_block(block: object) -> Block:
    assert isinstance(block, Block)
    return block


def known_table(space: SearchSpace, num_classes: int = DIGITS_CLASSES) -> LatencyTable:
    """Latencies made up by a rule, under this machine's conditions."""
    asked = entries(space, num_classes)
    measured = {e: EntryLatency(0.1 + 0.01 * i, 0.1, 9.0, 12) for i, e in enumerate(asked)}
    checks = tuple(
        CheckNetwork(architecture.digest, 1.0 + i, 2.0 + 2 * i, 12)
        for i, architecture in enumerate(check_architectures(space))
    )
    correction = Correction(
        space=space.name,
        scale=SCALE,
        offset_ms=OFFSET_MS,
        expected_error=0.03,
        checks=checks,
        rounds=12,
        seconds=3.0,
        stopped="converged",
    )
    return LatencyTable(local_conditions(), measured, {space.digest: correction})


def latency_ms(table: LatencyTable, architecture: Architecture) -> float:
    """What ``known_table`` says of a network, summed by hand."""
    chain = components(architecture, DIGITS_CLASSES)
    total = sum(table.entries[part.spec, part.in_size].latency_ms for part in chain)
    return SCALE * total + OFFSET_MS


def cache_known_table(space_file: Path) -> LatencyTable:
    """Put the made-up table where ``NAS_CACHE`` says, so that nothing needs measuring."""
    table = known_table(load_space(str(space_file)))
    table.save(table_path(table.conditions))
    return table


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def nas(*arguments: object) -> Ran:
    """The ``nas`` command in this process; anything but an exit is a bug and is raised."""
    argv = ["nas", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    ended = SystemExit(0)
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            ended = error
    assert "Traceback" not in err.getvalue()
    assert isinstance(ended.code, int)
    return Ran(ended.code, out.getvalue(), err.getvalue())


def search(*more: object, data: object = "digits", budget: str = "1s") -> Ran:
    """``nas search`` in a fresh job."""
    return nas(
        "search", "--data", data, "--space", "pebble.yaml", "--target-latency", budget, *more
    )


@contextmanager
def quick_measurements(profile_seconds: float = 0.3) -> Iterator[None]:
    """Real measurements, but short ones: a second or so instead of half a minute."""
    limits = replace(QUICK, min_seconds=profile_seconds)
    with (
        mock.patch("predictors.devices.profile", partial(profile, limits=limits)),
        mock.patch(
            "nas.workflows.measuring.measure_networks", partial(measure_networks, limits=QUICK)
        ),
    ):
        yield


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below ``folder`` with its content, folders too; locks hold only process ids."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


@dataclass(frozen=True)
class Job:
    """A folder with a space file, a folder of runs and a finished run ``one`` in it."""

    folder: Path
    said: Ran

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def run(self) -> Path:
        return self.runs / "one"

    @property
    def options(self) -> tuple[object, ...]:
        return "--data", "digits", "--space", self.folder / "pebble.yaml", "--runs", self.runs

    def search(self, name: str, *more: object) -> Ran:
        return nas(
            *("search", *self.options, "--name", name, "--json"),
            *("--target-latency", "1s", "--epochs", 2, "--finetune-epochs", 1),
            *("--evaluations", EVALUATIONS, "--population", 6, *more),
        )

    def copy(self, name: str, status: str = "running") -> Path:
        """The finished run under another name, as if it had been killed just before its end."""
        path = self.runs / name
        shutil.copytree(self.run, path)
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, "status": status}))
        return path

    def resume(self, name: str) -> Ran:
        return nas("search", "--runs", self.runs, "--name", name, "--resume", "--json")

    @contextmanager
    def surroundings(self, cache: Path) -> Iterator[None]:
        """Short measurements, that cache, and no settings from outside."""
        with pytest.MonkeyPatch.context() as patch, quick_measurements():
            for name in [name for name in os.environ if name.startswith("NAS_")]:
                patch.delenv(name)
            patch.setenv("NAS_CACHE", str(cache))
            yield


def finished_job(folder: Path) -> Job:
    """Make a whole run, with short but real measurements."""
    write_space(folder)
    job = Job(folder, Ran(0, "", ""))
    with job.surroundings(job.cache):
        said = job.search("one")
    assert said.code == 0, said.err
    return Job(folder, said)


def front_of(said: Ran) -> list[tuple[str, float, float]]:
    """Digest, loss and latency of a finished search's front."""
    assert said.code == 0, said.err
    return [
        (member["digest"], member["predicted"]["loss"], member["predicted"]["latency_ms"])
        for member in json.loads(said.out)["front"]
    ]


def evaluated(run: Path) -> list[tuple[Any, ...]]:
    """What a run's journal holds, without times."""
    return [
        (e.index, e.digest, e.status, dict(e.metrics), dict(e.architecture))
        for e in read_journal(run / "evaluations.jsonl")
    ]
