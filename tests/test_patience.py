"""Early stop by the validation loss, and learning rates that fall from block to block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import config, few_images, small_network

from search_space import load_space
from search_space.errors import RunError
from supernet import build
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.loop import CHECKPOINTS
from supernet.training.optimizer import NamedOptimizer
from supernet.training.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


class StoppedError(Exception):
    pass


def test_a_training_ends_with_the_weights_of_its_best_epoch(tmp_path: Path) -> None:
    data = few_images()
    recipe = config(epochs=12, patience=2, lr=0.05, evaluations=1)
    network = small_network()
    history: list[dict[str, torch.Tensor]] = []
    epochs = finetune(
        network,
        data,
        recipe,
        tmp_path,
        on_epoch=lambda _: history.append(
            {name: tensor.clone() for name, tensor in network.state_dict().items()}
        ),
    )
    losses = [epoch.val_loss[""] for epoch in epochs]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == min(12, best + 3)
    final = network.state_dict()
    assert all(torch.equal(value, final[name]) for name, value in history[best].items())
    stored = CheckpointFolder(tmp_path, CHECKPOINTS).newest()
    assert stored is not None
    assert all(torch.equal(value, final[name]) for name, value in stored.trained_weights().items())


def test_a_training_that_was_stopped_ends_alike(tmp_path: Path) -> None:
    data = few_images()
    recipe = config(epochs=8, patience=1, lr=0.05)
    whole = small_network()
    epochs = finetune(whole, data, recipe, tmp_path / "whole")

    def stop(metrics: object) -> None:
        raise StoppedError

    parts = small_network()
    with pytest.raises(StoppedError):
        finetune(parts, data, recipe, tmp_path / "parts", on_epoch=stop)
    resumed = small_network()
    again = finetune(resumed, data, recipe, tmp_path / "parts")
    assert [e.val_loss for e in again] == [e.val_loss for e in epochs]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_rates_fall_from_the_classifier_to_the_stem() -> None:
    network = build(load_space("digits").smallest, 10)
    optimizer = NamedOptimizer(network, config(lr=1.0, layer_decay=0.5, warmup_epochs=0), 1)
    optimizer.begin(0, 1.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rates = {
        names[id(parameter)]: group["lr"]
        for group in optimizer._optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates.keys() == dict(network.named_parameters()).keys()
    assert rates["head.fc.weight"] == optimizer.lr == 1.0
    blocks = [f"stages.{i}.blocks.0" for i in range(len(network.stages))]
    first = [next(r for n, r in rates.items() if n.startswith(block)) for block in blocks]
    assert first == sorted(first)
    assert next(r for n, r in rates.items() if n.startswith("stem.")) < first[0] < 1


@pytest.mark.parametrize("values", [{"layer_decay": 0.0}, {"layer_decay": 1.5}, {"patience": -1}])
def test_what_makes_no_sense_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(RunError, match=next(iter(values))):
        config(**values)
