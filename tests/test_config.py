"""Configurations: what is given wins in order, what is stored reproduces itself."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_job import write_space

from nas.config import RunConfig, TrainedConfig, TrainingFreeConfig
from nas.config_parts import LatencyConfig, TrainedSearchConfig
from nas.flags import declared
from nas.resolving import resolve
from search_space import load_space, space_names
from search_space.errors import NasError, UnknownNameError, UsageError
from search_space.units import parse_count, parse_latency, parse_memory
from supernet.training.config import TrainConfig

LEAST = {"data": "digits", "target_latency": "2ms"}


def stored(config: RunConfig, folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    return path


def test_the_default_space_is_that_of_the_default_data() -> None:
    assert resolve(LEAST).space == "digits"
    assert resolve({**LEAST, "space": "cifar"}).space == "cifar"
    with pytest.raises(NasError, match="no data at 'flowers'"):  # which its space suits
        resolve({**LEAST, "data": "flowers"})


options = st.fixed_dictionaries(
    {"data": st.sampled_from(["digits", "a folder/with, signs: ü"])},
    optional={
        "seed": st.integers(0, 2**40),
        "max.params": st.sampled_from(["5M", "1200", "0.5G"]),
        "max.macs": st.sampled_from(["5M", "4.5G"]),
        "max.memory": st.sampled_from(["200MB", "64kB", "1.5GiB"]),
        "target_throughput": st.sampled_from(["2000/s", "0.5/s"]),
        "device": st.sampled_from(["cpu", "cuda"]),
        "validation_fraction": st.floats(0.01, 0.99),
        "loader_workers": st.integers(0, 9),
        "workers": st.integers(1, 9),
        "train.epochs": st.integers(1, 999),
        "train.lr": st.floats(1e-9, 1.0, exclude_min=True),
        "finetune.weight_decay": st.floats(0, 1),
        "search.evaluations": st.integers(1, 10**6),
        "latency.batch_size": st.integers(1, 512),
        "latency.threads": st.integers(1, 64),
    },
)


@settings(deadline=None, max_examples=30)
@given(
    options=options,
    space=st.sampled_from(space_names()),
    latency=st.sampled_from(["2ms", "800us", "0.1s"]),
)
def test_a_stored_configuration_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], space: str, latency: str
) -> None:
    asked = {**options, "space": space, "target_latency": latency}
    config = resolve(asked)
    file = stored(config, tmp_path_factory.mktemp("config"))
    assert resolve({}, str(file)) == config
    assert resolve({}, str(file)).to_dict() == config.to_dict()
    for key, value in asked.items():
        found: Any = config.to_dict()
        for part in key.split("."):
            found = found[part]
        assert found == value
    assert config.train.seed == config.finetune.seed == config.seed
    limits = config.limits(batch_size=8)
    asked_ms = parse_latency(latency)
    if "target_throughput" in options:
        asked_ms = min(asked_ms, 8000 / float(options["target_throughput"].removesuffix("/s")))
    assert limits["latency_ms"] == asked_ms
    assert ("macs" in limits) == ("max.macs" in options)
    if "max.params" in options:
        assert limits["num_params"] == parse_count(options["max.params"])
    if "max.memory" in options:
        assert limits["memory_bytes"] == parse_memory(options["max.memory"])


def test_a_throughput_is_a_budget_of_latency() -> None:
    config = resolve({"data": "digits", "target_throughput": "2000/s"})
    assert config.target_latency is None
    assert config.limits(batch_size=1) == {"latency_ms": 0.5}
    assert config.limits(batch_size=64) == {"latency_ms": 32.0}
    for wrong in ("2000", "2000/h", "fast/s", "-3/s", "0/s"):
        with pytest.raises(NasError, match="2000/s"):
            resolve({"data": "digits", "target_throughput": wrong})


def test_a_budget_in_the_long_form_is_the_same_as_in_the_short_one() -> None:
    long = resolve({"data": "digits", "max": {"latency@cpu": "2ms", "macs": "3M"}})
    short = resolve({"data": "digits", "target_latency": "2ms", "max": {"macs": "3M"}})
    assert long.limits() == short.limits() == {"latency_ms": 2.0, "macs": 3e6}
    both = resolve({"data": "digits", "target_latency": "2ms", "max": {"latency": "1ms"}})
    assert both.limits() == {"latency_ms": 1.0}
    other = {"data": "digits", "target_latency": "2ms", "max": {"latency@a100": "1ms"}}
    assert resolve(other).limits() == {"latency_ms": 2.0, "latency_ms@a100": 1.0}
    elsewhere = {"data": "digits", "max": {"latency@a100": "1ms"}}
    assert resolve(elsewhere).limits() == {"latency_ms@a100": 1.0}
    with pytest.raises(UsageError, match="--target-latency or --max"):
        resolve({"data": "digits", "minimize": ("params",)})


def test_bands_and_what_a_front_is_a_trade_off_of() -> None:
    asked = {"min": {"params": "1M", "latency": "1ms"}, "minimize": ("params", "latency@cpu")}
    config = resolve(LEAST | asked)
    assert config.lower_limits() == {"num_params": 1e6, "latency_ms": 1.0}
    assert config.minimised() == ("num_params", "latency_ms")
    assert resolve(LEAST).minimised() == ("latency_ms",)
    with pytest.raises(UsageError, match=r"unknown metric 'accuracy'.*macs"):
        resolve(LEAST | {"minimize": ("accuracy",)})


def test_the_window_is_decided_once_for_any_number_of_workers(tmp_path: Path) -> None:
    alone, four = resolve(LEAST), resolve(LEAST | {"workers": 4})
    assert alone.search.window == alone.search.population // 2
    assert four.search.window is not None
    assert four.search.window > alone.search.window + 3
    assert resolve({"workers": 4}, str(stored(alone, tmp_path))).search == alone.search


def test_what_is_given_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "data: digits\ntarget_latency: 2ms\nseed: 7\n"
        "train: {epochs: 3, lr: 1e-3}\nfinetune: {clip_norm: 2}\n"
    )
    config = resolve({"train.epochs": 5, "seed": None, "search.population": 8}, str(file))
    assert (config.seed, config.train.seed, config.finetune.seed) == (7, 7, 7)
    assert (config.train.epochs, config.train.lr) == (5, 1e-3)
    assert config.train.batch_size == TrainConfig().batch_size
    # the defaults of fine-tuning are its own, also where the file sets a part of them
    assert config.finetune.clip_norm == 2
    assert config.finetune.epochs == TrainedConfig.model_fields["finetune"].default.epochs
    assert config.search == TrainedSearchConfig(
        population=8, window=4
    )  # fixed once, for any workers
    assert config.latency == LatencyConfig()
    assert resolve({"seed": 9}, str(file)).finetune.seed == 9


def test_a_fine_tuning_trains_as_the_supernet_does_unless_told_otherwise() -> None:
    given = {"data": "digits", "target_latency": "2ms", "train.lr": 3e-3, "train.batch_size": 48}
    shared = resolve(given)
    assert (shared.finetune.lr, shared.finetune.batch_size) == (3e-3, 48)
    assert shared.finetune.epochs != shared.train.epochs
    own = resolve(given | {"finetune.lr": 1e-3})
    assert (own.finetune.lr, own.finetune.batch_size, own.train.lr) == (1e-3, 48, 3e-3)
    wide = resolve({"data": "digits", "space": "cifar", "target_latency": "2ms"})
    assert wide.finetune.lr == wide.train.lr < shared.train.lr
    with pytest.raises(UsageError, match=r"lr is -1.* must be above 0"):
        resolve(given | {"train.lr": -1.0})


def test_a_space_in_a_file_is_stored_whole(tmp_path: Path) -> None:
    file = write_space(tmp_path)
    config = resolve({**LEAST, "space": str(file)})
    assert config.search_space() == load_space(str(file))
    copy = stored(config, tmp_path)
    file.unlink()
    assert resolve({}, str(copy)) == config
    with pytest.raises(UnknownNameError, match="unknown space 'pebbles'"):
        resolve({**LEAST, "space": "pebbles"})


def test_numbers_that_yaml_reads_as_numbers(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("data: digits\ntarget_latency: 2ms\nmax: {params: 30000, macs: 4.5e+6}")
    assert resolve({}, str(file)).limits() == {
        "latency_ms": 2.0,
        "num_params": 30_000.0,
        "macs": 4_500_000.0,
    }
    file.write_text("data: digits\ntarget_latency: 2")
    with pytest.raises(UsageError, match=r"job\.yaml: '2' has no unit.*write 2ms"):
        resolve({}, str(file))


def test_a_training_alone_has_no_budget(tmp_path: Path) -> None:
    config = resolve({"data": "digits"}, with_budget=False)
    assert config.target_latency is None
    assert config.limits() == {}
    assert resolve(LEAST, with_budget=False) == config
    file = stored(config, tmp_path)
    with pytest.raises(UsageError, match="'target_latency' is missing; give --target-latency"):
        resolve({}, str(file))
    assert resolve({"target_latency": "2ms"}, str(file)) == resolve(LEAST)


def test_the_stricter_of_two_limits_of_one_metric_holds() -> None:
    upper = {"latency@cpu": "4ms", "latency": "5ms"}
    lower = {"latency@cpu": "1ms", "latency": "2ms"}
    for order in (list, reversed):
        config = resolve(
            {
                "data": "digits",
                "max": dict(order(upper.items())),  # type: ignore[operator]
                "min": dict(order(lower.items())),  # type: ignore[operator]
            }
        )
        assert config.limits() == {"latency_ms": 4.0}
        assert config.lower_limits() == {"latency_ms": 2.0}


def test_files_are_stored_with_paths_that_are_right_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "first", "teacher", "weights.pt"):
        Path(name).mkdir()
    config = resolve(
        {
            "data": "images",
            "space": "digits",
            "target_latency": "2ms",
            "supernet": "first",
            "search.warm_start": ("first", "not/yet"),
            "search.sampler": "optuna-TPE",
            "search.optuna_storage": "study.log",
            "train.teacher": "teacher",
            "train.teacher_weights": "weights.pt",
            "workers": 2,
            "storage": "s3://bucket/checkpoints",
        }
    )
    assert isinstance(config, TrainedConfig)
    here = str(tmp_path)
    assert (config.data, config.supernet) == (f"{here}/images", f"{here}/first")
    assert config.search.warm_start == (f"{here}/first", f"{here}/not/yet")
    assert config.search.optuna_storage == f"{here}/study.log"
    assert config.train.teacher == f"{here}/teacher"
    assert config.train.teacher_weights == f"{here}/weights.pt"
    assert config.storage == "s3://bucket/checkpoints"
    named = resolve(LEAST | {"train.teacher": "resnet18"})  # names of no file are names
    assert isinstance(named, TrainedConfig)
    assert (named.data, named.train.teacher) == ("digits", "resnet18")


@pytest.mark.parametrize("key", ["supernet", "device", "train.teacher", "search.sampler"])
def test_empty_text_in_a_file_is_refused(tmp_path: Path, key: str) -> None:
    data: dict[str, Any] = dict(LEAST)
    section, _, leaf = key.rpartition(".")
    (data.setdefault(section, {}) if section else data)[leaf] = ""
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(UsageError, match=rf"job\.yaml: {key} is empty; give a value"):
        resolve({}, str(file))


def test_an_alias_that_holds_itself_is_refused(tmp_path: Path) -> None:
    for text in ("max: &a\n  params: *a", "space: &a {name: x, stages: [*a]}", "train: &a {a: *a}"):
        file = tmp_path / "job.yaml"
        file.write_text(f"data: digits\ntarget_latency: 2ms\n{text}")
        with pytest.raises(NasError, match=r"job\.yaml"):
            resolve({}, str(file))


KINDS = {"with": (TrainedConfig, LEAST), "without": (TrainingFreeConfig, {"target_latency": "2ms"})}


@pytest.mark.parametrize(("word", "other"), [("with", "without"), ("without", "with")])
def test_every_flag_of_the_other_kind_of_run_is_refused(
    tmp_path: Path, word: str, other: str
) -> None:
    least = KINDS[word][1]
    known = {item.path for item in declared(KINDS[word][0])} | {"data"}
    others = {i.path: i.flag.name for i in declared(KINDS[other][0]) if i.path not in known}
    assert len(others) > 3
    for path, flag in others.items():
        with pytest.raises(UsageError, match=f"^{flag} 1 does nothing {word} --data"):
            resolve(least | {path: 1})
        file, data = tmp_path / "job.yaml", {**least}
        *parents, leaf = path.split(".")
        place: Any = data
        for part in parents:
            place = place.setdefault(part, {})
        place[leaf] = 1
        file.write_text(yaml.safe_dump(data))
        with pytest.raises(UsageError, match=f": {path} 1 does nothing {word} --data"):
            resolve({}, str(file))


SECTIONS = {
    "": list(TrainedConfig.model_fields),
    "latency": list(LatencyConfig.model_fields),
    "search": list(TrainedSearchConfig.model_fields),
    "train": [field.name for field in fields(TrainConfig)],
    "finetune": [field.name for field in fields(TrainConfig)],
}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_mistyped_key_names_the_right_one_and_all_others(section: str) -> None:
    names = SECTIONS[section]
    for name in names:
        typo = f"{name}x"
        key = f"{section}.{typo}" if section else typo
        with pytest.raises(UsageError) as info:
            resolve({**LEAST, key: 1})
        assert f"unknown key {key!r}. Did you mean {name!r}? Known: " in str(info.value)
        assert all(known in str(info.value) for known in names)
