"""The whole road, tiny but real: images to verified exports, and back from every damage.

One run is made once; tests that change a run work on copies of it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from tiny_job import Ran, nas, quick_measurements, tree, write_space

from nas.config import resolve
from nas.measuring import read_measured
from results.export import read_export
from results.files import read_json
from results.journal import Evaluation, read_journal
from results.pareto import non_dominated
from results.report_data import ReportData
from results.store import RunDirectory
from search_space import Architecture, load_space
from search_space.errors import CorruptFileError
from supernet import Supernet, build
from supernet.checkpoints import load_latest
from supernet.data import eval_batches, open_data
from supernet.training import evaluate

METRICS = {"accuracy", "loss", "latency_ms", "num_params", "macs", "activations"}
MEASURED = {"latency_ms", "latency_low_ms", "latency_high_ms"}
EVALUATIONS = 12


@dataclass(frozen=True)
class Job:
    """A folder with a space file, a folder of runs and a finished run ``one`` in it."""

    folder: Path
    said: Ran

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def run(self) -> Path:
        return self.runs / "one"

    def search(self, name: str, *more: object) -> Ran:
        return nas(
            "search",
            *("--data", "digits", "--space", self.folder / "pebble.yaml"),
            *("--target-latency", "1s", "--epochs", 2, "--finetune-epochs", 1),
            *("--evaluations", EVALUATIONS, "--population", 6),
            *("--runs", self.runs, "--name", name, "--json", *more),
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


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("job")
    write_space(folder)
    with pytest.MonkeyPatch.context() as patch, quick_measurements():
        for name in [name for name in os.environ if name.startswith("NAS_")]:
            patch.delenv(name)
        patch.setenv("NAS_CACHE", str(folder / "cache"))
        job = Job(folder, Ran(0, "", ""))
        yield Job(folder, job.search("one"))


def front_of(said: Ran) -> list[tuple[str, float, float]]:
    assert said.code == 0, said.err
    return [
        (member["digest"], member["predicted"]["loss"], member["predicted"]["latency_ms"])
        for member in json.loads(said.out)["front"]
    ]


def without_times(run: Path) -> list[tuple[Any, ...]]:
    return [
        (e.index, e.digest, e.status, dict(e.metrics), dict(e.architecture))
        for e in read_journal(run / "evaluations.jsonl")
    ]


# What a run gives -------------------------------------------------------------------------------


def test_json_has_the_documented_keys(job: Job) -> None:
    assert job.said.code == 0, job.said.err
    said = json.loads(job.said.out)
    assert set(said) == {"run", "status", "best", "front"}
    assert said["run"] == str(job.run)
    assert said["status"] == "complete"
    best = said["best"]
    documented = {"digest", "architecture", "predicted", "measured", "test_accuracy", "exports"}
    assert set(best) == documented | {"test_accuracy_before"}
    assert Architecture.from_dict(best["architecture"]).digest == best["digest"]
    assert set(best["predicted"]) == METRICS
    assert set(best["measured"]) == MEASURED
    assert best["measured"]["latency_low_ms"] <= best["measured"]["latency_ms"]
    assert best["measured"]["latency_ms"] <= best["measured"]["latency_high_ms"]
    assert best["predicted"]["latency_ms"] <= 1000
    # What so short a training reaches varies with the machine; that it learns does not.
    first, last = ReportData.from_dict(read_json(job.run / "result.json")).training
    assert first.loss_largest is not None
    assert last.loss_largest is not None
    assert last.loss_largest < first.loss_largest
    for member in said["front"]:
        assert set(member) == {"digest", "architecture", "predicted", "measured"}
        assert set(member["predicted"]) == METRICS
        assert set(member["measured"]) == MEASURED
    assert best["digest"] in {member["digest"] for member in said["front"]}


def test_the_test_accuracy_is_that_of_the_exported_network(job: Job) -> None:
    best = json.loads(job.said.out)["best"]
    assert best["test_accuracy_before"] != best["test_accuracy"]
    path = f"local-dir:{job.run / 'export' / best['digest']}"
    network = timm.create_model(path, pretrained=True).eval()
    data = open_data("digits", 16, seed=0)
    assert evaluate(network, eval_batches(data.test)).accuracy == best["test_accuracy"]


def test_the_front_is_the_front_of_the_journal(job: Job) -> None:
    found = {
        e.digest: (e.metrics["loss"], e.metrics["latency_ms"])
        for e in read_journal(job.run / "evaluations.jsonl")
    }
    assert len(found) == EVALUATIONS
    best = {
        digest
        for digest, point in found.items()
        if not any(a <= point[0] and t <= point[1] and (a, t) != point for a, t in found.values())
    }
    front = front_of(job.said)
    assert {digest for digest, *_ in front} == best
    assert [(loss, latency) for _, loss, latency in front] == [
        found[digest] for digest, *_ in front
    ]


def test_the_network_with_the_smallest_validation_loss_is_chosen(job: Job) -> None:
    """Of the finalists' own checkpoints, evaluated anew; finalists are the front's best by loss."""
    result = ReportData.from_dict(read_json(job.run / "result.json"))
    best = sorted(result.front, key=lambda member: member.predicted["loss"] or 0.0)[:3]
    space = load_space(str(job.folder / "pebble.yaml"))
    data = open_data("digits", space.resolutions[-1], seed=0)
    losses = {}
    for member in best:
        checkpoint = load_latest(job.run / "finetune" / member.digest / "checkpoints")
        assert checkpoint is not None
        network = build(Architecture.from_dict(member.architecture), data.num_classes)
        network.load_state_dict(checkpoint.weights)
        losses[member.digest] = evaluate(network, eval_batches(data.validation)).loss
    assert len(list((job.run / "finetune").iterdir())) == len(losses)
    assert result.chosen is not None
    assert result.chosen.digest == min(losses, key=lambda digest: losses[digest])


def test_a_search_for_accuracy_has_the_front_of_accuracy(job: Job) -> None:
    config = job.folder / "accuracy.yaml"
    config.write_text("search: {objective: accuracy}\n")
    options = ("--data", "digits", "--space", job.folder / "pebble.yaml", "--runs", job.runs)
    assert nas("train", *options, "--name", "weights", "--epochs", 1).code == 0
    weights = ("--supernet", job.runs / "weights", "--epochs", 1)
    said = job.search("by-accuracy", "--config", config, *weights)
    assert said.code == 0, said.err
    result = ReportData.from_dict(read_json(job.runs / "by-accuracy" / "result.json"))
    points = [(p.metrics["accuracy"], p.metrics["latency_ms"]) for p in result.evaluated]
    best = {points[i] for i in np.flatnonzero(non_dominated(points, [True, False]))}
    found = [(m.predicted["accuracy"], m.predicted["latency_ms"]) for m in result.front]
    assert len(found) == len(best)
    assert set(found) == best


def test_exports_are_there_and_verified(job: Job) -> None:
    best = json.loads(job.said.out)["best"]
    exported = read_export(job.run / "export" / best["digest"])
    assert [item.format for item in exported] == ["timm", "onnx", "torch_export"]
    assert [item.path for item in exported] == [item["path"] for item in best["exports"]]
    for item in exported:
        assert Path(item.path).is_file()
        assert item.max_difference is not None
        assert item.tolerance is not None
        assert item.max_difference <= item.tolerance
    assert not list((job.run / "export").glob(".*"))


def test_the_report_shows_the_chosen_network(job: Job) -> None:
    digest = json.loads(job.said.out)["best"]["digest"]
    html = (job.run / "report.html").read_text()
    assert digest in html
    assert "http://" not in html.replace("http://www.w3.org", "")  # it needs no network
    data = ReportData.from_dict(read_json(job.run / "result.json"))
    assert data.chosen is not None
    assert data.chosen.digest == digest
    assert [epoch.epoch for epoch in data.training] == [0, 1]
    assert len(data.evaluated) == EVALUATIONS
    names = [phase.name for phase in data.phases]
    for phase in ("latency table", "training", "searching", "measuring", "fine-tuning"):
        assert any(phase in name for name in names)
    (job.run / "report.html").unlink()
    assert nas("report", job.run).code == 0
    assert (job.run / "report.html").read_text() == html


def test_the_snapshot_equals_the_journal(job: Job) -> None:
    rows = pd.read_parquet(job.run / "evaluations.parquet").to_dict("records")
    journal = read_journal(job.run / "evaluations.jsonl")
    assert len(rows) == len(journal) == EVALUATIONS
    for row, evaluation in zip(rows, journal, strict=True):
        again = Evaluation(
            digest=row["digest"],
            architecture=json.loads(row["architecture"]),
            metrics={name: row[name] for name in METRICS},
            index=row["index"],
            status=row["status"],
            seconds=row["seconds"],
        )
        assert again == evaluation
        assert row["error"] is None or pd.isna(row["error"])


def test_the_stored_configuration_is_the_whole_one(job: Job, tmp_path: Path) -> None:
    file = job.run / "config.yaml"
    plan = nas("search", "--config", file, "--name", "again", "--dry-run", "--json")
    stored = resolve({}, str(file)).to_dict()
    assert json.loads(plan.out)["config"] == stored
    assert stored["search"] | {"evaluations": EVALUATIONS, "population": 6} == stored["search"]
    assert stored["space"]["name"] == "pebble"


def test_accuracy_of_the_journal_is_that_of_the_supernet(job: Job) -> None:
    """Evaluated again by hand: weights from the checkpoint, the validation images, an argmax."""
    from supernet.data import open_data

    space = load_space(str(job.folder / "pebble.yaml"))
    supernet = Supernet(space, 10).eval()
    checkpoint = load_latest(job.run / "supernet" / "checkpoints")
    assert checkpoint is not None
    supernet.load_state_dict(checkpoint.weights)
    validation = open_data("digits", 16).validation
    images, labels = validation.__getitems__(list(range(len(validation))))
    for evaluation in read_journal(job.run / "evaluations.jsonl")[:4]:
        network = supernet.extract(Architecture.from_dict(evaluation.architecture)).eval()
        with torch.inference_mode():
            right = int((network(images).argmax(1) == labels).sum())
        assert evaluation.metrics["accuracy"] == pytest.approx(right / len(labels), abs=1e-9)


# Continuing -------------------------------------------------------------------------------------


def test_resuming_a_complete_run_changes_nothing(job: Job) -> None:
    before = tree(job.run)
    again = job.resume("one")
    assert again.code == 0
    assert json.loads(again.out) == json.loads(job.said.out)
    assert tree(job.run) == before
    assert job.search("one", "--resume").out == again.out
    refused = job.search("one")
    assert refused.code == 1
    assert "exists and is not empty" in refused.err
    assert tree(job.run) == before


def test_damaged_tables_are_reported_and_made_again(job: Job) -> None:
    run = job.copy("tables")
    for name in ("latency.parquet", "measured.json", "manifest.json"):
        halve(run / name)
    said = job.resume("tables")
    assert front_of(said) == front_of(job.said)
    assert f"{run / 'latency.parquet'}: not a readable Parquet file" in said.err
    assert "The table is measured again" in said.err
    assert f"{run / 'measured.json'} cannot be read" in said.err
    assert "The networks are measured again" in said.err
    assert f"{run / 'manifest.json'} cannot be read" in said.err
    assert without_times(run) == without_times(job.run)
    assert (run / "latency.parquet").read_bytes() == (job.run / "latency.parquet").read_bytes()
    assert read_json(run / "measured.json").keys() == read_json(job.run / "measured.json").keys()
    assert read_export(run / "export" / json.loads(said.out)["best"]["digest"])
    assert read_json(run / "manifest.json")["status"] == "complete"


def test_measurements_of_another_form_are_not_used(job: Job, tmp_path: Path) -> None:
    content = read_json(job.run / "measured.json")
    assert read_measured(job.run / "measured.json").keys() == content.keys()
    first = next(iter(content))
    for wrong in (content[first][:1], [], [{"latency_ms": 1.0}] * 2, None):
        file = tmp_path / "measured.json"
        file.write_text(json.dumps({**content, first: wrong}))
        with pytest.raises(CorruptFileError, match=r"measured\.json holds no measurements"):
            read_measured(file)
    assert read_measured(tmp_path / "absent.json") == {}


def test_damaged_journal_and_checkpoints_are_reported_and_recovered_from(job: Job) -> None:
    run = job.copy("journal")
    journal = run / "evaluations.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    digest = json.loads(job.said.out)["best"]["digest"]
    newest = []
    for folder in (run / "supernet" / "checkpoints", run / "finetune" / digest / "checkpoints"):
        newest.append(max(folder.glob("step-*")))
        halve(newest[-1] / "model.safetensors")
    said = job.resume("journal")
    assert front_of(said) == front_of(job.said)
    assert f"{journal}, line {EVALUATIONS} (the last): it is cut short" in said.err
    assert "that evaluation will be made again" in said.err
    for folder in newest:
        assert f"checkpoint {folder.name} is damaged and left out" in said.err
        assert folder.with_name(f"damaged-{folder.name}").is_dir()
    assert without_times(run) == without_times(job.run)
    # trained again from the checkpoint before, to the very weights
    for part in ("supernet", f"finetune/{digest}"):
        weights = [load_latest(root / part / "checkpoints") for root in (run, job.run)]
        assert weights[0] is not None
        assert weights[1] is not None
        for name, tensor in weights[1].weights.items():
            assert torch.equal(weights[0].weights[name], tensor)


def test_a_complete_run_whose_result_or_export_is_damaged_is_mended(job: Job) -> None:
    run = job.copy("complete", status="complete")
    digest = json.loads(job.said.out)["best"]["digest"]
    halve(run / "result.json")
    said = job.resume("complete")
    assert front_of(said) == front_of(job.said)
    assert "result.json cannot be read" in said.err
    assert "made again" in said.err
    halve(run / "export" / digest / "model.onnx")
    half_written = run / "export" / f".{digest}.partial"
    half_written.mkdir()
    said = job.resume("complete")
    assert said.code == 0
    assert "model.onnx was altered or cut short" in said.err
    assert read_export(run / "export" / digest)
    assert not half_written.exists()
    assert without_times(run) == without_times(job.run)


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


# After a run ------------------------------------------------------------------------------------


def test_export_of_any_evaluated_network(job: Job, tmp_path: Path) -> None:
    chosen = json.loads(job.said.out)["best"]["digest"]
    other = next(d for _, d, *_ in without_times(job.run) if d != chosen)
    before = tree(job.run)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for folder in (mine, mine / "thesis.txt"):
        refused = nas("export", job.run, other, "--output", folder)
        assert refused.code == 2
        assert f"--output {folder} exists and is no export" in refused.err
        assert tree(mine) == {"thesis.txt": b"years of work"}
    refused = nas("export", job.run, "")
    assert refused.code == 2
    assert f"'' begins {EVALUATIONS} digests: " in refused.err
    said = nas("export", job.run, other[:8], "--output", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    exported = read_export(tmp_path / "out")
    assert [item["path"] for item in json.loads(said.out)] == [item.path for item in exported]
    assert read_json(tmp_path / "out" / "config.json")["digest"] == other
    assert "inherited from the supernet" in (tmp_path / "out" / "README.md").read_text()
    assert tree(job.run) == before


def test_export_of_the_chosen_network_has_the_finetuned_weights(job: Job, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    chosen = json.loads(job.said.out)["best"]["digest"]
    said = nas("export", job.run, "--output", tmp_path / "out")
    assert said.code == 0, said.err
    again, first = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", job.run / "export" / chosen)
    )
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], first[name]) for name in first)
    # asked for by its digest, it is exported as inherited, and beside the fine-tuned one
    export = job.copy("both") / "export"
    said = nas("export", job.runs / "both", chosen, "--json")
    assert said.code == 0, said.err
    inherited = load_file(export / f"{chosen}-inherited" / "model.safetensors")
    assert any(not torch.equal(inherited[name], first[name]) for name in first)
    kept = load_file(export / chosen / "model.safetensors")
    assert all(torch.equal(kept[name], first[name]) for name in first)


def test_a_trained_supernet_serves_other_searches(job: Job) -> None:
    options = ("--data", "digits", "--space", job.folder / "pebble.yaml", "--runs", job.runs)
    said = nas("train", *options, "--name", "shared", "--epochs", 2, "--json")
    assert said.code == 0, said.err
    shared = job.runs / "shared"
    assert json.loads(said.out) == {"run": str(shared), "status": "trained", "epochs": 2}
    before = tree(shared)
    latencies = sorted(e[3]["latency_ms"] for e in without_times(job.run))
    budget = latencies[len(latencies) // 2]
    limits = ("--target-latency", f"{budget:.6f}ms", "--max", "params=12k")
    found = job.search("with-shared", "--supernet", shared, *limits)
    assert found.code == 0, found.err
    evaluated = without_times(job.runs / "with-shared")
    assert 0 < len(evaluated) == len({digest for _, digest, *_ in evaluated}) <= EVALUATIONS
    for _, _, _, metrics, _ in evaluated:
        assert metrics["latency_ms"] <= budget + 1e-6
        assert metrics["num_params"] <= 12_000
    # the same seed and settings train the same weights as the first run's own
    ours = load_latest(shared / "supernet" / "checkpoints")
    theirs = load_latest(job.run / "supernet" / "checkpoints")
    assert ours is not None
    assert theirs is not None
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)
    assert not list((job.runs / "with-shared" / "supernet").iterdir())
    data = ReportData.from_dict(read_json(job.runs / "with-shared" / "result.json"))
    assert any(str(shared) in note for note in data.notes)

    other = job.folder / "other.yaml"
    other.write_text((job.folder / "pebble.yaml").read_text().replace("[16, 24]", "[16, 32]"))
    listed = {path.name for path in job.runs.iterdir()}
    refused = job.search("other-space", "--supernet", shared, "--space", other)
    assert refused.code == 1
    assert f"the supernet of {shared} was trained for another space" in refused.err
    refused = job.search("other-seed", "--supernet", shared, "--seed", 1)
    assert refused.code == 1
    assert "on some that are now for validation" in refused.err
    assert "give the same --data and --seed" in refused.err
    refused = job.search("nothing", "--supernet", job.runs / "shard")
    assert refused.code == 1
    assert "holds no trained supernet; train one with `nas train`" in refused.err
    assert tree(shared) == before
    shutil.rmtree(max((shared / "supernet" / "checkpoints").glob("step-*")))
    refused = job.search("unfinished", "--supernet", shared)
    assert refused.code == 1
    assert "is trained for 1 of 2 epochs; finish it with --resume" in refused.err
    assert {path.name for path in job.runs.iterdir()} == listed


def test_changed_images_are_not_mixed_into_a_run(job: Job) -> None:
    run = job.copy("images")
    manifest = read_json(run / "manifest.json")
    (run / "manifest.json").write_text(json.dumps({**manifest, "data": "000000000000"}))
    before = tree(run)
    said = job.resume("images")
    assert said.code == 1
    assert "the images of 'digits' changed since this run began" in said.err
    after = tree(run)
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {
        "manifest.json"  # notes how long the images were read
    }


def test_a_run_that_another_process_writes_is_left_alone(job: Job) -> None:
    config = resolve({"data": "digits", "target_latency": "1s"})
    path = job.runs / "locked"
    with RunDirectory.create(path, config.to_dict(), {"status": "running"}):
        said = job.resume("locked")
        assert said.code == 1
        assert f"is being written by another process (process {os.getpid()})" in said.err
