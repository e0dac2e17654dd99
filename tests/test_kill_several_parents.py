"""``kill -9`` anywhere in a search from several parents, then ``--resume``: all ends the same."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from killing import Process
from test_kill_from_parent import Moment, files, killed_at, lines, same

from results.export.card import ModelCard
from results.export.write import export_network, read_export
from results.journal import read_journal
from search_space import Architecture, Macro, Mixer, Stage, metaformer
from search_space.preprocessing import Preprocessing
from supernet import build
from supernet.network.tensor_files import read_tensors
from supernet.training.checkpoints import CheckpointFolder

EPOCHS = 3


def network(*widths: int) -> Architecture:
    blocks = tuple(metaformer(Mixer.of("depthwise_conv", kernel=3), 2.0) for _ in range(2))
    return Architecture(
        Macro(stem_kernel=2, stem_stride=2), 16, tuple(Stage(width, blocks) for width in widths)
    )


STITCHED = (
    Moment("a classifier for the parent"),
    Moment("adapting the parent", files("parent/0/checkpoints/step-*"), 1),
    Moment("adapting the parent", files("parent/1/checkpoints/step-*"), 2),
    Moment("fitting stitches"),
    Moment("training the routes", files("joint/checkpoints/step-*"), 1),
    Moment("judging routes", lines("evaluations.jsonl"), 2),
    Moment("fine-tuning", files("finetune/*/checkpoints/step-*"), 2),
    Moment("exporting"),
)
TRIED = (
    Moment("loading"),
    Moment("trying", files("parents/00-*/checkpoints/step-*"), 1),
    Moment("trying", files("parents/00-*.json"), 1),
    Moment("trying", files("parents/01-*/checkpoints/step-*"), 1),
    Moment("adapting the parent", files("parent/checkpoints/step-*"), 1),
    Moment("measuring what each alternative loses"),
    Moment("fine-tuning", files("finetune/*/checkpoints/step-*"), 1),
)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a search, all but its parents and its name."""
    for name in [name for name in os.environ if name.startswith("NAS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, widths in (("small", (16, 24, 32)), ("large", (24, 32, 48))):
        torch.manual_seed(len(name))
        export_network(
            build(network(*widths), 7),
            tmp_path / name,
            preprocessing=Preprocessing(resolution=16, mean=(0.5,) * 3, std=(0.3,) * 3),
            card=ModelCard(title=name),
            formats=("timm",),
        )
    return [
        *("search", "--data", "digits", "--device", "a100", "--max", "macs=500k"),
        *("--adapt-epochs", str(5 * EPOCHS), "--finetune-epochs", str(EPOCHS)),
        *("--evaluations", "6", "--finalists", "1", "--joint-epochs", str(EPOCHS)),
        *("--runs", str(tmp_path / "runs"), "--json"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("several", "moments"), [(True, STITCHED), (False, TRIED)])
def test_kill_9_in_each_phase(
    several: bool, moments: tuple[Moment, ...], options: list[str], tmp_path: Path
) -> None:
    small, large = str(tmp_path / "small"), str(tmp_path / "large")
    parents = ["--from", f"{small},{large}"]
    if not several:
        parents = ["--from", large, "--parents", small]
    options = [*options, *parents, "--name"]
    run, calm_run = tmp_path / "runs" / "killed", tmp_path / "runs" / "calm"
    rng, resume = random.Random(0), list[str]()
    for moment in moments:
        later = Moment(moment.phase, moment.traces, moment.least, rng.uniform(0, 0.05))
        killed_at(later, [*options, "killed", *resume], run)
        resume = ["--resume"]
    killed = Process([*options, "killed", *resume]).finish()
    left = [p for p in run.rglob("*") if p.name.endswith((".tmp", ".partial", ".writing"))]
    assert left == []

    calm = Process([*options, "calm"]).finish()
    for name in [str(p.relative_to(calm_run)) for p in calm_run.rglob("*.safetensors")]:
        if not name.startswith("export"):
            assert same(read_tensors(run / name), read_tensors(calm_run / name)), name
    for folder in {str(p.parent.relative_to(calm_run)) for p in calm_run.rglob("step-*")}:
        ours, theirs = (CheckpointFolder(path / folder).newest() for path in (run, calm_run))
        assert ours is not None
        assert theirs is not None
        assert same(ours.trained_weights(), theirs.trained_weights()), folder
    journals = [read_journal(path / "evaluations.jsonl") for path in (run, calm_run)]
    assert len({str([(e.digest, e.metrics) for e in one]) for one in journals}) == 1
    assert killed["best"]["digest"] == calm["best"]["digest"]
    timeless = [
        [{k: v for k, v in one.items() if k != "seconds"} for one in said["tried"]]
        for said in (killed, calm)
    ]
    assert timeless[0] == timeless[1]
    assert len(timeless[0]) == (0 if several else 2)
    ends = [path / "export" / killed["best"]["digest"] for path in (run, calm_run)]
    assert same(*(read_tensors(end / "model.safetensors") for end in ends))
    assert read_export(ends[0])
