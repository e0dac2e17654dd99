"""Images for training and evaluation: splits, decoding, loaders.

The validation split is cut from the training data by a seeded hash of each sample's key,
never from the test split; a test split that the source lacks is cut by the same hash with a
constant seed, so that no choice of seed lets training see it. Small images are decoded once
into memory; larger ones are decoded when needed, by worker processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from search_space.errors import DataError
from supernet.data.augmentation import (
    AugmentConfig,
    build_erasing,
    build_mixup,
    build_transform,
    default_augment,
    mix_seed,
    preserved_generators,
    seed_generators,
)
from supernet.data.loading import load
from supernet.data.raw_images import RawImages, key_bytes, printable
from supernet.data.sources import open_source
from supernet.data.splits import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMALL_IMAGE,
    ImageSplit,
    normalise,
    statistics,
)

TEST_SPLIT_SEED = 20240229  # constant: the test split must not move with --seed
MEMORY_LIMIT_BYTES = 2**30  # decoded splits up to this size are kept


class ImageData:
    """An opened data set: ``train``, ``validation`` and ``test``.

    mean, std: per channel, of pixel values in 0..1: measured on the training split for images
    up to 64 px, ImageNet's for larger ones (published weights expect those).
    fingerprint: 12 hex digits over contents, labels and split membership of all that training
        and search see; images of a test split of its own are no part of it.
    test_fingerprint: the same of the test split.
    """

    def __init__(
        self,
        *,
        source: str,
        kind: str,
        resolution: int,
        class_names: tuple[str, ...],
        train: ImageSplit,
        validation: ImageSplit,
        test: ImageSplit,
    ) -> None:
        self.source = source
        self.kind = kind
        self.resolution = resolution
        self.class_names = class_names
        self.num_classes = len(class_names)
        self.train, self.validation, self.test = train, validation, test
        self.mean: tuple[float, ...] = IMAGENET_MEAN
        self.std: tuple[float, ...] = IMAGENET_STD
        if train.in_memory:
            self.mean, self.std = statistics(train.decoded)
        for split in (train, validation, test):
            split.mean, split.std = self.mean, self.std
        # A test split that was cut from the training images decides what is left to train on.
        seen = (train, validation, test) if test.raw is train.raw else (train, validation)
        self.fingerprint = self._fingerprint(*seen)
        self.test_fingerprint = self._fingerprint(test)

    def _fingerprint(self, *splits: ImageSplit) -> str:
        digest = hashlib.sha256(f"{self.kind} {self.resolution} {self.class_names}".encode())
        for split in splits:
            digest.update(split.raw.content())
            digest.update(b"\n".join(key_bytes(split.raw.keys[index]) for index in split.indices))
            digest.update(split.labels.astype("<i8").tobytes())
        return digest.hexdigest()[:12]

    def __repr__(self) -> str:
        return (
            f"ImageData({self.source!r}, {self.resolution} px, {self.num_classes} classes, "
            f"{len(self.train)} train, {len(self.validation)} validation, {len(self.test)} test)"
        )


def open_data(
    source: str,
    resolution: int,
    *,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
    image_column: str = "image",
    label_column: str = "label",
    root: str | None = None,
    download: bool = False,
) -> ImageData:
    """Open images and cut their splits.

    source: ``digits``; an image folder (a subfolder per class, optionally below ``train/``,
        ``val/``, ``test/``); a Parquet file or a folder of them; or a name that
        ``timm.data.create_dataset`` opens (``root`` and ``download`` are passed to it).
    resolution: image side in pixels.
    validation_fraction: share of the training data, used where there is no validation split.
    test_fraction: share of all data, used only where there is no test split.
    seed: of the validation split only.

    Raises ``DataError`` with the fix: missing path, one class only, unreadable image, wrong
    column, empty split, a class without training images.
    """
    for name, value in (
        ("validation_fraction", validation_fraction),
        ("test_fraction", test_fraction),
    ):
        if not 0 < value < 1:
            raise DataError(f"{name} is {value}; it must lie between 0 and 1, exclusive")
    opened = open_source(
        source,
        image_column=image_column,
        label_column=label_column,
        root=root,
        download=download,
    )
    train_raw = opened.train
    rest = np.arange(len(train_raw.labels))
    if opened.test is None:
        rest, test_indices = _cut(train_raw, rest, test_fraction, TEST_SPLIT_SEED)
        test_raw = train_raw
    else:
        test_raw, test_indices = opened.test, np.arange(len(opened.test.labels))
    if opened.validation is None:
        rest, validation_indices = _cut(train_raw, rest, validation_fraction, seed)
        validation_raw = train_raw
    else:
        validation_raw = opened.validation
        validation_indices = np.arange(len(validation_raw.labels))
    for name, indices in (("validation", validation_indices), ("test", test_indices)):
        if len(indices) == 0:
            raise DataError(
                f"the {name} split of {source!r} is empty: with {len(train_raw.labels)} images no "
                "class has one to spare for it, whatever its fraction; add images (at least three "
                "per class)"
            )

    def split(raw: RawImages, indices: np.ndarray, *, training: bool = False) -> ImageSplit:
        fits = len(indices) * resolution * resolution * 3 <= MEMORY_LIMIT_BYTES
        in_memory = fits and (not training or resolution <= SMALL_IMAGE)
        return ImageSplit(raw, indices, resolution, in_memory=in_memory)

    train = split(train_raw, rest, training=True)
    validation = split(validation_raw, validation_indices)
    test = split(test_raw, test_indices)
    # What is decoded now is checked by that; of the rest at least every header is read. Large
    # test images wait until they are needed.
    now = (train, validation, test) if resolution <= SMALL_IMAGE else (train, validation)
    decoded_now = [part for part in now if part.in_memory]
    for part in decoded_now:
        _ = part.decoded
    pending = [part.raw for part in (train, validation, test) if part not in decoded_now]
    for raw in {id(raw): raw for raw in pending}.values():
        raw.verify()
    return ImageData(
        source=source,
        kind=opened.kind,
        resolution=resolution,
        class_names=tuple(printable(name) for name in opened.class_names),
        train=train,
        validation=validation,
        test=test,
    )


def _cut(
    raw: RawImages, indices: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(kept, cut): of every class the ``fraction`` with the lowest hash of (seed, key) is cut.

    By class, so that small classes are in both parts; a class of one image is kept whole.
    """
    cut: list[int] = []
    labels = raw.labels[indices]
    ranks = np.array(
        [
            int.from_bytes(
                hashlib.blake2b(key_bytes(f"{seed}:{raw.keys[i]}"), digest_size=8).digest()
            )
            for i in indices
        ],
        dtype=np.uint64,
    )
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        cut += members[np.argsort(ranks[members], kind="stable")[:count]].tolist()
    mask = np.zeros(len(indices), dtype=bool)
    mask[cut] = True
    return indices[~mask], indices[mask]


