"""What a training step minimises: sandwiches of subnets, distillation; and what is learnt."""

from __future__ import annotations

import fnmatch
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import few_images, fresh, small_network
from torch import nn

from search_space import load_space
from search_space.space_definition import space_from_dict
from supernet import Supernet
from supernet.data.augmentation import AugmentConfig
from supernet.data.batches import train_loader
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.network.backbone import NO_WEIGHT_DECAY
from supernet.training.objectives import (
    NetworkObjective,
    SupernetObjective,
    alpha_divergence,
    distillation_loss,
    label_loss,
)
from supernet.training.optimizer import NamedOptimizer
from supernet.training.strategies import (
    Observation,
    SandwichSampler,
    StepSubnet,
    SubnetSampler,
    Target,
)
from supernet.training.train import TrainConfig, evaluate, finetune, train_supernet

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sandwich_gradient_is_the_mean_of_its_subnets():
    """Against separate passes through extracted networks, scattered back by autograd."""
    space = load_space("digits")
    data = few_images()
    supernet = fresh(space)
    batch = next(train_loader(data, 16, 0, 0))
    images, labels = batch.images, batch.targets
    sampler = SandwichSampler(space, num_random=2, seed=4)
    objective = SupernetObjective(
        supernet,
        sampler,
        TrainConfig(temperature=2.0, amp="off", distillation=(0.2, 1.0)),
        total_steps=16,
    )
    roles = []
    for role, weight, loss, *_ in objective.losses(9, batch):
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
        smooth = 0.9 * nn.functional.one_hot(labels, 10) + 0.01
        hard = -(smooth * logits.log_softmax(1)).sum(1).mean()
        if teacher is None:
            teacher = logits.detach()
            total = total + hard
        else:  # in step 9 of 16 the share of soft labels is 0.2 + 9/16 · 0.8
            shares = (teacher / 2).softmax(1)
            soft = -4 * (shares * (logits / 2).log_softmax(1)).sum(1).mean()
            total = total + 0.35 * hard + 0.65 * soft
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
    assert (largest.architecture, largest.target) == (space.largest, Target.LABELS)
    assert smallest.target is Target.FIRST
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
    assert all(space.contains(subnet.architecture) for subnet in others)
    assert {subnet.target for subnet in others} == {Target.FIRST}
    ranks = [sampler(5, rank) for rank in range(3)]  # common extremes, random ones of their own
    assert len({subnets[:2] for subnets in ranks}) == 1
    assert len({subnets[2:] for subnets in ranks}) == 3


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


def test_alpha_divergence_and_its_gradient():
    """Values by the sums; the gradient of the unclipped formula by autograd, and the clipping."""
    rng = np.random.default_rng(1)
    logits = torch.tensor(rng.normal(size=(6, 4)), dtype=torch.float32, requires_grad=True)
    p = torch.tensor(rng.dirichlet(np.ones(4) * 3, size=6), dtype=torch.float32)
    q = logits.softmax(-1)
    include = (p * (p / q).log()).sum(-1)
    exclude = ((q * q / p).sum(-1) - 1) / 2
    wanted = torch.maximum(include, exclude).mean()
    found = alpha_divergence(logits, p, ratio_limit=1e6)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    (left,) = torch.autograd.grad(found, logits)
    (right,) = torch.autograd.grad(wanted, logits, retain_graph=True)
    assert torch.allclose(left, right, atol=1e-6)
    assert {bool(a > b) for a, b in zip(include, exclude, strict=True)} == {True, False}

    # a student that leaves out the teacher's class: −∇ = min(p/q, 5) q = 5 q there
    lonely = torch.tensor([[-9.0, 0.0]], requires_grad=True)
    shares = torch.tensor([[0.3, 0.7]])
    (gradient,) = torch.autograd.grad(alpha_divergence(lonely, shares), lonely)
    q = lonely.detach().softmax(-1)
    weights = torch.tensor([5 * q[0, 0], 0.7])
    assert torch.allclose(gradient[0], -(weights - q[0] * weights.sum()), atol=1e-7)
    assert alpha_divergence(p.log(), p).item() == pytest.approx(0, abs=1e-6)


class Scripted(SubnetSampler):
    """The same subnets in each step."""

    def __init__(self, *subnets: StepSubnet) -> None:
        self.subnets, self.seen = subnets, []

    def __call__(self, step, rank=0):
        return self.subnets

    def observe(self, step, observations):
        self.seen.append(observations)


def test_targets_parts_and_rates_of_subnets():
    """Each subnet's loss against its own formula, on its own part of the images."""
    space = load_space("digits")
    batch = next(train_loader(few_images(), 12, 0, 0))
    supernet = fresh(space)
    a, b = space.smallest, space.largest
    script = Scripted(
        StepSubnet(role="first", architecture=b, part=(1, 3)),
        StepSubnet(role="taught", architecture=a, target=Target.TEACHER, part=(1, 3)),
        StepSubnet(role="peer", architecture=a, target=Target.PEERS, part=(1, 3), lr_factor=0.25),
    )
    guide = torch.randn(12, 10)
    objective = SupernetObjective(
        supernet,
        script,
        TrainConfig(label_smoothing=0.0, amp="off", distillation=(1.0, 1.0)),
        teacher=lambda given: guide[: len(given.images)],
    )
    first, taught, peer = objective.losses(0, batch)
    images, labels = batch.images[4:8], batch.targets[4:8]

    def logits(architecture):
        size = (architecture.resolution,) * 2
        resized = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        return supernet(resized, architecture)

    large, small = logits(b), logits(a)
    assert first.loss.item() == pytest.approx(label_loss(large, labels).item(), rel=1e-5)
    wanted = distillation_loss(small, guide[4:8])
    assert taught.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    peers = (large.softmax(-1) + small.softmax(-1)) / 2
    assert peer.loss.item() == pytest.approx(alpha_divergence(small, peers).item(), rel=1e-4)
    assert [first.weight, taught.weight, peer.weight] == pytest.approx([1 / 3, 1 / 3, 1 / 12])
    assert taught.label_loss.item() == pytest.approx(label_loss(small, labels).item(), rel=1e-5)

    objective.observe(7, [[2.0, 2.5, 1.0], [1.0, 1.0, 3.0]])
    (seen,) = script.seen
    assert [o.relative_loss for o in seen] == [0, 0.5, -1.0, 0, 0, 2.0]
    assert isinstance(seen[0], Observation)
    assert [o.subnet.role for o in seen] == ["first", "taught", "peer"] * 2


