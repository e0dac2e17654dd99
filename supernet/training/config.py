"""Configuration of a training: its options and their checks, its metrics, and its error."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from annotated_types import Le

from search_space.errors import NasError, RunError
from supernet.data.augmentation import AugmentConfig
from supernet.training.strategies.factory import SHRINKINGS, STRATEGIES
from supernet.training.tokenisation import TokenSchedule

MAX_BATCH_SIZE = 65_536  # larger ones are slips of the keyboard
CHOICES = {
    "amp": ("auto", "off"),
    "class_weights": ("none", "balanced"),
    "sampling": ("shuffled", "balanced"),
    "strategy": STRATEGIES,
    "shrinking": SHRINKINGS,
    "bank_metric": ("macs", "latency_ms"),
}
_POSITIVE = {
    *("epochs", "batch_size", "lr", "temperature", "snapshot_steps", "evaluations"),
    *("accumulate", "groups", "banks", "shrink_epsilon", "recalibration_images"),
}
_NOT_NEGATIVE = {
    *("weight_decay", "warmup_epochs", "clip_norm", "num_random", "max_bad_steps"),
    *("seed", "teacher_variants", "patience"),
}
_SHARES = {"drop_path_rate", "label_smoothing", "ema_decay", "shrink_start"}


class TrainingDivergedError(NasError):
    """The loss stayed non-finite although the step size was halved again and again."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """States how to train; everything here decides the result and enters a checkpoint's identity.

    The defaults suit the ``digits`` space: batch size and rates are those of seven settings tried
    there with ``sandwich``, one seed each, that had the best mean validation accuracy of 24 random
    subnets, by a slight lead. The strategy is the one that orders subnets best of those whose
    subnets inherit what they reach alone (``rank_fidelity.py``); its epochs take about as long as
    32 of ``sandwich``.

    The options from ``strategy`` to ``tokens`` are of a supernet only;
    ``supernet.training.strategies`` explains strategies and shrinking.

    Attributes:
        lr: Peak learning rate.
        warmup_epochs: May be a fraction; it is cut to half of the schedule.
        clip_norm: Largest gradient norm of a step (mean over its subnets); 0 for no clipping.
        drop_path_rate: Of the largest subnet, or the only one of a step.
        max_bad_steps: Roll-backs before giving up.
        snapshot_steps: Steps between the states that a roll-back returns to; checkpoints are taken
            at these.
        evaluations: Epochs after which validation images are seen, evenly spread, the last among
            them; after every epoch would cost a fifth of a short supernet training.
        accumulate: Parts that a batch is cut into, one after the other, to save memory.
        layer_decay: Factor of the learning rate from each block to the one before it, as trained
            networks are fine-tuned (Bao et al., BEiT, 2022); 1 for the same rate everywhere.
        patience: Epochs in a row without a smaller validation loss after which a training ends. It
            then has the weights of its best epoch; with 0 it has those of the last.
        ema_decay: Of the moving average of weights that is validated and kept; 0 for none.
        augment: None for the default of the kind of data.
        class_weights: ``balanced`` weights the loss to the labels by the inverse of how frequent a
            class is among the training images, mean 1 over them; ``none`` counts images alike.
        sampling: ``balanced`` shows as many images of every class in an epoch, some of rare
            classes again and again; ``shuffled`` shows each image once.
        num_random: Random subnets per step beside those that the strategy always trains.
        groups: Groups of a batch, one for each subnet (``multi_architecture``).
        banks: Ranges of ``bank_metric`` (``macs``, or ``latency_ms`` on the target device) that
            subnets of a step are drawn from (``complexity``, ``performance``).
        shrink_start: Share of a delayed training that only the largest has.
        shrink_epsilon: Factor of the learning rate that the others then begin with.
        distillation: Share of the other subnets' predictions in what a subnet learns that learns
            from them, at the beginning and at the end of the training, linear between; the rest
            are labels. A constant 1 is what BigNAS publishes: it holds a short training back,
            since there is nothing to learn from an untrained network (``rank_fidelity.py``).
        tokens: (share of the training, factor) pairs: images are this much coarser until then.
        teacher: A timm model's name, with ``teacher_weights`` from a file, or an export's folder.
        recalibration_images: Training images by which batch norms of subnets get their averages
            before they are judged, fine-tuned or exported; other spaces do not need it.
        teacher_variants: Draws of the augmentation whose logits are stored, so that later epochs
            need no teacher; 0 to ask it in every step.

    Raises:
        RunError: An option is out of its range, or two do not go together.
    """

    epochs: int = 64
    batch_size: Annotated[int, Le(MAX_BATCH_SIZE)] = 32
    lr: float = 4e-3
    weight_decay: float = 0.02
    warmup_epochs: float = 3.0
    clip_norm: float = 1.0
    drop_path_rate: float = 0.0
    label_smoothing: float = 0.1
    temperature: float = 1.0
    seed: int = 0
    optimizer: str = "adamw"
    schedule: str = "cosine"
    amp: str = "auto"
    max_bad_steps: int = 5
    snapshot_steps: int = 50
    evaluations: int = 16
    accumulate: int = 1
    layer_decay: float = 1.0
    patience: int = 0
    ema_decay: float = 0.0
    augment: AugmentConfig | None = None
    class_weights: str = "none"
    sampling: str = "shuffled"
    strategy: str = "multi_architecture"
    num_random: int = 2
    groups: int = 2
    banks: int = 8
    bank_metric: str = "macs"
    shrinking: str = "none"
    shrink_start: float = 0.5
    shrink_epsilon: float = 0.1
    distillation: tuple[float, float] = (0.0, 1.0)
    tokens: tuple[tuple[float, int], ...] = ()
    teacher: str | None = None
    teacher_weights: str | None = None
    teacher_variants: int = 0
    recalibration_images: int = 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", TokenSchedule(self.tokens).phases)
        object.__setattr__(self, "distillation", tuple(self.distillation))
        if len(self.distillation) != 2 or not all(0 <= share <= 1 for share in self.distillation):
            raise RunError(
                f"distillation is {list(self.distillation)}; it must be two shares, of the "
                "beginning and of the end of the training, in [0, 1]: [0, 1] is the default"
            )
        for name, value in asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise RunError(f"{name} is {value}; it must be a finite number")
            if name in _POSITIVE and not value > 0:
                raise RunError(f"{name} is {value}; it must be above 0")
            if name in _NOT_NEGATIVE and value < 0:
                raise RunError(f"{name} is {value}; it must not be negative")
            if name in _SHARES and not 0 <= value < 1:
                raise RunError(f"{name} is {value}; it must lie in [0, 1)")
            if name == "layer_decay" and not 0 < value <= 1:
                raise RunError(f"{name} is {value}; it must lie in (0, 1]")
            if name in CHOICES and value not in CHOICES[name]:
                choices = ", ".join(CHOICES[name])
                raise RunError(f"{name} is {value!r}; it must be one of {choices}")
        if self.class_weights == self.sampling == "balanced":
            raise RunError(
                "class_weights and sampling are both 'balanced'; together they count rare classes "
                "twice: set one of them only"
            )
        if self.class_weights == "balanced" and self.teacher is not None:
            raise RunError(
                "class_weights is 'balanced', and a teacher's predictions are learnt instead of "
                "labels, which weights are for; set sampling to 'balanced' instead"
            )
        for name in ("teacher_weights", "teacher_variants"):
            if getattr(self, name) and self.teacher is None:
                raise RunError(f"{name} is {getattr(self, name)!r} without a teacher; set teacher")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, JSON-able."""
        values = asdict(self)
        values["augment"] = None if self.augment is None else self.augment.to_dict()
        values["tokens"] = [list(pair) for pair in self.tokens]
        values["distillation"] = list(self.distillation)
        return values


