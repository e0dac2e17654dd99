"""Every kind of file that the tool reads: a sound one, how it is damaged, and what reads it.

A new kind is one more entry of ``KINDS``: a function that makes a sound file in an empty folder,
and one that reads it as a command does.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from mutants import Mutation, mutate_bytes, of_csv, of_json, of_parquet, of_yaml, to_json
from PIL import Image
from sample_report import sample_report, with_parent
from small_backbone import network
from stored_logit_cases import LOGITS, identity_of_table, stored
from tiny_job import SPACE, known_table

from nas.resolving import resolve, stored_config
from nas.workflows.finished_search import stored_finetuning
from nas.workflows.measuring import read_measured
from nas.workflows.reporting import curves, rebuild_report
from predictors.bundles.bundle_import import import_bundle
from predictors.estimates.calibrate import read_measurements
from predictors.measuring import runner
from predictors.measuring.profile import check_architectures
from predictors.tables.additive import entries
from predictors.tables.cost_table import load_cost, save_costs
from predictors.tables.latency_table import LatencyTable, spec_to_json
from predictors.tables.quality import Change, QualityTable, Source
from results.export.card import ModelCard
from results.export.write import export_network, read_export
from results.files import read_json
from results.journal import Evaluation, Journal, read_journal
from results.store import RunDirectory, read_manifest
from search_space import components, known, load_space
from search_space.files import dump_architecture, load_architecture
from search_space.preprocessing import Preprocessing
from supernet.cluster.trials import Trial, TrialEpoch
from supernet.data.dataset import open_data
from supernet.training.checkpoints import Checkpoint, CheckpointFolder
from supernet.training.stored_logits import StoredLogits
from supernet.training.teachers import load_teacher


@dataclass(frozen=True)
class Kind:
    """How one kind of file is made, damaged and read.

    Args:
        make: writes a sound file, and what it needs besides, into an empty folder; its path.
        read: reads it from there as a command does.
        mutate: a damaged copy of its content.
        share: of all mutants; less for what is slow to read.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    mutate: Mutation
    share: float = 1.0


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _space(folder: Path) -> Any:
    return load_space(str(_text(folder / "pebble.yaml", SPACE)))


# Latencies ----------------------------------------------------------------------------------------


def _table(folder: Path) -> Path:
    known_table(_space(folder)).save(folder / "table.parquet")
    return folder / "table.parquet"


def _costs(folder: Path) -> Path:
    table = known_table(_space(folder))
    save_costs(folder / "costs.parquet", "energy_mJ", dict.fromkeys(table.entries, 1.0))
    return folder / "costs.parquet"


def _quality(folder: Path) -> Path:
    parent = _space(folder).largest
    source = Source(parent, 10, *["0123456789ab"] * 3)
    change = Change(0.25, 0.01, 0.2, 0.02, -0.05, 0.005, 100, "ba9876543210")
    changes = {
        ("stages.0.blocks.0", block, parent.resolution): change
        for block in _space(folder).stages[0].blocks
    }
    table = QualityTable(
        *(source, 0.5, 0.9, {**changes, ("", None, 24): replace(change, weights="")}),
        *("0123456789ab", {"torch": "2.9"}, "2026-11-28T07:00:00+00:00"),
    )
    table.save(folder / "quality.parquet")
    return folder / "quality.parquet"


def _measured(folder: Path) -> Path:
    figures = {"latency_ms": 1.5, "low_ms": 1.4, "high_ms": 1.9, "runs": 12}
    both = [{**figures, "split_half_disagreement": 0.01, "warnings": ["other work"]}] * 2
    return _text(folder / "measured.json", json.dumps({"0123456789ab": both, "ba9876543210": both}))


