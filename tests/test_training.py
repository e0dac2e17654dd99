"""The training loop: exact resumption, roll-back, checkpoints, sampling, distillation."""

from __future__ import annotations

import io
import itertools
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from search_space import load_space
from search_space.errors import CorruptFileError, RunError
from supernet import Supernet
from supernet.augmentation import AugmentConfig
from supernet.checkpoints import (
    PickleRefusedError,
    load_checkpoint,
    load_latest,
    read_tensors,
    save_checkpoint,
)
from supernet.data import eval_batches, open_data, train_loader
from supernet.distillation import distillation_loss, label_loss
from supernet.loop import NO_WEIGHT_DECAY
from supernet.objectives import NetworkObjective, SupernetObjective
from supernet.sampling import SandwichSampler
from supernet.training import TrainConfig, TrainingDivergedError, evaluate, finetune, train_supernet


class StoppedError(Exception):
    pass


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def space():
    return load_space("digits")


@pytest.fixture(scope="module")
def data():
    # Few images: what is tested is the loop, not what it learns.
    return open_data("digits", 16, test_fraction=0.9, validation_fraction=0.7)


def config(**changes) -> TrainConfig:
    values = {"epochs": 4, "batch_size": 16, "lr": 1e-3, "warmup_epochs": 1, "num_random": 1}
    return TrainConfig(**(values | {"snapshot_steps": 1} | changes))


def fresh(space) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space, 10)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 16), nn.GELU(), nn.Linear(16, 10))


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


def test_supernet_resumes_bitwise(space, data, tmp_path):
    """4 epochs in one go equal 2 epochs, a stop, a stop within the third epoch, and the rest."""
    whole = fresh(space)
    options = {"tensorboard": False, "checkpoint_seconds": 0}
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


def test_checkpoint_in_mid_epoch_is_used(data, tmp_path):
    options = {"checkpoint_seconds": 0}
    settings = config(epochs=2, snapshot_steps=2)
    whole, resumed = small_network(), small_network()
    finetune(whole, data, settings, tmp_path / "whole", **options)
    with pytest.raises(StoppedError):
        finetune(resumed, data, settings, tmp_path / "parts", progress=stop_at(3), **options)
    found = load_latest(tmp_path / "parts" / "checkpoints")
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


def test_tensorboard_events(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = finetune(small_network(), data, config(epochs=2), tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(m.step, pytest.approx(m.losses[""])) for m in metrics]


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
    found = load_latest(tmp_path / "checkpoints")
    assert found is not None
    assert found.metadata["state"]["rollbacks"] == 3
    assert found.metadata["state"]["lr_scale"] == 1 / 8


# Steps ----------------------------------------------------------------------------------------


def test_sandwich_gradient_is_the_mean_of_its_subnets(space, data):
    """Against separate passes through extracted networks, scattered back by autograd."""
    supernet = fresh(space)
    images, labels = next(train_loader(data, 16, 0, 0))
    sampler = SandwichSampler(space, num_random=2, seed=4)
    objective = SupernetObjective(
        supernet, sampler, drop_path_rate=0.0, label_smoothing=0.1, temperature=2.0, amp="off"
    )
    roles = []
    for role, weight, loss in objective.losses(9, images, labels):
        (weight * loss).backward()
        roles.append(role)
    assert roles == ["largest", "smallest", "random", "random"]
    found = {
        name: parameter.grad.clone()
        for name, parameter in supernet.named_parameters()
        if parameter.grad is not None
    }

    supernet.zero_grad()
    total, teacher = torch.zeros(()), None
    for subnet in sampler(9):
        size = subnet.architecture.resolution
        resized = images
        if size != images.shape[-1]:
            resized = nn.functional.interpolate(
                images, (size, size), mode="bilinear", antialias=True
            )
        logits = supernet(resized, subnet.architecture)
        if teacher is None:
            teacher = logits.detach()
            smooth = 0.9 * nn.functional.one_hot(labels, 10) + 0.01
            total = total - (smooth * logits.log_softmax(1)).sum(1).mean()
        else:
            shares = (teacher / 2).softmax(1)
            total = total - 4 * (shares * (logits / 2).log_softmax(1)).sum(1).mean()
    (total / 4).backward()
    for name, parameter in supernet.named_parameters():
        assert (parameter.grad is None) == (name not in found)
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, found[name], atol=1e-6), name


