"""A search of the routes through trained networks: whole, continued, inherited, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_job import FAILED, INFEASIBLE, USAGE, Ran, nas, tree

from nas.cli.console import Console
from nas.config_parts import parent_sources
from nas.workflows import stitched_search
from nas.workflows.exporting import export_from_run
from nas.workflows.stitched_parents import route_words
from predictors.counts import count_architecture
from results.export.card import ModelCard
from results.export.write import export_network
from results.journal import read_journal
from results.report.data import Chosen, read_result
from search_space import Architecture, Macro, Mixer, Stage, metaformer
from search_space.errors import UsageError
from search_space.preprocessing import Preprocessing
from search_space.stitched import routes_of
from search_space.stitches import Route, Stitch
from supernet import build

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ("--device", "a100", "--finalists", "1", "--finetune-epochs", "1", "--json")
ADAPTED = (*QUICK, "--adapt-epochs", "2")


def network(*widths: int, downsample: str = "norm_conv") -> Architecture:
    blocks = tuple(metaformer(Mixer.of("depthwise_conv", kernel=3), 2.0) for _ in range(2))
    macro = Macro(stem_kernel=2, stem_stride=2, downsample=downsample)
    return Architecture(macro, 16, tuple(Stage(width, blocks) for width in widths))


SMALL, LARGE = network(8, 12, 16), network(12, 18, 24)
ROUTES = routes_of([SMALL, LARGE])


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained networks as exports: two of a family, one of another, one of other images."""
    folders = {}
    for name, architecture, mean in (
        ("small", SMALL, 0.5),
        ("large", LARGE, 0.5),
        ("foreign", network(12, 18, 24, downsample="patch_merging"), 0.5),
        ("dark", LARGE, 0.1),
    ):
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp("parents") / name
        export_network(
            build(architecture, 7),
            folders[name],
            preprocessing=Preprocessing(resolution=16, mean=(mean,) * 3, std=(0.3,) * 3),
            card=ModelCard(title=name),
            formats=("timm",),
        )
    return folders


def macs(architecture: Architecture) -> int:
    return count_architecture(architecture, 10)["macs"]


LIMIT = f"macs={(macs(SMALL) + macs(LARGE)) // 2}"


def search(exports: dict[str, Path], *more: object, budget: str = LIMIT) -> Ran:
    """The larger one first: their order is by size, whatever is said."""
    names = f"{exports['large']},{exports['small']}"
    named = ("--from", names, "--name", "stitched", "--max", budget)
    return nas("search", "--data", "digits", *named, *ADAPTED, *more)


