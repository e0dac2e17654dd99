"""Opened data sets: their splits, their preprocessing, and what a user should know of them.

The validation split is cut from the training data by a seeded hash of each sample's key,
never from the test split; a test split that the source lacks is cut by the same hash with a
constant seed, so that no choice of seed lets training see it. Small images are decoded once
into memory; larger ones are decoded when needed, by worker processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from search_space.errors import DataError
from search_space.preprocessing import FITS, Preprocessing
from supernet.data.augmentation import AugmentConfig, default_augment
from supernet.data.images import RawImages, key_bytes, printable, verify
from supernet.data.labels import TEST, TRAIN, VALIDATION
from supernet.data.sources import open_source
from supernet.data.splits import SMALL_IMAGE, ImageSizes, ImageSplit, statistics

CROP_PCT = 0.9  # of larger images, which lose 5 % at each border as published models expect
TEST_SPLIT_SEED = 20240229  # constant: the test split must not move with --seed
_SPLITS = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """An opened data set: three splits, and what is common to them.

    Attributes:
        kind: ``digits``, ``folder``, ``parquet`` or ``timm``.
        validation: The split that decides.
        test: The split that is looked at once, at the end.
        preprocessing: What is done to images for evaluation. Mean and deviation are measured on
            the training split for images up to 64 px, ImageNet's for larger ones, which
            published weights expect, and for padded ones.
        mirror: Whether training may mirror images.
        fingerprint: 12 hex digits over contents, labels and split membership of all that training
            and search see; images of a test split of its own are no part of it.
        test_fingerprint: The same of the test split.

    Example:
        >>> data = open_data("digits", 16)
        >>> images, labels = next(iter(eval_batches(data.validation)))
    """

    source: str
    kind: str
    class_names: tuple[str, ...]
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    preprocessing: Preprocessing
    mirror: bool
    sizes: ImageSizes
    fingerprint: str
    test_fingerprint: str

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def resolution(self) -> int:
        """The side of the images in pixels."""
        return self.preprocessing.resolution

    def at(self, resolution: int) -> ImageData:
        """Returns the same images at another side, with the same mean and deviation."""
        if resolution == self.resolution:
            return self
        parts = {name: getattr(self, name).at(resolution) for name in _SPLITS}
        return replace(self, preprocessing=parts["test"].preprocessing, **parts)

    def augmentation(self, config: AugmentConfig | None = None) -> AugmentConfig:
        """Returns ``config``, or these images' default, without mirroring where that is off."""
        config = config or default_augment(self.kind, self.resolution)
        return config if self.mirror else replace(config, hflip=0.0)

    def description(self) -> tuple[str, ...]:
        """Returns lines for the user: number and sizes of images, and what is done to them."""
        count = len(self.train) + len(self.validation) + len(self.test)
        scaling = f": {self.preprocessing.resizing()}"
        if self.sizes.squares and self.preprocessing.crop_pct == 1:
            scaling = ""
        elif self.preprocessing.fit == "crop" and not self.sizes.squares:
            scaling += " (--fit squeeze or --fit pad keeps the ends)"
        lines = [
            f"{count:,} images of {self.num_classes} classes: {len(self.train):,} training, "
            f"{len(self.validation):,} validation, {len(self.test):,} test",
            f"{self.sizes}; scaled to {self.resolution} px{scaling}",
        ]
        if self.augmentation().hflip:
            lines.append(
                "training mirrors images at random; --mirror never where left and right differ"
            )
        return tuple(lines)

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
    fit: str = "crop",
    mirror: bool = True,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
) -> ImageData:
    """Opens images and cuts their splits.

    Args:
        source: ``digits``; an image folder (a subfolder per class or a file of labels, optionally
            below ``train/``, ``val/``, ``test/``); a Parquet file or a folder of them; or a name
            that ``timm.data.create_dataset`` opens.
        resolution: Image side in pixels.
        validation_fraction: Share of the training data, used where there is no validation split.
        test_fraction: Share of all data, used only where there is no test split.
        seed: Of the validation split only.
        image_column: Of Parquet files.
        label_column: Of Parquet files and files of labels.
        root: Folder of the data set that timm opens.
        download: Whether timm may download it.
        fit: How images become squares: ``crop`` cuts the ends of the longer side off, ``squeeze``
            scales both sides to the same length, ``pad`` fills up the shorter.
        mirror: Whether training may mirror images, where they are no digits.
        normalisation: Mean and deviation of each channel, of pixel values in 0..1, by which a
            trained network knows its images; by default they are measured, or ImageNet's.

    Raises:
        DataError: With the fix: missing path, one class only, unreadable image, wrong column,
            empty split, a class without training images, images that are all the same.
    """
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    for name, value in fractions.items():
        if not 0 < value < 1:
            raise DataError(f"{name} is {value}; it must lie between 0 and 1, exclusive")
    if fit not in FITS:
        raise DataError(f"fit is {fit!r}; it must be one of {', '.join(FITS)}")
    opened = open_source(
        source, image_column=image_column, label_column=label_column, root=root, download=download
    )
    raws = {name: getattr(opened, name) or opened.train for name in _SPLITS}
    indices = {name: np.arange(len(raw.labels)) for name, raw in raws.items()}
    for name, fraction, cut_by in (
        (TEST, test_fraction, TEST_SPLIT_SEED),
        (VALIDATION, validation_fraction, seed),
    ):
        if raws[name] is opened.train:
            indices[TRAIN], indices[name] = _cut(opened.train, indices[TRAIN], fraction, cut_by)
        if len(indices[name]) == 0:
            raise DataError(
                f"the {name} split of {source!r} is empty: with {len(opened.train.labels)} images "
                "no class has one to spare for it, whatever its fraction; add images (at least "
                "three per class)"
            )
    preprocessing = Preprocessing(
        resolution=resolution,
        fit=fit,
        crop_pct=CROP_PCT if fit == "crop" and resolution > SMALL_IMAGE else 1.0,
    )
    if normalisation is not None:
        mean, std = map(tuple, normalisation)
        preprocessing = replace(preprocessing, mean=mean, std=std)
    parts = train, validation, test = [
        ImageSplit(raws[name], indices[name], preprocessing, training=name == TRAIN)
        for name in _SPLITS
    ]
    # What is decoded now is checked by that; of the rest at least every header is read. Large
    # test images wait until they are needed.
    pending = {}
    for part in parts:
        if part.in_memory and (part is not test or resolution <= SMALL_IMAGE):
            _ = part.decoded
        elif opened.kind != "timm":  # the library that made such a data set checks its own files
            pending[id(part.raw)] = part.raw
    for raw in pending.values():
        verify(raw)
    _check_varied(train, source)
    # what images are padded with would be in the mean
    if train.in_memory and fit != "pad" and normalisation is None:
        mean, std = statistics(train.decoded)
        preprocessing = replace(preprocessing, mean=mean, std=std)
        for part in parts:
            part.preprocessing = preprocessing
    # A test split that was cut from the training images decides what is left to train on.
    seen = parts if test.raw is train.raw else (train, validation)
    names = tuple(map(printable, opened.class_names))
    salt = f"{opened.kind} {resolution} {names}{'' if fit == 'crop' else fit}{normalisation or ''}"
    return ImageData(
        source=source,
        kind=opened.kind,
        class_names=names,
        train=train,
        validation=validation,
        test=test,
        preprocessing=preprocessing,
        mirror=mirror,
        sizes=ImageSizes.of(opened.train),
        fingerprint=_fingerprint(salt, *seen),
        test_fingerprint=_fingerprint(salt, test),
    )


