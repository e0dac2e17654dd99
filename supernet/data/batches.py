"""Batches of images for training and evaluation, from worker processes or from this one."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from search_space.errors import DataError, RunError
from supernet.data.augmentation import (
    AugmentConfig,
    build_transform,
    mix_seed,
    preserved_generators,
    seed_generators,
)
from supernet.data.dataset import ImageData
from supernet.data.splits import ImageSplit, normalise

_SHARED = "/dev/shm"
_PREFETCHED = 2  # batches that a loader process has ready
_PATIENCE = 600.0  # seconds for one batch of loader processes
_MEMORY_SIGNS = ("shared memory", "No space left", "unable to write", "unable to mmap")


def resize_images(images: torch.Tensor, resolution: int) -> torch.Tensor:
    """Resizes images (n, 3, h, w) to (n, 3, resolution, resolution), bilinear and antialiased.

    It gives subnets their resolution while weights are shared; a network that is judged or
    trained by itself sees images that are decoded at its resolution (``ImageData.at``).
    """
    size = (resolution, resolution)
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


class Batch(NamedTuple):
    """A batch of training images, and how they came about.

    Attributes:
        images: (n, 3, side, side) float32, augmented and normalised.
        targets: (n,) int64 labels, or with mixup or cutmix (n, classes) float32 shares, label
            smoothing included.
        indices: (n,) int64 positions in the training split.
        variant: Number of the augmentation's draw; with the position it decides what an image
            looks like before it is mixed with another.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    variant: int

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device, without waiting for it."""
        return self._replace(
            images=self.images.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
        )

    def part(self, k: int, n: int) -> Batch:
        """Returns the k-th of n groups, equal but for a remainder, as views."""
        bounds = slice(k * len(self.images) // n, (k + 1) * len(self.images) // n)
        return Batch(self.images[bounds], self.targets[bounds], self.indices[bounds], self.variant)


class _Augmented(Dataset[Any]):
    """One draw of the augmented training split; worker processes fetch whole batches from it."""

    def __init__(self, split: ImageSplit, config: AugmentConfig, seed: int, variant: int) -> None:
        self.split, self.seed, self.variant = split, seed, variant
        self.whole = config.crop == "resize"  # other crops begin at the network's resolution
        self.transform = build_transform(config, split.resolution, split.preprocessing.mean)
        erasing = RandomErasing(config.erase, mode="pixel", device="cpu")
        self.erase = erasing if config.erase else None

    def __getitems__(self, indices: list[int]) -> Batch:
        with preserved_generators():
            pictures = []
            for index in indices:
                seed_generators(mix_seed(self.seed, self.variant, index))
                pictures.append(self.transform(self.split.picture(index, whole=self.whole)))
            images = normalise(torch.stack(pictures), self.split.preprocessing)
            if self.erase is not None:
                for image, index in zip(images, indices, strict=True):
                    seed_generators(mix_seed(self.seed, self.variant, index, 1))
                    self.erase(image)
        labels = torch.from_numpy(self.split.labels[indices])
        return Batch(images, labels, torch.tensor(indices), self.variant)

    def batches(self, positions: list[list[int]], workers: int) -> Iterator[Batch]:
        """Yields the batches of these positions, in this order."""
        pinned = torch.cuda.is_available()
        return load(self, positions, workers, self.split.resolution, pinned=pinned)


def steps_per_epoch(data: ImageData, batch_size: int) -> int:
    """Returns the optimiser steps per epoch; an incomplete last batch is left out."""
    return max(1, len(data.train) // batch_size)


def train_loader(
    data: ImageData,
    batch_size: int,
    epoch: int,
    seed: int,
    workers: int = 0,
    *,
    augment: AugmentConfig | None = None,
    label_smoothing: float = 0.0,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    variants: int | None = None,
    balanced: bool = False,
) -> Iterator[Batch]:
    """Yields the augmented batches of one epoch, from step ``start`` on, in shuffled order.

    What step k yields depends on (seed, epoch, k) only.

    Args:
        batch_size: Images of a step, of all ranks together.
        seed: Of the order and the augmentation.
        workers: Data-loading processes; with 0 this one loads.
        augment: None for the default of the data.
        label_smoothing: Used where images are mixed; elsewhere the loss smooths labels.
        shard: (rank, size); yields this rank's images of each batch. All ranks' images together
            are the batch that one rank would see, augmented and mixed alike: mixup pairs the i-th
            image from the front with the i-th from the back, and each rank gets whole pairs.
        variants: Draws of the augmentation before they repeat; None for a new one in each epoch.
        balanced: Show as many images of each class instead of each image once; see
            ``balanced_order``.

    Raises:
        DataError: An image cannot be read.
        RunError: Loader processes ended, or give no batch any more.
    """
    config = data.augmentation(augment)
    rng = np.random.default_rng([seed, epoch])
    order = balanced_order(data.train.labels, rng) if balanced else rng.permutation(len(data.train))
    mixup: Any = None
    if config.mixup or config.cutmix:
        options = {"label_smoothing": label_smoothing, "num_classes": data.num_classes}
        mixup = Mixup(config.mixup, config.cutmix, **options)
    rank, size = shard
    multiple = 2 * size if size > 1 else 2 if mixup is not None else 1
    steps = steps_per_epoch(data, batch_size)
    batch_size = min(batch_size, len(order)) // multiple * multiple
    half = batch_size // size // 2
    batches = []
    for k in range(start, steps):
        batch = order[k * batch_size : (k + 1) * batch_size].tolist()
        if size > 1:
            front = slice(rank * half, (rank + 1) * half)
            back = slice(batch_size - front.stop, batch_size - front.start)
            batch = batch[front] + batch[back]
        batches.append(batch)
    variant = epoch if variants is None else epoch % variants
    dataset = _Augmented(data.train, config, seed, variant)
    for step, batch in enumerate(dataset.batches(batches, workers), start):
        if mixup is not None:
            with preserved_generators():
                seed_generators(mix_seed(seed, epoch, step, 2))
                images, targets = mixup(batch.images, batch.targets)
                batch = batch._replace(images=images, targets=targets)
        yield batch


def balanced_order(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws as many positions as there are labels, equally many of each class, shuffled.

    Classes differ by a remainder. Within an epoch no image comes again before all of its class
    were there; those of frequent classes that are left out are others in each epoch.
    """
    classes = np.unique(labels)
    count = -(-len(labels) // len(classes))
    drawn = []
    for label in classes:
        members = np.flatnonzero(labels == label)
        rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
        drawn.append(np.concatenate(rounds)[:count])
    return rng.permutation(np.concatenate(drawn))[: len(labels)]


def augmented_batches(
    data: ImageData,
    batch_size: int,
    variant: int,
    seed: int,
    workers: int = 0,
    *,
    augment: AugmentConfig | None = None,
) -> Iterator[Batch]:
    """Yields all training images in order, unmixed, as ``train_loader`` shows them in a variant."""
    dataset = _Augmented(data.train, data.augmentation(augment), seed, variant)
    yield from dataset.batches(cut(range(len(data.train)), batch_size), workers)


def cut(positions: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cuts positions into those of batches; the last may have fewer."""
    return [list(positions[i : i + batch_size]) for i in range(0, len(positions), batch_size)]


# Loader processes


class _Fetched(Dataset[Any]):
    """Batches of a data set, and the errors of its images as values.

    Of an error that a worker raises, torch makes one whose message is the worker's traceback.
    """

    def __init__(self, dataset: Any, by_pipe: bool) -> None:
        self.dataset, self.by_pipe = dataset, by_pipe

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            batch = self.dataset.__getitems__(indices)
        except DataError as error:
            return error
        # Tensors would go through shared memory.
        return _each(batch, torch.Tensor, torch.Tensor.numpy) if self.by_pipe else batch


def load(
    dataset: Any, batches: list[list[int]], workers: int, resolution: int, *, pinned: bool = False
) -> Iterator[Any]:
    """Yields ``dataset.__getitems__`` of each of these lists of positions, in this order.

    It raises as ``train_loader`` does. ``resolution`` is the side of the images in pixels.
    """
    workers = min(workers, len(batches))
    by_pipe = workers > 0 and not _fits_shared(workers, len(batches[0]) * resolution**2 * 12)
    loader: DataLoader[Any] = DataLoader(
        _Fetched(dataset, by_pipe),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pinned and not by_pipe,
        generator=torch.Generator(),  # or it would draw from the global one
        timeout=_PATIENCE if workers else 0,
        prefetch_factor=_PREFETCHED if workers else None,
    )
    iterator = iter(loader)
    while True:
        try:
            batch = next(iterator, None)
        except RuntimeError as error:
            text = str(error)  # of what a process raised itself, it begins with "Caught"
            if "DataLoader" not in text or (
                text.startswith("Caught ") and not any(sign in text for sign in _MEMORY_SIGNS)
            ):
                raise
            raise RunError(
                f"data-loading processes failed ({error}); often {_SHARED} or memory is full: give "
                "a container more (--shm-size), or use fewer --loader-workers, or 0"
            ) from error
        if batch is None:
            return
        if isinstance(batch, DataError):
            raise batch
        if by_pipe:
            batch = _each(batch, np.ndarray, torch.from_numpy)
            batch = _each(batch, torch.Tensor, torch.Tensor.pin_memory) if pinned else batch
        yield batch


def _each(batch: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Returns a tuple with its members of one kind changed."""
    changed = [change(item) if isinstance(item, kind) else item for item in batch]
    return batch._make(changed) if hasattr(batch, "_make") else tuple(changed)


def _fits_shared(workers: int, batch_bytes: int) -> bool:
    """Says whether what loader processes hold ready fits shared memory; else they would hang.

    A container of Docker's has 64 MB of it.
    """
    needed = 2 * (_PREFETCHED * workers + 2) * batch_bytes  # twice: others may use it, too
    try:
        fits = shutil.disk_usage(_SHARED).free >= needed
    except OSError:  # not on this system
        return True
    if not fits:
        _warn_of_pipes()
    return fits


@cache
def _warn_of_pipes() -> None:
    """Warns once per process."""
    warnings.warn(
        f"{_SHARED} has less free space than loader processes may need, so images pass through "
        "pipes, which is slower; give a container more (--shm-size), or use fewer --loader-workers",
        stacklevel=2,
    )


def _as_it_is(batch: Any) -> Any:
    return batch
