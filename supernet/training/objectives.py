"""Objectives: the loss that a training step minimises, of a supernet or of one static network.

The loop in ``supernet.training.loop`` knows neither. An objective yields one loss at a time and
the loop runs its backward pass before asking for the next, so that the activations of only
one subnet are held in memory.

In-place distillation (Yu & Huang, "Universally Slimmable Networks", ICCV 2019; BigNAS): the
students of a step learn the distribution that the step's first subnet predicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from supernet.data.batches import Batch, resize_images
from supernet.network.channel_order import sort_channels
from supernet.training.config import TrainConfig
from supernet.training.evaluation import (
    Batches,
    Quality,
    at_trained_resolution,
    evaluate,
)
from supernet.training.precision import autocast
from supernet.training.recalibration import evaluate_subnet
from supernet.training.strategies import Observation, StepSubnet, SubnetSampler, Target
from supernet.training.tokenisation import TokenSchedule, coarsen

Teacher = Callable[[Batch], torch.Tensor]
"""Logits (n, classes) that a fixed teacher gives the images of a batch."""
OptimizerState = Callable[[], Mapping[str, Mapping[str, torch.Tensor]]]
"""Gives the tensors of the optimiser's state (and the moving average) by parameter and name."""


class Loss(NamedTuple):
    """Holds a subnet's loss in a step.

    Attributes:
        role: ``""`` for a static network, else which subnet it is.
        weight: Of its gradient in the step's.
        loss: What is minimised.
        label_loss: Mean cross entropy to the labels, without gradient.
        lr_factor: Of the learning rate of what no subnet before it in the step trains; those of
            factor 1 come first.
    """

    role: str
    weight: float
    loss: torch.Tensor
    label_loss: torch.Tensor
    lr_factor: float = 1.0


class Objective(ABC):
    """Base of what a training minimises: gives the losses of each step."""

    def prepare(self, step: int, states: OptimizerState) -> None:  # noqa: B027
        """Prepares a step; may re-order weights in place, and ``states`` alike."""

    @abstractmethod
    def losses(self, step: int, batch: Batch) -> Iterator[Loss]:
        """Yields as many losses in every part of a step's batch, on every worker."""

    def observe(self, step: int, label_losses: Sequence[Sequence[float]]) -> None:  # noqa: B027
        """Takes in a step's mean label losses by worker and subnet; alike on every worker."""

    @abstractmethod
    def qualities(self, batches: Batches) -> dict[str, Quality]:
        """Judges the networks on ``batches``, by role."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what was learnt beside weights, JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Continues where the objective that gave ``state`` stood."""


