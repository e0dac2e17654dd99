"""``kill -9`` anywhere in a search, then ``--resume``: nothing is lost, and the front is the same.

The search runs in processes of its own. Moments are drawn by a seeded generator, each after the
start of a phase, so that together they cover the whole road.
"""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Process, everything_visible_is_whole, whole_lines
from tiny_job import write_space

from results.export.write import read_export
from results.journal import read_journal
from supernet.training.checkpoints import CheckpointFolder

EVALUATIONS = 80


@dataclass(frozen=True)
class Moment:
    """Kill ``delay_s`` after ``phase`` began, or once the journal has ``lines`` lines."""

    phase: str
    delay_s: float = 0.0
    lines: int = 0


@pytest.mark.slow
def test_kill_9_at_ten_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("NAS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    rng = random.Random(20)
    moments = [
        Moment("opening images", rng.uniform(0, 1)),
        Moment("latency table", rng.uniform(0, 1)),
        Moment("latency table", rng.uniform(0.5, 2)),
        Moment("training the supernet", rng.uniform(0, 1)),
        Moment("training the supernet", rng.uniform(0.5, 2)),
        Moment("searching", lines=rng.randrange(5, 40)),
        Moment("searching", lines=rng.randrange(45, EVALUATIONS - 5)),
        Moment("measuring", rng.uniform(0, 1.5)),
        Moment("fine-tuning", rng.uniform(0, 1)),
        Moment("exporting", rng.uniform(0, 1.5)),
    ]
    options = [
        *("search", "--data", "digits", "--space", str(write_space(tmp_path))),
        *("--target-latency", "1s", "--epochs", "3", "--finetune-epochs", "2"),
        *("--evaluations", str(EVALUATIONS), "--population", "8"),
        *("--runs", str(tmp_path / "runs"), "--json", "--name"),
    ]
    run = tmp_path / "runs" / "killed"
    journal = run / "evaluations.jsonl"
    snapshots = [b""]
    for number, moment in enumerate(moments):
        process = Process([*options, "killed", *(["--resume"] if number else [])])
        began = f"{moment.phase}"
        assert process.wait_for(
            lambda began=began, process=process: any(
                line.startswith(began) and line.endswith("…") for line in process.said
            )
        ), (moment, process.said)
        if moment.lines:
            process.wait_for(lambda lines=moment.lines: whole_lines(journal).count(b"\n") >= lines)
        else:
            time.sleep(moment.delay_s)
        assert process.kill(), (moment, process.said)
        everything_visible_is_whole(run)
        snapshots.append(whole_lines(journal))
        print(
            f"{moment}: killed after {process.said[-1]!r}, {len(snapshots[-1].splitlines())} lines"
        )
    killed = Process([*options, "killed", "--resume"]).finish()

    # no line is lost, changed or doubled
    final = journal.read_bytes()
    for earlier, later in zip(snapshots, [*snapshots[1:], final], strict=True):
        assert later.startswith(earlier)
    counts = [snapshot.count(b"\n") for snapshot in snapshots]
    assert any(0 < count < EVALUATIONS for count in counts), counts
    evaluations = read_journal(journal)
    assert [e.index for e in evaluations] == list(range(EVALUATIONS))
    assert len({e.digest for e in evaluations}) == EVALUATIONS
    left = [path for path in run.rglob("*") if path.name.endswith((".tmp", ".partial", ".writing"))]
    assert left == []
    assert read_export(run / "export" / killed["best"]["digest"])
    assert json.loads((run / "manifest.json").read_text())["status"] == "complete"

    # with the same table, which is in the cache now, a run that nobody killed ends the same
    calm_run = tmp_path / "runs" / "calm"
    calm = Process([*options, "calm"]).finish()
    assert (calm_run / "latency.parquet").read_bytes() == (run / "latency.parquet").read_bytes()

    def front(said: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
        return [(member["digest"], member["predicted"]) for member in said["front"]]

    assert front(killed) == front(calm)
    calm_evaluations = read_journal(calm_run / "evaluations.jsonl")
    assert [(e.digest, e.metrics) for e in evaluations] == [
        (e.digest, e.metrics) for e in calm_evaluations
    ]
    weights = [
        CheckpointFolder(path / "supernet" / "checkpoints").newest() for path in (run, calm_run)
    ]
    assert weights[0] is not None
    assert weights[1] is not None
    for name, tensor in weights[1].weights.items():
        assert torch.equal(weights[0].weights[name], tensor)
