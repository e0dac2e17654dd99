"""The script for machines with a GPU, in its dry form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predictors.tables.additive import entries
from search_space import load_space

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import on_gpu_latency

    return on_gpu_latency


def test_a_space_is_cut_to_few_entries_of_every_mixer(latency: Any) -> None:
    whole = load_space("tiny")
    assert latency.with_choices(whole, "all") is whole
    counts = []
    for choices in latency.CHOICES:
        space = latency.with_choices(whole, choices)
        counts.append(len(entries(space, 10)))
        assert whole.encode([space.largest, space.smallest]).shape[0] == 2  # it is a part
        for part, stage in zip(space.stages, whole.stages, strict=True):
            assert {b.mixer.name for b in part.blocks} == {b.mixer.name for b in stage.blocks}
    assert counts[0] > 2 * counts[1] > 20 * counts[2]


def test_errors_are_told_with_their_sign_and_after_one_factor(latency: Any) -> None:
    found = latency.compared(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert found["mape"] == found["bias"] == pytest.approx(1.0)
    assert found["mape_with_one_factor"] == pytest.approx(0.0)
    assert found["measured_over_predicted"]["50 %"] == pytest.approx(0.5)


def test_one_part_on_a_cpu(
    latency: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import on_gpu

    folder, merged = tmp_path / "parts", tmp_path / "all.json"
    options = "--device cpu --precision fp32 --space digits --choices few --runtime eager"
    options += " --networks 2 --seconds 0.2 --estimate h100"
    monkeypatch.setattr(sys, "argv", ["on_gpu_latency.py", str(folder), *options.split()])
    latency.main()
    assert len(list(folder.glob("cpu-*.parquet"))) == 1
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", str(folder), str(merged)])
    on_gpu.main()
    result = json.loads(merged.read_text())
    part = result["parts"]["digits-eager-1"]
    assert {row["digest"] for row in part["networks"]} == set(result["architectures"])
    assert all(row["by_estimate_ms"] > 0 for row in part["networks"])
    assert "| digits-few | eager | 1 |" in capsys.readouterr().out


def test_a_part_that_fails_is_named_and_the_others_run(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *eager*64*) exit 3;; esac\n')
    python.chmod(0o755)
    done = run_script(tmp_path / "parts", PYTHON=str(python))
    said = done.stdout.splitlines()
    assert done.returncode == 1
    assert [line[:12] for line in said if not line.startswith("[")] == ["FAILED (3): "] * 2
    assert sum("on_gpu_latency.py" in line for line in said if line.startswith("[")) == 12
    assert "benchmarks/on_gpu.py" in said[-1]


def run_script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(BENCHMARKS / "on_gpu.sh"), *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.slow
def test_every_line_of_the_script(tmp_path: Path) -> None:
    out = tmp_path / "parts"
    done = run_script("--dry", out, PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    parts = json.loads(Path(f"{out}.json").read_text())["parts"]
    runtimes = {f"digits-{runtime}-1" for runtime in ("eager", "onnxruntime", "inductor")}
    assert set(parts) == runtimes | {"training-digits", "workers-digits"}