def check_batch_size(config: TrainConfig, num_images: int, workers: int) -> None:
    """Checks that workers can cut a batch into equal parts; raises RunError otherwise."""
    parts = config.accumulate
    multiple = parts * (2 * workers if workers > 1 else 1)
    if config.batch_size % multiple:
        raise RunError(
            f"batch_size is {config.batch_size}; with {workers} workers and accumulate "
            f"{parts} it must be a multiple of {multiple}, so that all parts are alike: "
            f"{-(-config.batch_size // multiple) * multiple} is the next"
        )
    if multiple > 1 and num_images < config.batch_size:
        raise RunError(
            f"{num_images} training images are fewer than one batch of "
            f"{config.batch_size}, which {workers} workers and accumulate {parts} cut into "
            "parts; lower batch_size"
        )


def check_groups(config: TrainConfig, num_images: int, workers: int) -> None:
    """Checks that a batch has images for all groups; raises RunError otherwise."""
    parts = workers * config.accumulate
    images = min(config.batch_size, num_images) // parts
    if config.strategy == "multi_architecture" and images < config.groups:
        raise RunError(
            f"{images} images are trained at a time (batch_size {config.batch_size}, {num_images} "
            f"training images, {workers} workers, accumulate {config.accumulate}), and strategy "
            f"'multi_architecture' cuts them into {config.groups} groups of at least one; give a "
            f"batch_size of {parts * config.groups} or more, fewer groups, or strategy 'uniform'"
        )


def groups_of(config: TrainConfig) -> int:
    """Tells in how many parts the strategy cuts a batch, one for each subnet."""
    return config.groups if config.strategy == "multi_architecture" else 1


def check_batch_norms(
    config: TrainConfig, num_images: int, workers: int = 1, *, groups: int = 1
) -> None:
    """Checks that a batch norm has two images to compare; raises RunError otherwise.

    Call it for networks that have batch norms. ``groups`` is in how many parts a strategy cuts a
    batch.
    """
    parts = config.accumulate * workers * groups
    if min(config.batch_size, num_images) // parts < 2:
        raise RunError(
            f"a batch norm normalises by its batch, but with batch_size {config.batch_size}, "
            f"{num_images} training images, {workers} workers, accumulate {config.accumulate} and "
            f"{groups} groups it is shown one image at a time; give a batch_size of {2 * parts} or "
            "more, and as many images"
        )


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Holds one line of ``metrics.jsonl``; ``losses``, ``val_accuracy`` and ``val_loss`` by role.

    Attributes:
        step: Optimiser steps done at the end of the epoch.
        seconds: Of training and validation.
        images_per_s: Of training alone.
        lr: At the epoch's last step.
    """

    epoch: int
    step: int
    seconds: float
    images_per_s: float
    lr: float
    rollbacks: int
    losses: dict[str, float]
    val_accuracy: dict[str, float]
    val_loss: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns a flat form, with keys such as ``loss_largest`` and ``val_accuracy_smallest``.

        For a static network they are ``loss`` and ``val_accuracy``.
        """
        flat = asdict(self)
        for name in ("losses", "val_accuracy", "val_loss"):
            key = "loss" if name == "losses" else name
            values = flat.pop(name)
            flat |= {f"{key}_{role}" if role else key: value for role, value in values.items()}
        return flat