def _bundle(folder: Path) -> Path:
    space = _space(folder)
    asked, checks = entries(space, 10), check_architectures(space)
    _text(folder / "weights.bin", "noise")
    manifest = {
        "format": runner.FORMAT,
        "space": {"name": space.name, "digest": space.digest},
        "num_classes": 10,
        **{"batch_size": 1, "precision": "fp32", "layout": "channels_last", "protocol": "cold"},
        **{"settle": 0, "implementation": "0123456789ab"},
        "entries": [
            {"spec": spec_to_json(spec), "in_size": size, "file": "models/a.onnx"}
            for spec, size in asked
        ],
        "checks": [
            {
                "digest": a.digest,
                "components": [[spec_to_json(p.spec), p.in_size] for p in components(a, 10)],
                "file": "models/b.onnx",
            }
            for a in checks
        ],
        "empty": {"file": "models/c.onnx"},
        "sha256": {"weights.bin": runner.sha256(folder / "weights.bin")},
    }
    _text(folder / "manifest.json", json.dumps(manifest))
    rng, models = np.random.default_rng(0), len(asked) + 1 + len(checks)
    state = {
        "format": runner.FORMAT,
        "bundle": runner.sha256(folder / "manifest.json"),
        "device": {"kind": "cpu", "model": "Board", "cores": 4, "capability": "NEON"},
        **{"runtime_version": "onnxruntime 1.20", "provider": "CPUExecutionProvider"},
        **{"threads": 4, "created": "2025-03-01T10:20:30+00:00"},
        "portions": [
            {
                "entries": list(range(len(asked))),
                "samples_ms": rng.uniform(1, 2, (models, 4)).tolist(),
                **{"seconds": 3.0, "stopped": "converged", "warnings": []},
            }
        ],
    }
    return _text(folder / "results.json", json.dumps(_sealed_results(state)))


def _sealed_results(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "sha256": runner.checksum(state)}


def _manifest(folder: Path) -> Path:
    _bundle(folder)
    return folder / "manifest.json"


def _import_other_manifest(folder: Path) -> object:
    """Results that were measured with the manifest as it is now."""
    state = json.loads((folder / "results.json").read_text())
    state["bundle"] = runner.sha256(folder / "manifest.json")
    _text(folder / "results.json", json.dumps(_sealed_results(state)))
    return _import(folder)


def _import(folder: Path) -> object:
    return import_bundle(folder / "results.json", folder, "board")


def _calibration(folder: Path) -> Path:
    lines = ["network,latency_ms,note", "convnext_t,4.1,mine", "swin_t,5.25,"]
    return _text(folder / "measured.csv", "\n".join(lines))


# Spaces and runs ----------------------------------------------------------------------------------


def _pebble(folder: Path) -> Path:
    return _text(folder / "pebble.yaml", SPACE)


def _architecture(folder: Path) -> Path:
    return _text(folder / "network.yaml", dump_architecture(known("convnext_t")))


def _architecture_json(folder: Path) -> Path:
    network = known("swin_t")
    data = {"digest": network.digest, "architecture": network.to_dict()}
    return _text(folder / "network.json", json.dumps(data))


def _run(folder: Path) -> Path:
    """A finished run of made-up results."""
    space = _pebble(folder)
    config = resolve({"data": "digits", "space": str(space), "target_latency": "5ms"})
    phases = [{"name": "searching", "seconds": 3.0, "status": "done", "ended": "2025"}]
    manifest = {"status": "complete", "phases": phases, "data": "0123456789ab", "versions": {}}
    run = folder / "runs" / "one"
    with RunDirectory.create(run, config.model_dump(mode="json"), manifest) as directory:
        report = with_parent(sample_report(12))
        with directory.journal() as journal:
            for index, point in enumerate(report.evaluated):
                assert point.architecture is not None
                journal.append(Evaluation(point.digest, point.architecture, point.predicted, index))
        directory.write_json("result.json", report.to_dict())
    epochs = [{"epoch": i, "step": 9 * i, "val_loss_largest": 1.0 / (i + 1)} for i in range(3)]
    _text(run / "supernet" / "metrics.jsonl", "".join(json.dumps(e) + "\n" for e in epochs))
    return run


def _scored(folder: Path) -> Path:
    """Settings of a search without images."""
    config = resolve({"space": str(_pebble(folder)), "target_latency": "5ms"})
    return _text(folder / "job.yaml", yaml.safe_dump(config.to_dict()))


def _of_run(name: str) -> Callable[[Path], Path]:
    return lambda folder: _run(folder) / name


