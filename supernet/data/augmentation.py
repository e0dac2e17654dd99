"""Training augmentation: timm's transforms, seeded per sample.

The randomness of a sample depends on (seed, epoch, index) alone, so results do not depend on
the number of workers and a resumed epoch continues as if it had never stopped. timm's
pipeline on single PIL images was measured at 85 µs for a 32 px crop, flip and conversion
(230 µs with RandAugment) on one core, a few per cent of a training step on the same core.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageOps

from search_space.errors import DataError

if TYPE_CHECKING:  # a configuration, which the command line reads, needs no torch
    import torch


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """The augmentation of training images; the defaults suit natural images of 32 px and below.

    Attributes:
        crop: ``resize`` (random area and aspect ratio, resized back), ``pad`` (shifted by up to
            ``padding`` pixels, black border) or ``none``.
        scale: Range of the share of the area, for ``resize``.
        ratio: Range of the aspect ratio, for ``resize``.
        hflip: Probability of mirroring (0 where left and right mean something, as in digits).
        color_jitter: Strength, 0 for none.
        auto_augment: A policy of timm's, such as ``rand-m9-n2-mstd0.5`` or ``augmix-m3``.
        erase: Probability of erasing a random rectangle.
        mixup: Alpha of the Beta distribution, 0 for none; mixes within a batch.
        cutmix: As ``mixup``.

    Example:
        >>> AugmentConfig(crop="resize", hflip=0.0, auto_augment="rand-m9-mstd0.5-inc1")
    """

    crop: str = "pad"
    padding: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str | None = None
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.crop not in ("resize", "pad", "none"):
            raise DataError(f"crop is {self.crop!r}; it must be 'resize', 'pad' or 'none'")
        for name, value in asdict(self).items():
            if name in ("hflip", "erase") and not 0.0 <= value <= 1.0:
                raise DataError(f"{name} is {value}; a probability is between 0 and 1")
            numbers = ("padding", "color_jitter", "mixup", "cutmix")
            if name in numbers and not 0 <= value < math.inf:
                raise DataError(f"{name} is {value}; it must be a finite number, not negative")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise DataError(f"scale is {self.scale}; it must be two rising shares in (0, 1]")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for the configuration and its digest."""
        values = asdict(self)
        values["scale"], values["ratio"] = list(self.scale), list(self.ratio)
        return values


def default_augment(kind: str, resolution: int) -> AugmentConfig:
    """Returns the augmentation that suits a kind of data and an image side in pixels."""
    if kind == "digits":
        return AugmentConfig(crop="resize", scale=(0.8, 1.0), ratio=(0.9, 1.11), hflip=0.0)
    if resolution <= 64:
        return AugmentConfig(padding=max(1, resolution // 8))
    return AugmentConfig(
        crop="resize", auto_augment="rand-m9-mstd0.5-inc1", erase=0.25, mixup=0.8, cutmix=1.0
    )


def gentle_augment(kind: str, resolution: int) -> AugmentConfig:
    """Returns the augmentation of a few epochs from trained weights, on few images.

    That for a training from nothing mixes images and changes their colours, for hundreds of epochs.
    """
    if kind == "digits" or resolution <= 64:
        return default_augment(kind, resolution)
    return AugmentConfig(crop="resize", scale=(0.35, 1.0))


def build_transform(
    config: AugmentConfig, resolution: int, mean: tuple[float, ...]
) -> Callable[[Any], torch.Tensor]:
    """Builds the random transform of one image, by ``timm.data.create_transform``.

    Args:
        mean: Fills what geometric operations uncover; per channel, of pixel values in 0..1.

    Returns:
        A function of a PIL image that gives uint8 (3, resolution, resolution).

    Raises:
        DataError: timm refuses the policy.
    """
    from timm.data import create_transform
    from torchvision import transforms

    try:
        first, second, last = create_transform(
            resolution,
            is_training=True,
            use_prefetcher=True,  # leaves conversion to float and normalisation to the batch
            scale=config.scale,
            ratio=config.ratio,
            hflip=config.hflip,
            auto_augment=config.auto_augment,
            interpolation="bilinear" if resolution <= 64 else "random",
            mean=mean,
            separate=True,
            color_jitter=config.color_jitter or None,  # type: ignore[arg-type]
        )
    except (AssertionError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"timm refuses the augmentation {config}: {error!r}; auto_augment must be a policy "
            "such as 'rand-m9-n2-mstd0.5', 'augmix-m3' or 'original'"
        ) from error
    steps = list(first.transforms)
    if config.crop == "pad":
        steps[0] = transforms.RandomCrop(resolution, padding=config.padding)
    elif config.crop == "none":
        steps = steps[1:]
    for step in second.transforms:
        _keep_one_bit(step)
    return transforms.Compose([*steps, *second.transforms, *last.transforms])


def _keep_one_bit(policy: Any) -> None:
    """Lets a policy's posterising keep at least one bit.

    timm asks for 0 bits at magnitude 10, which Pillow 13 refuses and which left a black image.
    """
    from timm.data.auto_augment import posterize

    operations = getattr(policy, "ops", None) or chain(*getattr(policy, "policy", []))
    for operation in operations:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterise


def _posterise(image: Any, bits: int, **_: Any) -> Any:
    return ImageOps.posterize(image, max(1, bits))


def mix_seed(*values: int) -> int:
    """Mixes integers to a 64-bit seed (splitmix64 finaliser; Steele et al., 2014)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


def seed_generators(seed: int) -> None:
    """Seeds the three generators that timm's and torchvision's CPU transforms draw from."""
    import torch

    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Leaves the global CPU generators as they were."""
    import torch

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