@pytest.fixture(scope="module")
def finished(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NAS_CACHE", str(folder / "cache"))
        said = search(exports, "--joint-epochs", "1")
    assert said.code == 0, said.err
    (folder / "said.json").write_text(said.out)
    return folder / "runs" / "stitched"


def chosen_of(run: Path) -> Chosen:
    chosen = read_result(run / "result.json").chosen
    assert chosen is not None
    return chosen


def test_a_route_within_the_limits_is_trained_and_exported(finished: Path) -> None:
    within = {a.digest for a in ROUTES if macs(a) <= (macs(SMALL) + macs(LARGE)) // 2}
    assert {e.digest for e in read_journal(finished / "evaluations.jsonl")} == within
    chosen = chosen_of(finished)
    assert chosen.digest in within
    assert {item.format for item in chosen.exports} >= {"timm", "onnx"}
    result = read_result(finished / "result.json")
    # the front is that of all judged routes, by brute force
    judged = [(e.metrics["loss"], e.metrics["latency_ms"]) for e in map(of_run(finished), within)]
    best = {
        digest
        for digest, (loss, ms) in zip(within, judged, strict=True)
        if not any(a <= loss and b <= ms and (a, b) != (loss, ms) for a, b in judged)
    }
    assert {member.digest for member in result.front} == best
    assert any(note.startswith("The chosen network is ") for note in result.notes)


def of_run(run: Path):  # type: ignore[no-untyped-def]
    known = {e.digest: e for e in read_journal(run / "evaluations.jsonl")}
    return known.__getitem__


def test_the_answer_names_both_parents(finished: Path) -> None:
    said = json.loads((finished.parents[1] / "said.json").read_text())
    assert said["parent"]["name"] == "large"
    assert said["parent"]["digest"] == LARGE.digest
    assert [step["name"].partition(",")[0] for step in said["steps"][:2]] == [
        "the parent small",
        "the parent large",
    ]
    assert said["parent"]["seconds"] > 0
    assert "routes through small, large" in (finished / "report.html").read_text()


def test_any_judged_route_is_exported_later(finished: Path, tmp_path: Path) -> None:
    stitched = next(
        e
        for e in read_journal(finished / "evaluations.jsonl")
        if ROUTES[Architecture.from_dict(e.architecture)].stitches
    )
    exports = export_from_run(finished, stitched.digest, tmp_path / "export", Console(quiet=True))
    assert {"timm", "onnx"} <= {item.format for item in exports}


@pytest.mark.slow
def test_any_judged_route_is_fine_tuned_by_trials(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parents[1])
    stitched = next(
        e.digest
        for e in read_journal(finished / "evaluations.jsonl")
        if ROUTES[Architecture.from_dict(e.architecture)].stitches
    )
    options = ("--networks", stitched, "--trials", "1", "--epochs", "1", "--name", "tuned")
    said = nas("finetune", finished, *options, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["best"]["digest"] == stitched


def test_another_budget_takes_parents_and_stitches_over(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parents[1])
    monkeypatch.setenv("NAS_CACHE", str(finished.parents[1] / "cache"))
    before = tree(finished)
    monkeypatch.setattr("nas.workflows.adapting.classified", not_again)
    monkeypatch.setattr(stitched_search.StitchedNet, "fit", not_again)
    limit = f"macs={round(0.95 * macs(LARGE))}"
    few = ("--evaluations", "5", "--max", limit)
    said = nas("search", "--inherit", finished, "--name", "second", *QUICK, *few)
    assert said.code == 0, said.err
    assert tree(finished) == before
    first = {e.digest: e.metrics for e in read_journal(finished / "evaluations.jsonl")}
    second = read_journal(finished.parent / "second" / "evaluations.jsonl")
    # the slowest first, then evenly to the fastest
    assert len(second) == 5
    speeds = [e.metrics["latency_ms"] for e in second]
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[-1] == min(metrics["latency_ms"] for metrics in first.values())
    common = [e for e in second if e.digest in first]
    assert common
    assert all(e.metrics == first[e.digest] for e in common)  # what both judged, they judge alike


def not_again(*_: object, **__: object) -> None:
    raise AssertionError("this was made before")


@pytest.mark.parametrize("phase", ["stitched_net", "finetune_guided"])
def test_a_search_that_was_stopped_ends_alike(
    phase: str,
    finished: Path,
    exports: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(finished.parents[1] / "cache"))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stitched_search, phase, stop)
        assert search(exports, "--joint-epochs", "1").code == 130
    said = search(exports, "--joint-epochs", "1", "--resume")
    assert said.code == 0, said.err
    whole, continued = map(chosen_of, (finished, tmp_path / "runs" / "stitched"))
    assert (continued.digest, continued.test_accuracy) == (whole.digest, whole.test_accuracy)


def test_what_cannot_be_stitched_is_said(
    exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    small, large = exports["small"], exports["large"]
    pair = f"{small},{large}"
    for options, words in (
        (("--from", f"{small},{exports['foreign']}"), "downsample is norm_conv and patch_merging"),
        (("--from", f"{small},{exports['dark']}"), "images have the mean"),
        (("--from", f"{small},{small}"), "is there twice"),
        (("--from", f"{small},"), "has an empty name"),
        (("--from", pair, "--from-weights", "a,b,c"), "are 3 files for 2 networks"),
        (("--from", pair, "--from-weights", f"{small}/model.safetensors,"), "of its own"),
        (("--from", pair, "--parents", "2"), "with several networks of --from"),
        (("--from", pair, "--importance", "taylor"), "with several networks of --from"),
        (("--from", pair, "--max", "memory=1MB"), "memory is not known of stitched networks"),
        (("--from", "resnet18,convnext_tiny"), "resnet18"),
    ):
        limit = () if "--max" in options else ("--max", LIMIT)
        said = nas("search", "--data", "digits", "--name", "never", *limit, *ADAPTED, *options)
        assert said.code in (FAILED, USAGE), said.err
        assert words in said.err
        assert not (tmp_path / "runs").exists()
    said = search(exports, budget="macs=1k")
    assert said.code == INFEASIBLE
    assert "no route through small, large meets" in said.err


def test_weights_are_given_in_the_order_of_the_networks() -> None:
    assert parent_sources("a,b", "x,y") == [("a", "x"), ("b", "y")]
    assert parent_sources("a, b", ",y") == [("a", None), ("b", "y")]
    assert parent_sources("a", None) == [("a", None)]
    with pytest.raises(UsageError, match="1 files for 2"):
        parent_sources("a,b", "x")


def test_a_route_is_told_in_words() -> None:
    names = ("small", "large")
    assert route_words(Route(1), names) == "large"
    there = Stitch(0, 1, stage=1, leave=0, enter=1, layer=0)
    back = Stitch(1, 0, stage=2, leave=0, enter=1, layer=0)
    assert route_words(Route(0, (there, back)), names) == (
        "small to block 1 of stage 2, large from block 2 of stage 2 to block 1 of stage 3, "
        "small from block 2 of stage 3"
    )
