"""Base of training strategies, which decide a step's subnets, their images, targets and weights.

A strategy depends on (seed, step, rank) and on what it was told with ``observe``, never on a
generator that runs along. So a resumed run draws what the undisturbed one would have drawn, and
each of several workers can tell what every other one draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from search_space.architecture import Architecture


class Target(Enum):
    """Names what a subnet learns.

    FIRST and PEERS are mixed with labels as ``TrainConfig.distillation`` says.

    Attributes:
        LABELS: The labels.
        FIRST: The soft logits of the step's first subnet (in-place distillation).
        TEACHER: The soft logits of a fixed network.
        PEERS: The mean prediction of the step's subnets that were trained before it, by the
            α-divergence.
    """

    LABELS = "labels"
    FIRST = "first"
    TEACHER = "teacher"
    PEERS = "peers"


@dataclass(frozen=True, kw_only=True)
class StepSubnet:
    """Describes one subnet of a step.

    Attributes:
        role: Name in the metrics (``largest``, ``smallest``, ``random``).
        target: What it learns.
        regularised: Whether drop-path is on.
        lr_factor: Factor of the learning rate of what only such subnets train in this step. In
            what it shares with subnets of factor 1, which come before it, its gradient counts by
            it.
        part: (k, n): the k-th of n equal groups of the batch's images; all of them for (0, 1).
        bank: Index of the cost bank that it was drawn from, if any.
    """

    role: str
    architecture: Architecture
    target: Target = Target.LABELS
    regularised: bool = False
    lr_factor: float = 1.0
    part: tuple[int, int] = (0, 1)
    bank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Records how well a subnet of a step did.

    Attributes:
        relative_loss: Mean cross entropy to the labels on its images, less that of the step's first
            subnet on the same images, in nats: which images a step has matters more than the
            subnet.
    """

    subnet: StepSubnet
    relative_loss: float


@dataclass(eq=False)
class SubnetSampler(ABC):
    """Base of training strategies: gives the subnets of each step.

    A strategy is a dataclass whose ``repr`` says all that it draws by, but for the space: it is
    part of a checkpoint's identity.
    """

    @abstractmethod
    def __call__(self, step: int, rank: int = 0) -> tuple[StepSubnet, ...]:
        """Gives the subnets of a step in the order of training; as many on every rank in a step.

        Steps may differ in how many they have. What is common to all workers (the largest, the
        smallest) depends on (seed, step), what differs between workers on the rank too. Subnets
        that others learn from come first.
        """

    def observe(self, step: int, observations: Sequence[Observation]) -> None:  # noqa: B027
        """Takes in how the step went: subnets of all ranks in order, the same call on each rank."""

    def sorts_channels(self, step: int) -> bool:
        """Tells whether the supernet's channels are sorted by importance before this step."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Returns what was learnt from observations, JSON-able."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Continues where the strategy that gave ``state`` stood."""
