"""Several networks tried as the parent of a search: which, how they are judged, what is kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_pretrained_search import ADAPTED, chosen_of
from tiny_job import FAILED, INFEASIBLE, USAGE, Ran, nas, tree

from nas.resolving import stored_config
from nas.workflows import parent_trials
from nas.workflows.tried_parents import choose, read_tried
from nas.workflows.zoo_parents import HOPELESS, zoo_parents
from predictors.counts import count_architecture
from predictors.devices import find_device
from predictors.zoo.published import PublishedModel, published_models
from results.export.card import ModelCard
from results.export.write import export_network
from results.report.data import read_result
from results.report.inheritance import TriedParent
from search_space import Architecture, Macro, Mixer, Stage, metaformer
from search_space.errors import InfeasibleError, NasError, UsageError
from search_space.preprocessing import Preprocessing
from supernet import build
from supernet.inherit import parents as of_parents

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = ("--max", "macs=400k")


def network(kernel: int, width: int = 16) -> Architecture:
    blocks = tuple(metaformer(Mixer.of("depthwise_conv", kernel=kernel), 4.0) for _ in range(2))
    macro = Macro(stem_kernel=2, stem_stride=2)
    return Architecture(macro, 16, (Stage(width, blocks), Stage(24, blocks)))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained networks as exports, which know their images by different figures."""
    folders = {}
    for name, kernel in (("first", 5), ("second", 3)):
        torch.manual_seed(kernel)
        folders[name] = tmp_path_factory.mktemp("parents") / name
        images = Preprocessing(resolution=16, mean=(0.1 * kernel,) * 3, std=(0.3,) * 3)
        export_network(
            build(network(kernel), 7),
            folders[name],
            preprocessing=images,
            card=ModelCard(title=name),
            formats=("timm",),
        )
    return folders


def search(exports: dict[str, Path], *more: object) -> Ran:
    names = ("--from", exports["first"], "--parents", exports["second"], "--name", "tried")
    return nas("search", "--data", "digits", *names, *ADAPTED, *LIMIT, *more)


