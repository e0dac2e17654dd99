"""What a training keeps beside its module, and copies of all of it, to go back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class State:
    """Holds all that a checkpoint has beside tensors."""

    step: int = 0
    lr_scale: float = 1.0
    rollbacks: int = 0
    # Of the epoch under way: role → [sum of losses, number of losses].
    loss_sums: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    images: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    objective: dict[str, Any] = field(default_factory=dict)
    loss_scale: dict[str, Any] = field(default_factory=dict)
    # With patience: the smallest validation loss, and the epochs that have passed since.
    best_loss: float | None = None
    waited: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Holds tensors of the module and of the optimiser by name, on the CPU, and the state."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies tensors to the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
