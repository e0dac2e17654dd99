"""What a training step minimises: sandwiches of subnets, distillation; and what is learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_training import few_images, fresh, small_network
from torch import nn

from search_space import load_space
from supernet.augmentation import AugmentConfig
from supernet.data import eval_batches, open_data, train_loader
from supernet.distillation import distillation_loss, label_loss
from supernet.loop import NO_WEIGHT_DECAY
from supernet.objectives import NetworkObjective, SupernetObjective
from supernet.sampling import SandwichSampler
from supernet.training import TrainConfig, evaluate, finetune

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sandwich_gradient_is_the_mean_of_its_subnets():
    """Against separate passes through extracted networks, scattered back by autograd."""
    space = load_space("digits")
    data = few_images()
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


def test_sandwich_sampler_is_deterministic_by_step():
    space = load_space("digits")
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


def test_weight_decay_leaves_out_biases_norms_and_position_tables():
    from timm.optim import param_groups_weight_decay

    space = load_space("digits")
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


def test_finetuning_learns_from_labels_and_from_a_teacher():
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


def test_evaluate_is_accuracy_and_loss_and_restores_modes():
    space = load_space("digits")
    data = few_images()
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
