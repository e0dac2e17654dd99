"""Runs that are continued: nothing is done twice, and there is a way back from every damage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_job import EVALUATIONS, Job, evaluated, front_of, tree

from nas.resolving import resolve
from nas.workflows.measuring import read_measured
from results.export.write import read_export
from results.files import read_json
from results.store import RunDirectory
from search_space.errors import CorruptFileError
from supernet.training.checkpoints import CheckpointFolder


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_resuming_a_complete_run_changes_nothing(finished: Job) -> None:
    before = tree(finished.run)
    again = finished.resume("one")
    assert again.code == 0
    assert json.loads(again.out) == json.loads(finished.said.out)
    assert tree(finished.run) == before
    assert finished.search("one", "--resume").out == again.out
    refused = finished.search("one")
    assert refused.code == 1
    assert "exists and is not empty" in refused.err
    assert tree(finished.run) == before


def test_damaged_tables_are_reported_and_made_again(finished: Job) -> None:
    run = finished.copy("tables")
    for name in ("latency.parquet", "measured.json", "manifest.json"):
        halve(run / name)
    said = finished.resume("tables")
    assert front_of(said) == front_of(finished.said)
    assert f"{run / 'latency.parquet'}: not a readable Parquet file" in said.err
    assert "The table is measured again" in said.err
    assert f"{run / 'measured.json'} is not valid JSON" in said.err
    assert "The networks are measured again" in said.err
    assert f"{run / 'manifest.json'} is not valid JSON" in said.err
    assert evaluated(run) == evaluated(finished.run)
    assert (run / "latency.parquet").read_bytes() == (finished.run / "latency.parquet").read_bytes()
    assert (
        read_json(run / "measured.json").keys() == read_json(finished.run / "measured.json").keys()
    )
    assert read_export(run / "export" / json.loads(said.out)["best"]["digest"])
    assert read_json(run / "manifest.json")["status"] == "complete"


def test_measurements_of_another_form_are_not_used(finished: Job, tmp_path: Path) -> None:
    content = read_json(finished.run / "measured.json")
    assert read_measured(finished.run / "measured.json").keys() == content.keys()
    first = next(iter(content))
    for wrong in (content[first][:1], [], [{"latency_ms": 1.0}] * 2, None):
        file = tmp_path / "measured.json"
        file.write_text(json.dumps({**content, first: wrong}))
        with pytest.raises(CorruptFileError, match=r"measured\.json: .*Restore it from a copy"):
            read_measured(file)
    assert read_measured(tmp_path / "absent.json") == {}


@pytest.mark.slow
def test_damaged_journal_and_checkpoints_are_reported_and_recovered_from(finished: Job) -> None:
    run = finished.copy("journal")
    journal = run / "evaluations.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    digest = json.loads(finished.said.out)["best"]["digest"]
    newest = []
    for folder in (run / "supernet" / "checkpoints", run / "finetune" / digest / "checkpoints"):
        newest.append(max(folder.glob("step-*")))
        halve(newest[-1] / "model.safetensors")
    said = finished.resume("journal")
    assert front_of(said) == front_of(finished.said)
    assert f"{journal}, line {EVALUATIONS} (the last): it is cut short" in said.err
    assert "that evaluation will be made again" in said.err
    for folder in newest:
        assert f"checkpoint {folder.name} is damaged and left out" in said.err
        assert folder.with_name(f"damaged-{folder.name}").is_dir()
    assert evaluated(run) == evaluated(finished.run)
    # trained again from the checkpoint before, to the very weights
    for part in ("supernet", f"finetune/{digest}"):
        weights = [
            CheckpointFolder(root / part / "checkpoints").newest() for root in (run, finished.run)
        ]
        assert weights[0] is not None
        assert weights[1] is not None
        for name, tensor in weights[1].weights.items():
            assert torch.equal(weights[0].weights[name], tensor)


@pytest.mark.slow
def test_a_complete_run_whose_result_or_export_is_damaged_is_mended(finished: Job) -> None:
    run = finished.copy("complete", status="complete")
    digest = json.loads(finished.said.out)["best"]["digest"]
    halve(run / "result.json")
    said = finished.resume("complete")
    assert front_of(said) == front_of(finished.said)
    assert "result.json is not valid JSON" in said.err
    assert "made again" in said.err
    halve(run / "export" / digest / "model.onnx")
    half_written = run / "export" / f".{digest}.nas.partial"
    half_written.mkdir()
    said = finished.resume("complete")
    assert said.code == 0
    assert "model.onnx was altered or cut short" in said.err
    assert read_export(run / "export" / digest)
    assert not half_written.exists()
    assert evaluated(run) == evaluated(finished.run)


def test_changed_images_are_not_mixed_into_a_run(finished: Job) -> None:
    run = finished.copy("images")
    manifest = read_json(run / "manifest.json")
    (run / "manifest.json").write_text(json.dumps({**manifest, "data": "000000000000"}))
    before = tree(run)
    said = finished.resume("images")
    assert said.code == 1
    assert "the images of 'digits' changed since this run began" in said.err
    after = tree(run)
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {
        "manifest.json"  # notes how long the images were read
    }


def test_a_run_that_another_process_writes_is_left_alone(finished: Job) -> None:
    config = resolve({"data": "digits", "target_latency": "1s"})
    path = finished.runs / "locked"
    with RunDirectory.create(path, config.to_dict(), {"status": "running"}):
        said = finished.resume("locked")
        assert said.code == 1
        assert f"is being written by another process (process {os.getpid()})" in said.err


def test_other_test_images_are_said_and_noted(finished: Job) -> None:
    run = finished.copy("others")
    manifest = read_json(run / "manifest.json")
    (run / "manifest.json").write_text(json.dumps({**manifest, "test_data": "000000000000"}))
    said = finished.resume("others")
    assert front_of(said) == front_of(finished.said)
    assert "the test images of 'digits' changed since this run began" in said.err
    notes = " ".join(read_json(run / "result.json")["notes"])
    assert "test accuracies from here on are of the new ones" in notes
