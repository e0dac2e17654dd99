"""What is wrong with a search is said before its training, not after hours; nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny_job import FAILED, USAGE, Job, cache_known_table, nas, search

from search_space.errors import DataError, RunError
from supernet.data.augmentation import AugmentConfig
from supernet.training.checkpoints import Checkpoint, CheckpointFolder
from supernet.training.config import TrainConfig, check_groups


def configured(**parts: object) -> Path:
    path = Path("more.yaml")
    path.write_text(yaml.safe_dump(parts))
    return path


NAMES = [
    ({"search": {"sampler": "randon"}}, ["unknown sampler 'randon'", "Did you mean 'random'"]),
    ({"search": {"sampler": "random", "optuna_storage": "a.log"}}, ["of no use", "optuna-TPE"]),
    ({"train": {"schedule": "cosin"}}, ["schedule 'cosin'", "use 'adamw' and 'cosine'"]),
    ({"finetune": {"optimizer": "adamq"}}, ["no optimizer 'adamq'", "use 'adamw'"]),
    ({"train": {"tokens": [[2, -1]]}}, ["share 2.0 follows 0", "stay below 1"]),
    ({"finetune": {"weight_decay": float("inf")}}, ["weight_decay is inf", "finite"]),
    ({"train": {"warmup_epochs": float("nan")}}, ["warmup_epochs is nan", "finite"]),
    ({"max": "5M"}, ["more.yaml: max='5M' must be a mapping"]),
    ({"search": {"window": 0}}, ["search.window=0", "greater than or equal to 1"]),
    ({"seed": 2**64}, ["seed=18446744073709551616", "less than or equal to 9223372036854775807"]),
]


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(("parts", "expected"), NAMES)
def test_names_and_numbers_are_checked_first(job, parts, expected, dry):
    cache_known_table(job / "pebble.yaml")
    ran = search("--config", configured(**parts), "--max", "macs=9G", *["--dry-run"] * dry)
    assert ran.code in (USAGE, FAILED)
    said = " ".join(ran.err.split())
    assert all(part in said for part in expected), said
    assert "training the supernet" not in said
    assert not Path("runs").exists()


LATER = [
    (["--warm-start", "nope"], {}, ["/nope holds no evaluations"]),
    (["--sampler", "optuna-Nobody"], {}, ["Nobody"]),
    (["--train-batch-size", 1], {}, ["1 images are trained at a time", "batch_size of 2 or more"]),
    ([], {"finetune": {"accumulate": 999}}, ["accumulate 999", "multiple of 999"]),
]


@pytest.mark.parametrize(("options", "parts", "expected"), LATER)
def test_what_needs_images_or_a_table_is_checked_before_the_training(job, options, parts, expected):
    cache_known_table(job / "pebble.yaml")
    ran = search("--config", configured(**parts), *options)
    assert ran.code in (USAGE, FAILED)
    said = " ".join(ran.err.split())
    assert all(part in said for part in expected), said
    assert "training the supernet" not in said
    assert not Path("runs").exists()


@pytest.mark.parametrize("option", ["--batch-size", "--threads", "--seed", "--train-batch-size"])
def test_numbers_that_no_machine_holds_are_refused(job, option):
    ran = search(option, 10**20)
    assert ran.code == USAGE
    assert "is not in the range" in ran.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("settings", "images", "workers", "fits"),
    [
        ({"batch_size": 2}, 9, 1, True),
        ({"batch_size": 1}, 9, 1, False),
        ({"batch_size": 8}, 1, 1, False),
        ({"batch_size": 8, "groups": 3}, 9, 2, True),
        ({"batch_size": 8, "groups": 5}, 9, 2, False),
        ({"batch_size": 8, "accumulate": 8}, 9, 1, False),
        ({"batch_size": 1, "strategy": "sandwich"}, 9, 1, True),
    ],
)
def test_every_group_of_a_batch_has_an_image(settings, images, workers, fits):
    if fits:
        check_groups(TrainConfig(**settings), images, workers)
        return
    with pytest.raises(RunError, match="groups of at least one; give a batch_size of"):
        check_groups(TrainConfig(**settings), images, workers)


def test_augmentation_is_finite():
    with pytest.raises(DataError, match="mixup is nan"):
        AugmentConfig(mixup=float("nan"))


# A run that is there ------------------------------------------------------------------------------


def test_other_options_are_refused_with_the_way_to_keep_the_supernet(finished: Job) -> None:
    ran = nas(*("search", *finished.options, "--name", "one", "--target-latency", "2s", "--resume"))
    assert ran.code == FAILED
    assert f"With --supernet {finished.run}" in " ".join(ran.err.split())


def test_a_supernet_that_is_damaged_is_left_as_it_is(finished: Job) -> None:
    run = finished.copy("damaged", "complete")
    checkpoints = run / "supernet" / "checkpoints"
    before = sorted(path.name for path in checkpoints.iterdir())
    for path in checkpoints.iterdir():
        with (path / "model.safetensors").open("ab") as file:
            file.write(b"x")
    digest = next((run / "export").iterdir()).name
    searched = nas("search", *finished.options, "--supernet", run, "--target-latency", "1s")
    for ran in (nas("export", run, digest), searched):
        assert ran.code == FAILED
        said = " ".join(ran.err.split())
        assert "is damaged and left out" in said
        assert "No good one is left." in said
        assert "exporting.py" not in said
        assert f"nas train --config {run / 'config.yaml'} --name NEW" in said
    assert sorted(path.name for path in checkpoints.iterdir()) == before


def test_a_disk_that_takes_no_more_is_said(tmp_path):
    """A path that cannot be written stands for it."""
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(step=1, weights={"w": torch.ones(2)}, optimizer={}, metadata={})
    with pytest.raises(RunError, match=r"cannot be written .* free some space, .* --resume"):
        CheckpointFolder(tmp_path / "file").write(checkpoint)
