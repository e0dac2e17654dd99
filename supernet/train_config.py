"""How a training is configured, what it reports, and how it fails."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from search_space.errors import NasError, RunError
from supernet.augmentation import AugmentConfig


class TrainingDivergedError(NasError):
    """The loss stayed non-finite although the step size was halved again and again."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Everything here decides the result and enters the checkpoint's identity.

    The defaults suit the ``digits`` space: of seven settings tried there, one seed each, the one
    with the best mean validation accuracy of 24 random subnets. Its lead over the next is slight
    and no second seed was tried.

    lr: peak learning rate. warmup_epochs may be a fraction; it is cut to the schedule.
    clip_norm: largest gradient norm of a step (mean over its subnets); 0 for no clipping.
    drop_path_rate: of the largest subnet only. amp: ``auto`` (bfloat16 on CUDA) or ``off``.
    num_random: random subnets per step beside the largest and the smallest.
    max_bad_steps: roll-backs before giving up. snapshot_steps: steps between the states that
        a roll-back returns to; checkpoints are taken at these.
    augment: ``None`` for the default of the kind of data.
    """

    epochs: int = 32
    batch_size: int = 32
    lr: float = 4e-3
    weight_decay: float = 0.02
    warmup_epochs: float = 3.0
    clip_norm: float = 1.0
    drop_path_rate: float = 0.0
    label_smoothing: float = 0.1
    num_random: int = 2
    temperature: float = 1.0
    seed: int = 0
    optimizer: str = "adamw"
    schedule: str = "cosine"
    amp: str = "auto"
    max_bad_steps: int = 5
    snapshot_steps: int = 50
    eval_every: int = 1
    augment: AugmentConfig | None = None

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "lr", "temperature", "snapshot_steps", "eval_every")
        for name in positive:
            if not getattr(self, name) > 0:
                raise RunError(f"{name} is {getattr(self, name)}; it must be above 0")
        rest = ("weight_decay", "warmup_epochs", "clip_norm", "num_random", "max_bad_steps", "seed")
        for name in rest:
            if getattr(self, name) < 0:
                raise RunError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise RunError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.amp not in ("auto", "off"):
            raise RunError(f"amp is {self.amp!r}; it must be 'auto' or 'off'")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-able."""
        values = asdict(self)
        values["augment"] = None if self.augment is None else self.augment.to_dict()
        return values


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One line of ``metrics.jsonl``; ``losses`` and ``val_accuracy`` by role, see ``to_dict``.

    step: optimiser steps done at the end of the epoch. seconds: training and validation.
    images_per_s: of training alone. lr: at the epoch's last step.
    """

    epoch: int
    step: int
    seconds: float
    images_per_s: float
    lr: float
    rollbacks: int
    losses: dict[str, float]
    val_accuracy: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Flat: ``loss_largest``, ``val_accuracy_smallest``; ``loss`` for a static network."""
        flat = asdict(self)
        for name, key in (("losses", "loss"), ("val_accuracy", "val_accuracy")):
            values = flat.pop(name)
            flat |= {f"{key}_{role}" if role else key: value for role, value in values.items()}
        return flat