def resize_images(images: torch.Tensor, resolution: int) -> torch.Tensor:
    """Resize (n, 3, h, w) to (n, 3, resolution, resolution): bilinear, antialiased.

    The one helper that gives a subnet its own resolution, in training as in evaluation.
    """
    if images.shape[-1] == resolution and images.shape[-2] == resolution:
        return images
    size = (resolution, resolution)
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


class Batch(NamedTuple):
    """Training images, and how they came about.

    images: (n, 3, side, side) float32, augmented and normalised.
    targets: (n,) int64 labels, or with mixup or cutmix (n, classes) float32 shares, label
        smoothing included.
    indices: (n,) int64 positions in the training split.
    variant: number of the augmentation's draw; with the position it decides what an image
        looks like before it is mixed with another.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    variant: int

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, without waiting for it."""
        return self._replace(
            images=self.images.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
        )

    def part(self, k: int, n: int) -> Batch:
        """The k-th of n groups, equal but for a remainder: views."""
        bounds = slice(k * len(self.images) // n, (k + 1) * len(self.images) // n)
        return Batch(self.images[bounds], self.targets[bounds], self.indices[bounds], self.variant)


class _Augmented(Dataset[Any]):
    """One draw of the augmented training split; worker processes fetch whole batches from it."""

    def __init__(self, split: ImageSplit, config: AugmentConfig, seed: int, variant: int) -> None:
        self.split, self.seed, self.variant = split, seed, variant
        self.transform = build_transform(config, split.resolution, split.mean)
        self.erase = build_erasing(config)

    def __getitems__(self, indices: list[int]) -> Batch:
        with preserved_generators():
            pictures = []
            for index in indices:
                seed_generators(mix_seed(self.seed, self.variant, index))
                pictures.append(self.transform(self.split.picture(index)))
            images = normalise(torch.stack(pictures), self.split.mean, self.split.std)
            if self.erase is not None:
                for image, index in zip(images, indices, strict=True):
                    seed_generators(mix_seed(self.seed, self.variant, index, 1))
                    self.erase(image)
        labels = torch.from_numpy(self.split.labels[indices])
        return Batch(images, labels, torch.tensor(indices), self.variant)

    def batches(self, positions: list[list[int]], workers: int) -> Iterator[Batch]:
        """The batches of these positions, in this order."""
        return load(self, positions, workers, pinned=torch.cuda.is_available())


def steps_per_epoch(data: ImageData, batch_size: int) -> int:
    """Optimiser steps per epoch; an incomplete last batch is left out."""
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
    """The augmented batches of one epoch, from step ``start`` on, in shuffled order.

    What step k yields depends on (seed, epoch, k) only.

    shard: (rank, size): yields this rank's images of each batch. All ranks' images together are
        the batch that one rank would see, augmented and mixed alike: mixup pairs the i-th image
        from the front with the i-th from the back, and each rank gets whole pairs.
    variants: draws of the augmentation before they repeat; None for a new one in each epoch.
    balanced: show as many images of each class instead of each image once; see ``balanced_order``.
    """
    config = augment or default_augment(data.kind, data.resolution)
    rng = np.random.default_rng([seed, epoch])
    order = balanced_order(data.train.labels, rng) if balanced else rng.permutation(len(data.train))
    mixup = build_mixup(config, data.num_classes, label_smoothing)
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

    Equally but for a remainder. Within an epoch no image comes again before all of its class were
    there; those of frequent classes that are left out are others in each epoch.
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
    """Every training image once, in order, unmixed, as ``train_loader`` shows it in a variant."""
    config = augment or default_augment(data.kind, data.resolution)
    positions = list(range(len(data.train)))
    batches = [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)]
    yield from _Augmented(data.train, config, seed, variant).batches(batches, workers)


