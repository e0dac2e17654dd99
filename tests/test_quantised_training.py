"""Training in int8: it makes good what rounding lost, and is a training like the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import config, few_images

from search_space import known, load_space
from search_space.errors import RunError
from search_space.precision import in_precision
from supernet import Backbone, build
from supernet.data.dataset import ImageData, open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.network.quantised import fake_quantisers
from supernet.quantisation.calibration import quantised_network, same_tensors
from supernet.training.config import TrainConfig
from supernet.training.objectives import distillation_loss
from supernet.training.optimizer import NamedOptimizer
from supernet.training.quantised_training import train_quantised
from supernet.training.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


class StoppedError(Exception):
    pass


def recipe(**changes: object) -> TrainConfig:
    return config(**({"epochs": 3, "lr": 1e-3, "warmup_epochs": 0.5} | changes))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return few_images(validation_fraction=0.5)


@pytest.fixture(scope="module")
def teacher(data: ImageData) -> Backbone:
    torch.manual_seed(0)
    network = build(load_space("digits").smallest, 10)
    finetune(network, data, config(epochs=4, lr=4e-3))
    return network


def in_int8(teacher: Backbone, data: ImageData, cut: float = 1.0) -> Backbone:
    """A network whose ranges cover a part of what activations are."""
    batches = [images for images, _ in eval_batches(data.train, 32)]
    architecture = in_precision(teacher.architecture, "int8")
    network = quantised_network(teacher, architecture, batches)
    for place in fake_quantisers(network).values():
        low = -float(place.zero) * float(place.scale.detach())
        place.set_range(cut * low, cut * (low + 255 * float(place.scale.detach())))
    return network


def distance(network: Backbone, teacher: Backbone, data: ImageData) -> float:
    images = torch.cat([images for images, _ in eval_batches(data.train, 64)])
    with torch.no_grad():
        return float(distillation_loss(network.eval()(images), teacher.eval()(images)))


def test_it_comes_closer_to_its_float_twin(teacher: Backbone, data: ImageData) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    network = in_int8(teacher, data, cut=0.3)
    start = {name: value.clone() for name, value in network.named_parameters()}
    lost = distance(network, teacher, data) - distance(teacher, teacher, data)
    epochs = train_quantised(network, teacher.train(), data, recipe(epochs=8, lr=5e-3))
    assert teacher.training
    left = distance(network, teacher, data) - distance(teacher, teacher, data)
    assert left < 0.7 * lost
    assert len(epochs) == 8
    assert set(epochs[-1].val_accuracy) == {""}
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    changed = {name for name, value in network.named_parameters() if not value.equal(start[name])}
    assert any(name.endswith(".log_scale") for name in changed)
    assert any(name.endswith(".log_weight_scale") for name in changed)
    assert any(name.endswith(".weight") for name in changed)


def test_places_of_one_tensor_keep_one_scale() -> None:
    data = open_data("digits", 32, test_fraction=0.95, validation_fraction=0.2)
    own = known("mobilenetv2_050")
    stages = tuple(replace(stage, blocks=stage.blocks[:1]) for stage in own.stages)
    teacher = build(replace(own, resolution=32, stages=stages), 10)
    network = in_int8(teacher, data)
    names = [name for name, _ in network.named_parameters()]
    train_quantised(network, teacher, data, recipe(epochs=1))
    places = fake_quantisers(network)
    pairs = same_tensors(network, torch.zeros(1, 3, 32, 32))
    assert any(name != first for name, first in pairs.items())
    for name, first in pairs.items():
        assert torch.equal(places[name].log_scale, places[first].log_scale)
        assert torch.equal(places[name].zero, places[first].zero)
    assert [name for name, _ in network.named_parameters()] == names  # none is shared for good


@pytest.mark.parametrize("changes", [{"patience": 2, "lr": 0.02, "epochs": 6}, {"ema_decay": 0.9}])
def test_a_training_that_was_stopped_ends_alike(
    teacher: Backbone, data: ImageData, tmp_path: Path, changes: dict[str, float]
) -> None:
    how = recipe(**changes)
    whole = in_int8(teacher, data)
    epochs = train_quantised(whole, teacher, data, how)

    def stop(metrics: object) -> None:
        raise StoppedError

    parts, resumed = in_int8(teacher, data), in_int8(teacher, data)
    with pytest.raises(StoppedError):
        train_quantised(parts, teacher, data, how, tmp_path, on_epoch=stop)
    again = train_quantised(resumed, teacher, data, how, tmp_path)
    assert [e.val_loss for e in again] == [e.val_loss for e in epochs]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_best_epoch_is_kept(teacher: Backbone, data: ImageData) -> None:
    network = in_int8(teacher, data, cut=0.3)
    seen: list[dict[str, torch.Tensor]] = []
    epochs = train_quantised(
        network,
        teacher,
        data,
        recipe(epochs=6, lr=0.02, patience=2),
        on_epoch=lambda _: seen.append({n: t.clone() for n, t in network.state_dict().items()}),
    )
    losses = [epoch.val_loss[""] for epoch in epochs]
    best = seen[losses.index(min(losses))]
    assert all(torch.equal(value, best[name]) for name, value in network.state_dict().items())


def test_a_training_that_only_harms_leaves_the_start(teacher: Backbone, data: ImageData) -> None:
    network = in_int8(teacher, data)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    epochs = train_quantised(network, teacher, data, recipe(epochs=1, lr=1.0, warmup_epochs=0))
    assert len(epochs) == 1
    assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())


def test_weight_decay_leaves_scales_alone(teacher: Backbone, data: ImageData) -> None:
    network = in_int8(teacher, data)
    for changes in ({}, {"layer_decay": 0.8}):
        optimizer = NamedOptimizer(network, recipe(weight_decay=0.1, **changes), 1)
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        decayed = {
            names[id(parameter)]
            for group in optimizer._optimizer.param_groups
            for parameter in group["params"]
            if group["weight_decay"]
        }
        assert decayed
        assert not [name for name in decayed if name.endswith("scale")]


def test_blocks_in_float_train_beside_those_in_int8(teacher: Backbone, data: ImageData) -> None:
    own, other = teacher.architecture, in_precision(teacher.architecture, "int8")
    mixed = replace(other, stages=(own.stages[0], *other.stages[1:]))
    batches = [images for images, _ in eval_batches(data.train, 32)]
    network = quantised_network(teacher, mixed, batches)
    block = network.get_submodule("stages.0.blocks.0")
    assert not fake_quantisers(block)
    before = {name: value.clone() for name, value in block.named_parameters()}
    train_quantised(network, teacher, data, recipe(epochs=1, layer_decay=0.8))
    assert all(not value.equal(before[name]) for name, value in block.named_parameters())


def test_what_cannot_be_trained_so_is_refused(
    teacher: Backbone, data: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="no component in int8"):
        train_quantised(teacher, teacher, data, recipe())
    network = in_int8(teacher, data)
    with pytest.raises(RunError, match="7 classes"):
        train_quantised(network, build(load_space("digits").smallest, 7), data, recipe())
    with pytest.raises(RunError, match="leave it out"):
        train_quantised(network, teacher, data, recipe(teacher="resnet18"))
    train_quantised(in_int8(teacher, data), teacher, data, recipe(epochs=1), tmp_path)
    other = build(load_space("digits").smallest, 10)
    with pytest.raises(RunError, match="teacher"):
        train_quantised(in_int8(teacher, data), other, data, recipe(epochs=1), tmp_path)