@pytest.fixture(scope="module")
def finished(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NAS_CACHE", str(folder / "cache"))
        # the second is made the better one, so that what differs from the first shows
        patch.setattr(parent_trials, "choose", lambda tried: (tried[1], "told to"))
        said = search(exports)
    assert said.code == 0, said.err
    (folder / "said.json").write_text(said.out)
    return folder / "runs" / "tried"


def test_the_search_goes_on_from_the_parent_that_is_kept(
    finished: Path, exports: dict[str, Path]
) -> None:
    config = stored_config(finished)
    assert config.search_space().largest == network(3)
    assert config.to_dict()["parent"] == str(exports["second"])
    assert config.to_dict()["mean"] == pytest.approx([0.3] * 3)
    exported = finished / "export" / chosen_of(finished).digest / "config.json"
    assert json.loads(exported.read_text())["pretrained_cfg"]["mean"] == pytest.approx([0.3] * 3)
    tried = read_tried(finished)
    assert [one.digest for one in tried] == [network(5).digest, network(3).digest]
    assert all(one.accuracy is not None and one.latency_ms is not None for one in tried)
    assert not list((finished / "parents").glob("*/"))  # weights of trials are gone


def test_the_answer_names_the_parent_and_what_was_tried(finished: Path) -> None:
    said = json.loads((finished.parents[1] / "said.json").read_text())
    result = read_result(finished / "result.json")
    assert result.inherited is not None
    assert said["parent"]["digest"] == network(3).digest
    assert said["parent"]["name"] == "second"
    assert said["parent"]["latency_ms"] > 0
    assert said["parent"]["seconds"] > 0
    assert said["parent"]["test_accuracy"] == said["steps"][1]["test_accuracy"]
    assert [one["digest"] for one in said["tried"]] == [network(5).digest, network(3).digest]
    page = (finished / "report.html").read_text()
    assert "Of 2 networks that were tried, parent second was kept" in page


@pytest.mark.parametrize("phase", ["finetune", "choose"])
def test_trials_that_were_stopped_go_on(
    phase: str,
    finished: Path,
    exports: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(finished.parents[1] / "cache"))
    real, calls = getattr(parent_trials, phase), []

    def stop(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 2 or phase == "choose":
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(parent_trials, phase, stop)
        assert search(exports).code == 130
    run = tmp_path / "runs" / "tried"
    before = [one.accuracy for one in read_tried(run)]
    assert len(before) == (1 if phase == "finetune" else 2)
    trained: list[object] = []

    def noted(*arguments: object, **options: object) -> object:
        trained.append(arguments)
        return parent_trials_finetune(*arguments, **options)

    parent_trials_finetune = parent_trials.finetune
    monkeypatch.setattr(parent_trials, "finetune", noted)
    monkeypatch.setattr(parent_trials, "choose", lambda tried: (tried[1], "told to"))
    monkeypatch.setattr(parent_trials, "PretrainedSearch", OnlyTrials)
    monkeypatch.setattr("nas.workflows.pipeline.PretrainedSearch", Stopped)
    assert search(exports, "--resume").code == 130
    assert len(trained) == 2 - len(before)
    whole = [(one.digest, one.accuracy, one.loss) for one in read_tried(finished)]
    assert [(one.digest, one.accuracy, one.loss) for one in read_tried(run)] == whole
    assert stored_config(run) == stored_config(finished)


OnlyTrials = parent_trials.PretrainedSearch


class Stopped(OnlyTrials):
    """A search that ends where it would begin."""

    def all_phases(self) -> None:  # type: ignore[override]
        raise KeyboardInterrupt


def test_images_that_changed_meanwhile_are_refused(
    finished: Path, exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "tried"
    shutil.copytree(finished, run)
    (run / "parents" / "kept.json").unlink()
    file = next((run / "parents").glob("00-*.json"))
    file.write_text(file.read_text().replace(read_tried(run)[0].fingerprint, "0" * 12))
    manifest = json.loads((run / "manifest.json").read_text()) | {"status": "running"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    said = search(exports, "--resume")
    assert said.code == FAILED
    assert "changed since" in said.err


def test_a_kept_parent_is_inherited_by_another_search(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parents[1])
    before = tree(finished)
    said = nas("search", "--inherit", finished, "--max", "macs=300k", "--dry-run", "--json")
    assert said.code == 0, said.err
    config = json.loads(said.out)["config"]
    assert (Path(config["parent"]).name, config["parents"]) == ("second", [])
    assert tree(finished) == before


def trial(name: str, accuracy: float, latency_ms: float | None = 1.0) -> TriedParent:
    digest = f"{len(name):012x}"
    return TriedParent(
        name=name,
        digest=digest,
        num_params=1,
        macs=len(name),
        latency_ms=latency_ms,
        accuracy=accuracy,
        loss=1 - accuracy,
        images=400,
    )


def test_the_fastest_within_a_standard_error_is_kept() -> None:
    # sqrt(0.9 × 0.1 / 400) = 1.5 points
    best, near, far = trial("best", 0.90, 3.0), trial("near", 0.886, 2.0), trial("far", 0.88, 1.0)
    kept, reason = choose([best, near, far])
    assert kept == near
    assert "fastest of the 2" in reason
    assert "1.5 points" in reason
    assert choose([best, far])[0] == best
    unknown = trial("near one", 0.886, None)
    assert choose([best, unknown])[0] == best  # by multiply-adds: that has fewer
    equal = [trial("slow", 1.0, 2.0), trial("fast", 1.0, 1.0)]
    assert choose(equal)[0] == equal[1]


def test_parents_of_the_zoo_are_somewhat_above_the_limits() -> None:
    target, limits = find_device("a100"), {"macs": 60e6}
    found = zoo_parents(target, limits, 4, 64, 10)
    assert len(found) == 4
    assert len({model.design for model in found}) == 4
    for model in found:
        assert model.architecture is not None
        assert model.macs == count_architecture(model.architecture, 10)["macs"]
        assert 60e6 < model.macs <= HOPELESS * 60e6
    # by brute force: nothing above the limits is both as small and more accurate than the first
    rivals = [
        (count_architecture(here, 10)["macs"], other.top1)
        for other in published_models()
        if other.design is not None and (here := at_64(other)) is not None
    ]
    first = found[0]
    assert not any(60e6 < macs <= first.macs and top1 > first.top1 for macs, top1 in rivals)
    without = zoo_parents(target, limits, 4, 64, 10, without={digest_of(first)})
    assert first.design not in {model.design for model in without}


def at_64(model: PublishedModel) -> Architecture | None:
    try:
        return replace(model, image_size=64).architecture
    except NasError:  # its windows do not fit
        return None


def digest_of(model: PublishedModel) -> str:
    architecture = at_64(model)
    assert architecture is not None
    return architecture.digest


def test_limits_without_parents_in_the_zoo_are_told() -> None:
    target = find_device("a100")
    with pytest.raises(InfeasibleError, match="Leave --parents 2 out"):
        zoo_parents(target, {"macs": 1e3}, 2, 64, 10)
    with pytest.raises(UsageError, match="latency, params or macs"):
        zoo_parents(target, {"peak_memory_bytes": 1e6}, 2, 64, 10)


def test_what_cannot_be_tried_is_said(
    exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(of_parents.timm, "create_model", no_network)
    first = ("--from", exports["first"])
    for options, words in (
        ((*first, "--parents", "resnett18"), "--parents resnett18: there is no network"),
        (("--parents", "2"), "without --from"),
        ((*first, "--parents", "resnet18="), "NAME=FILE"),
        ((*first, "--parents", "2", "--space", "digits"), "with --parents"),
        ((*first, "--parents", "1", "--max", "params=3M"), "=FILE, instead of a number"),
        ((*first, "--parents", "resnet18"), "resnet18=FILE. To be tried are"),
    ):
        limit = () if "--max" in options else LIMIT
        said = nas("search", "--data", "digits", *ADAPTED, *limit, "--name", "never", *options)
        assert said.code in (FAILED, USAGE, INFEASIBLE), said.err
        assert words in said.err
        assert not (tmp_path / "runs").exists()
