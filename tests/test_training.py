"""The training loop: exact resumption, roll-back, settings that are followed or refused."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from tiny_training import config, few_images, fresh, small_network
from torch import nn

from search_space import load_space
from search_space.errors import RunError
from supernet.data.augmentation import AugmentConfig
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.train import (
    TrainConfig,
    TrainingDivergedError,
    evaluate,
    finetune,
    train_supernet,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def data():
    return few_images()


def stop_at(step: int):
    def progress(done: int, total: int, info: dict) -> None:
        if done == step:
            raise StoppedError

    return progress


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_equal(left: nn.Module, right: nn.Module) -> None:
    for (name, a), b in zip(left.state_dict().items(), right.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "images_per_s")}
        for row in rows
    ]


# Resumption -----------------------------------------------------------------------------------


def test_supernet_resumes_bitwise(data, tmp_path):
    """4 epochs in one go equal 2 epochs, a stop, a stop within the third epoch, and the rest."""
    space = load_space("digits")
    whole = fresh(space)
    options = {"checkpoint_seconds": 0}
    settings = config(drop_path_rate=0.2, snapshot_steps=2)
    reference = train_supernet(whole, data, settings, tmp_path / "whole", **options)
    steps = reference[0].step
    assert steps > 2

    for stop in (2 * steps, 2 * steps + 2):
        with pytest.raises(StoppedError):
            train_supernet(
                fresh(space), data, settings, tmp_path / "parts", progress=stop_at(stop), **options
            )
        torch.rand(7)  # the global generator is elsewhere
    resumed = fresh(space)
    metrics = train_supernet(resumed, data, settings, tmp_path / "parts", **options)

    assert_equal(whole, resumed)
    rows = lines(tmp_path / "parts")
    assert without_times(rows) == without_times(lines(tmp_path / "whole"))
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert {"loss_largest", "loss_smallest", "loss_random", "lr", "step"} <= rows[0].keys()
    assert {"val_accuracy_largest", "val_accuracy_smallest"} <= rows[0].keys()
    assert without_times([m.to_dict() for m in metrics]) == without_times(rows)

    # Complete: nothing is trained again.
    again = train_supernet(
        resumed, data, settings, tmp_path / "parts", progress=stop_at(1), **options
    )
    assert [m.epoch for m in again] == [0, 1, 2, 3]


@pytest.mark.parametrize(("evaluations", "expected"), [(1, [4]), (2, [2, 4]), (9, [0, 1, 2, 3, 4])])
def test_validation_images_are_seen_evenly_and_at_the_end(data, evaluations, expected):
    metrics = finetune(small_network(), data, config(epochs=5, evaluations=evaluations))
    assert [m.epoch for m in metrics if m.val_loss] == expected


def test_checkpoint_in_mid_epoch_is_used(data, tmp_path):
    options = {"checkpoint_seconds": 0}
    settings = config(epochs=2, snapshot_steps=2)
    whole, resumed = small_network(), small_network()
    finetune(whole, data, settings, tmp_path / "whole", **options)
    with pytest.raises(StoppedError):
        finetune(resumed, data, settings, tmp_path / "parts", progress=stop_at(3), **options)
    found = CheckpointFolder(tmp_path / "parts" / "checkpoints").newest()
    assert found is not None
    assert found.step == 2
    first = []
    resumed = small_network()
    finetune(
        resumed,
        data,
        settings,
        tmp_path / "parts",
        progress=lambda done, total, info: first.append(done),
        **options,
    )
    assert first[0] == 3
    assert_equal(whole, resumed)


def test_damaged_checkpoint_is_passed_over(data, tmp_path):
    settings = config(epochs=3)
    whole = small_network()
    finetune(whole, data, settings, tmp_path / "whole")
    with pytest.raises(StoppedError):
        finetune(
            small_network(),
            data,
            settings,
            tmp_path / "parts",
            progress=lambda done, total, info: (
                (_ for _ in ()).throw(StoppedError)
                if "val_accuracy" in info and info["epoch"] == 1
                else None
            ),
        )
    newest = max((tmp_path / "parts" / "checkpoints").iterdir())
    file = newest / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    resumed = small_network()
    with pytest.warns(UserWarning, match=r"is damaged.*cut short or altered"):
        finetune(resumed, data, settings, tmp_path / "parts")
    assert_equal(whole, resumed)
    assert [row["epoch"] for row in lines(tmp_path / "parts")] == [0, 1, 2]


def test_other_configuration_is_refused_with_the_difference(data, tmp_path):
    finetune(small_network(), data, config(epochs=1), tmp_path)
    with pytest.raises(RunError, match=r"train\.lr is 0\.001 there, 0\.5 here"):
        finetune(small_network(), data, config(epochs=1, lr=0.5), tmp_path)
    other = open_data("digits", 16, seed=3, test_fraction=0.9, validation_fraction=0.7)
    with pytest.raises(RunError, match="data is"):
        finetune(small_network(), other, config(epochs=1), tmp_path)
    with pytest.raises(RunError, match="start is"):
        finetune(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), data, config(epochs=1), tmp_path)


# Divergence -----------------------------------------------------------------------------------


class Poisoned(nn.Module):
    """A network whose loss is not a number whenever ``bad()`` says so."""

    def __init__(self, bad) -> None:
        super().__init__()
        self.network, self.bad = small_network(), bad

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.network(images)
        return logits * math.nan if self.training and self.bad() else logits


def test_one_bad_step_is_rolled_back(data, tmp_path):
    calls = itertools.count()
    network = Poisoned(lambda: next(calls) == 5)
    metrics = finetune(network, data, config(epochs=2, snapshot_steps=2), tmp_path)
    assert metrics[-1].rollbacks == 1
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    clean = finetune(Poisoned(lambda: False), data, config(epochs=2, snapshot_steps=2))
    assert metrics[-1].lr == pytest.approx(clean[-1].lr / 2)
    assert metrics[-1].step == clean[-1].step


def test_bad_gradient_never_reaches_the_weights(data):
    """sqrt at 0: the loss is finite, its gradient is not."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_network()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = self.network(images)
            return logits + ((logits * 0).sum()).sqrt()

    network = Root()
    before = weights(network)
    with pytest.raises(TrainingDivergedError, match=r"step 0.*learning rate.*0\.001.*Start anew"):
        finetune(network, data, config(max_bad_steps=2))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_giving_up_counts_roll_backs_across_restarts(data, tmp_path):
    calls = itertools.count()
    network = Poisoned(lambda: next(calls) >= 3)
    with pytest.raises(TrainingDivergedError, match="after 3 roll-backs"):
        finetune(network, data, config(max_bad_steps=3), tmp_path)
    found = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert found is not None
    assert found.metadata["state"]["rollbacks"] == 3
    assert found.metadata["state"]["lr_scale"] == 1 / 8


