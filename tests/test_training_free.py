"""Searches without images, and training what they found, through the command."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny_job import FAILED, INFEASIBLE, USAGE, Ran, every_architecture, fresh_job, nas, search

from predictors.counts import count_architecture
from predictors.proxies.space_tables import score_architecture
from predictors.tables.latency_table import LatencyTable
from results.export.write import export_network
from results.journal import read_journal
from search.scaling.two_criteria import TwoScores
from search_space import Architecture, SearchSpace, dump_architecture, load_space
from search_space.errors import ExportError


def scored(*more: object, budget: str = "1s", name: str = "scored") -> Ran:
    return nas(
        *("search", "--space", "pebble.yaml", "--target-latency", budget, "--device", "a100"),
        *("--num-classes", 10, "--name", name, *more),
    )


def allowed(space: SearchSpace) -> list[Architecture]:
    """Architectures whose stages never get narrower."""
    return [a for a in every_architecture(space) if list(a.widths) == sorted(a.widths)]


@pytest.fixture
def light_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the fastest format is written."""
    light = functools.partial(export_network, formats=("timm",))
    monkeypatch.setattr("nas.workflows.finishing.export_network", light)


@pytest.fixture
def space(job: Path) -> SearchSpace:
    return load_space(str(job / "pebble.yaml"))


@pytest.fixture(scope="module")
def found_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished search in a folder of its own, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        work = fresh_job(tmp_path_factory.mktemp("scored"), patch)
        ran = scored("--json")
        assert ran.code == 0, ran.err
    return work, json.loads(ran.out)


@pytest.fixture
def found(found_once: tuple[Path, dict[str, Any]], job: Path) -> dict[str, Any]:
    """What the search printed; its run lies in the working folder."""
    shutil.copytree(found_once[0] / "runs", job / "runs")
    return found_once[1]