def test_sandwich_sampler_is_deterministic_by_step(space):
    sampler = SandwichSampler(space, num_random=3, seed=1)
    assert sampler(5) == SandwichSampler(space, num_random=3, seed=1)(5)
    assert sampler(5) != sampler(6)
    assert sampler(5) != SandwichSampler(space, num_random=3, seed=2)(5)
    largest, smallest, *others = sampler(5)
    assert (largest.architecture, largest.distilled) == (space.largest, False)
    assert smallest.distilled
    for stage, choices in zip(smallest.architecture.stages, space.stages, strict=True):
        assert (stage.width, stage.depth) == (choices.widths[0], choices.depths[0])
        for block in stage.blocks:  # the lightest choice of its mixer
            of_mixer = [b for b in choices.blocks if b.mixer.name == block.mixer.name]
            assert block == of_mixer[0]
    drawn = {
        b.mixer.name for step in range(20) for b in sampler(step)[1].architecture.stages[2].blocks
    }
    assert drawn == {b.mixer.name for b in space.stages[2].blocks}
    assert [subnet.regularised for subnet in sampler(5)] == [True, False, False, False, False]
    assert all(space.contains(subnet.architecture) and subnet.distilled for subnet in others)


def test_losses_against_their_formulas():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 3))
    labels = np.array([0, 2, 1, 1, 0])

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    wanted = -log_softmax(student)[np.arange(5), labels].mean()
    assert label_loss(torch.tensor(student), torch.tensor(labels)).item() == pytest.approx(
        wanted, rel=1e-5
    )
    for temperature in (1.0, 3.0):
        shares = np.exp(log_softmax(teacher / temperature))
        wanted = -(shares * log_softmax(student / temperature)).sum(1).mean() * temperature**2
        teacher_logits = torch.tensor(teacher, requires_grad=True)
        loss = distillation_loss(torch.tensor(student), teacher_logits, temperature)
        assert loss.item() == pytest.approx(wanted, rel=1e-5)
        assert not loss.requires_grad


def test_weight_decay_leaves_out_biases_norms_and_position_tables(space):
    from timm.optim import param_groups_weight_decay

    supernet = fresh(space)
    groups = param_groups_weight_decay(supernet, 0.05, no_weight_decay_list=NO_WEIGHT_DECAY)
    names = {id(parameter): name for name, parameter in supernet.named_parameters()}
    decayed = {
        names[id(parameter)]
        for group in groups
        if group["weight_decay"] > 0
        for parameter in group["params"]
    }
    assert decayed
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert len(decayed) < len(names)


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


def test_finetuning_learns_from_labels_and_from_a_teacher(data):
    more = open_data("digits", 16)
    settings = TrainConfig(epochs=6, batch_size=64, lr=5e-3, augment=AugmentConfig(crop="none"))
    teacher = small_network()
    before = evaluate(teacher, eval_batches(more.validation)).accuracy
    metrics = finetune(teacher, more, settings)
    after = evaluate(teacher, eval_batches(more.validation)).accuracy
    assert after > 0.9 > before
    assert metrics[-1].val_accuracy[""] == after
    student = small_network()
    finetune(student, more, settings, teacher=teacher)
    assert evaluate(student, eval_batches(more.validation)).accuracy > 0.9
    objective = NetworkObjective(
        student, label_smoothing=0, temperature=1, amp="off", teacher=teacher
    )
    images, labels = next(iter(eval_batches(more.train)))
    ((_, weight, loss),) = objective.losses(0, images, labels)
    assert weight == 1
    assert loss.item() == pytest.approx(distillation_loss(student(images), teacher(images)).item())


