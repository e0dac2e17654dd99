"""The command line: where options come from, what is shown, help, and light imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from space_kinds import kind_of_space
from tiny_job import USAGE, nas, search, tree

from nas.config_parts import TrainedSearchConfig as SearchConfig
from search_space import Architecture, around, known, load_space, space_names

COMMANDS = (
    "search",
    "train",
    "export",
    "report",
    "show",
    "spaces",
    "devices",
    "profile",
    "calibrate",
)


def planned(*arguments: object) -> dict[str, object]:
    ran = nas("search", "--dry-run", "--json", *arguments)
    assert ran.code == 0, ran.err
    config: dict[str, object] = json.loads(ran.out)["config"]
    return config


def population_and_evaluations(config: dict[str, object]) -> tuple[int, int]:
    search = config["search"]
    assert isinstance(search, dict)
    return search["population"], search["evaluations"]


def test_flag_over_environment_over_config_over_default(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("job.yaml").write_text(
        yaml.safe_dump(
            {
                "data": "digits",
                "target_latency": "3ms",
                "seed": 3,
                "device": "nowhere",
                "search": {"population": 30},
                "train": {"epochs": 3},
            }
        )
    )
    file, default = ("--config", "job.yaml"), SearchConfig()
    assert nas("search", "--dry-run", *file).code == USAGE  # the file's device does not exist
    monkeypatch.setenv("NAS_DEVICE", "cpu")
    config = planned(*file)
    assert (config["seed"], config["target_latency"], config["device"]) == (3, "3ms", "cpu")
    assert population_and_evaluations(config) == (30, default.evaluations)
    assert config["train"]["epochs"] == 3  # type: ignore[index]
    monkeypatch.setenv("NAS_SEED", "4")
    monkeypatch.setenv("NAS_TARGET_LATENCY", "4ms")
    monkeypatch.setenv("NAS_EVALUATIONS", "40")
    monkeypatch.setenv("NAS_EPOCHS", "4")
    config = planned(*file)
    assert (config["seed"], config["target_latency"]) == (4, "4ms")
    assert population_and_evaluations(config) == (30, 40)
    monkeypatch.setenv("NAS_DEVICE", "nowhere")
    flags = ("--seed", 5, "--target-latency", "5ms", "--device", "cpu", "--evaluations", 50)
    config = planned(*file, *flags)
    assert (config["seed"], config["target_latency"], config["device"]) == (5, "5ms", "cpu")
    assert population_and_evaluations(config) == (30, 50)
    assert config["train"]["epochs"] == 4  # type: ignore[index]
    monkeypatch.setenv("NAS_TARGET_LATENCY", "5")
    ran = nas("search", *file, "--device", "cpu")
    assert ran.code == USAGE
    assert "has no unit" in ran.err


def test_a_dry_run_writes_nothing(job: Path) -> None:
    before = tree(job.parent)
    ran = search("--dry-run", "--json", "--name", "mine")
    assert ran.code == 0
    plan = json.loads(ran.out)
    assert set(plan) == {"run", "exists", "space", "config"}
    assert (plan["run"], plan["exists"]) == ("runs/mine", False)
    assert plan["space"]["size"] == 256
    text = search("--dry-run").out
    assert "run: runs/digits-pebble-cpu-1s\n" in text
    assert "space: pebble, 2.56e+02 architectures" in text
    assert nas("train", "--data", "digits", "--dry-run").out.startswith("run: runs/digits-supernet")
    assert search("--dry-run", "--device", "cpuu").code == USAGE
    assert tree(job.parent) == before


def test_show_counts_what_is_published(job: Path) -> None:
    shown = json.loads(nas("show", "swin_t", "--json").out)
    assert shown["num_params"] == 28_288_354
    assert shown["macs"] == pytest.approx(4.51e9, rel=0.01)
    for metric in ("num_params", "macs", "activations"):
        assert sum(row[metric] for row in shown["components"]) == shown[metric]
    assert "latency_ms" not in shown
    table = nas("show", "swin_t").out
    assert "28.29 M parameters, 4.5" in table
    assert len(table.splitlines()) == len(shown["components"]) + 3


def test_spaces(job: Path) -> None:
    rows = json.loads(nas("spaces", "--json").out)
    assert [row["name"] for row in rows] == space_names()
    assert all(set(row) == {"name", "size", "digest"} and row["size"] > 1000 for row in rows)
    pebble = json.loads(nas("spaces", "pebble.yaml", "--json").out)
    assert pebble["size"] == 256
    assert nas("spaces").out.count("architectures") == len(rows)


def test_a_space_says_the_choices_of_its_positions(job: Path) -> None:
    plain = kind_of_space("blocks").to_dict()
    Path("mine.yaml").write_text(json.dumps(plain))
    lines = nas("spaces", "mine.yaml").out.splitlines()
    assert lines[2:] == [
        "stage 1: width [8, 12], depth [1, 2], stride 1",
        "  blocks 1 to 2: 1 block choice of depthwise_separable",
        "stage 2: width [12, 16], depth [2], stride 2",
        "  block 1: 4 block choices of inverted_residual (expansion 1, 3; squeeze 0, 0.25)",
        "  block 2: 5 block choices of skip, inverted_residual (expansion 1, 3; squeeze 0, 0.25)",
        "stage 3: width [16], depth [1], stride 2",
        "  block 1: 2 block choices of fused_inverted_residual, basic",
    ]
    assert json.loads(nas("spaces", "mine.yaml", "--json").out)["stages"] == plain["stages"]


def test_the_space_around_a_network(job: Path) -> None:
    lines = nas("spaces", "--around", "convnext_t").out.splitlines()
    assert lines[0].startswith("around-convnext_t: 1.71e+21 architectures, digest ")
    assert lines[1] == "resolution 128, 160, 192, 224 px"
    assert lines[3] == (
        "  blocks 1 to 3: 14 block choices of skip, projection, "
        "depthwise_conv (kernel 3, 5, 7; mlp_ratio 1, 2, 3, 4)"
    )
    chosen = ("--ratios", "0.5", "--mixers", "pooling", "--resolutions", "none")
    lines = nas("spaces", "--around", "convnext_t", *chosen).out.splitlines()
    assert lines[1] == "resolution 224 px"
    assert lines[3] == (
        "  blocks 1 to 3: 10 block choices of skip, projection, "
        "pooling (mlp_ratio 2, 4), depthwise_conv (kernel 3, 5, 7; mlp_ratio 2, 4)"
    )
    for name, parent in (("swin_t", known("swin_t")), ("mine.json", pebble_parent())):
        if name.endswith(".json"):
            Path(name).write_text(json.dumps({"model_args": {"architecture": parent.to_dict()}}))
        Path("around.yaml").write_text(nas("spaces", "--around", name, "--yaml").out)
        space = load_space("around.yaml")
        assert space.digest == around(parent).digest
        assert space.name == f"around-{Path(name).stem}"
        assert json.loads(nas("spaces", "around.yaml", "--json").out)["digest"] == space.digest
    Path("same.yaml").write_text(nas("spaces", "around.yaml", "--yaml").out)
    assert Path("same.yaml").read_text() == Path("around.yaml").read_text()


def pebble_parent() -> Architecture:
    return load_space("pebble.yaml").largest


def fresh_process(script: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout


def test_help_imports_nothing_heavy(job: Path) -> None:
    shown = fresh_process(
        "import sys\n"
        "sys.argv = ['nas', '--help']\n"
        "from nas.cli.main import main\n"
        "main()\n"
        "print('heavy:', sorted({'torch', 'ray', 'timm', 'pandas', 'scipy'} & set(sys.modules)))\n"
    )
    assert "Usage: " in shown
    for command in COMMANDS:
        assert f"\n  {command} " in shown
    assert "heavy: []" in shown


def test_every_command_has_help(job: Path) -> None:
    for command in COMMANDS:
        ran = nas(command, "--help")
        assert ran.code == 0
        assert f"Usage: nas {command}" in ran.out or f" {command} [OPTIONS]" in ran.out


def test_nas_imports_nothing_heavy_and_nas_timm_registers_the_backbone(
    job: Path,
) -> None:
    script = (
        "import sys, nas\nprint({'ray', 'timm', 'torch'} & set(sys.modules))\n"
        "import nas.timm, timm\nprint(timm.is_model('nas_backbone'))\n"
    )
    assert fresh_process(script).split() == ["set()", "True"]
