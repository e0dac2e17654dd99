"""One split of a data set: indices into raw images, decoded to a fixed side in pixels.

Splits that fit are decoded once to uint8 and kept; others are decoded at each access.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from supernet.data.raw_images import RawImages

SMALL_IMAGE = 64  # up to this side in pixels, training crops are taken from the decoded image
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageSplit(Dataset[tuple[torch.Tensor, int]]):
    """One split. ``split[i]`` → (image: (3, side, side) float32 normalised, label: int)."""

    def __init__(
        self, raw: RawImages, indices: np.ndarray, resolution: int, *, in_memory: bool
    ) -> None:
        self.raw = raw
        self.indices = indices
        self.resolution = resolution
        self.labels: np.ndarray = raw.labels[indices]
        self.mean: tuple[float, ...] = IMAGENET_MEAN
        self.std: tuple[float, ...] = IMAGENET_STD
        self.in_memory = in_memory

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        batch, _ = self.__getitems__([index])
        return batch[0], int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A normalised batch (n, 3, side, side) and its labels (n,) int64."""
        pixels = np.stack([self.pixels(index) for index in indices])
        images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), self.mean, self.std)
        return images, torch.from_numpy(self.labels[indices])

    @cached_property
    def decoded(self) -> np.ndarray:
        """All images, uint8 (n, side, side, 3); only asked for where they fit in memory."""
        out = np.empty((len(self), self.resolution, self.resolution, 3), dtype=np.uint8)

        def fill(index: int) -> None:
            out[index] = self._fit(int(self.indices[index]))

        # Threads help with photographs; with thumbnails they only contend for the interpreter
        # (measured: 100 µs an image with one thread, 160 µs with two).
        large = max(self.raw.image(int(self.indices[0])).size) > 2 * SMALL_IMAGE
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in (pool.map if large else map)(fill, range(len(self))):
                pass
        return out

    def pixels(self, index: int) -> np.ndarray:
        """Image ``index`` at the split's resolution, uint8 (side, side, 3)."""
        if self.in_memory:
            found: np.ndarray = self.decoded[index]
            return found
        return self._fit(int(self.indices[index]))

    def picture(self, index: int) -> Image.Image:
        """The image to augment: decoded at the resolution if small, else the original."""
        if self.in_memory:
            return Image.fromarray(self.decoded[index])
        return self.raw.image(int(self.indices[index]))

    def _fit(self, raw_index: int) -> np.ndarray:
        # Larger images lose 5 % at each border, the centre crop that published models expect.
        image = ImageOps.fit(
            self.raw.image(raw_index),
            (self.resolution, self.resolution),
            Image.Resampling.BICUBIC,
            bleed=0.0 if self.resolution <= SMALL_IMAGE else 0.05,
        )
        return np.asarray(image)


def statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (n, h, w, 3) uint8, in units of 0..1."""
    values = np.arange(256) / 255.0
    mean, std = [], []
    for channel in range(3):
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
        share = counts / counts.sum()
        centre = float((share * values).sum())
        mean.append(round(centre, 4))
        std.append(round(max(float((share * (values - centre) ** 2).sum()) ** 0.5, 1e-3), 4))
    return tuple(mean), tuple(std)


def normalise(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """uint8 (n, 3, h, w) → float32, zero mean and unit variance per channel."""
    scale = torch.tensor([1.0 / (255.0 * s) for s in std]).view(1, 3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1)
    return images.to(torch.float32, memory_format=torch.contiguous_format) * scale - shift
