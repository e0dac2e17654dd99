"""Runs and files that commands are given: nothing is lost, mixed up or unpickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from tiny_job import (
    FAILED,
    INTERRUPTED,
    USAGE,
    cache_known_table,
    every_architecture,
    nas,
    search,
    tree,
)

from nas.resolving import resolve
from results.journal import Evaluation, Journal
from results.store import RunDirectory
from search_space import dump_architecture, known, load_space
from search_space.errors import CorruptFileError
from supernet.network.timm_weights import load_timm_checkpoint
from supernet.training.checkpoints import Checkpoint, CheckpointFolder


def make_run(name: str = "run", **given: object) -> RunDirectory:
    """A run that was created and stopped at once."""
    options = {"data": "digits", "space": "pebble.yaml", "target_latency": "1s", **given}
    directory = RunDirectory.create(Path("runs") / name, resolve(options).to_dict(), {})
    directory.close()
    return directory


# Runs -------------------------------------------------------------------------------------------


def test_a_run_that_exists_is_not_overwritten(job: Path) -> None:
    make_run("mine")
    before = tree(job)
    ran = search("--name", "mine")
    assert ran.code == FAILED
    assert "runs/mine exists and is not empty" in ran.err
    assert "--resume" in ran.err
    assert "--name" in ran.err
    assert tree(job) == before
    Path("runs/notes").mkdir()
    (Path("runs/notes") / "a.txt").write_text("not a run")
    assert "exists and is not empty" in search("--name", "notes").err
    assert "exists and is not empty" in search("--name", "notes", "--resume").err
    assert (Path("runs/notes") / "a.txt").read_text() == "not a run"


def test_resuming_with_other_settings_shows_the_difference(job: Path) -> None:
    make_run("mine", seed=3)
    before = tree(job)
    ran = nas("search", "--name", "mine", "--resume", "--seed", "4", "--target-latency", "2s")
    assert ran.code == FAILED
    assert "seed: 3 -> 4" in ran.err
    assert "target_latency: 1s -> 2s" in ran.err
    assert "another --name" in ran.err
    assert "space" not in ran.err  # only what differs
    ran = nas("search", "--name", "mine", "--resume", "--space", "digits")
    assert ran.code == FAILED
    assert "-> digits" in ran.err
    assert tree(job) == before


def test_reports_and_exports_of_what_is_no_run(job: Path) -> None:
    make_run("mine")
    for command in ("report", "export"):
        ran = nas(command, "elsewhere")
        assert ran.code == FAILED
        assert "elsewhere is no run; give the directory of one, such as runs/NAME" in ran.err
        ran = nas(command, "runs")
        assert "runs is no run" in ran.err
    ran = nas("report", "runs/mine")
    assert ran.code == FAILED
    assert "has no result yet. Finish the run first: nas search" in ran.err
    assert "--resume" in ran.err


def test_export_of_a_network_that_the_run_does_not_know(job: Path) -> None:
    directory = make_run("mine")
    architectures = list(every_architecture(load_space("pebble.yaml")))[:3]
    with Journal(directory.path / "evaluations.jsonl") as journal:
        for i, architecture in enumerate(architectures):
            metrics = {"accuracy": 0.5, "latency_ms": 1.0}
            journal.append(Evaluation(architecture.digest, architecture.to_dict(), metrics, i))
    before = tree(job)
    near = architectures[0].digest[:-1] + ("0" if architectures[0].digest[-1] != "0" else "1")
    ran = nas("export", "runs/mine", near)
    assert ran.code == USAGE
    assert f"unknown architecture of this run '{near}'" in ran.err
    assert f"Did you mean '{architectures[0].digest}'" in ran.err
    for architecture in architectures:
        assert architecture.digest in ran.err
    assert "has not chosen a network yet" in nas("export", "runs/mine").err
    assert "holds no trained supernet" in nas("export", "runs/mine", architectures[1].digest).err
    assert tree(job) == before


def test_an_interrupted_command_says_how_to_continue(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nas.workflows.pipeline.run_search", interrupted)
    ran = search("--name", "mine")
    assert ran.code == INTERRUPTED
    assert "everything finished so far is saved" in ran.err
    assert "Continue with: nas search --data digits" in ran.err
    assert ran.err.rstrip().endswith("--name mine --resume")


# Files that lie ---------------------------------------------------------------------------------


def test_a_tampered_architecture_file(job: Path) -> None:
    swin = known("swin_t")
    text = dump_architecture(swin)
    file = Path("swin.yaml")
    file.write_text(text)
    assert json.loads(nas("show", file, "--json").out)["digest"] == swin.digest
    file.write_text(text.replace("mlp_ratio: 4", "mlp_ratio: 3", 1))
    ran = nas("show", file)
    assert ran.code == FAILED
    assert f"swin.yaml: the architecture says digest '{swin.digest}'" in ran.err
    assert "it was altered" in ran.err
    file.write_text(text.replace("width: 96", "width: 97"))
    ran = nas("show", file)
    assert ran.code == FAILED
    assert "swin.yaml: " in ran.err
    assert "97" in ran.err
    assert "multiple of 32" in ran.err
    file.write_text(text[: len(text) // 2])
    assert nas("show", file).code != 0


def test_a_tampered_config_of_an_export(job: Path) -> None:
    swin = known("swin_t")
    content = {"digest": swin.digest, "model_args": {"architecture": swin.to_dict()}}
    file = Path("config.json")
    file.write_text(json.dumps(content))
    assert nas("show", file).code == 0
    file.write_text(json.dumps(content).replace('"mlp_ratio": 4', '"mlp_ratio": 3', 1))
    ran = nas("show", file)
    assert ran.code == FAILED
    assert f"says digest '{swin.digest}'" in ran.err


class Bomb:
    """Unpickling it creates the file ``executed``."""

    def __reduce__(self) -> tuple[object, ...]:
        return open, ("executed", "w")


def explodes(content: bytes) -> bool:
    """Whether loading ``content`` the careless way runs the code in it; cleans up."""
    pickle.loads(content).close()
    exploded = Path("executed").exists()
    Path("executed").unlink(missing_ok=True)
    return exploded


def test_a_pickle_disguised_as_a_supernet_is_not_executed(job: Path) -> None:
    cache_known_table(job / "pebble.yaml")
    space = load_space("pebble.yaml")
    directory = make_run("trained")
    architecture = next(every_architecture(space))
    with Journal(directory.path / "evaluations.jsonl") as journal:
        journal.append(Evaluation(architecture.digest, architecture.to_dict(), {}, 0))
    checkpoints = directory.path / "supernet" / "checkpoints"
    kept = Checkpoint(step=1, weights={"w": torch.ones(1)}, optimizer={}, metadata={})
    folder = checkpoints / CheckpointFolder(checkpoints).write(kept)
    content = pickle.dumps(Bomb(), 2)
    assert explodes(content)
    (folder / "model.safetensors").write_bytes(content)
    before = tree(job)
    for ran in (
        search("--supernet", "runs/trained", "--name", "new"),
        nas("export", "runs/trained", architecture.digest),
    ):
        assert ran.code == FAILED
        said = " ".join(ran.err.split())
        assert f"{folder / 'model.safetensors'} was cut short or altered" in said
        assert not Path("executed").exists()
    after = tree(job)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"runs/trained/manifest.json", "runs/trained/latency.parquet"}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_disguised_as_a_timm_checkpoint_is_not_executed(
    job: Path, suffix: str, protocol: int
) -> None:
    content = pickle.dumps(Bomb(), protocol)
    assert explodes(content)
    file = Path(f"weights{suffix}")
    file.write_bytes(content)
    message = rf"weights\{suffix} is not a (whole safetensors|readable tensor) file"
    with pytest.raises(CorruptFileError, match=message):
        load_timm_checkpoint(known("convnext_t"), file)
    torch.save({"model": Bomb()}, file)
    with pytest.raises(CorruptFileError, match=message):
        load_timm_checkpoint(known("convnext_t"), file)
    assert not Path("executed").exists()