def test_weight_decay_leaves_out_biases_norms_scales_and_position_tables():
    mixers = ["window_attention", "cosine_window_attention", "linear_attention"]
    stage = {"width": [32], "depth": 1, "mixers": mixers, "mlp_ratio": [2]}
    macro = {"stem_kernel": 2, "stem_stride": 2, "layer_scale": 1e-3}
    form = {"name": "positions", "macro": macro, "resolution": 16, "stages": [stage]}
    supernet = Supernet(space_from_dict(form), 10)
    parameters = dict(supernet.named_parameters())
    for pattern in NO_WEIGHT_DECAY:
        assert fnmatch.filter(parameters, pattern), f"{pattern} matches nothing"
    optimizer = NamedOptimizer(supernet, TrainConfig(weight_decay=0.05), 10)
    decayed = {
        id(parameter): group["weight_decay"]
        for group in optimizer._optimizer.param_groups
        for parameter in group["params"]
    }
    kinds: dict[str, set[float]] = {}
    for name, parameter in parameters.items():
        kind = name.rpartition(".")[2]
        kind = "vector" if parameter.ndim == 1 and not kind.startswith("scale") else kind
        kind = "position" if "cpb_mlp" in name else kind
        kinds.setdefault(kind, set()).add(decayed[id(parameter)])
    tables = ("relative_position_bias_table", "logit_scale", "positions", "position")
    free = ("vector", "scale1", "scale2", *tables)
    plain = {key: {0.0} for key in free}
    assert kinds == plain | {"weight": {0.05}}


def test_a_lower_learning_rate_acts_on_what_adam_changes():
    """Adam makes a whole step of any gradient, so a factor of the gradient slows nothing."""
    space, data = load_space("digits"), few_images()

    class Pair(SandwichSampler):
        factor = 1.0

        def __call__(self, step: int, rank: int = 0) -> tuple[StepSubnet, ...]:
            largest, smallest, *_ = super().__call__(step, rank)
            other = replace(smallest, architecture=space.decode(space.sample(rng(), 1))[0])
            return largest, replace(other, lr_factor=self.factor)

    def rng() -> np.random.Generator:
        return np.random.default_rng(3)

    def changes(factor: float) -> dict[str, torch.Tensor]:
        supernet, sampler = fresh(space), Pair(space)
        sampler.factor = factor
        before = {name: value.clone() for name, value in supernet.named_parameters()}
        images = len(data.train)
        settings = TrainConfig(epochs=1, batch_size=images, warmup_epochs=0, weight_decay=0.0)
        train_supernet(supernet, data, settings, None, sampler=sampler)
        return {
            name: (value - before[name]).detach() for name, value in supernet.named_parameters()
        }

    supernet = fresh(space)
    batch = next(train_loader(data, len(data.train), 0, 0))
    supernet(batch.images, space.largest).square().sum().backward()
    full, slowed = changes(1.0), changes(0.1)
    alone, shared = [], []
    for name, parameter in supernet.named_parameters():
        if parameter.grad is None:
            alone.append((full[name], slowed[name]))
        else:
            shared.append((full[name], slowed[name]))
    whole, tenth = (torch.cat([pair[i].flatten() for pair in alone]) for i in (0, 1))
    moved = whole.abs() > 0.99 * whole.abs().max()  # whole steps of Adam
    assert moved.sum() > 100
    ratios = tenth[moved] / whole[moved]
    assert float(ratios.median()) == pytest.approx(0.1, rel=1e-3)
    assert float(ratios.max()) < 0.11
    sizes = [sum(float(pair[i].abs().sum()) for pair in shared) for i in (0, 1)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


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
        student,
        TrainConfig(label_smoothing=0, amp="off"),
        teacher=lambda batch: teacher(batch.images),
    )
    batch = next(train_loader(more, 64, 0, 0))
    ((_, weight, loss, own, _),) = objective.losses(0, batch)
    assert weight == 1
    logits = student(batch.images)
    assert loss.item() == pytest.approx(distillation_loss(logits, teacher(batch.images)).item())
    assert own.item() == pytest.approx(label_loss(logits, batch.targets).item())


def test_evaluate_is_accuracy_and_loss_and_restores_modes():
    space = load_space("digits")
    data = few_images()
    supernet = fresh(space).train()
    architecture = space.smallest
    batches = eval_batches(data.validation, 64, limit=100)
    found = evaluate(supernet, batches, architecture=architecture)
    assert supernet.training
    extracted = supernet.extract(architecture).eval()
    assert evaluate(extracted, batches).to_dict() == found.to_dict()
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
