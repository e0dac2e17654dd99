"""A search that starts from a trained network: whole, continued, inherited, and refused.

A small network is the parent; budgets are MACs on an estimated device, so nothing is measured.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_job import INFEASIBLE, USAGE, Ran, nas, tree

from nas.cli.console import Console
from nas.config import TrainedConfig
from nas.resolving import resolve, stored_config
from nas.workflows import adapting, pretrained_search
from nas.workflows.exporting import export_from_run
from nas.workflows.inherited import copied, fitting_images
from predictors.tables.quality import QualityTable
from results.export.card import ModelCard
from results.export.write import export_network
from results.journal import read_journal
from results.report.data import Chosen, read_result
from search_space import Architecture, Macro, Mixer, Stage, metaformer
from search_space.preprocessing import Preprocessing
from supernet import build
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.bank import WeightBank
from supernet.inherit.cut import cut_alternatives
from supernet.inherit.parents import find_parent
from supernet.network.tensor_files import read_tensors, write_tensors
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ("--device", "a100", "--evaluations", "6", "--finalists", "1", "--finetune-epochs", "1")
ADAPTED = (*QUICK, "--adapt-epochs", "2", "--json")


def small() -> Architecture:
    """A network of two stages with blocks that can be cut and skipped."""
    blocks = tuple(metaformer(Mixer.of("depthwise_conv", kernel=5), 4.0) for _ in range(2))
    macro = Macro(stem_kernel=2, stem_stride=2)
    return Architecture(macro, 16, (Stage(16, blocks), Stage(24, blocks)))


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of an untrained network of seven classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parent") / "export"
    images = Preprocessing(resolution=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    card = ModelCard(title="parent")
    export_network(build(small(), 7), folder, preprocessing=images, card=card, formats=("timm",))
    return folder


@pytest.fixture(scope="module")
def finished(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NAS_CACHE", str(folder / "cache"))
        said = search(parent, "first", "--max", "macs=400k")
    assert said.code == 0, said.err
    return folder / "runs" / "first"


def search(parent: Path, name: str, *more: str) -> Ran:
    return nas("search", "--from", parent, "--data", "digits", "--name", name, *ADAPTED, *more)


def test_a_search_ends_with_a_network_around_its_parent(finished: Path) -> None:
    result = read_result(finished / "result.json")
    chosen = Architecture.from_dict(chosen_of(finished).architecture)
    assert chosen != small()
    assert (chosen_of(finished).predicted["macs"] or 0) <= 400_000
    assert [stage.width for stage in chosen.stages] == [16, 24]
    (of_parent,) = [b for b in result.baselines if b.digest == small().digest]
    assert of_parent.test_accuracy is not None
    table = QualityTable.load(finished / "quality.parquet")
    space = stored_config(finished).search_space()
    assert table.missing(space) == []
    assert space.largest == small()
    evaluated = [e.digest for e in read_journal(finished / "evaluations.jsonl")]
    assert len(evaluated) == len(set(evaluated)) == 6
    # images were normalised as the parent knows them
    config = json.loads((finished / "export" / chosen.digest / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.3]


def test_the_report_says_what_cutting_alone_would_have_left(finished: Path) -> None:
    inherited = read_result(finished / "result.json").inherited
    assert inherited is not None
    alone, folded = inherited.steps[2:4]
    assert alone.name.endswith("cut alone")
    assert folded.name.endswith("cut and folded")
    config, chosen = stored_config(finished), chosen_of(finished)
    assert isinstance(config, TrainedConfig)
    data = open_data("digits", 16, **config.image_options())
    network = build(small(), data.num_classes).eval()
    network.load_state_dict(parent_of(finished))
    bank = WeightBank(config.search_space(), network).eval()
    cut_alternatives(bank, fitting_images(config, data), fold=False, seed=config.seed)
    cut = bank.extract(Architecture.from_dict(chosen.architecture))
    images = data.at(cut.architecture.resolution)
    assert evaluate(cut, eval_batches(images.test)).accuracy == alone.test_accuracy
    assert folded.test_accuracy == chosen.test_accuracy_before


def test_any_evaluated_network_is_exported_later(finished: Path, tmp_path: Path) -> None:
    evaluation = read_journal(finished / "evaluations.jsonl")[0]
    exports = export_from_run(finished, evaluation.digest, tmp_path / "export", Console(quiet=True))
    assert {"timm", "onnx"} <= {item.format for item in exports}


def test_another_budget_inherits_all_that_is_known(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parents[1])
    monkeypatch.setenv("NAS_CACHE", str(finished.parents[1] / "cache"))
    before = tree(finished)
    monkeypatch.setattr(adapting, "classified", not_again)
    monkeypatch.setattr(pretrained_search, "cut_alternatives", not_again)
    said = nas("search", "--inherit", finished, "--name", "second", *QUICK, "--max", "macs=300k")
    assert said.code == 0, said.err
    assert tree(finished) == before
    second = finished.parent / "second"
    assert (chosen_of(second).predicted["macs"] or 0) <= 300_000
    again = parent_of(second)
    for name, weight in parent_of(finished).items():
        assert torch.equal(weight, again[name])


def chosen_of(run: Path) -> Chosen:
    chosen = read_result(run / "result.json").chosen
    assert chosen is not None
    return chosen


def parent_of(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = CheckpointFolder(run / "parent" / "checkpoints").newest()
    assert checkpoint is not None
    return checkpoint.trained_weights()


def not_again(*_: object, **__: object) -> None:
    raise AssertionError("this was made before")


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("classified", marks=pytest.mark.slow),
        pytest.param("cut_alternatives", marks=pytest.mark.slow),
        "measure_quality",
        pytest.param("sweep", marks=pytest.mark.slow),
        "finetune_guided",
    ],
)
def test_a_search_that_was_stopped_ends_alike(
    phase: str, finished: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(finished.parents[1] / "cache"))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adapting if phase == "classified" else pretrained_search, phase, stop)
        assert search(parent, "first", "--max", "macs=400k").code == 130
    said = search(parent, "first", "--max", "macs=400k", "--resume")
    assert said.code == 0, said.err
    whole, continued = map(chosen_of, (finished, tmp_path / "runs" / "first"))
    assert continued.digest == whole.digest
    assert continued.test_accuracy == whole.test_accuracy
    assert [e.metrics for e in read_journal(tmp_path / "runs/first/evaluations.jsonl")] == [
        e.metrics for e in read_journal(finished / "evaluations.jsonl")
    ]


@pytest.mark.slow
def test_other_mixers_learn_from_the_parent(
    finished: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(finished.parents[1] / "cache"))
    said = nas("spaces", "--around", parent / "config.json", "--mixers", "pooling", "--yaml")
    assert said.code == 0, said.err
    Path("mixed.yaml").write_text(said.out)
    more = ("--space", "mixed.yaml", "--distil-steps", "20", "--refine-steps", "5")
    said = search(parent, "mixed", *more, "--joint-epochs", "1", "--max", "macs=400k")
    assert said.code == 0, said.err
    table = QualityTable.load(tmp_path / "runs/mixed/quality.parquet")
    labels = {block.label for _, block, _ in table.changes if block is not None}
    assert labels == {"depthwise_conv", "pooling", "projection", "skip"}
    inherited = read_result(tmp_path / "runs/mixed/result.json").inherited
    assert inherited is not None
    assert [step.name.partition(", ")[2] for step in inherited.steps[2:5]] == [
        "cut alone",
        "cut and folded",
        "put together",
    ]
    best = chosen_of(tmp_path / "runs/mixed").digest
    export_from_run(tmp_path / "runs/mixed", best, tmp_path / "export", Console(quiet=True))


@pytest.mark.slow
def test_found_networks_are_fine_tuned_by_trials(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parents[1])
    said = nas("finetune", finished, "--trials", "2", "--epochs", "1", "--name", "tuned", "--json")
    assert said.code == 0, said.err
    tuned = json.loads(said.out)
    assert tuned["best"]["digest"] == chosen_of(finished).digest


def test_a_parent_within_the_budget_is_the_answer(
    finished: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(finished.parents[1] / "cache"))
    said = search(parent, "easy", "--max", "macs=1G")
    assert said.code == 0, said.err
    result = read_result(tmp_path / "runs/easy/result.json")
    assert chosen_of(tmp_path / "runs/easy").digest == small().digest
    assert any("meets the limits as it is" in note for note in result.notes)
    assert not (tmp_path / "runs/easy/quality.parquet").exists()


def test_what_cannot_be_started_from_is_said(
    finished: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for options, words in (
        (("--from", "vit_tiny_patch16_224"), "is no point of a space"),
        (("--from", "convnext_tinny"), "Networks to start from are near"),
        (("--from", parent, "--from-weights", parent / "model.safetensors"), "weights of its own"),
        (("--from-weights", parent / "model.safetensors"), "without --from"),
        (("--from", parent, "--space", "digits"), "does not hold"),
        (("--from", parent, "--importance", "magnitud"), "'magnitude'"),
        (("--from", parent, "--workers", "2", "--storage", "s"), "--storage"),
        (("--from", "resnet18", "--from-weights", parent / "model.safetensors"), "not those of"),
    ):
        said = nas("search", "--data", "digits", "--max", "macs=400k", *QUICK, *options)
        assert said.code in (1, USAGE), said.err
        assert words in said.err
        assert not (tmp_path / "runs").exists()
    said = search(parent, "tiny", "--max", "macs=1k")
    assert said.code == INFEASIBLE


def test_another_parent_than_the_run_began_with_is_refused(
    finished: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "first"
    shutil.copytree(finished, run)
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(parent, other)
    said = search(other, "first", "--max", "macs=400k", "--resume")
    assert said.code == 1
    assert "parent" in said.err
    assert tree(run) == tree(finished)


def test_other_weights_than_the_run_began_with_are_refused(
    finished: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(finished.parents[1] / "cache"))
    mine = tmp_path / "mine"
    shutil.copytree(parent, mine)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(adapting, "classified", stop)
        assert search(mine, "first", "--max", "macs=400k").code == 130
    began = find_parent(str(mine)).fingerprint()
    weights = read_tensors(mine / "model.safetensors")
    write_tensors(mine / "model.safetensors", {k: 2 * v for k, v in weights.items()})
    before = tree(tmp_path / "runs")
    said = search(mine, "first", "--max", "macs=400k", "--resume")
    assert said.code == 1
    assert f"{began} -> {find_parent(str(mine)).fingerprint()}" in said.err
    assert tree(tmp_path / "runs") == before


def test_what_is_taken_over_appears_at_one_stroke(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text("whole")
    (tmp_path / ".target.partial" / "inner").mkdir(parents=True)  # a copying that was killed
    (tmp_path / ".target.partial" / "inner" / "file").write_text("wh")
    copied(source, target)
    assert tree(target) == tree(source)
    (source / "inner" / "file").write_text("later")
    copied(source, target)  # what is there is the run's own
    assert (target / "inner" / "file").read_text() == "whole"
    copied(tmp_path / "nothing", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_parents_are_found_by_our_names_and_those_of_timm() -> None:
    ours, theirs = find_parent("convnext_t"), find_parent("convnext_tiny.fb_in22k")
    assert ours.architecture == theirs.architecture
    assert (ours.name.split(".")[0], theirs.name) == ("convnext_tiny", "convnext_tiny.fb_in22k")
    assert find_parent("tf_efficientnet_lite0").mean == (0.5, 0.5, 0.5)
    larger = find_parent("convnext_tiny.in12k_ft_in1k_384").architecture
    assert larger == replace(ours.architecture, resolution=384)


def test_classes_are_balanced_in_both_trainings(parent: Path) -> None:
    options = {"data": "digits", "target_latency": "1ms", "parent": str(parent)}
    config = resolve(options | {"train.class_weights": "balanced"})
    assert isinstance(config, TrainedConfig)
    assert (config.adapt.class_weights, config.finetune.class_weights) == ("balanced", "balanced")
