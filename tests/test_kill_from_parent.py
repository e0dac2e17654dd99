"""``kill -9`` anywhere in a search from a trained network, then ``--resume``: all ends the same.

The search runs in processes of its own. Each is killed in a phase, known by the line that begins
it, once it has left so many traces on the disk: how many is drawn by a seeded generator.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from killing import Process, everything_visible_is_whole, whole_lines

from predictors.tables.quality import QualityTable
from results.export.card import ModelCard
from results.export.write import export_network, read_export
from results.journal import read_journal
from search_space import Architecture, Block, Macro, Mixer, Stage, metaformer
from search_space.around import Around, around
from search_space.preprocessing import Preprocessing
from supernet import build
from supernet.network.tensor_files import read_tensors
from supernet.training.checkpoints import CheckpointFolder

EVALUATIONS, EPOCHS = 12, 3
POOLING = Mixer.of("pooling")


def parent() -> Architecture:
    """A network with batch norms and blocks of two kinds, which can be cut, skipped and learnt."""
    block = Block.of("inverted_residual", expansion=3.0, kernel=5)
    macro = Macro(
        stem="conv_act",
        stem_kernel=3,
        stem_stride=2,
        downsample="block",
        norm="batch_norm",
        head_norm="none",
    )
    mixing = metaformer(Mixer.of("depthwise_conv", kernel=5), 2.0)
    stages = Stage(16, (block, block)), Stage(24, (block, mixing, mixing))
    return Architecture(macro, 16, stages)


@dataclass(frozen=True)
class Moment:
    """Kill once ``phase`` began and has left ``least`` traces, and a little later."""

    phase: str
    traces: Callable[[Path], int] = lambda run: 0
    least: int = 0
    delay_s: float = 0.0


def files(pattern: str) -> Callable[[Path], int]:
    return lambda run: len(list(run.glob(pattern)))


def lines(pattern: str) -> Callable[[Path], int]:
    return lambda run: sum(whole_lines(path).count(b"\n") for path in run.glob(pattern))


def changes(run: Path) -> int:
    file = run / "quality.parquet"
    return len(QualityTable.load(file).changes) if file.exists() else 0


def moments(rng: random.Random) -> list[Moment]:
    """One or two in each phase, in their order."""
    drawn = [
        Moment("latency table", delay_s=rng.uniform(0.2, 2)),
        Moment("a classifier for the parent"),
        Moment("adapting the parent"),
        Moment("adapting the parent", files("parent/checkpoints/step-*"), rng.choice([1, 2])),
        Moment("cutting blocks of the parent"),
        Moment("cutting blocks of the parent", files("alternatives/*.safetensors"), 1),
        Moment("teaching other blocks", files("distilling/*.safetensors"), rng.choice([0, 1, 3])),
        Moment("refining what was cut", files("refined/*.safetensors"), rng.randrange(1, 20)),
        Moment("training the alternatives"),
        Moment("training the alternatives", files("joint/checkpoints/step-*"), rng.choice([1, 2])),
        Moment("measuring what each alternative loses", changes, rng.randrange(1, 12)),
        Moment("the front that the table promises"),
        Moment("searching", lines("evaluations.jsonl"), rng.randrange(1, EVALUATIONS)),
        Moment("measuring", delay_s=rng.uniform(0, 1)),
        Moment("fine-tuning"),
        Moment("fine-tuning", files("finetune/*/checkpoints/step-*"), rng.randrange(1, 5)),
        Moment("exporting", files("export/*/*"), rng.randrange(0, 3)),
    ]
    return [Moment(m.phase, m.traces, m.least, m.delay_s or rng.uniform(0, 0.05)) for m in drawn]


def killed_at(moment: Moment, arguments: list[str], run: Path) -> None:
    process = Process(arguments)
    assert process.wait_for(
        lambda: any(s.startswith(moment.phase) and s.endswith("…") for s in process.said)
    ), (moment, process.said)
    assert process.wait_for(lambda: moment.traces(run) >= moment.least), (moment, process.said)
    time.sleep(moment.delay_s)
    assert process.kill(), (moment, process.said)
    everything_visible_is_whole(run)
    print(f"{moment.phase}, {moment.least}: killed after {process.said[-1]!r}")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a search, all but its name."""
    for name in [name for name in os.environ if name.startswith("NAS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.manual_seed(0)
    images = Preprocessing(resolution=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    begins, space = tmp_path / "parent", tmp_path / "space.yaml"
    card = ModelCard(title="parent")
    export_network(build(parent(), 7), begins, preprocessing=images, card=card, formats=("timm",))
    offered = around(parent(), Around(ratios=(0.5,), mixers=(POOLING,), resolutions=()))
    space.write_text(yaml.safe_dump(offered.to_dict()))
    return [
        *("search", "--data", "digits", "--from", str(begins), "--space", str(space)),
        *("--max", "macs=300k", "--target-latency", "1s", "--evaluations", str(EVALUATIONS)),
        *("--adapt-epochs", str(EPOCHS), "--refine-steps", "5"),
        *("--joint-epochs", str(EPOCHS), "--finetune-epochs", str(EPOCHS), "--finalists", "2"),
        *("--runs", str(tmp_path / "runs"), "--json"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_kill_9_in_each_phase(seed: int, options: list[str], tmp_path: Path) -> None:
    options = [*options, "--distil-steps", "20", "--name"]
    run, calm_run = tmp_path / "runs" / "killed", tmp_path / "runs" / "calm"
    resume: list[str] = []
    for moment in moments(random.Random(seed)):
        killed_at(moment, [*options, "killed", *resume], run)
        resume = ["--resume"]
    killed = Process([*options, "killed", *resume]).finish()
    left = [p for p in run.rglob("*") if p.name.endswith((".tmp", ".partial", ".writing"))]
    assert left == []

    # with the same latencies, which are in the cache now, a run that nobody killed ends the same
    calm = Process([*options, "calm"]).finish()
    assert (calm_run / "latency.parquet").read_bytes() == (run / "latency.parquet").read_bytes()
    for file in ("parent/start.safetensors", *weights_of_alternatives(calm_run)):
        assert same(read_tensors(run / file), read_tensors(calm_run / file)), file
    for folder in checkpoints(calm_run):
        ours, theirs = (CheckpointFolder(path / folder).newest() for path in (run, calm_run))
        assert ours is not None
        assert theirs is not None
        assert same(ours.trained_weights(), theirs.trained_weights()), folder
    tables = [QualityTable.load(path / "quality.parquet") for path in (run, calm_run)]
    assert tables[0].source == tables[1].source
    assert tables[0].changes == tables[1].changes
    journals = [read_journal(path / "evaluations.jsonl") for path in (run, calm_run)]
    assert len({e.digest for e in journals[0]}) == EVALUATIONS
    assert len({str([(e.index, e.digest, e.metrics) for e in one]) for one in journals}) == 1
    fronts = [[(m["digest"], m["predicted"]) for m in said["front"]] for said in (killed, calm)]
    assert fronts[0] == fronts[1]
    chosen = {said["best"]["digest"] for said in (killed, calm)}
    assert len(chosen) == 1
    ends = [path / "export" / killed["best"]["digest"] for path in (run, calm_run)]
    assert same(*(read_tensors(end / "model.safetensors") for end in ends))
    assert read_export(ends[0])


@pytest.mark.slow
def test_a_worker_that_learns_is_killed(options: list[str], tmp_path: Path) -> None:
    """Another takes its place, and alternatives are those of one process."""
    options = [*options, "--distil-steps", "200", "--name"]
    runs = [tmp_path / "runs" / name for name in ("alone", "spread")]
    killed_at(Moment("training the alternatives"), [*options, "alone"], runs[0])
    process = Process([*options, "spread", "--workers", "2"])
    assert process.wait_for(lambda: bool(learning(process))), process.said
    assert any(line.startswith("teaching other blocks") for line in process.said)
    victim = learning(process)[0]
    victim.kill()
    assert process.wait_for(lambda: any(s.startswith("training the") for s in process.said))
    assert process.kill()
    assert not victim.is_running()
    for file in weights_of_alternatives(runs[0]):
        ours, theirs = (read_tensors(run / file) for run in runs)
        assert ours.keys() == theirs.keys()
        for name in ours:  # as many threads make the same bits, but machines have more or fewer
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    assert weights_of_alternatives(runs[0]) == weights_of_alternatives(runs[1])


def learning(process: Process) -> list[psutil.Process]:
    """Workers of a process that teach alternatives just now."""
    found = []
    for child in psutil.Process(process.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.cmdline()[:1] == ["ray::_teach"]:
                found.append(child)
    return found


def weights_of_alternatives(run: Path) -> list[str]:
    found = [p for name in ("alternatives", "refined") for p in run.glob(f"{name}/*.safetensors")]
    assert found
    return sorted(str(path.relative_to(run)) for path in found)


def checkpoints(run: Path) -> list[str]:
    found = {str(path.parent.relative_to(run)) for path in run.rglob("step-*")}
    assert len(found) == 4, found  # of the parent, the alternatives and two finalists
    return sorted(found)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