@pytest.mark.usefixtures("light_exports")
@pytest.mark.parametrize("score", ["combined", "deepmad"])
def test_the_best_score_within_the_budget_is_found_and_exported(
    space: SearchSpace, job: Path, score: str
) -> None:
    ran = scored("--score", score, "--json", "--max", "params=20k")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["status"] == "complete"
    best = result["best"]
    values = {
        a.digest: score_architecture(score, a, 10)
        for a in allowed(space)
        if sum(p.numel() for p in _network(a).parameters()) <= 20_000
        and (score == "combined" or score_architecture("effectiveness", a) <= 0.5)
    }
    assert best["predicted"]["score"] == pytest.approx(max(values.values()), rel=1e-3)
    assert values[best["digest"]] == pytest.approx(best["predicted"]["score"])
    assert best["test_accuracy"] is None
    assert best["measured"] == {}
    assert {member["digest"] for member in result["front"]} <= set(values)
    if score == "deepmad":
        assert "is proven to be within" in ran.err

    run = Path(result["run"])
    folder = run / "export" / best["digest"]
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert loaded(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    card = (folder / "README.md").read_text()
    assert "nothing: the weights are random" in card
    assert "score (not an accuracy)" in card
    journal = read_journal(run / "evaluations.jsonl")
    assert best["digest"] in {e.digest for e in journal}
    assert all("accuracy" not in e.metrics for e in journal)


@pytest.mark.usefixtures("light_exports")
@pytest.mark.parametrize("score", ["deepmad", "params"])
def test_exact_search_proves_its_front(space: SearchSpace, job: Path, score: str) -> None:
    ran = scored("--score", score, "--sampler", "exact", "--minimize", "macs", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    every = [
        (score_architecture(score, a, 10), count_architecture(a, 10)["macs"])
        for a in allowed(space)
        if score != "deepmad" or score_architecture("effectiveness", a) <= 0.5
    ]
    front = {member["digest"]: member["predicted"] for member in result["front"]}
    assert len(front) >= 3
    assert max(m["score"] for m in front.values()) == pytest.approx(max(every)[0], rel=1e-3)
    assert min(m["macs"] for m in front.values()) == min(macs for _, macs in every)
    for member in front.values():
        best = max(value for value, macs in every if macs <= member["macs"])
        assert member["score"] == pytest.approx(best, rel=1e-3)
    proofs = json.loads(Path(result["run"], "result.json").read_text())["proofs"]
    assert {proof["digest"] for proof in proofs} == set(front)
    for proof in proofs:
        assert proof["status"] == "optimal"
        assert proof["value"] == pytest.approx(front[proof["digest"]]["score"])
        assert proof["value"] <= proof["bound"] * (1 + 1e-9) <= proof["value"] * 1.002
    assert "proven by an integer programme" in ran.err
    assert "<b>Proofs</b>" in Path(result["run"], "report.html").read_text()


def test_exact_search_says_where_it_cannot_be_used(job: Path) -> None:
    for more, message in (
        ((), "the score combined does not; give --score deepmad, entropy, params or macs"),
        (("--score", "macs", "--minimize", "memory"), "one quantity that adds up, not for memory"),
    ):
        refused = scored("--sampler", "exact", *more)
        assert refused.code == USAGE
        assert message in refused.err
    assert "unknown sampler without --data 'nsga2'" in scored("--sampler", "nsga2").err
    refused = search("--sampler", "exact")
    assert refused.code == USAGE
    assert "how well trained networks do does not. Take surrogate here" in refused.err


def _network(architecture: Architecture) -> torch.nn.Module:
    from supernet import build

    return build(architecture, 10)


def test_the_report_never_calls_a_score_an_accuracy(found: dict[str, Any]) -> None:
    html = Path("runs/scored/report.html").read_text()
    text = re.sub(r"<(style|script|pre)\b.*?</\1>", "", html, flags=re.DOTALL)
    text = text.replace("published ImageNet accuracies", "").replace("(not an accuracy)", "")
    assert "score" in text
    assert "accurac" not in text.replace("objective: loss", "")
    assert "estimated" in text
    assert "nas train --architecture runs/scored/export/" in text


def test_a_run_is_continued_as_it_was_and_others_are_exported(found: dict[str, Any]) -> None:
    table = LatencyTable.load(Path("runs/scored/latency.parquet"))
    assert table.conditions.to_dict()["runtime_version"] == "datasheet"
    Path("runs/scored/manifest.json").write_text(
        Path("runs/scored/manifest.json").read_text().replace('"complete"', '"running"')
    )
    again = scored("--resume", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out) == found
    other = found["front"][0]["digest"]
    ran = nas("export", "runs/scored", other, "--json")
    assert ran.code == 0, ran.err
    assert {item["format"] for item in json.loads(ran.out)} >= {"timm", "onnx", "torch_export"}


def test_options_that_would_do_nothing_are_refused(job: Path) -> None:
    ran = nas("train", "--space", "pebble.yaml")
    assert ran.code == USAGE
    assert "'data' is missing; give --data" in ran.err
    ran = scored("--supernet", "runs/other")
    assert ran.code == USAGE
    assert "--supernet runs/other does nothing without --data" in ran.err
    for flag, value in (("--evaluations", 9), ("--epochs", 3), ("--image-column", "x")):
        ran = scored(flag, value)
        assert ran.code == USAGE
        assert f"{flag} {value} does nothing without --data; give --data" in ran.err
    ran = scored("--max-effectiveness", 0.4)
    assert ran.code == USAGE
    assert "does nothing without --score deepmad" in ran.err
    ran = scored("--score", "deepmad", "--max-effectiveness", "inf")
    assert ran.code == USAGE
    for flag, value in (("--score", "deepmad"), ("--num-classes", 7), ("--rerank", 2)):
        ran = search(flag, value)
        assert ran.code == USAGE
        assert f"{flag} {value} does nothing with --data" in ran.err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("light_exports")
def test_an_impossible_budget_names_the_fastest(job: Path) -> None:
    ran = scored(budget="1us")
    assert ran.code == INFEASIBLE
    assert "fastest architecture" in ran.err
    assert not Path("runs/scored").exists()
    ran = scored("--score", "deepmad", "--max-effectiveness", "0.0001")
    assert ran.code == INFEASIBLE
    assert "proven by an integer programme" in ran.err


@pytest.mark.usefixtures("light_exports")
def test_several_devices_are_kept_within_their_limits(job: Path) -> None:
    free = json.loads(scored("--json", "--margin", 0, "--max", "latency@t4=1s").out)
    latencies = [m["predicted"]["latency_ms@t4"] for m in free["front"]]
    limit = (min(latencies) + max(latencies)) / 2
    more = ("--margin", 0, "--max", f"latency@t4={limit}ms", "--json")
    ran = scored(*more, name="both")
    assert ran.code == 0, ran.err
    found = [m["predicted"]["latency_ms@t4"] for m in json.loads(ran.out)["front"]]
    assert len(found) > 0
    assert max(found) <= limit
    assert Path("runs/both/latency-t4.parquet").exists()
    assert scored(*more, "--resume", name="both").out == ran.out

    ran = scored("--max", "latency@t44=1s", name="other")
    assert ran.code == USAGE
    assert "'t44'" in ran.err
    ran = scored("--max", "latency@=1s", name="other")
    assert ran.code == USAGE
    assert "latency@DEVICE" in ran.err


@pytest.mark.usefixtures("light_exports")
def test_the_best_are_ordered_by_the_proxies_that_run_them(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = scored("--rerank", 3, "--json")
    assert ran.code == 0, ran.err
    by_score = sorted(json.loads(ran.out)["front"], key=lambda m: -m["predicted"]["score"])
    digests = [member["digest"] for member in by_score[:3]]
    assert json.loads(ran.out)["best"]["digest"] in digests
    # ranks by κ, by L^E and by score: 2 + 2 + 0, 0 + 0 + 1, 1 + 1 + 2
    made_up = dict(zip(digests, [(9.0, 1.0), (1.0, 9.0), (5.0, 5.0)], strict=True))
    monkeypatch.setattr(
        "nas.workflows.training_free.TwoScorer",
        lambda settings: lambda architecture: TwoScores(*made_up[architecture.digest]),
    )
    ran = scored("--rerank", 3, name="stubbed")
    assert ran.code == 0, ran.err
    assert f"{digests[1]}" in ran.out.split("chosen ")[1].split(":")[0]
    html = Path("runs/stubbed/report.html").read_text()
    assert "the smallest sum of ranks by score, ntk_condition and length_distortion" in html


def test_one_network_is_trained_and_exported(found: dict[str, Any]) -> None:
    digest = found["best"]["digest"]
    file = f"runs/scored/export/{digest}/config.json"
    arguments = ("train", "--architecture", file, "--data", "digits", "--epochs", 2, "--json")
    ran = nas(*arguments)
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["run"] == f"runs/digits-{digest}"
    assert result["best"]["digest"] == digest
    assert 0 <= result["best"]["test_accuracy"] <= 1
    loaded = timm.create_model(f"local-dir:{result['run']}/export/{digest}", pretrained=True)
    fresh = timm.create_model(f"local-dir:runs/scored/export/{digest}", pretrained=True)
    weights = zip(loaded.parameters(), fresh.parameters(), strict=True)
    assert any(not torch.equal(trained, drawn) for trained, drawn in weights)
    report = Path(result["run"], "report.html").read_text()
    assert "Validation loss" in report
    again = nas(*arguments, "--resume")
    assert json.loads(again.out) == result
    header = Path(result["run"], "config.yaml").read_text()
    assert "nas train --config" in header
    ran = nas("export", result["run"])
    assert "trained one network, and its export is in" in ran.err
    ran = nas(
        *("search", "--config", f"{result['run']}/config.yaml", "--target-latency", "1s"),
        *("--name", "other"),
    )
    assert ran.code == USAGE
    assert "a search would ignore it" in ran.err


def test_a_network_whose_export_fails_keeps_its_training(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ExportError("the disk said no")

    monkeypatch.setattr("nas.workflows.finishing.export_network", fail)
    file = job / "small.yaml"
    file.write_text(dump_architecture(load_space(str(job / "pebble.yaml")).smallest))
    arguments = ("train", "--architecture", file, "--data", "digits", "--epochs", 1)
    ran = nas(*arguments, "--name", "net")
    assert ran.code == FAILED
    assert "the disk said no" in ran.err
    assert any(Path("runs/net/network/checkpoints").iterdir())
    monkeypatch.undo()


def test_wide_networks_are_not_trained_at_the_rate_of_narrow_ones(job: Path) -> None:
    def rate(name: object) -> float:
        ran = nas("train", "--architecture", name, "--data", "digits", "--dry-run", "--json")
        return float(json.loads(ran.out)["config"]["train"]["lr"])

    file = job / "small.yaml"
    file.write_text(dump_architecture(load_space(str(job / "pebble.yaml")).smallest))
    assert rate("swin_t") < rate(file)
    ran = nas("train", "--architecture", file, "--data", "digits", "--space", "digits")
    assert ran.code == USAGE
    assert "--space digits does nothing with --architecture" in ran.err
