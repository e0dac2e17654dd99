"""Bundles: written here, measured where only numpy and onnxruntime are, and read back."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from latency_cases import CLASSES, small_space

from predictors.bundles.bundle import write_bundle
from predictors.bundles.bundle_import import import_bundle
from predictors.measuring import runner as bundle_runner
from predictors.measuring.profile import check_architectures
from predictors.measuring.this_machine import local_conditions
from predictors.tables.additive import entries
from predictors.tables.latency_table import LatencyTable, spec_to_json
from search_space import SearchSpace
from search_space.errors import CorruptFileError, NasError, UnknownNameError, UsageError

QUICK = ["--threads", "1", "--min-rounds", "3", "--max-rounds", "4", "--min-seconds", "0"]
ALONE = """
import importlib.abc, runpy, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(name + " is not on this device")
FORBIDDEN = {"torch", "nas", "predictors", "supernet", "search_space", "results", "onnx", "psutil"}
sys.meta_path.insert(0, Refuse())
code = 0
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    code = ended.code
assert not FORBIDDEN & set(sys.modules), FORBIDDEN & set(sys.modules)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space((8,))


@pytest.fixture(scope="module")
def bundle(space: SearchSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    heard: list[tuple[int, int]] = []
    folder = tmp_path_factory.mktemp("written") / "bundle"
    assert write_bundle(folder, space, CLASSES, progress=lambda *at: heard.append(at)) == folder
    assert heard == [(i, heard[-1][1]) for i in range(1, heard[-1][1] + 1)]
    return folder


def run_alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``run.py`` in a Python that cannot import torch or this project."""
    command = [sys.executable, "-I", "-c", textwrap.dedent(ALONE), str(folder / "run.py")]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(bundle: Path) -> Path:
    ended = run_alone(bundle, *QUICK, "--out", str(bundle.parent / "results.json"))
    assert ended.returncode == 0, ended.stderr
    assert "done" in ended.stdout
    return bundle.parent / "results.json"


def test_bundle_is_complete_and_small(bundle: Path, space: SearchSpace) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    asked = [(spec_to_json(spec), size) for spec, size in entries(space, CLASSES)]
    assert [(item["spec"], item["in_size"]) for item in manifest["entries"]] == asked
    files = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert set(manifest["sha256"]) == files - {"manifest.json"}
    assert sum(path.stat().st_size for path in bundle.rglob("*")) < 20e6
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_models_of_a_bundle_run_with_weights_of_noise(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    for item in [*manifest["entries"], *manifest["checks"], manifest["empty"]]:
        session = onnxruntime.InferenceSession(str(bundle / item["file"]))
        images = np.random.default_rng(0).normal(size=item["input_shape"]).astype(np.float32)
        (output,) = session.run(None, {"images": images})
        assert list(output.shape) == item["output_shape"]
        assert np.isfinite(output).all()
        assert output.std() > 0


def test_round_trip(bundle: Path, results: Path, space: SearchSpace) -> None:
    table = import_bundle(results, bundle, "board")
    assert table.name == "board"
    assert table.created
    assert set(table.entries) == set(entries(space, CLASSES))
    assert table.complete(space, CLASSES)
    here = local_conditions(threads=1, runtime="onnxruntime")
    assert replace(table.conditions, device=here.device) == here
    assert table.conditions.device.model == here.device.model
    correction = table.correction(space)
    assert np.isfinite(correction.expected_error)
    sums = {check.digest: check.sum_ms for check in correction.checks}
    plain = replace(table, corrections={space.digest: replace(correction, scale=1, offset_ms=0)})
    for architecture in check_architectures(space):
        predicted = plain.compile(space, CLASSES).predict(space.encode([architecture]))[0]
        assert predicted == pytest.approx(sums[architecture.digest])
    table.save(bundle.parent / "table.parquet")
    assert LatencyTable.load(bundle.parent / "table.parquet") == table


def test_interrupted_measurement_continues(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    long = ["--threads", "1", "--min-rounds", "4", "--max-rounds", "4", "--min-seconds", "0"]
    portions = [*long, "--memory", "5", "--out", str(out)]
    assert run_alone(bundle, *portions).returncode == 0
    state = json.loads(out.read_text())
    assert len(state["portions"]) > 1
    last = state["portions"][-1]
    kept = last["samples_ms"] = [samples[:2] for samples in last["samples_ms"]]
    last["stopped"] = ""
    bundle_runner.write_results(out, state)
    with pytest.raises(UsageError, match=r"portions are measured.*it continues"):
        import_bundle(out, bundle, "board")
    assert run_alone(bundle, *portions).returncode == 0
    after = json.loads(out.read_text())
    assert after["portions"][:-1] == state["portions"][:-1]
    samples = after["portions"][-1]["samples_ms"]
    assert [values[:2] for values in samples] == kept
    assert {len(values) for values in samples} == {4}
    import_bundle(out, bundle, "board")


def test_results_of_other_conditions_are_not_mixed(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    assert run_alone(bundle, *QUICK, "--out", str(out)).returncode == 0
    other = run_alone(bundle, *QUICK[2:], "--threads", "2", "--out", str(out))
    assert other.returncode == 2
    assert "results of another threads" in other.stderr


def test_wrong_wishes_are_refused(space: SearchSpace, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="exists already"):
        write_bundle(tmp_path / "full", space, CLASSES)
    with pytest.raises(UsageError, match="precision 'bf16' cannot be measured"):
        write_bundle(tmp_path / "new", space, CLASSES, precision="bf16")
    with pytest.raises(UnknownNameError, match="unknown precision 'fp8'"):
        write_bundle(tmp_path / "new", space, CLASSES, precision="fp8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


# Hostile files --------------------------------------------------------------------------------


def _sample(value: object) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state["portions"][0]["samples_ms"][1][0] = value

    return change


def _drop_entry(state: dict[str, Any]) -> None:
    state["portions"][0]["entries"].pop()


def _drop_samples(state: dict[str, Any]) -> None:
    state["portions"][0]["samples_ms"].pop()


def _shorten(state: dict[str, Any]) -> None:
    state["portions"][0]["samples_ms"][0].pop()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_sample(-1.0), CorruptFileError, "samples_ms.1.0=-1.0: Input should be greater than 0"),
        (
            _sample(float("nan")),
            CorruptFileError,
            "nan: Input should be a finite",
        ),
        (_sample("fast"), CorruptFileError, "unable to parse"),
        (_drop_entry, CorruptFileError, "entries are missing: 1 of"),
        (_drop_samples, CorruptFileError, "models were measured and not"),
        (_shorten, CorruptFileError, "all must be run equally often"),
        (lambda s: s.update(format=9), CorruptFileError, "has format 9, this program reads 1"),
        (lambda s: s.update(bundle="0"), UsageError, "with another bundle"),
        (
            lambda s: s.update(threads=0),
            NasError,
            "threads=0: Input should be greater",
        ),
        (lambda s: s.update(device="board"), CorruptFileError, "device='board': Input should be"),
        (lambda s: s.update(portions=[]), UsageError, "0 of 0 portions"),
        (lambda s: s.pop("created"), CorruptFileError, "Field required"),
    ],
)
def test_altered_results_are_refused(
    bundle: Path,
    results: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    error: type[NasError],
    message: str,
) -> None:
    state = json.loads(results.read_text())
    change(state)
    state["sha256"] = bundle_runner.checksum(state)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(state))
    with pytest.raises(error) as caught:
        import_bundle(path, bundle, "board")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_results_are_refused(bundle: Path, results: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    text = results.read_text()
    state = json.loads(text)
    state["portions"][0]["samples_ms"][0][0] *= 2  # without a new checksum
    for content, message in (
        (json.dumps(state), "its checksum does not fit"),
        (text[: len(text) // 2], "cannot be read"),
        ("[]", "has format None"),
    ):
        path.write_text(content)
        with pytest.raises(CorruptFileError, match=message):
            import_bundle(path, bundle, "board")
    with pytest.raises(CorruptFileError, match=r"none\.json does not exist"):
        import_bundle(tmp_path / "none.json", bundle, "board")


def test_damaged_bundles_are_refused_here_and_there(
    bundle: Path, results: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    model = copy / "models" / "entry_0000.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(CorruptFileError, match=r"entry_0000.onnx was altered"):
        import_bundle(results, copy, "board")
    there = run_alone(copy, *QUICK)
    assert there.returncode == 2
    assert there.stderr.startswith("error: models/entry_0000.onnx was altered")
    model.unlink()
    with pytest.raises(CorruptFileError, match="no complete bundle"):
        import_bundle(results, copy, "board")
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["entries"][1:]
    (copy / "manifest.json").write_text(json.dumps({**manifest, "sha256": {}}))
    with pytest.raises(CorruptFileError, match="components that are no entries"):
        import_bundle(results, copy, "board")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("/dev/zero", "'/dev/zero' is no name of a bundle's file"),
        ("models/../../victim", "is no name of a bundle's file"),
        ("zero", "zero is no file of a bundle"),  # a link to a device
        ("pipe", "pipe is no file of a bundle"),
    ],
)
def test_a_manifest_that_names_a_device_or_leaves_its_folder_is_refused_at_once(
    bundle: Path, results: Path, tmp_path: Path, member: str, message: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    os.mkfifo(copy / "pipe")
    (copy / "zero").symlink_to("/dev/zero")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["sha256"] = {member: "0" * 64}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptFileError, match=message):
        import_bundle(results, copy, "board")
    there = run_alone(copy, *QUICK)
    assert (there.returncode, message in there.stderr) == (2, True)


def test_runner_identifies_the_processor_as_the_project_does() -> None:
    here = local_conditions(threads=1).device
    found = bundle_runner.identify("cpu")
    assert found["kind"] == here.kind
    assert found["model"] == here.model
    assert found["cores"] >= 1
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert found["capability"] == here.capability


def test_importing_the_runner_starts_nothing() -> None:
    spec = importlib.util.spec_from_file_location("runner", bundle_runner.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.main)