# Moving average, parts of a batch -----------------------------------------------------------------


def test_parts_of_a_batch_add_up_to_the_whole(data):
    space = load_space("digits")
    whole, parts = fresh(space), fresh(space)
    settings = {"epochs": 1, "optimizer": "sgd", "lr": 1e-2, "augment": AugmentConfig(mixup=0.5)}
    first = train_supernet(whole, data, config(**settings), None)
    second = train_supernet(parts, data, config(accumulate=4, **settings), None)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name
    assert first[0].losses == pytest.approx(second[0].losses, rel=1e-4)
    with pytest.raises(RunError, match=r"batch_size is 16.*must be a multiple of 3"):
        train_supernet(whole, data, config(accumulate=3), None)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_single_images_are_not_mixed(data, mixing):
    settings = config(epochs=1, batch_size=1, augment=AugmentConfig(**{mixing: 0.5}))
    with pytest.raises(RunError, match=r"a batch has 1 image .*; give a batch_size of 2 or more"):
        finetune(small_network(), data, settings)


def test_moving_average_is_kept_validated_and_resumed(data, tmp_path):
    """By a network of one weight whose way is known: the average of that way."""
    network = small_network()
    seen = []

    def note(done, total, info):
        if "val_accuracy" not in info:
            seen.append(weights(network))

    settings = config(epochs=2, ema_decay=0.5)
    finetune(network, data, settings, tmp_path / "whole", progress=note, checkpoint_seconds=0)
    average = weights(small_network())
    for step, current in enumerate(seen):
        decay = min(0.5, (1 + step) / (10 + step))
        average = {
            name: decay * value + (1 - decay) * current[name] for name, value in average.items()
        }
    for name, value in network.state_dict().items():
        assert torch.allclose(value, average[name], atol=1e-6), name
        assert not torch.equal(value, seen[-1][name])
    kept = CheckpointFolder(tmp_path / "whole" / "checkpoints").newest()
    assert kept is not None
    for name, value in kept.trained_weights().items():
        assert torch.equal(value, network.state_dict()[name])
        assert torch.equal(kept.weights[name], seen[-1][name])

    resumed = small_network()
    with pytest.raises(StoppedError):
        finetune(resumed, data, settings, tmp_path / "parts", progress=stop_at(5))
    resumed = small_network()
    metrics = finetune(resumed, data, settings, tmp_path / "parts")
    assert_equal(network, resumed)
    found = evaluate(network, eval_batches(data.validation, 64)).accuracy
    assert metrics[-1].val_accuracy[""] == found


# Settings ------------------------------------------------------------------------------------


def test_learning_rate_follows_warm_up_and_cosine(data):
    rates = {}
    settings = config(epochs=4, warmup_epochs=2, lr=0.01)

    def note(done, total, info):
        rates[done] = info["lr"]

    steps = finetune(small_network(), data, settings, progress=note)[0].step
    for step in range(4 * steps):
        if step < 2 * steps:
            wanted = 1e-4 + (0.01 - 1e-4) * step / (2 * steps)
        else:
            wanted = 1e-4 + 0.5 * (0.01 - 1e-4) * (1 + math.cos(math.pi * step / (4 * steps)))
        assert rates[step + 1] == pytest.approx(wanted), step


def test_a_training_goes_from_labels_to_predictions(data):
    """Without learning, losses of the random subnets lie between those of labels and predictions.

    All three trainings see the same subnets and images.
    """

    def random_loss(**shares):
        settings = config(epochs=1, lr=1e-9, optimizer="sgd", label_smoothing=0.0, **shares)
        (metrics,) = train_supernet(fresh(load_space("digits")), data, settings, None)
        return metrics.losses["random"]

    labels = random_loss(distillation=(0.0, 0.0))
    predictions = random_loss(distillation=(1.0, 1.0))
    half = random_loss(distillation=(0.5, 0.5))
    assert half == pytest.approx((labels + predictions) / 2, rel=1e-4)
    assert min(labels, predictions) < random_loss() < max(labels, predictions)


@pytest.mark.parametrize(
    "values",
    [
        *({"epochs": 0}, {"lr": -1.0}, {"drop_path_rate": 1.0}, {"amp": "fp16"}),
        *({"distillation": (0.5,)}, {"distillation": (0.0, 1.5)}),
    ],
)
def test_wrong_configuration(values):
    with pytest.raises(RunError, match=f"{next(iter(values))} is"):
        TrainConfig(**values)


def test_unknown_optimizer_and_schedule(data):
    for values in ({"optimizer": "magic"}, {"schedule": "magic"}):
        with pytest.raises(RunError, match="magic"):
            finetune(small_network(), data, config(**values))