class EvalBatches:
    """Batches of a split in order, iterable again and again; kept where they fit in memory."""

    def __init__(
        self, split: ImageSplit, batch_size: int, chosen: Sequence[int], workers: int
    ) -> None:
        self.split, self.batch_size, self.workers = split, batch_size, workers
        self.chosen = list(chosen)
        self.num_images = len(chosen)
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._kept is not None:
            yield from self._kept
            return
        size = self.batch_size
        positions = [self.chosen[i : i + size] for i in range(0, self.num_images, size)]
        loader = load(self.split, positions, self.workers)
        if self.num_images * self.split.resolution**2 * 12 <= MEMORY_LIMIT_BYTES:
            self._kept = list(loader)
            yield from self._kept
        else:
            yield from loader


def eval_batches(
    split: ImageSplit, batch_size: int = 256, *, limit: int | None = None, workers: int = 0
) -> EvalBatches:
    """Un-augmented batches (images: (n, 3, side, side) float32 normalised, labels: (n,) int64).

    limit: use at most this many images, evenly spaced over the split.
    """
    # Evenly spaced, so that a split sorted by class keeps all its classes.
    count = len(split) if limit is None else min(limit, len(split))
    chosen = np.unique(np.linspace(0, len(split) - 1, count).round().astype(int)).tolist()
    return EvalBatches(split, batch_size, chosen, workers)


def doubling_batches(
    split: ImageSplit, doublings: int, batch_size: int = 256, *, workers: int = 0
) -> list[EvalBatches]:
    """``doublings + 1`` disjoint parts of a split, each after the first as large as all before it.

    Every part is spread evenly over the split. Batches as in ``eval_batches``.
    """
    first = range(0, len(split), 2**doublings)
    offsets = [2**k for k in reversed(range(doublings))]
    parts = [first, *(range(offset, len(split), 2 * offset) for offset in offsets)]
    return [EvalBatches(split, batch_size, part, workers) for part in parts]
