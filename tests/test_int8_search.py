"""A search in int8 from a trained network: its bank, its table, and the whole of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_job import QUICK, USAGE, nas

from nas.config import TrainedConfig
from nas.resolving import stored_config
from predictors.measuring.quality import measure_quality
from results.export.card import ModelCard
from results.export.write import export_network, read_export
from results.report.data import read_result
from search_space import Architecture, known
from search_space.around import Around, around
from search_space.components import components
from search_space.precision import in_precision, point_of, quantised, with_precisions
from search_space.preprocessing import Preprocessing
from supernet import build
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.bank import WeightBank
from supernet.inherit.cut import cut_alternatives
from supernet.inherit.quantised import quantise_alternatives
from supernet.network.quantised import fake_quantisers
from supernet.training.recalibration import calibration_batches, extract, recalibrate

NAME, SIDE = "mobilenetv2_050", 32


def small() -> Architecture:
    """A known design on small images, with two blocks in each of three stages."""
    own = known(NAME)
    stages = tuple(replace(stage, blocks=stage.blocks[:2]) for stage in own.stages[:3])
    return replace(own, resolution=SIDE, stages=stages)


@pytest.fixture(scope="module")
def bank() -> WeightBank:
    torch.manual_seed(0)
    network = build(small(), num_classes=10)
    data = open_data("digits", SIDE)
    batches = calibration_batches(data, 128)
    with torch.no_grad():
        network.get_parameter("head.fc.weight").mul_(50)  # so that predictions differ at all
    recalibrate(network, batches)
    options = Around(ratios=(0.5,), resolutions=(), skip=False, linear=False)
    space = with_precisions(around(small(), options), "mixed")
    result = WeightBank(space, network.eval()).eval()
    cut_alternatives(result, batches, importance="magnitude")
    quantise_alternatives(result, [images for images, _ in batches])
    return result


def test_a_bank_holds_each_alternative_in_float_and_in_int8(bank: WeightBank) -> None:
    assert not bank.missing()
    assert all(entry in bank for entry in bank.quantised)
    assert {(path, spec.in_float) for path, spec in bank.quantised} <= set(bank.entries)
    for path, spec in bank.quantised:
        module, twin = bank[path, spec], bank[path, spec.in_float]
        assert fake_quantisers(module)
        assert not fake_quantisers(twin)


def test_extracted_networks_are_float_until_images_give_ranges(bank: WeightBank) -> None:
    architecture = bank.space.decode(bank.space.sample(np.random.default_rng(0), 1))[0]
    plain = bank.extract(architecture)
    assert plain.architecture == in_precision(architecture, "float")
    images = calibration_batches(open_data("digits", SIDE), 64)
    network = extract(bank, architecture, images)
    assert network.architecture == architecture
    rounded = {name.split(".conv.")[0] for name in fake_quantisers(network)}
    for item in components(architecture, 10):
        assert item.spec.quantised == any(name.startswith(item.path) for name in rounded)


def test_the_quality_table_holds_both_precisions_of_a_block(bank: WeightBank) -> None:
    data = open_data("digits", SIDE)
    table = measure_quality(
        bank,
        lambda side: eval_batches(data.at(side).validation, limit=100),
        lambda side: calibration_batches(data.at(side), 64),
    )
    assert table.missing(bank.space) == []
    assert table.missing(with_precisions(bank.space, "int8")) == []
    own = small().stages[1].blocks[1]
    key = "stages.1.blocks.1", own.replaced(precision="int8"), SIDE
    assert (
        0
        < table.changes[key].kl
        < table.changes[key[0], bank.space.stages[1].positions[1][0], SIDE].kl
    )
    predicted = table.compile(bank.space).predict(bank.space.encode([bank.space.largest]))
    assert predicted == pytest.approx(table.loss)


def test_the_parent_is_a_point_in_as_little_int8_as_there_is() -> None:
    own = small()
    space = around(own)
    assert point_of(own, space) == own
    mixed = point_of(own, with_precisions(space, "mixed"))
    assert mixed is not None
    assert mixed.macro.precision == "int8"
    assert mixed.stages == own.stages
    assert point_of(own, with_precisions(space, "int8")) == in_precision(own, "int8")
    assert point_of(known("resnet18"), space) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--runtime", "eager"), "runs nothing in int8"),
        (("--data", ""), "give --data"),
        (("--precision", "int4"), "Known: bf16, fp16, fp32, int8, mixed"),
    ],
)
def test_what_cannot_be_in_int8_is_refused(
    options: tuple[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    base = ["search", "--precision", "int8", "--target-latency", "5ms", "--space", "digits"]
    with_data = [] if options[0] == "--data" else ["--data", "digits", *options]
    said = nas(*base, *with_data)
    assert said.code == USAGE
    assert says in said.err


@pytest.mark.slow
def test_a_search_in_mixed_precision_exports_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("predictors.measuring.profile.Limits", lambda: QUICK)
    torch.manual_seed(0)
    parent = tmp_path / "parent"
    images, card = Preprocessing(resolution=SIDE), ModelCard(title="parent")
    export_network(build(small(), 7), parent, preprocessing=images, card=card, formats=("timm",))
    command = [
        *("search", "--from", parent, "--data", "digits", "--precision", "mixed", "--threads", 1),
        *("--resolution", SIDE, "--max", "macs=700k", "--adapt-epochs", 8, "--evaluations", 4),
        *("--finetune-epochs", 4, "--finalists", 1, "--name", "both", "--json"),
    ]
    said = nas(*command)
    assert said.code == 0, said.err
    run = tmp_path / "runs" / "both"
    result = read_result(run / "result.json")
    assert result.chosen is not None
    chosen = Architecture.from_dict(result.chosen.architecture)
    assert quantised(chosen)
    folder = run / "export" / chosen.digest
    (int8,) = [e for e in read_export(folder) if e.format == "onnx_int8"]
    assert int8.agreement is not None
    assert int8.agreement >= 0.995
    config = stored_config(run)
    assert isinstance(config, TrainedConfig)
    data = open_data("digits", SIDE, **config.image_options())
    session = onnxruntime.InferenceSession(folder / "model.int8.onnx")
    right = total = 0
    for images, labels in eval_batches(data.at(chosen.resolution).test):
        (logits,) = session.run(None, {"images": images.numpy()})
        right += int((logits.argmax(1) == labels.numpy()).sum())
        total += len(labels)
    assert result.chosen.test_accuracy is not None
    assert abs(right / total - result.chosen.test_accuracy) <= 0.003
    again = nas("export", run, "--output", tmp_path / "again")
    assert again.code == 0, again.err
    one, other = (Path(p) / "model.safetensors" for p in (folder, tmp_path / "again"))
    assert one.read_bytes() == other.read_bytes()
    assert json.loads(said.out)["status"] == "complete"
    assert nas(*command, "--resume").code == 0
