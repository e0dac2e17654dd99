"""Searches by the command with other samplers, limits, objectives, starts and workers."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml
from tiny_job import EVALUATIONS, USAGE, Job, evaluated, front_of, nas

from results.journal import read_journal
from supernet.training import evaluation

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_earlier_front_is_evaluated_first(finished: Job) -> None:
    known = {digest for digest, *_ in front_of(finished.said)}
    said = finished.search("warm", "--supernet", finished.run, "--warm-start", finished.run)
    assert said.code == 0, said.err
    assert f"{len(known)} of {len(known)} front members" in said.err
    first = [digest for _, digest, *_ in evaluated(finished.runs / "warm")][: len(known)]
    assert set(first) == known
    refused = finished.search("cold", "--supernet", finished.run, "--warm-start", "nowhere")
    assert refused.code == USAGE
    assert "nowhere holds no evaluations" in refused.err


def test_bands_and_a_front_of_three_quantities(
    finished: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By balanced accuracy, and judged throughout with the precision that is set."""
    amps = set()

    def autocast(device: torch.device, amp: str) -> Any:
        amps.add(amp)
        return nullcontext()

    monkeypatch.setattr(evaluation, "autocast", autocast)
    file = finished.folder / "amp.yaml"
    file.write_text("train: {amp: 'off'}\nfinetune: {amp: 'off'}\n")
    said = finished.search(
        *("three", "--config", file, "--supernet", finished.run),
        *("--min", "params=8k", "--max", "params=20k"),
        *("--minimize", "params", "--minimize", "latency", "--objective", "balanced_accuracy"),
    )
    assert said.code == 0, said.err
    assert "num_params ≥ 8.00 k and num_params ≤ 20.00 k: the space has" in said.err
    rows = [metrics for _, _, _, metrics, _ in evaluated(finished.runs / "three")]
    assert len(rows) > 2
    assert all(8e3 <= row["num_params"] <= 20e3 for row in rows)
    points = np.array([(-r["balanced_accuracy"], r["num_params"], r["latency_ms"]) for r in rows])
    beaten = [
        bool(((points <= point).all(axis=1) & (points < point).any(axis=1)).any())
        for point in points
    ]
    digests = [digest for _, digest, *_ in evaluated(finished.runs / "three")]
    wanted = {digest for digest, lost in zip(digests, beaten, strict=True) if not lost}
    assert {digest for digest, *_ in front_of(said)} == wanted
    assert amps == {"off"}


def test_a_search_without_a_limit_of_latency(finished: Job) -> None:
    said = nas(
        *("search", *finished.options, "--supernet", finished.run, "--max", "params=15k"),
        *("--evaluations", EVALUATIONS, "--population", 6, "--finetune-epochs", 1),
        *("--halvings", 2, "--json"),
    )
    assert said.code == 0, said.err
    run = finished.runs / "digits-pebble-cpu-params-15k"
    found = evaluated(run)
    assert len(found) == EVALUATIONS
    assert all(metrics["num_params"] <= 15e3 for _, _, _, metrics, _ in found)
    # of 287 validation images all of a batch of three see 72, two of them 144, and one the rest
    images = sorted(int(metrics["validation_images"]) for _, _, _, metrics, _ in found)
    assert images == [72] * 4 + [144] * 4 + [287] * 4
    statuses = {(status, metrics["validation_images"] == 287) for _, _, status, metrics, _ in found}
    assert statuses == {("ok", True), ("stopped", False)}
    assert "8 on a part of the images only" in said.err
    whole = {digest for _, digest, status, *_ in found if status == "ok"}
    assert {digest for digest, *_ in front_of(said)} <= whole
    assert json.loads(said.out)["best"]["digest"] in whole

    refused = finished.search("many", "--supernet", finished.run, "--halvings", 6)
    assert refused.code == USAGE
    assert "--halvings 6 leaves 4 of 287 validation images" in refused.err
    assert "Give --halvings 4 or less" in refused.err


def test_a_study_of_optuna_is_kept_and_opens(finished: Job, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    storage = ("--sampler", "optuna-TPE", "--optuna-storage", url)
    said = finished.search("optuna", "--supernet", finished.run, *storage)
    assert said.code == 0, said.err
    study = optuna.load_study(study_name="optuna", storage=url)
    told = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    losses = sorted(metrics["loss"] for _, _, _, metrics, _ in evaluated(finished.runs / "optuna"))
    assert sorted(t.values[0] for t in told if t.values) == pytest.approx(losses)

    refused = finished.search("other", "--supernet", finished.run, "--sampler", "optuna-TPEE")
    assert refused.code == USAGE
    refused = finished.search("other", "--supernet", finished.run, "--sampler", "nsga3")
    assert refused.code == USAGE
    assert "unknown sampler 'nsga3'. Did you mean 'nsga2'?" in refused.err
    assert not (finished.runs / "other").exists()


@pytest.mark.slow
def test_workers_evaluate_what_one_process_does(finished: Job) -> None:
    said = finished.search("by-two", "--supernet", finished.run, "--workers", 2)
    assert said.code == 0, said.err
    window = yaml.safe_load((finished.runs / "by-two" / "config.yaml").read_text())["search"]
    settings = finished.folder / "window.yaml"
    settings.write_text(yaml.safe_dump({"search": {"window": window["window"]}}))
    alone = finished.search("by-one", "--supernet", finished.run, "--config", settings)
    assert alone.code == 0, alone.err
    two, one = (
        {
            e.index: (e.digest, e.metrics["accuracy"])
            for e in read_journal(path / "evaluations.jsonl")
        }
        for path in (finished.runs / "by-two", finished.runs / "by-one")
    )
    assert two == one
    assert {digest for digest, *_ in front_of(said)} == {digest for digest, *_ in front_of(alone)}
