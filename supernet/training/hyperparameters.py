"""Hyper-parameters of a fine-tuning that can be tuned: their ranges around a recipe.

How strongly images are augmented is one number: few trials cannot search every field of an
augmentation, and what all of them share is how hard the images become.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from supernet.data.augmentation import AugmentConfig
from supernet.training.config import TrainConfig

AUGMENTATION = "augmentation"
LABEL_SMOOTHING = "label_smoothing"
LR_FACTOR = 5.0
WEIGHT_DECAY_FACTOR = 10.0
LARGEST_SHARE = 0.6  # of a rate that is a probability
SMALLEST_CROP = 0.02  # share of an image's area
LARGEST_MAGNITUDE = 10  # of timm's policies


@dataclass(frozen=True)
class Range:
    """Holds the values from ``low`` to ``high``, drawn uniformly, or log-uniformly with ``log``.

    Attributes:
        recipe: The value that the range was made around; it lies in it.
    """

    low: float
    high: float
    recipe: float
    log: bool = False


def ranges(config: TrainConfig) -> dict[str, Range]:
    """Gives the ranges of what can be tuned of a fine-tuning, by name, around its values.

    A teacher's logits leave nothing to smooth, and stored ones hold for one augmentation only.
    """
    lr, decay = config.lr, config.weight_decay
    tunable = {
        "lr": Range(lr / LR_FACTOR, lr * LR_FACTOR, lr, log=True),
        "weight_decay": Range(0.0, 0.1, 0.0)
        if decay == 0
        else Range(decay / WEIGHT_DECAY_FACTOR, decay * WEIGHT_DECAY_FACTOR, decay, log=True),
        "drop_path_rate": _rate(config.drop_path_rate),
    }
    if config.teacher is None:
        tunable[LABEL_SMOOTHING] = _rate(config.label_smoothing)
    if not config.teacher_variants:
        tunable[AUGMENTATION] = Range(0.0, 2.0, 1.0)
    return tunable


def _rate(recipe: float) -> Range:
    return Range(0.0, max(recipe, min(LARGEST_SHARE, max(0.2, 2 * recipe))), recipe)


def configured(
    config: TrainConfig, augment: AugmentConfig, values: Mapping[str, float]
) -> TrainConfig:
    """Returns ``config`` with other values of hyper-parameters; every epoch is validated.

    Args:
        augment: What ``config`` trains with, spelled out.
        values: By the names that ``ranges`` gives.
    """
    changes: dict[str, Any] = dict(values)
    strength = changes.pop(AUGMENTATION, 1.0)
    changes |= {"augment": strengthened(augment, strength), "evaluations": config.epochs}
    return replace(config, **changes)


def strengthened(augment: AugmentConfig, strength: float) -> AugmentConfig:
    """Makes an augmentation so many times as strong: 0 for about none, 1 for the same.

    What grows: the area and the aspect that a crop may change, the shift of a padded one, colour
    jitter, a policy's magnitude, the chance of erasing, and how much images are mixed. Mirroring
    is no stronger the more often it is done, and stays.
    """
    if strength == 1.0:
        return augment  # bit for bit
    low, high = (max(SMALLEST_CROP, 1 - (1 - share) * strength) for share in augment.scale)
    return replace(
        augment,
        scale=(low, high),
        ratio=(augment.ratio[0] ** strength, augment.ratio[1] ** strength),
        padding=round(augment.padding * strength),
        color_jitter=augment.color_jitter * strength,
        auto_augment=_policy(augment.auto_augment, strength),
        erase=min(1.0, augment.erase * strength),
        mixup=augment.mixup * strength,
        cutmix=augment.cutmix * strength,
    )


def _policy(policy: str | None, strength: float) -> str | None:
    """Gives timm's ``rand-m9-…`` another magnitude; policies without one are as they are."""
    if policy is None or strength == 0:
        return None

    def scaled(match: re.Match[str]) -> str:
        return f"-m{min(LARGEST_MAGNITUDE, round(float(match[1]) * strength))}"

    return re.sub(r"-m(\d+(?:\.\d+)?)(?=-|$)", scaled, policy)
