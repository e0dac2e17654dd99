"""Splits of data sets: decoded and preprocessed images, and the sizes of the stored ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from search_space.errors import DataError
from search_space.preprocessing import Preprocessing
from supernet.data.images import RawImages

SMALL_IMAGE = 64  # up to this side in pixels, training crops are taken from the decoded image
MEMORY_LIMIT_BYTES = 2**30  # decoded splits up to this size are kept
_PLACES, _NEIGHBOURS = 16, 16  # of the images whose headers are read for their sizes


class ImageSplit(Dataset[tuple[torch.Tensor, int]]):
    """One split of a data set: indices into raw images, and what is done to each.

    ``split[i]`` → (image: (3, side, side) float32 normalised, label: int). Splits that fit are
    decoded once to uint8 and kept; others are decoded at each access.
    """

    def __init__(
        self, raw: RawImages, indices: np.ndarray, preprocessing: Preprocessing, *, training: bool
    ) -> None:
        self.raw, self.indices, self.training = raw, indices, training
        self.preprocessing = preprocessing
        self.labels: np.ndarray = raw.labels[indices]
        fits = len(indices) * self.resolution**2 * 3 <= MEMORY_LIMIT_BYTES
        self.in_memory = fits and (not training or self.resolution <= SMALL_IMAGE)

    @property
    def resolution(self) -> int:
        """The side of the images in pixels."""
        return self.preprocessing.resolution

    def at(self, resolution: int) -> ImageSplit:
        """Returns the same images at another side in pixels, scaled from what is stored."""
        preprocessing = replace(self.preprocessing, resolution=resolution)
        return ImageSplit(self.raw, self.indices, preprocessing, training=self.training)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        batch, _ = self.__getitems__([index])
        return batch[0], int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a normalised batch (n, 3, side, side) and its labels (n,) int64."""
        pixels = np.stack([self.pixels(index) for index in indices])
        images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), self.preprocessing)
        return images, torch.from_numpy(self.labels[indices])

    @cached_property
    def decoded(self) -> np.ndarray:
        """All images, uint8 (n, side, side, 3); only used where they fit in memory."""
        out = np.empty((len(self), self.resolution, self.resolution, 3), dtype=np.uint8)

        def fill(index: int) -> None:
            out[index] = self._fitted(index)

        # Threads help with photographs; with thumbnails they only contend for the interpreter
        # (measured: 100 µs an image with one thread, 160 µs with two).
        large = max(self.raw.size(int(self.indices[0]))) > 2 * SMALL_IMAGE
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in (pool.map if large else map)(fill, range(len(self))):
                pass
        return out

    def pixels(self, index: int) -> np.ndarray:
        """Returns an image at the split's resolution, uint8 (side, side, 3)."""
        return self.decoded[index] if self.in_memory else self._fitted(index)

    def picture(self, index: int, *, whole: bool) -> Image.Image:
        """Returns an image to augment: at the split's resolution, or ``whole``, as it is stored.

        A split in memory gives its own resolution in either case. Unless the ends of images are cut
        off, a stored one is made a square first.
        """
        if self.in_memory or not whole:
            return Image.fromarray(self.pixels(index))
        image = self.raw.image(int(self.indices[index]))
        width, height = image.size
        if self.preprocessing.fit == "squeeze":
            side = round((width * height) ** 0.5)
            return image.resize((side, side), Image.Resampling.BICUBIC)
        if self.preprocessing.fit == "pad":
            ground = tuple(round(255 * value) for value in self.preprocessing.mean)
            return ImageOps.pad(image, (max(width, height),) * 2, color=ground)
        return image

    def _fitted(self, index: int) -> np.ndarray:
        raw_index = int(self.indices[index])
        image = self.raw.image(raw_index)
        if max(image.size) >= self.resolution * min(image.size):  # some pixels high at least
            raise DataError(
                f"{self.raw.keys[raw_index]} of {image.width} × {image.height} px is too narrow "
                f"to be scaled to {self.resolution} px; cut it into parts, or remove it"
            )
        pixels: np.ndarray = self._transform(image).permute(1, 2, 0).numpy()
        return pixels

    @cached_property
    def _transform(self) -> Callable[[Image.Image], torch.Tensor]:
        """PIL image → uint8 (3, side, side), by timm, as whoever loads an export does it."""
        from timm.data import create_transform

        options = self.preprocessing.timm()
        transform: Any = create_transform(**options, is_training=False, use_prefetcher=True)
        return transform  # with the prefetcher, batches are normalised


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """Sizes of stored images in pixels, by the headers of some.

    Attributes:
        sampled: How many headers were read, at places spread evenly.
        width: Median.
        height: Median.
        side: Median of the shorter sides.
        shortest: The shortest side of all.
        longest: The longest side of all.
        squares: Whether all have sides of one length.
    """

    sampled: int
    width: int
    height: int
    side: int
    shortest: int
    longest: int
    squares: bool

    @classmethod
    def of(cls, images: RawImages) -> ImageSizes:
        """Reads the sizes of up to 256 images; raises DataError for an unreadable one."""
        count = len(images.labels)
        # Neighbours share a row group of Parquet files, which are read as a whole.
        starts = np.linspace(0, max(0, count - _NEIGHBOURS), _PLACES).astype(int)
        indices = np.unique(starts[:, None] + np.arange(min(count, _NEIGHBOURS)))
        sizes = np.array([images.size(int(index)) for index in indices])
        width, height = np.median(sizes, axis=0).astype(int).tolist()
        return cls(
            sampled=len(sizes),
            width=width,
            height=height,
            side=int(np.median(sizes.min(axis=1))),
            shortest=int(sizes.min()),
            longest=int(sizes.max()),
            squares=bool((sizes[:, 0] == sizes[:, 1]).all()),
        )

    def __str__(self) -> str:
        if self.shortest == self.longest:
            return f"{self.width} × {self.height} px"
        return (
            f"{self.width} × {self.height} px (median of {self.sampled}, sides from "
            f"{self.shortest} to {self.longest})"
        )


def statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per channel of (n, h, w, 3) uint8, in units of 0..1.

    A channel that is the same everywhere has deviation 1, so that normalising leaves it alone.
    """
    values = np.arange(256) / 255.0
    mean, std = [], []
    for channel in range(3):
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
        share = counts / counts.sum()
        centre = float((share * values).sum())
        mean.append(round(centre, 4))
        std.append(round(float((share * (values - centre) ** 2).sum()) ** 0.5, 4) or 1.0)
    return tuple(mean), tuple(std)


def normalise(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Turns uint8 (n, 3, h, w) to float32, less the mean, divided by the deviation, where it is."""
    mean, std = preprocessing.mean, preprocessing.std
    on = images.device
    scale = torch.tensor([1.0 / (255.0 * s) for s in std], device=on).view(1, 3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=on)
    shift = shift.view(1, 3, 1, 1)
    floats = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return floats.mul_(scale).sub_(shift)