class SupernetObjective(Objective):
    """Trains the subnets that ``sampler`` draws, each on its target.

    Args:
        supernet: ``supernet(images, architecture, drop_path_rate=…)`` → logits.
        class_weights: (classes,) factors of the loss to the labels, on the supernet's device.
        teacher: For subnets that learn from a fixed one; they learn labels where it is None.
        total_steps: Steps of the training, which ``tokens`` and ``distillation`` count in.
        rank: Number of this worker.
        calibration: Training images by which subnets are recalibrated before they are judged, see
            ``supernet.training.recalibration``; None where the space has no batch norms.
    """

    def __init__(
        self,
        supernet: nn.Module,
        sampler: SubnetSampler,
        config: TrainConfig,
        *,
        class_weights: torch.Tensor | None = None,
        teacher: Teacher | None = None,
        total_steps: int = 1,
        rank: int = 0,
        calibration: Batches | None = None,
    ) -> None:
        self.supernet, self.sampler, self.config = supernet, sampler, config
        self.class_weights, self.teacher = class_weights, teacher
        self.tokens = TokenSchedule(config.tokens)
        self.total_steps, self.rank, self.calibration = total_steps, rank, calibration

    def prepare(self, step: int, states: OptimizerState) -> None:
        if self.sampler.sorts_channels(step):
            sort_channels(self.supernet, states())

    def losses(self, step: int, batch: Batch) -> Iterator[Loss]:
        subnets = self.sampler(step, self.rank)
        guide: torch.Tensor | None = None
        first: torch.Tensor | None = None
        peers: list[torch.Tensor] = []
        if self.teacher is not None and any(s.target is Target.TEACHER for s in subnets):
            with torch.no_grad():
                guide = self.teacher(batch)
        done = min(1.0, step / self.total_steps)
        factor = self.tokens.factor(done)
        begin, end = self.config.distillation
        share, temperature = begin + done * (end - begin), self.config.temperature
        for subnet in subnets:
            part = batch.part(*subnet.part)
            logits = self._logits(subnet, part.images, factor)
            smoothing = self.config.label_smoothing
            hard = label_loss(logits, part.targets, smoothing, self.class_weights)
            match subnet.target:
                case Target.FIRST if first is not None:
                    soft = distillation_loss(logits, first, temperature)
                    loss = torch.lerp(hard, soft, share)
                case Target.TEACHER if guide is not None:
                    k, n = subnet.part
                    wanted = guide[k * len(guide) // n : (k + 1) * len(guide) // n]
                    loss = distillation_loss(logits, wanted, temperature)
                case Target.PEERS if peers:
                    soft = alpha_divergence(logits, torch.stack(peers).mean(0))
                    loss = torch.lerp(hard, soft, share)
                case _:
                    loss = hard
            known = logits.detach()
            first = known if first is None else first
            peers.append(known.float().softmax(-1))
            weight = subnet.lr_factor / len(subnets)
            hard = label_loss(known, part.targets)
            yield Loss(subnet.role, weight, loss, hard, subnet.lr_factor)

    def _logits(self, subnet: StepSubnet, images: torch.Tensor, factor: int) -> torch.Tensor:
        resized = coarsen(resize_images(images, subnet.architecture.resolution), factor)
        rate = self.config.drop_path_rate if subnet.regularised else 0.0
        with autocast(images.device, self.config.amp):
            logits: torch.Tensor = self.supernet(resized, subnet.architecture, drop_path_rate=rate)
        return logits

    def observe(self, step: int, label_losses: Sequence[Sequence[float]]) -> None:
        observations = [
            Observation(subnet=subnet, relative_loss=loss - losses[0])
            for rank, losses in enumerate(label_losses)
            for subnet, loss in zip(self.sampler(step, rank), losses, strict=True)
        ]
        self.sampler.observe(step, observations)

    def qualities(self, batches: Batches) -> dict[str, Quality]:
        space: Any = self.supernet.space
        extremes = {"largest": space.largest, "smallest": space.smallest}
        return {
            role: evaluate_subnet(
                self.supernet, architecture, batches, self.calibration, amp=self.config.amp
            )
            for role, architecture in extremes.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class NetworkObjective(Objective):
    """Trains one static network on labels, or on the logits of ``teacher`` where there is one."""

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        *,
        class_weights: torch.Tensor | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.network, self.config = network, config
        self.class_weights, self.teacher = class_weights, teacher

    def losses(self, step: int, batch: Batch) -> Iterator[Loss]:
        config, device = self.config, batch.images.device
        with autocast(device, config.amp):
            logits = self.network(at_trained_resolution(self.network, batch.images))
        if self.teacher is None:
            loss = label_loss(logits, batch.targets, config.label_smoothing, self.class_weights)
        else:
            with torch.no_grad(), autocast(device, config.amp):
                wanted = self.teacher(batch)
            loss = distillation_loss(logits, wanted, config.temperature)
        yield Loss("", 1.0, loss, label_loss(logits.detach(), batch.targets))

    def qualities(self, batches: Batches) -> dict[str, Quality]:
        return {"": evaluate(self.network, batches, amp=self.config.amp)}


def label_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    label_smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes the mean cross entropy.

    Args:
        logits: (n, classes).
        targets: (n,) int64 labels, or (n, classes) shares, which mixup has smoothed already.
        label_smoothing: Share of a label that is spread over all classes.
        weights: (classes,) factors of each class's part; the sum is divided by n all the same, so
            that an image counts alike whatever else is in its batch.
    """
    smoothing = label_smoothing if targets.ndim == 1 else 0.0
    total = F.cross_entropy(
        logits.float(), targets, weights, reduction="sum", label_smoothing=smoothing
    )
    return total / len(logits)


def balanced_weights(labels: npt.NDArray[np.int64], num_classes: int) -> torch.Tensor:
    """Computes weights (classes,) float32 in inverse proportion to how frequent classes are.

    Their mean over the images is 1: w = n / (classes · images of the class), as scikit-learn's
    "balanced". Every class must have an image.
    """
    counts = np.bincount(labels, minlength=num_classes)
    return torch.from_numpy(len(labels) / (num_classes * counts)).float()


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Computes the mean cross entropy of the student to the teacher; both (n, classes) logits.

    No gradient reaches the teacher. The loss is multiplied by temperature², which keeps the
    gradient's size (Hinton et al., 2015).
    """
    shares = F.softmax(teacher.detach().float() / temperature, dim=-1)
    return F.cross_entropy(student.float() / temperature, shares) * temperature**2


def alpha_divergence(
    student: torch.Tensor, shares: torch.Tensor, ratio_limit: float = 5.0
) -> torch.Tensor:
    """Computes the mean of the student's larger α-divergence from ``shares``, for α = −1 and 1.

    D_α(p ‖ q) = (Σ p^α q^(1−α) − 1) / (α (α − 1)), which is Σ p log(p/q) for α → 1 and
    ½ (Σ q²/p − 1) for α = −1: one punishes what the student leaves out, the other what it makes up
    (Wang et al., "AlphaNet", ICML 2021). In the gradient, −1/α Σ q (p/q)^α ∇log q, the ratios
    (p/q)^α are cut at ``ratio_limit``.

    Args:
        student: (n, classes) logits.
        shares: (n, classes) probabilities p, without gradient.
        ratio_limit: The largest ratio in the gradient.
    """
    log_q = F.log_softmax(student.float(), dim=-1)
    q, p = log_q.detach().exp(), shares.detach().float().clamp_min(1e-6)
    forward = (p * (p.log() - log_q.detach())).sum(-1)
    backward = ((q * q / p).sum(-1) - 1) / 2
    include = -(q * (p / q).clamp(max=ratio_limit) * log_q).sum(-1)
    exclude = (q * (q / p).clamp(max=ratio_limit) * log_q).sum(-1)
    value = torch.maximum(forward, backward)
    slope = torch.where(forward >= backward, include, exclude)
    return (value + slope - slope.detach()).mean()
