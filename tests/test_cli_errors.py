"""The command line: wrong input gets an answer, an exit code, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_job import (
    FAILED,
    INFEASIBLE,
    USAGE,
    cache_known_table,
    every_architecture,
    latency_ms,
    nas,
    search,
    tree,
)

from search_space import load_space


def image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


# Wrong options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--target-latency", "5"], ["'5' has no unit", "ms", "write 5ms"]),
        (["--target-latency", "-5ms"], ["'-5ms'", "must be positive"]),
        (["--target-latency", "0ms"], ["must be positive"]),
        (["--target-latency", "5 parsecs"], ["unknown unit 'parsecs'", "ms, s"]),
        (["--target-latency", "soon"], ["'soon' is not a latency", "5ms"]),
        (["--max", "params=-5M"], ["'-5M'", "must be positive"]),
        (["--max", "macs=5ms"], ["unknown unit 'ms'", "G"]),
        (["--max", "memory=200"], ["'200' has no unit", "write 200MB"]),
        (["--max", "params"], ["--max 'params' must be NAME=VALUE", "params=5M"]),
        (["--max", "parms=5M"], ["unknown metric 'parms'", "Did you mean 'params'"]),
        (["--max", "params=5M", "--max", "params=6M"], ["--max params is given twice"]),
        (["--target-throughput", "2000"], ["'2000' is not a throughput", "2000/s"]),
        (["--margin", "1"], ["--margin", "0<=x<1"]),
        (["--space", "digitz"], ["unknown space 'digitz'", "mean 'digits'", "base, cifar, digits"]),
        (["--device", "cpuu"], ["unknown device 'cpuu'", "Did you mean 'cpu'", "Known: a10"]),
        (["--precision", "fp61"], ["unknown precision 'fp61'", "mean 'fp16'", "bf16, fp16, fp32"]),
        (["--name", "a/b"], ["--name 'a/b'", "plain name", "--runs"]),
        (["--name", ".."], ["--name '..'", "plain name"]),
        (["--name", "a\nfoo: 5"], ["--name 'a\\nfoo: 5'", "control character"]),
        (["--name", "a" * 300], ["has 300 characters", "at most 100 characters"]),
        (["--name", "é" * 101], ["has 101 characters (202 bytes)"]),
        (["--name", ".hidden"], ["--name '.hidden'", "begins with a dot"]),
        (["--name", ""], ["--name '' is empty", "give a value, or leave it out"]),
        (["--supernet", ""], ["--supernet '' is empty"]),
        (["--warm-start="], ["--warm-start '' is empty", "A variable may not be set"]),
        (["--resume", ""], ["--resume '' is empty"]),
        (["--seed", "-1"], ["--seed", "-1", "0<=x<="]),
        (["--epochs", "0"], ["epochs is 0", "above 0"]),
        (["--evaluations", "-3"], ["--evaluations", "-3", "x>=1"]),
        (["--population", "2"], ["--population", "4<=x<="]),
        (["--batch-size", "-1"], ["--batch-size", "1<=x<="]),
        (["--threads", "0"], ["--threads", "1<=x<="]),
        (["--lr", "-0.1"], ["lr is -0.1", "above 0"]),
        (["--lr", "nan"], ["lr is nan", "finite number"]),
        (["--tagret-latency", "1s"], ["No such option", "--target-latency"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_wrong_options_are_answered(job: Path, options: list[str], expected: list[str]) -> None:
    before = tree(job.parent)
    ran = search(*options)
    assert ran.code == USAGE
    for text in expected:
        assert text in ran.err
    assert ran.out == ""
    assert tree(job.parent) == before


def test_what_must_be_given_is_asked_for(job: Path) -> None:
    before = tree(job)
    ran = nas("search", "--data", "images")
    assert ran.code == USAGE
    assert "'target_latency' is missing; give --target-latency" in ran.err
    assert "'target_latency' is missing; give --target-latency" in nas("search").err
    ran = nas("search", "--data", "digits")
    assert ran.code == USAGE
    assert "'target_latency' is missing; give --target-latency" in ran.err
    assert "--data" not in ran.err
    ran = nas("train")
    assert ran.code == USAGE
    assert "'data' is missing; give --data" in ran.err
    assert tree(job) == before


def test_unknown_commands_and_names(job: Path) -> None:
    assert nas("serach").code == USAGE
    ran = nas("spaces", "cifer")
    assert ran.code == USAGE
    assert "unknown space 'cifer'. Did you mean 'cifar'? Known: base, cifar, digits" in ran.err
    ran = nas("show", "swin_x")
    assert ran.code == USAGE
    assert "unknown design 'swin_x'. Did you mean 'swin_" in ran.err
    ran = nas("profile", "--space", "pebble.yaml", "--device", "gpu0")
    assert ran.code == USAGE
    assert "unknown device 'gpu0'" in ran.err
    assert not (job.parent / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("cifar", "--around", "swin_t"), "cifar and --around swin_t are two spaces"),
        (("cifar", "--mixer-ratios", "0.5"), "--mixer-ratios 0.5 says what is around a network"),
        (("--yaml",), "--yaml writes one space; give its name, a file or --around"),
        (("--around", "swin_x"), "unknown design 'swin_x'. Did you mean 'swin_"),
        (("--around", "swin_t", "--ratios", "0.5,half"), "--ratios '0.5,half' must be numbers"),
        (("--around", "swin_t", "--ratios", "0.5,,0.2"), "'0.5,,0.2' has an empty entry"),
        (("--around", "swin_t", "--ratios", "nan"), "ratios: nan must lie between 0 and 1"),
        (("--around", "swin_t", "--resolutions", "96.5"), "'96.5' must be integers"),
        (("--around", "swin_t", "--resolutions", "256"), "resolution 256 is above the network's"),
        (("--around", "swin_t", "--mixers", "poling"), "Did you mean 'pooling'?"),
    ],
)
def test_what_no_space_is_around(job: Path, arguments: tuple[str, ...], problem: str) -> None:
    ran = nas("spaces", *arguments)
    assert ran.code == USAGE
    assert problem in ran.err


def test_an_unknown_mixer_in_a_space_file(job: Path) -> None:
    text = Path("pebble.yaml").read_text()
    Path("mine.yaml").write_text(text.replace("depthwise_conv", "depthwise_konv", 1))
    for command in (
        ["spaces", "mine.yaml"],
        ["search", "--data", "digits", "--space", "mine.yaml", "--target-latency", "1s"],
        ["profile", "--space", "mine.yaml"],
    ):
        ran = nas(*command)
        assert ran.code == USAGE
        assert "mine.yaml: " in ran.err
        assert "unknown mixer 'depthwise_konv'. Did you mean 'depthwise_conv'? Known: " in ran.err
        for name in ("focal_modulation", "gnconv", "pooling", "window_attention"):
            assert name in ran.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("targt_latency: 1ms", ["unknown key 'targt_latency'", "Did you mean 'target_latency'"]),
        (
            "search: {evaluation: 3}",
            ["unknown key 'search.evaluation'", "Did you mean 'evaluations'", "population"],
        ),
        ("train: {epoch: 3}", ["unknown key 'train.epoch'", "Did you mean 'epochs'", "clip_norm"]),
        ("train: {augment: {mixupp: 1}}", ["'train.augment.mixupp'", "Did you mean 'mixup'"]),
        ("train: {epochs: -3}", ["epochs is -3", "above 0"]),
        ("search: 5", ["'search' must be a mapping"]),
        ("train: [1]", ["train=[1] must be a mapping"]),
        ("seed: seven", ["seed='seven'", "integer"]),
        ("max: {params: many}", ["'many' is not a count", "30M"]),
        ("- a list", ["must hold a mapping"]),
        ("seed: 1\nseed: 2", ["key 'seed' twice, in lines 1 and 2", "keep one"]),
        ("seed: [", ["not valid YAML"]),
    ],
)
def test_wrong_config_files_are_answered(job: Path, content: str, expected: list[str]) -> None:
    Path("job.yaml").write_text(content)
    ran = search("--config", "job.yaml", "--evaluations", "9")
    assert ran.code in (FAILED, USAGE)
    assert "job.yaml" in ran.err
    for text in expected:
        assert text in ran.err
    assert not Path("runs").exists()


def test_a_space_inside_a_config_file_is_checked(job: Path) -> None:
    Path("job.yaml").write_text("space: {resolution: 16, stages: []}")
    for more in ([], ["--name", "mine"]):
        ran = nas(
            "search", "--data", "digits", "--target-latency", "1s", "--config", "job.yaml", *more
        )
        assert ran.code == USAGE
        assert "job.yaml: space: key 'name' is missing" in ran.err
    assert not Path("runs").exists()


def test_a_budget_without_unit_in_a_config_file(job: Path) -> None:
    Path("job.yaml").write_text("target_latency: 5\nmax: {params: 30000}")
    ran = nas("search", "--data", "digits", "--config", "job.yaml")
    assert ran.code == USAGE
    assert "job.yaml: '5' has no unit" in ran.err


def test_a_runs_folder_that_cannot_be_made(job: Path) -> None:
    Path("file").write_text("no folder")
    ran = search("--runs", "file/runs")
    assert ran.code == FAILED
    assert ran.err.startswith("error: ")
    assert "file" in ran.err


# Budgets ----------------------------------------------------------------------------------------


def test_a_latency_below_the_fastest_names_it(job: Path) -> None:
    table = cache_known_table(job / "pebble.yaml")
    space = load_space("pebble.yaml")
    before = tree(job.parent)
    fastest = min(every_architecture(space), key=lambda a: latency_ms(table, a))
    value = latency_ms(table, fastest)
    ran = search(budget="700us")
    assert ran.code == INFEASIBLE
    assert f"its fastest architecture {fastest}" in ran.err
    assert f"has {float(f'{value:.4g}'):g}ms" in ran.err
    assert "latency_ms ≤ 0.7ms cannot be met in space 'pebble'" in ran.err
    assert "or take another space" in ran.err
    assert tree(job.parent) == before
    ran = search("--max", "params=100")
    assert ran.code == INFEASIBLE
    assert "num_params ≤ 100 cannot be met" in ran.err
    assert "its smallest architecture" in ran.err
    assert tree(job.parent) == before
    Path("runs").mkdir()  # what was there before stays
    (Path("runs") / "note.txt").write_text("mine")
    assert search(budget="700us").code == INFEASIBLE
    assert tree(Path("runs")) == {"note.txt": b"mine"}


@pytest.mark.slow
def test_a_latency_below_the_fastest_as_it_is_measured(job: Path) -> None:
    command = "-m nas.cli.main search --data digits --space pebble.yaml --target-latency 1us"
    ran = subprocess.run(
        [sys.executable, *command.split()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == INFEASIBLE
    assert "latency_ms ≤ 0.001ms cannot be met in space 'pebble': its fastest" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert [path.name for path in job.iterdir()] == ["pebble.yaml"]
    assert list((job.parent / "cache" / "latency").glob("*.parquet"))  # measured once for all


# Data -------------------------------------------------------------------------------------------


def refused_data(job: Path, source: object, *more: object) -> str:
    before = tree(job.parent)
    ran = search(*more, data=source)
    assert ran.code == FAILED
    assert ran.err.count("error: ") == 1
    assert tree(job.parent) == before
    return ran.err.partition("error: ")[2]


def test_data_that_is_not_there(job: Path) -> None:
    image_folder(job / "flowers")
    message = refused_data(job, "flower")
    assert "no data at 'flower'" in message
    assert "Nearest that exist: flowers" in message
    assert "Nearest that exist: digits" in refused_data(job, "digit")


def test_an_image_folder_with_one_class(job: Path) -> None:
    assert "one class only ('cat')" in refused_data(job, image_folder(job / "cats", ("cat",)))


def test_an_unreadable_image_is_named(job: Path) -> None:
    folder = image_folder(job / "pets")
    (folder / "dog" / "3.png").write_bytes(b"no picture at all")
    message = refused_data(job, folder)
    assert str(folder / "dog" / "3.png") in message
    assert "replace or remove it" in message
    picture = (folder / "cat" / "1.png").read_bytes()
    (folder / "dog" / "3.png").write_bytes(picture[: len(picture) // 2])
    assert str(folder / "dog" / "3.png") in refused_data(job, folder)


def test_labels_that_are_fractions(job: Path) -> None:
    pq.write_table(pa.table({"image": [b"a", b"b"], "label": [0.0, 1.0]}), "images.parquet")
    message = refused_data(job, "images.parquet")
    assert "images.parquet has type double" in message
    assert "store class indices" in message


def test_a_label_column_that_is_not_there(job: Path) -> None:
    pq.write_table(pa.table({"image": [b"a"], "klass": [0]}), "images.parquet")
    message = refused_data(job, "images.parquet")
    assert "no column 'label'; it has image, klass" in message
    message = refused_data(job, "images.parquet", "--image-column", "picture")
    assert "no column 'picture'" in message