def _fingerprint(salt: str, *splits: ImageSplit) -> str:
    digest = hashlib.sha256(salt.encode())
    for split in splits:
        digest.update(split.raw.content())
        digest.update(b"\n".join(key_bytes(split.raw.keys[index]) for index in split.indices))
        digest.update(split.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:12]


def _check_varied(split: ImageSplit, source: str) -> None:
    """Raises DataError where all images are the same; reads on only while they are."""
    first = split.pixels(0)
    if all(np.array_equal(first, split.pixels(index)) for index in range(1, len(split))):
        colour = " of one colour" if (first == first[0, 0]).all() else ""
        raise DataError(
            f"all {len(split)} training images of {source!r} are the same picture{colour} at "
            f"{split.resolution} px, so there is nothing to learn; look at the files "
            "(transparent pixels are laid on white, 16 bits are scaled to 8)"
        )


def _cut(
    raw: RawImages, indices: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the ``fraction`` of every class with the lowest hash of (seed, key): (kept, cut).

    By class, so that small classes are in both parts; a class of one image is kept whole.
    """
    cut: list[int] = []
    labels = raw.labels[indices]
    hashes = (hashlib.blake2b(key_bytes(f"{seed}:{raw.keys[i]}"), digest_size=8) for i in indices)
    ranks = np.array([int.from_bytes(each.digest()) for each in hashes], dtype=np.uint64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        cut += members[np.argsort(ranks[members], kind="stable")[:count]].tolist()
    mask = np.zeros(len(indices), dtype=bool)
    mask[cut] = True
    return indices[~mask], indices[mask]
