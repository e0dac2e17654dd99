"""Preprocessing of images to a network's input: one value for judging, for exports and their text.

The fields are those of timm's ``pretrained_cfg``, so that the transform that timm makes of an
export is the one that accuracy was judged with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FITS = {"crop": "center", "squeeze": "squash", "pad": "border"}
"""Ways in which an image that is no square becomes one, with timm's names."""

_RESIZING = {
    "crop": "scale the shorter side to {scaled} px and cut out {side} × {side} px in the centre",
    "squeeze": "scale to {side} × {side} px, whatever the ratio of the sides",
    "pad": "scale the longer side to {side} px and fill up to {side} × {side} px with the mean",
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The preprocessing of images for evaluation and inference.

    Attributes:
        resolution: Side of the network's input, in pixels.
        mean: Per channel, of pixel values in 0..1; subtracted.
        std: Per channel, of pixel values in 0..1; divided by.
        interpolation: Filter of the resizing, by timm's name.
        fit: One of ``FITS``.
        crop_pct: Share of the scaled image's side that the centre crop keeps.

    Example:
        >>> Preprocessing(resolution=224, crop_pct=0.9).timm()["crop_mode"]
        'center'
    """

    resolution: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    fit: str = "crop"
    crop_pct: float = 1.0

    def timm(self) -> dict[str, Any]:
        """Returns arguments of ``timm.data.create_transform`` and of a ``pretrained_cfg``."""
        return {
            "input_size": (3, self.resolution, self.resolution),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": FITS[self.fit],
            "mean": self.mean,
            "std": self.std,
        }

    def resizing(self) -> str:
        """Says as a clause how an image gets its size."""
        scaled = int(self.resolution / self.crop_pct)
        return _RESIZING[self.fit].format(side=self.resolution, scaled=scaled)

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:.4f}" for v in values) for values in (self.mean, self.std))
        return (
            "Turn the image as its EXIF orientation says and lay transparent pixels on white. "
            f"{self.resizing().capitalize()} ({self.interpolation}). Scale to 0…1, subtract the "
            f"mean ({mean}), divide by the standard deviation ({std})."
        )
