"""What a training step minimises: the subnets of a supernet, or one static network.

The loop in ``supernet.training.train`` knows neither. An objective yields one loss at a time and
the loop runs its backward pass before asking for the next, so that the activations of only
one subnet are held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from search_space.architecture import Architecture
from supernet.data.batches import Batch, resize_images
from supernet.network.channel_order import sort_channels
from supernet.training.distillation import alpha_divergence, distillation_loss, label_loss
from supernet.training.strategies import Observation, StepSubnet, SubnetSampler, Target
from supernet.training.tokenisation import TokenSchedule, coarsen

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
Teacher = Callable[[Batch], torch.Tensor]
"""Logits (n, classes) that a fixed teacher gives the images of a batch."""
OptimizerState = Callable[[], Mapping[str, Mapping[str, torch.Tensor]]]
"""Gives the tensors of the optimiser's state (and the moving average) by parameter and name."""


class Quality(NamedTuple):
    """What a network is worth on a split.

    accuracy: top-1, 0..1. loss: mean cross entropy to the labels, in nats; over few images it
    tells networks apart that accuracy, a count of images, leaves tied. images: how many they are.
    """

    accuracy: float
    loss: float
    images: int


class Loss(NamedTuple):
    """A subnet's loss in a step.

    role: ``""`` for a static network, else which subnet it is. weight: of its gradient in the
    step's. label_loss: mean cross entropy to the labels, without gradient.
    """

    role: str
    weight: float
    loss: torch.Tensor
    label_loss: torch.Tensor


class Objective(Protocol):
    """What a training minimises."""

    def prepare(self, step: int, states: OptimizerState) -> None:
        """Called before each step; may re-order weights in place, and ``states`` alike."""
        ...

    def losses(self, step: int, batch: Batch) -> Iterator[Loss]:
        """As many in every part of a step's batch, on every worker."""
        ...

    def observe(self, step: int, label_losses: Sequence[Sequence[float]]) -> None:
        """The step's mean label losses, by worker and subnet; the same call on every worker."""
        ...

    def qualities(self, batches: Batches) -> dict[str, Quality]:
        """Accuracy and loss over ``batches`` by role."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What was learnt beside weights, JSON-able."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the objective that gave ``state`` stood."""
        ...


class SupernetObjective:
    """The subnets that ``sampler`` draws, each learning its target.

    Args:
        supernet: ``supernet(images, architecture, drop_path_rate=…)`` → logits.
        sampler: the training strategy.
        teacher: for subnets that learn from a fixed one; they learn labels where it is None.
        distillation: share of other subnets' predictions, at the first and at the last step, in
            what a subnet learns whose target they are; the rest are labels.
        tokens: progressive tokenisation; None for full images throughout.
        total_steps: of the training, which ``tokens`` and ``distillation`` count in.
        rank, size: which of how many workers this is.
    """

    def __init__(
        self,
        supernet: nn.Module,
        sampler: SubnetSampler,
        *,
        drop_path_rate: float,
        label_smoothing: float,
        temperature: float,
        amp: str,
        distillation: tuple[float, float] = (0.0, 1.0),
        teacher: Teacher | None = None,
        tokens: TokenSchedule | None = None,
        total_steps: int = 1,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.supernet, self.sampler, self.amp = supernet, sampler, amp
        self.drop_path_rate = drop_path_rate
        self.label_smoothing = label_smoothing
        self.temperature, self.distillation = temperature, distillation
        self.teacher, self.tokens, self.total_steps = teacher, tokens, total_steps
        self.rank, self.size = rank, size

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
        factor = 1 if self.tokens is None else self.tokens.factor(done)
        share = self.distillation[0] + done * (self.distillation[1] - self.distillation[0])
        for subnet in subnets:
            part = batch.part(*subnet.part)
            logits = self._logits(subnet, part.images, factor)
            hard = label_loss(logits, part.targets, self.label_smoothing)
            match subnet.target:
                case Target.FIRST if first is not None:
                    soft = distillation_loss(logits, first, self.temperature)
                    loss = torch.lerp(hard, soft, share)
                case Target.TEACHER if guide is not None:
                    wanted = _rows(guide, subnet.part)
                    loss = distillation_loss(logits, wanted, self.temperature)
                case Target.PEERS if peers:
                    soft = alpha_divergence(logits, torch.stack(peers).mean(0))
                    loss = torch.lerp(hard, soft, share)
                case _:
                    loss = hard
            known = logits.detach()
            first = known if first is None else first
            peers.append(known.float().softmax(-1))
            weight = subnet.lr_factor / len(subnets)
            yield Loss(subnet.role, weight, loss, label_loss(known, part.targets))

    def _logits(self, subnet: StepSubnet, images: torch.Tensor, factor: int) -> torch.Tensor:
        resized = coarsen(resize_images(images, subnet.architecture.resolution), factor)
        rate = self.drop_path_rate if subnet.regularised else 0.0
        with autocast(images.device, self.amp):
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
            role: evaluate(self.supernet, batches, architecture=architecture, amp=self.amp)
            for role, architecture in extremes.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class NetworkObjective:
    """One static network on labels, or on the logits of ``teacher`` where one is given."""

    def __init__(
        self,
        network: nn.Module,
        *,
        label_smoothing: float,
        temperature: float,
        amp: str,
        teacher: Teacher | None = None,
    ) -> None:
        self.network, self.teacher, self.amp = network, teacher, amp
        self.label_smoothing = label_smoothing
        self.temperature = temperature

    def prepare(self, step: int, states: OptimizerState) -> None:
        pass

    def losses(self, step: int, batch: Batch) -> Iterator[Loss]:
        with autocast(batch.images.device, self.amp):
            logits = self.network(_at_own_resolution(self.network, batch.images))
        if self.teacher is None:
            loss = label_loss(logits, batch.targets, self.label_smoothing)
        else:
            with torch.no_grad(), autocast(batch.images.device, self.amp):
                wanted = self.teacher(batch)
            loss = distillation_loss(logits, wanted, self.temperature)
        yield Loss("", 1.0, loss, label_loss(logits.detach(), batch.targets))

    def observe(self, step: int, label_losses: Sequence[Sequence[float]]) -> None:
        pass

    def qualities(self, batches: Batches) -> dict[str, Quality]:
        return {"": evaluate(self.network, batches, amp=self.amp)}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def _rows(logits: torch.Tensor, part: tuple[int, int]) -> torch.Tensor:
    k, n = part
    return logits[k * len(logits) // n : (k + 1) * len(logits) // n]


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
    return Quality(int(correct) / max(1, count), float(loss) / max(1, count), count)


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
