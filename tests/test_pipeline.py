"""The whole road, tiny but real: images to verified exports, and what a run serves for later.

One run is made once; tests that change a run work on copies of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from tiny_job import EVALUATIONS, Job, evaluated, front_of, nas, tree

from nas.cli.console import Console
from nas.resolving import resolve
from nas.workflows.exporting import export_from_run
from results.export.write import read_export
from results.files import read_json
from results.journal import Evaluation, read_journal
from results.pareto import non_dominated
from results.report.data import read_result
from search_space import Architecture, load_space
from search_space.errors import UsageError
from supernet import Supernet, build
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.train import evaluate

METRICS = {
    *("accuracy", "balanced_accuracy", "loss", "validation_images"),
    *("latency_ms", "num_params", "macs", "activations"),
}
MEASURED = {"latency_ms", "latency_low_ms", "latency_high_ms"}


# What a run gives -------------------------------------------------------------------------------


def test_json_has_the_documented_keys(finished: Job) -> None:
    assert finished.said.code == 0, finished.said.err
    said = json.loads(finished.said.out)
    assert set(said) == {"run", "status", "best", "front", "beaten_by"}
    assert said["run"] == str(finished.run)
    assert said["status"] == "complete"
    best = said["best"]
    documented = {"digest", "architecture", "predicted", "measured", "test_accuracy", "exports"}
    assert set(best) == documented | {"test_accuracy_before", "quality", "class_names"}
    assert Architecture.from_dict(best["architecture"]).digest == best["digest"]
    assert set(best["predicted"]) == METRICS
    assert set(best["measured"]) == MEASURED
    assert best["measured"]["latency_low_ms"] <= best["measured"]["latency_ms"]
    assert best["measured"]["latency_ms"] <= best["measured"]["latency_high_ms"]
    assert best["predicted"]["latency_ms"] <= 1000
    # What so short a training reaches varies with the machine; that it learns does not.
    first, last = read_result(finished.run / "result.json").training
    assert first.loss_largest is not None
    assert last.loss_largest is not None
    assert last.loss_largest < first.loss_largest
    for member in said["front"]:
        assert set(member) == {"digest", "architecture", "predicted", "measured"}
        assert set(member["predicted"]) == METRICS
        assert set(member["measured"]) == MEASURED
    assert best["digest"] in {member["digest"] for member in said["front"]}


def test_the_test_accuracy_is_that_of_the_exported_network(finished: Job) -> None:
    best = json.loads(finished.said.out)["best"]
    assert best["test_accuracy_before"] != best["test_accuracy"]
    path = f"local-dir:{finished.run / 'export' / best['digest']}"
    network = timm.create_model(path, pretrained=True).eval()
    data = open_data("digits", 16, seed=0)
    quality = evaluate(network, eval_batches(data.test)).to_dict()
    assert quality["accuracy"] == best["test_accuracy"]
    assert quality["confusion"] == best["quality"]["test"]["confusion"]
    assert best["quality"]["validation"]["images"] == len(data.validation)
    assert best["class_names"] == list(data.class_names)


def test_the_front_is_the_front_of_the_journal(finished: Job) -> None:
    found = {
        e.digest: (e.metrics["loss"], e.metrics["latency_ms"])
        for e in read_journal(finished.run / "evaluations.jsonl")
    }
    assert len(found) == EVALUATIONS
    best = {
        digest
        for digest, point in found.items()
        if not any(a <= point[0] and t <= point[1] and (a, t) != point for a, t in found.values())
    }
    front = front_of(finished.said)
    assert {digest for digest, *_ in front} == best
    assert [(loss, latency) for _, loss, latency in front] == [
        found[digest] for digest, *_ in front
    ]


def test_the_network_with_the_smallest_validation_loss_is_chosen(finished: Job) -> None:
    """Of the finalists' own checkpoints, evaluated anew; finalists are the front's best by loss."""
    result = read_result(finished.run / "result.json")
    best = sorted(result.front, key=lambda member: member.predicted["loss"] or 0.0)[:3]
    space = load_space(str(finished.folder / "pebble.yaml"))
    data = open_data("digits", space.resolutions[-1], seed=0)
    losses = {}
    for member in best:
        checkpoint = CheckpointFolder(
            finished.run / "finetune" / member.digest / "checkpoints"
        ).newest()
        assert checkpoint is not None
        network = build(Architecture.from_dict(member.architecture), data.num_classes)
        network.load_state_dict(checkpoint.weights)
        losses[member.digest] = evaluate(network, eval_batches(data.validation)).loss
    assert len(list((finished.run / "finetune").iterdir())) == len(losses)
    assert result.chosen is not None
    assert result.chosen.digest == min(losses, key=lambda digest: losses[digest])


def test_a_search_for_accuracy_has_the_front_of_accuracy(finished: Job) -> None:
    config = finished.folder / "accuracy.yaml"
    config.write_text("search: {objective: accuracy}\n")
    assert nas("train", *finished.options, "--name", "weights", "--epochs", 1).code == 0
    weights = ("--supernet", finished.runs / "weights", "--epochs", 1)
    said = finished.search("by-accuracy", "--config", config, *weights)
    assert said.code == 0, said.err
    result = read_result(finished.runs / "by-accuracy" / "result.json")
    points = [(p.predicted["accuracy"], p.predicted["latency_ms"]) for p in result.evaluated]
    best = {points[i] for i in np.flatnonzero(non_dominated(points, [True, False]))}
    found = [(m.predicted["accuracy"], m.predicted["latency_ms"]) for m in result.front]
    assert len(found) == len(best)
    assert set(found) == best


def test_exports_are_there_and_verified(finished: Job) -> None:
    best = json.loads(finished.said.out)["best"]
    exported = read_export(finished.run / "export" / best["digest"])
    formats = [item.format for item in exported if item.format != "plain_timm"]
    assert formats == ["timm", "onnx", "torch_export"]
    assert [item.path for item in exported] == [item["path"] for item in best["exports"]]
    for item in exported:
        assert Path(item.path).is_file()
        assert item.max_difference is not None
        assert item.tolerance is not None
        assert item.max_difference <= item.tolerance
    assert not list((finished.run / "export").glob(".*"))


def test_the_report_shows_the_chosen_network(finished: Job) -> None:
    digest = json.loads(finished.said.out)["best"]["digest"]
    html = (finished.run / "report.html").read_text()
    assert digest in html
    assert "http://" not in html.replace("http://www.w3.org", "")  # it needs no network
    data = read_result(finished.run / "result.json")
    assert data.chosen is not None
    assert data.chosen.digest == digest
    assert [epoch.epoch for epoch in data.training] == [0, 1]
    assert len(data.evaluated) == EVALUATIONS
    names = [phase.name for phase in data.phases]
    for phase in ("latency table", "training", "searching", "measuring", "fine-tuning"):
        assert any(phase in name for name in names)
    (finished.run / "report.html").unlink()
    assert nas("report", finished.run).code == 0
    assert (finished.run / "report.html").read_text() == html


def test_the_snapshot_equals_the_journal(finished: Job) -> None:
    rows = pd.read_parquet(finished.run / "evaluations.parquet").to_dict("records")
    journal = read_journal(finished.run / "evaluations.jsonl")
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


def test_the_stored_configuration_is_the_whole_one(finished: Job, tmp_path: Path) -> None:
    file = finished.run / "config.yaml"
    plan = nas("search", "--config", file, "--name", "again", "--dry-run", "--json")
    stored = resolve({}, str(file)).to_dict()
    assert json.loads(plan.out)["config"] == stored
    assert stored["search"] | {"evaluations": EVALUATIONS, "population": 6} == stored["search"]
    assert stored["space"]["name"] == "pebble"


def test_accuracy_of_the_journal_is_that_of_the_supernet(finished: Job) -> None:
    """Evaluated again by hand: weights from the checkpoint, the validation images, an argmax."""
    space = load_space(str(finished.folder / "pebble.yaml"))
    supernet = Supernet(space, 10).eval()
    checkpoint = CheckpointFolder(finished.run / "supernet" / "checkpoints").newest()
    assert checkpoint is not None
    supernet.load_state_dict(checkpoint.weights)
    validation = open_data("digits", 16).validation
    images, labels = validation.__getitems__(list(range(len(validation))))
    for evaluation in read_journal(finished.run / "evaluations.jsonl")[:4]:
        network = supernet.extract(Architecture.from_dict(evaluation.architecture)).eval()
        with torch.inference_mode():
            right = int((network(images).argmax(1) == labels).sum())
        assert evaluation.metrics["accuracy"] == pytest.approx(right / len(labels), abs=1e-9)


# After a run ------------------------------------------------------------------------------------


def test_export_of_any_evaluated_network(finished: Job, tmp_path: Path) -> None:
    chosen = json.loads(finished.said.out)["best"]["digest"]
    other = next(d for _, d, *_ in evaluated(finished.run) if d != chosen)
    before = tree(finished.run)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for folder in (mine, mine / "thesis.txt"):
        refused = nas("export", finished.run, other, "--output", folder)
        assert refused.code == 2
        assert f"{folder} exists and is no export" in refused.err
        assert tree(mine) == {"thesis.txt": b"years of work"}
    with pytest.raises(UsageError, match=f"'' begins {EVALUATIONS} digests: "):
        export_from_run(finished.run, "", None, Console())
    said = nas("export", finished.run, other[:8], "--output", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    exported = read_export(tmp_path / "out")
    assert [item["path"] for item in json.loads(said.out)] == [item.path for item in exported]
    assert read_json(tmp_path / "out" / "config.json")["digest"] == other
    assert "inherited from the supernet" in (tmp_path / "out" / "README.md").read_text()
    assert tree(finished.run) == before


def test_export_of_the_chosen_network_has_the_finetuned_weights(
    finished: Job, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    chosen = json.loads(finished.said.out)["best"]["digest"]
    said = nas("export", finished.run, "--output", tmp_path / "out")
    assert said.code == 0, said.err
    again, first = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", finished.run / "export" / chosen)
    )
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], first[name]) for name in first)
    # asked for by its digest, it is exported as inherited, and beside the fine-tuned one
    export = finished.copy("both") / "export"
    said = nas("export", finished.runs / "both", chosen, "--json")
    assert said.code == 0, said.err
    inherited = load_file(export / f"{chosen}-inherited" / "model.safetensors")
    assert any(not torch.equal(inherited[name], first[name]) for name in first)
    kept = load_file(export / chosen / "model.safetensors")
    assert all(torch.equal(kept[name], first[name]) for name in first)


def test_a_trained_supernet_serves_other_searches(finished: Job) -> None:
    said = nas("train", *finished.options, "--name", "shared", "--epochs", 2, "--json")
    assert said.code == 0, said.err
    shared = finished.runs / "shared"
    assert json.loads(said.out) == {"run": str(shared), "status": "trained", "epochs": 2}
    before = tree(shared)
    latencies = sorted(e[3]["latency_ms"] for e in evaluated(finished.run))
    budget = latencies[len(latencies) // 2]
    limits = ("--target-latency", f"{budget:.6f}ms", "--max", "params=12k")
    found = finished.search("with-shared", "--supernet", shared, *limits)
    assert found.code == 0, found.err
    rows = evaluated(finished.runs / "with-shared")
    assert 0 < len(rows) == len({digest for _, digest, *_ in rows}) <= EVALUATIONS
    for _, _, _, metrics, _ in rows:
        assert metrics["latency_ms"] <= budget + 1e-6
        assert metrics["num_params"] <= 12_000
    # the same seed and settings train the same weights as the first run's own
    ours = CheckpointFolder(shared / "supernet" / "checkpoints").newest()
    theirs = CheckpointFolder(finished.run / "supernet" / "checkpoints").newest()
    assert ours is not None
    assert theirs is not None
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)
    assert not list((finished.runs / "with-shared" / "supernet").iterdir())
    data = read_result(finished.runs / "with-shared" / "result.json")
    assert any(str(shared) in note for note in data.notes)

    other = finished.folder / "other.yaml"
    other.write_text((finished.folder / "pebble.yaml").read_text().replace("[16, 24]", "[16, 32]"))
    listed = {path.name for path in finished.runs.iterdir()}
    refused = finished.search("other-space", "--supernet", shared, "--space", other)
    assert refused.code == 1
    assert f"the supernet of {shared} was trained for another space" in refused.err
    refused = finished.search("other-seed", "--supernet", shared, "--seed", 1)
    assert refused.code == 1
    assert "on some that are now for validation" in refused.err
    assert "give the same --data and --seed" in refused.err
    refused = finished.search("nothing", "--supernet", finished.runs / "shard")
    assert refused.code == 1
    assert "holds no trained supernet. Finish it with --resume" in refused.err
    assert tree(shared) == before
    shutil.rmtree(max((shared / "supernet" / "checkpoints").glob("step-*")))
    refused = finished.search("unfinished", "--supernet", shared)
    assert refused.code == 1
    assert "is trained for 1 of 2 epochs; finish it with --resume" in refused.err
    assert {path.name for path in finished.runs.iterdir()} == listed
