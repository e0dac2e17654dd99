"""Files of a run that parse and yet hold something else: named, refused, or made again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from tiny_job import FAILED, nas, search, tree

from nas.cli.console import Console
from nas.resolving import resolve
from nas.workflows.finished_search import FinishedSearch
from nas.workflows.starting import new_manifest, open_run
from results.journal import Evaluation
from results.store import RunDirectory, read_manifest
from search_space import load_space
from search_space.errors import CorruptFileError, RunError

CONFIG = {"data": "digits", "space": "pebble.yaml", "target_latency": "1s"}
OTHER_THINGS = ["[]", "null", "5", '"text"']
NESTED = pytest.param("[" * 200_000, id="nested")


def finished_run(data: str | None = "digits") -> Path:
    """As much of a finished search as is read before anything is computed."""
    smallest = load_space("pebble.yaml").smallest
    manifest = {**new_manifest(0, "nas search", ()), "status": "complete", "data": "0123"}
    config = resolve({**CONFIG, "data": data}).to_dict()
    with RunDirectory.create(Path("runs/one"), config, manifest) as run:
        metrics = {"num_params": 1.0, "macs": 1.0, "latency_ms": 1.0}
        with run.journal() as journal:
            journal.append(Evaluation(smallest.digest, smallest.to_dict(), metrics, 0))
        chosen = {
            "digest": smallest.digest,
            "architecture": smallest.to_dict(),
            "predicted": metrics,
        }
        run.write_json("result.json", {"run": "one", "chosen": chosen})
    return run.path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        *((text, "should be a valid dictionary") for text in OTHER_THINGS),
        pytest.param("[" * 200_000, "nested too deeply", id="nested"),
        ("{}", "lacks 'phases'"),
        ('{"phases": 5}', "phases=5: Input should be a valid list"),
        ('{"phases": [5]}', "phases.0=5: Input should be a valid dictionary"),
        ('{"phases": [{"name": "search"}]}', "phases.0.seconds={'name': 'search'}: Field required"),
        ('{"phases": [], "status": 1}', "status=1: Input should be a valid string"),
        ('{"phases": [], "versions": []}', "versions=[]: Input should be a valid dictionary"),
    ],
)
def test_a_manifest_that_is_none(job: Path, content: str, problem: str) -> None:
    run = finished_run()
    (run / "manifest.json").write_text(content)
    with pytest.raises(CorruptFileError) as info:
        read_manifest(run / "manifest.json")
    for text in (f"{run / 'manifest.json'}", problem, "continue the run with --resume"):
        assert text in str(info.value)
    said = nas("finetune", run)
    assert said.code == FAILED
    assert problem in said.err


def test_a_manifest_that_lacks_what_a_report_needs_is_written_anew(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run()
    (run / "manifest.json").write_text('{"phases": [], "status": "complete"}')
    with pytest.raises(CorruptFileError, match="lacks 'data'"):
        FinishedSearch.open(run)
    made = new_manifest(0, "nas search", ())
    with open_run(run, resolve(CONFIG).to_dict(), made, Console(), resume=True) as (directory, _):
        assert directory.manifest == {"phases": [], **made}
    assert "lacks 'created', 'command', 'seed', 'versions'" in capsys.readouterr().err


@pytest.mark.parametrize("content", [*OTHER_THINGS, NESTED, "{}", '{"chosen": null}'])
def test_a_result_that_is_none(job: Path, content: str) -> None:
    run = finished_run()
    (run / "result.json").write_text(content)
    for command in ("export", "report", "finetune"):
        said = nas(command, run)
        assert said.code == FAILED
        assert f"{run / 'result.json'}" in said.err
        assert "continue the run with --resume" in said.err


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("result.json", ["finetune", "--trials", "1"]),
        ("result.json", ["export"]),
        ("result.json", ["report"]),
        ("evaluations.jsonl", ["export"]),
        ("evaluations.jsonl", ["finetune", "--networks", "x"]),
    ],
)
def test_a_run_from_a_stranger_names_no_path(job: Path, file: str, command: list[str]) -> None:
    run = finished_run()
    victim = job / "victim" / "notes.txt"
    victim.parent.mkdir()
    victim.write_text("notes")
    digest, name = load_space("pebble.yaml").smallest.digest, "x/../../../../victim"
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    made = b""
    for line in lines:
        del line["checksum"]
        text = json.dumps(line, separators=(",", ":")).replace(digest, name).encode()[:-1]
        made += text + b',"checksum":"' + hashlib.sha256(text).hexdigest()[:12].encode() + b'"}\n'
    if file == "result.json":
        text = (run / file).read_text()
        (run / file).write_text(text.replace(digest, name))
    (run / "evaluations.jsonl").write_bytes(made)
    said = nas(command[0], run, *command[1:])
    assert said.code == FAILED
    assert f"digest='{name}'" in said.err
    assert victim.read_text() == "notes"
    assert [path.name for path in victim.parent.iterdir()] == ["notes.txt"]


def test_a_result_without_a_choice(job: Path) -> None:
    run = finished_run()
    (run / "result.json").write_text('{"run": "one"}')
    assert "runs/one chose no network; give a DIGEST" in nas("export", run).err


@pytest.mark.parametrize("content", ["{}", "seed: many", "data: digits\nseed: 0", "- 1", "a: ["])
def test_a_configuration_that_is_none(job: Path, content: str) -> None:
    run = finished_run()
    (run / "config.yaml").write_text(content)
    for command in ("export", "finetune"):
        said = nas(command, run)
        assert said.code == FAILED
        assert f"{run / 'config.yaml'}" in said.err


def test_a_configuration_whose_space_is_damaged(job: Path) -> None:
    run = finished_run()
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["space"]["stages"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for command in ("export", "finetune"):
        said = nas(command, run)
        assert said.code == FAILED
        assert "space: key 'stages' is missing" in said.err
        assert f"{run / 'config.yaml'} is not the configuration of a run" in said.err


def test_a_run_without_configuration_is_not_continued(job: Path) -> None:
    run = finished_run()
    (run / "config.yaml").unlink()
    before = tree(job)
    for said in (
        nas("search", "--name", "one", "--resume"),
        search("--name", "one", "--resume"),
        nas("train", "--data", "digits", "--name", "one", "--resume"),
    ):
        assert said.code == FAILED
        assert "runs/one exists and is not empty, but has no config.yaml" in said.err
        assert "restore that file from a copy, or start a new run with another --name" in said.err
    with (
        pytest.raises(RunError, match=r"no config\.yaml"),
        open_run(run, {}, {}, Console(), resume=True),
    ):
        pass
    assert tree(job) == before


def test_measurements_that_are_none(job: Path) -> None:
    from nas.workflows.measuring import read_measured

    Path("measured.json").write_text(json.dumps([1]))
    with pytest.raises(CorruptFileError, match=r"measured.json: .*valid dictionary.*--resume"):
        read_measured(Path("measured.json"))
