"""The command line: wrong input gets an answer, an exit code, and leaves nothing behind."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from tiny_job import (
    Ran,
    cache_known_table,
    every_architecture,
    fresh_job,
    latency_ms,
    nas,
    tree,
)

from nas.config import SearchConfig, resolve
from results.journal import Evaluation, Journal
from results.store import RunDirectory
from search_space import dump_architecture, known, load_space
from search_space.errors import CorruptFileError
from supernet.checkpoints import PickleRefusedError, save_checkpoint
from supernet.timm_weights import load_timm_checkpoint

FAILED, USAGE, INFEASIBLE, INTERRUPTED = 1, 2, 3, 130


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fresh_job(tmp_path, monkeypatch)


def search(*more: object, data: object = "digits", budget: str = "1s") -> Ran:
    return nas(
        "search", "--data", data, "--space", "pebble.yaml", "--target-latency", budget, *more
    )


def image_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def make_run(name: str = "run", **given: object) -> RunDirectory:
    """A run that was created and stopped at once."""
    options = {"data": "digits", "space": "pebble.yaml", "target_latency": "1s", **given}
    directory = RunDirectory.create(Path("runs") / name, resolve(options).to_dict(), {})
    directory.close()
    return directory


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
        (["--max", "params"], ["--max 'params' must be METRIC=LIMIT", "params=5M"]),
        (["--max", "parms=5M"], ["unknown metric of a limit 'parms'", "Did you mean 'params'"]),
        (["--max", "params=5M", "--max", "params=6M"], ["--max params is given twice"]),
        (["--target-throughput", "2000"], ["'2000' is not a throughput", "2000/s"]),
        (["--margin", "1"], ["--margin", "0<=x<1"]),
        (["--space", "digitz"], ["unknown space 'digitz'", "mean 'digits'", "base, cifar, digits"]),
        (["--device", "cpuu"], ["unknown device 'cpuu'", "Did you mean 'cpu'", "Known: a10"]),
        (["--precision", "fp61"], ["unknown precision 'fp61'", "mean 'fp16'", "bf16, fp16, fp32"]),
        (["--name", "a/b"], ["--name 'a/b'", "plain name", "--runs"]),
        (["--name", ".."], ["--name '..'", "plain name"]),
        (["--name", ""], ["--name ''", "plain name"]),
        (["--seed", "-1"], ["--seed", "-1", "x>=0"]),
        (["--epochs", "0"], ["--epochs", "x>=1"]),
        (["--evaluations", "-3"], ["--evaluations", "-3", "x>=1"]),
        (["--population", "2"], ["--population", "x>=4"]),
        (["--batch-size", "-1"], ["--batch-size", "x>=1"]),
        (["--threads", "0"], ["--threads", "x>=1"]),
        (["--lr", "-0.1"], ["lr is -0.1", "above 0"]),
        (["--lr", "nan"], ["lr is nan", "above 0"]),
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
    ran = nas("search")
    assert ran.code == USAGE
    for flag in ("--data", "--space", "--target-latency"):
        assert f"is missing; give {flag}" in ran.err
    ran = nas("search", "--data", "digits")
    assert ran.code == USAGE
    assert "'target_latency' is missing; give --target-latency" in ran.err
    assert "--data" not in ran.err
    assert nas("train").code == USAGE
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
    command = "-m nas.cli search --data digits --space pebble.yaml --target-latency 1us"
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


@pytest.mark.parametrize("labels", [["cat", "dog"], [0.0, 1.0], [True, False]])
def test_labels_that_are_no_integers(job: Path, labels: list[object]) -> None:
    pq.write_table(pa.table({"image": [b"a", b"b"], "label": labels}), "images.parquet")
    message = refused_data(job, "images.parquet")
    assert "label column 'label' of images.parquet has type" in message
    assert "not integer; store class indices" in message


def test_a_label_column_that_is_not_there(job: Path) -> None:
    pq.write_table(pa.table({"image": [b"a"], "klass": [0]}), "images.parquet")
    message = refused_data(job, "images.parquet")
    assert "no column 'label'; it has image, klass" in message
    message = refused_data(job, "images.parquet", "--image-column", "picture")
    assert "no column 'picture'" in message


# Runs -------------------------------------------------------------------------------------------


def test_a_run_that_exists_is_not_overwritten(job: Path) -> None:
    make_run("mine")
    before = tree(job)
    ran = search("--name", "mine")
    assert ran.code == FAILED
    assert "runs/mine exists and is not empty" in ran.err
    assert "--resume" in ran.err
    assert "--name" in ran.err
    assert tree(job) == before
    Path("runs/notes").mkdir()
    (Path("runs/notes") / "a.txt").write_text("not a run")
    assert "exists and is not empty" in search("--name", "notes").err
    assert "exists and is not empty" in search("--name", "notes", "--resume").err
    assert (Path("runs/notes") / "a.txt").read_text() == "not a run"


def test_resuming_with_other_settings_shows_the_difference(job: Path) -> None:
    make_run("mine", seed=3)
    before = tree(job)
    ran = nas("search", "--name", "mine", "--resume", "--seed", "4", "--target-latency", "2s")
    assert ran.code == FAILED
    assert "seed: 3 -> 4" in ran.err
    assert "target_latency: 1s -> 2s" in ran.err
    assert "another --name" in ran.err
    assert "space" not in ran.err  # only what differs
    ran = nas("search", "--name", "mine", "--resume", "--space", "digits")
    assert ran.code == FAILED
    assert "-> digits" in ran.err
    assert tree(job) == before


def test_reports_and_exports_of_what_is_no_run(job: Path) -> None:
    make_run("mine")
    for command in ("report", "export"):
        ran = nas(command, "elsewhere")
        assert ran.code == FAILED
        assert "elsewhere is no run; give the directory of one, such as runs/NAME" in ran.err
        ran = nas(command, "runs")
        assert "runs is no run" in ran.err
    ran = nas("report", "runs/mine")
    assert ran.code == FAILED
    assert "has no result yet. Finish the run first: nas search" in ran.err
    assert "--resume" in ran.err


def test_export_of_a_network_that_the_run_does_not_know(job: Path) -> None:
    directory = make_run("mine")
    architectures = list(every_architecture(load_space("pebble.yaml")))[:3]
    with Journal(directory.path / "evaluations.jsonl") as journal:
        for i, architecture in enumerate(architectures):
            metrics = {"accuracy": 0.5, "latency_ms": 1.0}
            journal.append(Evaluation(architecture.digest, architecture.to_dict(), metrics, i))
    before = tree(job)
    near = architectures[0].digest[:-1] + ("0" if architectures[0].digest[-1] != "0" else "1")
    ran = nas("export", "runs/mine", near)
    assert ran.code == USAGE
    assert f"unknown architecture of this run '{near}'" in ran.err
    assert f"Did you mean '{architectures[0].digest}'" in ran.err
    for architecture in architectures:
        assert architecture.digest in ran.err
    assert "has not chosen a network yet" in nas("export", "runs/mine").err
    assert "holds no trained supernet" in nas("export", "runs/mine", architectures[1].digest).err
    assert tree(job) == before


def test_an_interrupted_command_says_how_to_continue(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nas.pipeline.run_search", interrupted)
    ran = search("--name", "mine")
    assert ran.code == INTERRUPTED
    assert "everything finished so far is saved" in ran.err
    assert "Continue with: nas search --data digits" in ran.err
    assert ran.err.rstrip().endswith("--name mine --resume")


# Files that lie ---------------------------------------------------------------------------------


def test_a_tampered_architecture_file(job: Path) -> None:
    swin = known("swin_t")
    text = dump_architecture(swin)
    file = Path("swin.yaml")
    file.write_text(text)
    assert json.loads(nas("show", file, "--json").out)["digest"] == swin.digest
    file.write_text(text.replace("mlp_ratio: 4", "mlp_ratio: 3", 1))
    ran = nas("show", file)
    assert ran.code == FAILED
    assert f"swin.yaml: the architecture says digest '{swin.digest}'" in ran.err
    assert "it was altered" in ran.err
    file.write_text(text.replace("width: 96", "width: 97"))
    ran = nas("show", file)
    assert ran.code == FAILED
    assert "swin.yaml: " in ran.err
    assert "97" in ran.err
    assert "multiple of 32" in ran.err
    file.write_text(text[: len(text) // 2])
    assert nas("show", file).code != 0


def test_a_tampered_config_of_an_export(job: Path) -> None:
    swin = known("swin_t")
    content = {"digest": swin.digest, "model_args": {"architecture": swin.to_dict()}}
    file = Path("config.json")
    file.write_text(json.dumps(content))
    assert nas("show", file).code == 0
    file.write_text(json.dumps(content).replace('"mlp_ratio": 4', '"mlp_ratio": 3', 1))
    ran = nas("show", file)
    assert ran.code == FAILED
    assert f"says digest '{swin.digest}'" in ran.err


class Bomb:
    """Unpickling it creates the file ``executed``."""

    def __reduce__(self) -> tuple[object, ...]:
        return open, ("executed", "w")


def explodes(content: bytes) -> bool:
    """Whether loading ``content`` the careless way runs the code in it; cleans up."""
    pickle.loads(content).close()
    exploded = Path("executed").exists()
    Path("executed").unlink(missing_ok=True)
    return exploded


def test_a_pickle_disguised_as_a_supernet_is_not_executed(job: Path) -> None:
    cache_known_table(job / "pebble.yaml")
    space = load_space("pebble.yaml")
    directory = make_run("trained")
    architecture = next(every_architecture(space))
    with Journal(directory.path / "evaluations.jsonl") as journal:
        journal.append(Evaluation(architecture.digest, architecture.to_dict(), {}, 0))
    checkpoints = directory.path / "supernet" / "checkpoints"
    folder = save_checkpoint(checkpoints, 1, {"w": torch.ones(1)}, {}, {})
    content = pickle.dumps(Bomb(), 2)
    assert explodes(content)
    (folder / "model.safetensors").write_bytes(content)
    before = tree(job)
    for ran in (
        search("--supernet", "runs/trained", "--name", "new"),
        search("--name", "trained", "--resume"),
        nas("export", "runs/trained", architecture.digest),
    ):
        assert ran.code == FAILED
        assert f"{folder / 'model.safetensors'} is a pickle, not a safetensors file" in ran.err
        assert "it was not read" in ran.err
        assert not Path("executed").exists()
    after = tree(job)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"runs/trained/manifest.json", "runs/trained/latency.parquet"}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_disguised_as_a_timm_checkpoint_is_not_executed(
    job: Path, suffix: str, protocol: int
) -> None:
    content = pickle.dumps(Bomb(), protocol)
    assert explodes(content)
    file = Path(f"weights{suffix}")
    file.write_bytes(content)
    kind = PickleRefusedError if suffix == ".safetensors" else CorruptFileError
    message = rf"weights\{suffix} is (a pickle|not a readable tensor file)"
    with pytest.raises(kind, match=message):
        load_timm_checkpoint(known("convnext_t"), file)
    torch.save({"model": Bomb()}, file)
    with pytest.raises(kind, match=message):
        load_timm_checkpoint(known("convnext_t"), file)
    assert not Path("executed").exists()


# Right input ------------------------------------------------------------------------------------


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
    assert [row["name"] for row in rows] == ["base", "cifar", "digits", "tiny"]
    assert all(set(row) == {"name", "size", "digest"} and row["size"] > 1000 for row in rows)
    pebble = json.loads(nas("spaces", "pebble.yaml", "--json").out)
    assert pebble["size"] == 256
    assert nas("spaces").out.count("architectures") == len(rows)


# Imports ----------------------------------------------------------------------------------------


def fresh_process(script: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout


def test_help_imports_nothing_heavy(job: Path) -> None:
    shown = fresh_process(
        "import sys\n"
        "sys.argv = ['nas', '--help']\n"
        "from nas.cli import main\n"
        "main()\n"
        "print('heavy:', sorted({'torch', 'ray', 'timm', 'pandas'} & set(sys.modules)))\n"
    )
    assert "Usage: " in shown
    for command in (
        "search",
        "train",
        "export",
        "report",
        "show",
        "spaces",
        "devices",
        "profile",
        "calibrate",
    ):
        assert f"\n  {command} " in shown
    assert "heavy: []" in shown


def test_every_command_has_help(job: Path) -> None:
    for command in (
        "search",
        "train",
        "export",
        "report",
        "show",
        "spaces",
        "devices",
        "profile",
        "calibrate",
    ):
        ran = nas(command, "--help")
        assert ran.code == 0
        assert f"Usage: nas {command}" in ran.out or f" {command} [OPTIONS]" in ran.out


@pytest.mark.parametrize(
    "order",
    [
        "import nas; loaded = {'timm', 'torch'} & set(sys.modules)\n"
        "assert importlib.util.find_spec('timm')  # somebody looks whether it is installed\n"
        "import timm",
        "import timm, nas; loaded = set()",
    ],
    ids=["nas first", "timm first"],
)
def test_importing_nas_lets_timm_know_the_backbone(job: Path, order: str) -> None:
    script = (
        f"import importlib.util, sys\n{order}\n"
        "print(sorted(loaded), timm.is_model('nas_backbone'))\n"
        "print([type(finder).__name__ for finder in sys.meta_path])\n"
    )
    shown = fresh_process(script)
    assert shown.startswith("[] True")
    assert "_WaitForTimm" not in shown