def test_evaluate_is_accuracy_and_loss_and_restores_modes(space, data):
    supernet = fresh(space).train()
    architecture = space.smallest
    batches = eval_batches(data.validation, 64, limit=100)
    found = evaluate(supernet, batches, architecture=architecture)
    assert supernet.training
    extracted = supernet.extract(architecture).eval()
    assert evaluate(extracted, batches) == found
    right, losses = 0, []
    with torch.no_grad():
        for images, labels in batches:
            size = (architecture.resolution,) * 2
            resized = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
            logits = extracted(resized)
            right += int((logits.argmax(1) == labels).sum())
            losses += [-logits.log_softmax(1)[i, label] for i, label in enumerate(labels)]
    assert found.accuracy == right / 100
    assert found.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)

    network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(768, 10))
    network[1].eval()
    evaluate(network, batches)
    assert [part.training for part in network] == [True, False, True]

    def always_zero(images: torch.Tensor) -> torch.Tensor:
        return torch.eye(10)[torch.zeros(len(images), dtype=torch.int64)]

    zeros = sum(int((labels == 0).sum()) for _, labels in batches)
    assert evaluate(always_zero, batches).accuracy == zeros / 100
    # Nothing that evaluation cached hinders a later backward pass.
    supernet(images, architecture).sum().backward()


@pytest.mark.parametrize(
    "values", [{"epochs": 0}, {"lr": -1.0}, {"drop_path_rate": 1.0}, {"amp": "fp16"}]
)
def test_wrong_configuration(values):
    with pytest.raises(RunError, match=f"{next(iter(values))} is"):
        TrainConfig(**values)


def test_unknown_optimizer_and_schedule(data):
    for values in ({"optimizer": "magic"}, {"schedule": "magic"}):
        with pytest.raises(RunError, match="magic"):
            finetune(small_network(), data, config(**values))


# Checkpoint files -----------------------------------------------------------------------------


def written(directory: Path, steps=(1, 2, 3)) -> None:
    for step in steps:
        tensors = {"w": torch.arange(4.0) * step, "table": torch.eye(3)}
        save_checkpoint(directory, step, tensors, {"w/m": torch.ones(4)}, {"note": step})


def test_checkpoints_keep_two_and_round_trip(tmp_path):
    written(tmp_path)
    assert [path.name[:14] for path in sorted(tmp_path.iterdir())] == [
        "step-000000002",
        "step-000000003",
    ]
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.step, found.metadata) == (3, {"note": 3})
    assert torch.equal(found.weights["w"], torch.arange(4.0) * 3)
    assert torch.equal(found.optimizer["w/m"], torch.ones(4))
    newest = max(tmp_path.iterdir())
    assert torch.equal(load_file(newest / "model.safetensors")["table"], torch.eye(3))
    assert load_latest(tmp_path / "nothing") is None


def test_a_killed_write_leaves_no_checkpoint(tmp_path):
    written(tmp_path, [1])
    left = tmp_path / ".writing-123"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 1
    written(tmp_path, [2])
    assert not left.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "metadata.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_found_and_the_one_before_used(tmp_path, name, damage):
    written(tmp_path)
    file = max(tmp_path.iterdir()) / name
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-5])
    elif damage == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    with pytest.raises(CorruptFileError, match=name):
        load_checkpoint(file.parent)
    with pytest.warns(UserWarning, match="damaged"):
        found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 2


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def test_pickle_in_disguise_is_refused_unread(tmp_path, data):
    torch_file = io.BytesIO()
    torch.save({"w": torch.ones(2)}, torch_file)
    old_torch_file = io.BytesIO()
    torch.save({"w": torch.ones(2)}, old_torch_file, _use_new_zipfile_serialization=False)
    pickles = [pickle.dumps(Bomb(), protocol) for protocol in range(6)]
    for content in (*pickles, torch_file.getvalue(), old_torch_file.getvalue()):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(PickleRefusedError, match=r"model\.safetensors is a pickle.*not read"):
            read_tensors(path)
    finetune(small_network(), data, config(epochs=1), tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    (newest / "model.safetensors").write_bytes(pickles[2])
    with pytest.raises(CorruptFileError, match="is a pickle"):
        finetune(small_network(), data, config(epochs=1), tmp_path / "run")


def test_files_that_are_no_tensors(tmp_path):
    with pytest.raises(CorruptFileError, match="cannot be read"):
        read_tensors(tmp_path / "absent.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"hello there, this is text")
    with pytest.raises(CorruptFileError, match="not a whole safetensors"):
        read_tensors(tmp_path / "x.safetensors")
