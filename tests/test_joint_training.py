"""Networks around a parent learn together from it, and a training that was stopped goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from distillation_cases import SPACES, bank_of, images_of, space_around
from tiny_training import config, few_images
from torch.nn import functional as F

from search_space import load_space
from search_space.errors import RunError
from supernet import Supernet, build
from supernet.data.dataset import open_data
from supernet.inherit.bank import WeightBank
from supernet.inherit.joint_training import parent_teacher, train_jointly
from supernet.inherit.local_distillation import distil_alternatives
from supernet.inherit.students import Distillation
from supernet.training.evaluation import evaluate
from supernet.training.recalibration import calibration_batches, recalibrate
from supernet.training.train import TrainConfig, finetune, train_supernet

pytestmark = pytest.mark.usefixtures("one_thread")


def filled(name: str, seed: int = 0) -> WeightBank:
    bank = bank_of(name, seed)
    distil_alternatives(bank, images_of(), settings=Distillation(steps=1))
    return bank


@pytest.mark.parametrize("strategy", ["uniform", "multi_architecture", "sandwich"])
@pytest.mark.parametrize("name", list(SPACES))
def test_any_strategy_trains_a_bank(name: str, strategy: str) -> None:
    bank, settings = filled(name), config(epochs=1, strategy=strategy)
    before = {key: value.detach().clone() for key, value in bank.named_parameters()}
    (metrics,) = train_jointly(bank, few_images(), settings)
    assert metrics.val_accuracy.keys() == {"largest", "smallest"}
    changed = [not torch.equal(value, before[key]) for key, value in bank.named_parameters()]
    assert sum(changed) > len(changed) / 4


def test_networks_around_the_parent_learn_together() -> None:
    data = open_data("digits", 16)
    torch.manual_seed(0)
    parent = build(SPACES["convolutions"].largest, 10)
    finetune(parent, data, TrainConfig(epochs=8, batch_size=64, lr=1e-2, warmup_epochs=0.5))
    bank = WeightBank(space_around("convolutions"), parent).eval()
    batches = calibration_batches(data, 256)
    distil_alternatives(bank, batches, settings=Distillation(steps=10))
    drawn = bank.space.decode(bank.space.sample(np.random.default_rng(0), 6))

    def losses() -> list[float]:
        found = []
        for architecture in (*drawn, bank.parent):
            network = bank.extract(architecture)
            recalibrate(network, batches)
            found.append(evaluate(network, batches).loss)
        return found

    *before, parents = losses()
    settings = TrainConfig(epochs=2, lr=3e-3, warmup_epochs=0.2, evaluations=1, strategy="sandwich")
    train_jointly(bank, data, settings)
    *after, parents_after = losses()
    assert np.mean(after) < np.mean(before) - 0.2
    assert parents_after < parents + 0.1


def test_the_teacher_is_the_parent_as_it_was() -> None:
    bank = filled("convolutions")
    teacher = parent_teacher(bank.train())
    images = torch.randn(2, 3, 24, 24)  # larger than it was trained at
    expected = teacher(images)
    small = F.interpolate(images, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(bank.eval()(small, bank.parent), expected)
    train_jointly(bank, few_images(), config(epochs=1))
    assert torch.equal(teacher(images), expected)
    assert not torch.equal(parent_teacher(bank)(images), expected)


def test_a_training_that_was_stopped_goes_on_from_the_same_weights(tmp_path: Path) -> None:
    data, settings = few_images(), config(epochs=3)

    class StopError(Exception):
        pass

    def stopping(done: int, *_: object) -> None:
        if done == 4:
            raise StopError

    whole, resumed = filled("metaformers"), filled("metaformers")
    expected = train_jointly(whole, data, settings, tmp_path / "whole")
    with pytest.raises(StopError):
        train_jointly(
            filled("metaformers"),
            data,
            settings,
            tmp_path / "parts",
            progress=stopping,
            checkpoint_seconds=0,
        )
    found = train_jointly(resumed, data, settings, tmp_path / "parts")
    assert [line.losses for line in found] == [line.losses for line in expected]
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    with pytest.raises(RunError, match="start is"):
        train_jointly(filled("metaformers", seed=1), data, settings, tmp_path / "parts")


def test_what_does_not_suit_a_bank_is_refused() -> None:
    data, bank = few_images(), filled("metaformers")
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    cases = [
        (bank_of("metaformers"), config(), "alternatives have no weights"),
        (bank, config(teacher="resnet18"), "learn from the parent"),
        (bank, config(shrinking="progressive"), "shrinking is 'progressive'"),
        (bank, config(patience=2), "patience is 2"),
        (bank, config(layer_decay=0.9), r"layer_decay is 0\.9"),
    ]
    for of, settings, message in cases:
        with pytest.raises(RunError, match=message):
            train_jointly(of, data, settings)
    assert all(torch.equal(value, bank.state_dict()[key]) for key, value in before.items())
    train_jointly(bank, data, config(epochs=1, shrinking="delayed"))  # sorts nothing


def test_a_supernet_learns_from_a_teacher_that_is_given() -> None:
    """Of the same start it ends with other weights than by labels, and labels do not matter."""
    data, space = few_images(), load_space("digits")
    settings = config(epochs=1, strategy="uniform", label_smoothing=0.0)
    ends = []
    for teacher in (None, lambda images: images.mean((2, 3)) @ torch.ones(3, 10)):
        torch.manual_seed(0)
        supernet = Supernet(space, 10)
        train_supernet(supernet, data, settings, None, teacher=teacher)
        ends.append(supernet.state_dict())
    assert not all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