def _reading_run(read: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: read(folder / "runs" / "one")


def _sealed_line(data: dict[str, Any]) -> bytes:
    """A line of a journal: its checksum covers the text before it."""
    data.pop("checksum")
    text = to_json(data).replace(b", ", b",").replace(b": ", b":")[:-1]
    return text + b',"checksum":"' + hashlib.sha256(text).hexdigest()[:12].encode() + b'"}'


def _reopen(run: Path) -> None:
    read_journal(run / "evaluations.jsonl")
    Journal(run / "evaluations.jsonl").close()


def _finetuning(folder: Path) -> Path:
    config = {"run": "runs/one", "networks": ["0123456789ab"], "trials": 4, "epochs": 3}
    return _text(folder / "config.yaml", yaml.safe_dump(config))


def _trials(folder: Path) -> Path:
    epoch = TrialEpoch(epoch=0, loss=1.0, validation_loss=1.1, validation_accuracy=0.5, seconds=2.0)
    trial = Trial(number=1, network="0123456789ab", hyperparameters={"lr": 0.1}, epochs=(epoch,))
    return _text(folder / "trials.json", json.dumps([trial.to_dict(), trial.to_dict()]))


def _read_trials(folder: Path) -> object:
    return [Trial.from_dict(item) for item in read_json(folder / "trials.json", list)]


# Training -----------------------------------------------------------------------------------------


def _checkpoint(folder: Path) -> Path:
    tensors = {"weight": torch.zeros(3, 2)}
    metadata = {"config": {"epochs": 3}, "epoch": 1, "rng": [1, 2, 3]}
    checkpoint = Checkpoint(step=7, weights=tensors, optimizer=tensors, metadata=metadata)
    return folder / CheckpointFolder(folder).write(checkpoint) / "metadata.json"


def _tensors(folder: Path) -> Path:
    return _checkpoint(folder).with_name("model.safetensors")


def _sealed_checkpoint(envelope: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(envelope["content"], sort_keys=True)
    return {**envelope, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _read_checkpoint(folder: Path) -> object:
    (path,) = folder.glob("step-*")
    return CheckpointFolder(folder).read(path.name)


def _logits(folder: Path) -> Path:
    return stored(folder, LOGITS, 3).folder / "variant-00000.parquet"


def _read_logits(folder: Path) -> object:
    (file,) = folder.rglob("variant-*")
    identity = identity_of_table(*LOGITS.shape, 3)
    return StoredLogits(file.parent, identity)(0, torch.arange(len(LOGITS)))


def _export(folder: Path) -> Path:
    export_network(
        network(),
        folder / "export",
        preprocessing=Preprocessing(resolution=32),
        card=ModelCard(title="small"),
        formats=("timm",),
    )
    return folder / "export" / "config.json"


def _verified(folder: Path) -> Path:
    return _export(folder).with_name("verified.json")


def _teach(folder: Path) -> object:
    return load_teacher(str(folder / "export"), 7, data=Preprocessing(resolution=24))


# Images -------------------------------------------------------------------------------------------


def _picture(shade: int) -> Image.Image:
    pixels = np.random.default_rng(shade).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels // 2 + shade)


def _encoded(shade: int, name: str) -> bytes:
    stream = io.BytesIO()
    _picture(shade).save(stream, format=name)
    return stream.getvalue()


def _images(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for number, name in enumerate(["cat", "dog"]):
            (folder / "images" / name).mkdir(parents=True)
            for index in range(10):
                picture = _picture(10 * number + index)
                picture.save(folder / "images" / name / f"{index}.{suffix}")
        return folder / "images" / "cat" / f"0.{suffix}"

    return make


def _open_images(folder: Path) -> object:
    data = open_data(str(folder / "images"), 16)
    return [split[0] for split in (data.train, data.validation, data.test)]


def _image_table(folder: Path) -> Path:
    (folder / "images").mkdir()
    table = pa.table({"image": [_encoded(i, "PNG") for i in range(20)], "label": [0, 1] * 10})
    classes = {"classes": json.dumps(["cat", "dog"])}
    pq.write_table(table.replace_schema_metadata(classes), folder / "images" / "train.parquet")
    return folder / "images" / "train.parquet"


def _labels(folder: Path) -> Path:
    (folder / "images").mkdir()
    lines = ["file_name,label"]
    for index in range(20):
        _picture(index).save(folder / "images" / f"{index}.png")
        lines.append(f"{index}.png,{['cat', 'dog'][index % 2]}")
    return _text(folder / "images" / "labels.csv", "\n".join(lines))


def _labels_by_line(folder: Path) -> Path:
    lines = _labels(folder).read_text().splitlines()[1:]
    rows = [dict(zip(("file_name", "label"), line.split(","), strict=True)) for line in lines]
    (folder / "images" / "labels.csv").unlink()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return _text(folder / "images" / "metadata.jsonl", text)


KINDS: dict[str, Kind] = {
    "latency table": Kind(
        _table, lambda folder: LatencyTable.load(folder / "table.parquet"), of_parquet, 2
    ),
    "costs": Kind(_costs, lambda folder: load_cost("energy", folder / "costs.parquet"), of_parquet),
    "qualities": Kind(
        _quality, lambda folder: QualityTable.load(folder / "quality.parquet"), of_parquet
    ),
    "measured latencies": Kind(
        _measured, lambda folder: read_measured(folder / "measured.json"), of_json()
    ),
    "bundle's manifest": Kind(_manifest, _import_other_manifest, of_json()),
    "bundle's results": Kind(_bundle, _import, of_json(_sealed_results)),
    "calibration": Kind(
        _calibration, lambda folder: read_measurements(folder / "measured.csv"), of_csv
    ),
    "space": Kind(_pebble, lambda folder: load_space(str(folder / "pebble.yaml")), of_yaml),
    "architecture": Kind(
        _architecture, lambda folder: load_architecture(str(folder / "network.yaml")), of_yaml, 0.5
    ),
    "architecture in JSON": Kind(
        _architecture_json,
        lambda folder: load_architecture(str(folder / "network.json")),
        of_json(),
    ),
    "run's configuration": Kind(_of_run("config.yaml"), _reading_run(stored_config), of_yaml),
    "settings": Kind(
        _of_run("config.yaml"),
        _reading_run(lambda run: resolve({}, str(run / "config.yaml"))),
        of_yaml,
    ),
    "settings without images": Kind(
        _scored, lambda folder: resolve({}, str(folder / "job.yaml")), of_yaml
    ),
    "fine-tuning's configuration": Kind(
        _finetuning, lambda folder: stored_finetuning(folder), of_yaml
    ),
    "journal": Kind(
        _of_run("evaluations.jsonl"), _reading_run(_reopen), of_json(_sealed_line, lines=True)
    ),
    "result": Kind(_of_run("result.json"), _reading_run(rebuild_report), of_json(), 0.5),
    "run's manifest": Kind(
        _of_run("manifest.json"),
        _reading_run(lambda run: read_manifest(run / "manifest.json")),
        of_json(),
    ),
    "trials": Kind(_trials, _read_trials, of_json()),
    "metrics": Kind(_of_run("supernet/metrics.jsonl"), _reading_run(curves), of_json(lines=True)),
    "checkpoint's metadata": Kind(_checkpoint, _read_checkpoint, of_json(_sealed_checkpoint)),
    "tensors": Kind(_tensors, _read_checkpoint, mutate_bytes, 0.5),
    "stored logits": Kind(_logits, _read_logits, of_parquet),
    "export's checksums": Kind(_verified, lambda folder: read_export(folder / "export"), of_json()),
    "teacher's configuration": Kind(_export, _teach, of_json(), 0.5),
    "labels": Kind(_labels, _open_images, of_csv, 0.3),
    "labels by line": Kind(_labels_by_line, _open_images, of_json(lines=True), 0.3),
    "images in a table": Kind(_image_table, _open_images, of_parquet, 0.5),
    **{
        f"{suffix} image": Kind(_images(suffix), _open_images, mutate_bytes, 0.3)
        for suffix in ("png", "jpg", "webp", "avif", "bmp", "gif", "tif", "ppm")
    },
}
