"""What a training step minimises: the subnets of a supernet, or one static network.

The loop in ``supernet.training`` knows neither. An objective yields one loss at a time and
the loop runs its backward pass before asking for the next, so that the activations of only
one subnet are held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from search_space.architecture import Architecture
from supernet.data import resize_images
from supernet.distillation import distillation_loss, label_loss
from supernet.sampling import StepSubnet, SubnetSampler

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class Quality(NamedTuple):
    """What a network is worth on a split.

    accuracy: top-1, 0..1. loss: mean cross entropy to the labels, in nats; over few images it
    tells networks apart that accuracy, a count of images, leaves tied.
    """

    accuracy: float
    loss: float


class Objective(Protocol):
    """``role`` is ``""`` for a static network, else which subnet a figure belongs to."""

    def losses(
        self, step: int, images: torch.Tensor, targets: torch.Tensor
    ) -> Iterator[tuple[str, float, torch.Tensor]]:
        """(role, weight, loss): the weights of a step add up to 1."""
        ...

    def accuracies(self, batches: Batches) -> dict[str, float]:
        """Top-1 accuracy by role, 0..1."""
        ...


class SupernetObjective:
    """The subnets that ``sampler`` draws; the step's first one teaches those to be distilled."""

    def __init__(
        self,
        supernet: nn.Module,
        sampler: SubnetSampler,
        *,
        drop_path_rate: float,
        label_smoothing: float,
        temperature: float,
        amp: str,
    ) -> None:
        self.supernet, self.sampler, self.amp = supernet, sampler, amp
        self.drop_path_rate = drop_path_rate
        self.label_smoothing = label_smoothing
        self.temperature = temperature

    def losses(
        self, step: int, images: torch.Tensor, targets: torch.Tensor
    ) -> Iterator[tuple[str, float, torch.Tensor]]:
        teacher: torch.Tensor | None = None
        subnets = self.sampler(step)
        for subnet in subnets:
            logits = self._logits(subnet, images)
            if subnet.distilled and teacher is not None:
                loss = distillation_loss(logits, teacher, self.temperature)
            else:
                loss = label_loss(logits, targets, self.label_smoothing)
            if teacher is None:
                teacher = logits.detach()
            yield subnet.role, 1.0 / len(subnets), loss

    def _logits(self, subnet: StepSubnet, images: torch.Tensor) -> torch.Tensor:
        resized = resize_images(images, subnet.architecture.resolution)
        rate = self.drop_path_rate if subnet.regularised else 0.0
        with autocast(images.device, self.amp):
            logits: torch.Tensor = self.supernet(resized, subnet.architecture, drop_path_rate=rate)
        return logits

    def accuracies(self, batches: Batches) -> dict[str, float]:
        space: Any = self.supernet.space
        extremes = {"largest": space.largest, "smallest": space.smallest}
        return {
            role: evaluate(self.supernet, batches, architecture=architecture, amp=self.amp).accuracy
            for role, architecture in extremes.items()
        }


class NetworkObjective:
    """One static network on labels, or on the logits of ``teacher`` where one is given."""

    def __init__(
        self,
        network: nn.Module,
        *,
        label_smoothing: float,
        temperature: float,
        amp: str,
        teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.network, self.teacher, self.amp = network, teacher, amp
        self.label_smoothing = label_smoothing
        self.temperature = temperature

    def losses(
        self, step: int, images: torch.Tensor, targets: torch.Tensor
    ) -> Iterator[tuple[str, float, torch.Tensor]]:
        with autocast(images.device, self.amp):
            logits = self.network(_at_own_resolution(self.network, images))
        if self.teacher is None:
            yield "", 1.0, label_loss(logits, targets, self.label_smoothing)
            return
        with torch.no_grad(), autocast(images.device, self.amp):
            wanted = self.teacher(images)
        yield "", 1.0, distillation_loss(logits, wanted, self.temperature)

    def accuracies(self, batches: Batches) -> dict[str, float]:
        return {"": evaluate(self.network, batches, amp=self.amp).accuracy}


def evaluate(
    model: nn.Module | Callable[..., torch.Tensor],
    batches: Batches,
    *,
    architecture: Architecture | None = None,
    device: str | torch.device | None = None,
    amp: str = "auto",
) -> Quality:
    """Accuracy and loss of ``model(images)``, or of ``model(images, architecture)``.

    Images are resized to the architecture's resolution. Runs in evaluation and inference mode
    and leaves the modules in the modes they were in.

    device: where images go; by default where the model's parameters are, else the CPU.
    """
    if device is None:
        first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = "cpu" if first is None else first.device
    device = torch.device(device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    count = 0
    mode = evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext()
    with mode, torch.inference_mode():
        for images, labels in batches:
            images = images.to(device, non_blocking=True)
            with autocast(device, amp):
                if architecture is None:
                    logits = model(_at_own_resolution(model, images))
                else:
                    logits = model(resize_images(images, architecture.resolution), architecture)
            labels = labels.to(device, non_blocking=True)
            correct += (logits.argmax(dim=1) == labels).sum()
            loss += label_loss(logits, labels) * len(labels)
            count += len(labels)
    count = max(1, count)
    return Quality(int(correct) / count, float(loss) / count)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each submodule is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def autocast(device: torch.device, amp: str) -> AbstractContextManager[Any]:
    """bfloat16 on CUDA unless ``amp`` is ``off``; nothing elsewhere."""
    if device.type == "cuda" and amp != "off":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def _at_own_resolution(model: Any, images: torch.Tensor) -> torch.Tensor:
    architecture = getattr(model, "architecture", None)
    if isinstance(architecture, Architecture):
        return resize_images(images, architecture.resolution)
    return images
