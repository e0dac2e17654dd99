"""``nas finetune``: what it refuses, what it ends with, and what survives which death."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from tiny_job import FAILED, USAGE, Job, evaluated, nas, write_space
from tiny_training import config

from nas.resolving import resolve
from nas.workflows.finetuning import Finetuning
from results.store import RunDirectory
from search_space import load_space
from search_space.errors import DataError, RunError
from supernet import build
from supernet.cluster.trials import Trial, TrialFolders, best_trial
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.training.checkpoints import MARKER, CheckpointFolder
from supernet.training.train import evaluate

open_few = partial(open_data, "digits", 16, test_fraction=0.9, validation_fraction=0.7)


# The command --------------------------------------------------------------------------------------


def chosen(job: Job) -> str:
    return str(json.loads(job.said.out)["best"]["digest"])


def refused(*arguments: object, code: int = FAILED) -> str:
    ran = nas("finetune", *arguments)
    assert ran.code == code, ran.err
    assert not ran.out
    return " ".join(ran.err.split())


def test_what_is_no_finished_search_is_refused(job: Path) -> None:
    def made(name: str, status: str = "running", **given: object) -> Path:
        asked = {"data": "digits", "space": "pebble.yaml", "target_latency": "1s", **given}
        plain = resolve(asked).to_dict()
        RunDirectory.create(Path("runs") / name, plain, {"status": status}).close()
        return Path("runs") / name

    assert "nowhere is no run" in refused("nowhere")
    said = refused(made("begun"))
    assert "is not finished. Finish it first: nas search --config runs/begun" in said
    assert "nas search --supernet runs/trained" in refused(made("trained", "trained"))
    assert "searched without images" in refused(made("free", data=None))
    network = {"data": "digits", "architecture": load_space("digits").smallest.to_dict()}
    plain = resolve(network, with_budget=False).to_dict()
    RunDirectory.create(Path("runs/network"), plain, {"status": "complete"}).close()
    assert "trained one network and searched nothing" in refused("runs/network")
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        *("begun", "free", "network", "trained")
    ]


def test_braces_in_names_of_runs_are_plain_text(
    finished: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: Finetuning) -> None:
        text = (run.path / "config.yaml").read_text()
        again = f"nas finetune '{finished.runs}/a{{b}}' --name 's{{2}}' --resume"
        raise RunError("stop" if again in text else text)

    monkeypatch.setattr(Finetuning, "all_phases", stop)
    copy = finished.copy("a{b}", "complete")
    assert "error: stop" in refused(copy, "--name", "s{2}")
    shutil.rmtree(copy)


def test_wrong_values_are_refused(finished: Job) -> None:
    before = {path.name for path in finished.runs.iterdir()}
    digest = chosen(finished)
    near = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    said = refused(finished.run, "--networks", near, code=USAGE)
    assert f"Nearest: {digest}" in said
    assert "--networks front --dry-run" in said
    assert "is no architecture that one evaluated" in refused(
        finished.run, "--networks", f"{digest},", code=USAGE
    )
    two = ",".join(
        [digest for _, digest, status, *_ in evaluated(finished.run) if status == "ok"][:2]
    )
    said = refused(finished.run, "--networks", two, "--trials", 1, code=USAGE)
    assert "--trials 1 is too few for 2 networks" in said
    assert "plain name" in refused(finished.run, "--name", "a/b", code=USAGE)
    for option in ("--trials", "--epochs", "--workers"):
        assert "0 is not in the range" in refused(finished.run, option, 0, code=USAGE)
    assert "nothing answers at 127.0.0.1:1" in refused(finished.run, "--address", "127.0.0.1:1")
    assert "exists and is not empty" in refused(finished.run, "--name", "one")
    assert "is no fine-tuning" in refused(finished.run, "--name", "one", "--resume")
    assert {path.name for path in finished.runs.iterdir()} == before


def test_images_that_changed_are_refused(finished: Job) -> None:
    run = finished.copy("changed", "complete")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "data": "0123456789ab"}))
    assert "the images of 'digits' changed since" in refused(run)
    assert not (finished.runs / "changed-finetuned").exists()


def test_a_dry_run_says_what_would_be_tried(finished: Job) -> None:
    ran = nas("finetune", finished.run, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    plan = json.loads(ran.out)
    searched = json.loads(finished.said.out)
    assert plan["networks"].keys() == {searched["best"]["digest"]}
    assert plan["hyperparameters"]["lr"]["recipe"] == plan["config"]["search"]["finetune"]["lr"]
    assert plan["config"]["epochs"] == 1
    assert plan["config"]["trials"] == 16
    ran = nas("finetune", finished.run, "--networks", "front", "--dry-run", "--json")
    front = {member["digest"] for member in searched["front"]}
    assert json.loads(ran.out)["networks"].keys() == front
    short = nas("finetune", finished.run, "--networks", chosen(finished)[:10], "--dry-run")
    assert f"network {chosen(finished)}: validation accuracy" in short.out
    assert not Path(plan["run"]).exists()


# Ray ----------------------------------------------------------------------------------------------


def accuracy_of(export: Path) -> float:
    import timm

    data = open_data("digits", 16, validation_fraction=0.2, seed=0)
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    return evaluate(model, eval_batches(data.test)).accuracy


@pytest.mark.slow
def test_a_fine_tuning_ends_with_its_best_trial_exported(finished: Job) -> None:
    front = {member["digest"] for member in json.loads(finished.said.out)["front"]}
    count = len(front) + 4
    options = ("--networks", "front", "--trials", count, "--epochs", 4, "--workers", 2, "--json")
    ran = nas("finetune", finished.run, *options)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)  # and nothing else on standard output
    path = Path(found["run"])
    best, trials = found["best"], found["trials"]
    assert found["status"] == "complete"
    assert len(trials) == count
    assert {t["network"] for t in trials if t["recipe"]} == front
    assert all(t["status"] == "finished" for t in trials if t["recipe"])
    for each in trials:
        epochs = [epoch["epoch"] for epoch in each["epochs"]]
        assert epochs == list(range(len(epochs)))
        assert len(epochs) == 4 if each["status"] == "finished" else 0 < len(epochs) < 4
    last = {t["number"]: t["epochs"][-1] for t in trials if t["status"] == "finished"}
    smallest = min(epoch["validation_loss"] for epoch in last.values())
    assert best["validation_loss"] == last[best["trial"]]["validation_loss"] == smallest
    assert json.loads((path / "trials.json").read_text()) == trials
    export = path / "export" / best["digest"]
    assert accuracy_of(export) == pytest.approx(best["test_accuracy"], abs=1e-3)
    assert {item["format"] for item in best["exports"]} >= {"onnx"}
    page = (path / "report.html").read_text()
    assert 'id="trials"' in page
    assert best["digest"] in page
    kept = {folder.name for folder in (path / "trials").iterdir()}
    winners = {item["trial"] for item in found["networks"].values()}
    keys = {Trial.from_dict(t).key for t in trials if t["number"] in winners}
    assert kept == {MARKER, *keys}
    # again: nothing is left to do, and other settings are refused
    again = nas("finetune", finished.run, "--resume", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out) == found
    more = refused(finished.run, "--resume", "--trials", count + 2)
    assert f"trials: {count} -> {count + 2}" in more


@pytest.mark.slow
def test_the_first_trial_is_the_search_s_own_fine_tuning(finished: Job) -> None:
    ran = nas("finetune", finished.run, "--trials", 1, "--name", "own", "--json")
    assert ran.code == 0, ran.err
    only = json.loads(ran.out)["trials"][0]
    own = CheckpointFolder(finished.run / "finetune" / only["network"] / "checkpoints").newest()
    assert own is not None
    line = own.metadata["state"]["history"][-1]
    assert only["epochs"][-1]["validation_loss"] == pytest.approx(line["val_loss"][""], rel=1e-3)
    assert only["epochs"][-1]["loss"] == pytest.approx(line["losses"][""], rel=1e-3)


def command(job: Job, *more: object) -> list[str]:
    return [sys.executable, "-m", "nas.cli.main", "finetune", *map(str, (job.run, *more))]


@pytest.mark.slow
def test_a_killed_fine_tuning_goes_on(finished: Job) -> None:
    options = ("--trials", 3, "--epochs", 10, "--name", "killed")
    table = finished.runs / "killed" / "trials.json"
    process = subprocess.Popen(command(finished, *options), start_new_session=True)
    try:
        while process.poll() is None and not _begun(table, 2):
            time.sleep(0.2)
        assert process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = [Trial.from_dict(item) for item in json.loads(table.read_text())]
    ran = nas("finetune", finished.run, "--name", "killed", "--resume", "--json")
    assert ran.code == 0, ran.err
    after = [Trial.from_dict(item) for item in json.loads(ran.out)["trials"]]
    assert len(after) == 3
    for old, new in zip(before, after, strict=False):
        assert new.key == old.key
        # what was trained before is not trained again: times are those of then
        assert new.epochs[: len(old.epochs)] == old.epochs
    assert best_trial(after) is not None


def _begun(table: Path, number: int) -> bool:
    """Whether that trial has reported and can still be killed."""
    if not table.exists():
        return False
    trials = json.loads(table.read_text())
    return len(trials) >= number and len(trials[-1]["epochs"]) >= 2


@pytest.mark.slow
def test_a_trial_survives_its_worker(tmp_path: Path) -> None:
    from supernet.cluster.tuning import Tuning, tune_networks

    space = load_space(str(write_space(tmp_path)))
    torch.manual_seed(0)
    networks = {space.smallest.digest: build(space.smallest, 10)}
    folders = TrialFolders.at(tmp_path, "trials")
    notices: list[str] = []
    killed: list[int] = []
    seen: list[Trial] = []

    def kill(trials: Sequence[Trial]) -> None:
        if not killed and trials and len(trials[0].epochs) >= 3:
            seen.extend(trials)
            for process in psutil.Process().children(recursive=True):
                if "ray::ImplicitFunc" in " ".join(process.cmdline()):
                    killed.append(process.pid)
                    os.kill(process.pid, signal.SIGKILL)

    run = partial(tune_networks, networks, open_few(), open_images=open_few, folders=folders)
    settings = config(epochs=60, snapshot_steps=1)
    trials = run(settings, Tuning(trials=1), progress=kill, notice=notices.append)
    assert len(killed) == 1
    assert any("trial 1 lost its worker" in notice for notice in notices)
    assert [t.status for t in trials] == ["finished"]
    assert trials[0].epochs[: len(seen[0].epochs)] == seen[0].epochs
    assert len(trials[0].epochs) == 60


@pytest.mark.slow
def test_what_no_trial_can_be_trained_on_ends_all_of_them(tmp_path: Path) -> None:
    from supernet.cluster.tuning import Tuning, tune_networks

    space = load_space(str(write_space(tmp_path)))
    network = build(space.smallest, 10)
    others = partial(open_data, "digits", 16, test_fraction=0.9, validation_fraction=0.6)
    run = partial(
        tune_networks,
        {space.smallest.digest: network},
        open_few(),
        folders=TrialFolders.at(tmp_path, "trials"),
    )
    with pytest.raises(DataError, match=r"finds other images \(fingerprint"):
        run(config(), Tuning(trials=3), open_images=others)
    with pytest.raises(RunError, match=r"64 workers with 1 CPU each do not fit"):
        run(config(), Tuning(trials=64, workers=64), open_images=open_few)
    wild = config(lr=1e38, optimizer="sgd", clip_norm=0, max_bad_steps=0)
    trials = run(wild, Tuning(trials=1), open_images=open_few)
    assert [t.status for t in trials] == ["diverged"]
    assert "diverged at step" in trials[0].error
    assert math.isnan(trials[0].validation_loss)
    assert best_trial(trials) is None
