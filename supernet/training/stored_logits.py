"""A teacher's predictions on augmented images, stored once, so that training needs no teacher.

Of each augmented image the ``top_k`` largest probabilities are kept (TinyViT's fast distillation,
Wu et al., ECCV 2022, section 3.1; dataset reinforcement, Faghri et al., ICCV 2023). Instead of the
image its (seed, variant, position) is stored, from which the augmentation draws it again. Three
things make sure that training shows what the teacher saw: the seed, augmentation, resolution and
data fingerprint in each file; a checksum over these and the contents; and a signature of each
image, which also notices other versions of the libraries that augment.

A folder holds one Parquet file for each variant, a draw of the augmentation over all images.
A file appears by one rename, so an interrupted writing goes on with what is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from search_space.errors import DataError, UsageError
from supernet.data.augmentation import AugmentConfig
from supernet.data.batches import Batch
from supernet.data.dataset import ImageData
from supernet.training.logit_files import Rows, RowWriter, class_type, read_description, read_rows

FORMAT = 1
# A decoder of another version moves single pixels by a level of 255, some 0.02 here; another crop
# or a missing flip changes a signature by about 1.
SIGNATURE_TOLERANCE = 0.1


@dataclass(frozen=True, kw_only=True)
class ImageIdentity:
    """All that decides which image training shows at a position of the split in a variant."""

    data: str
    num_images: int
    num_classes: int
    resolution: int
    seed: int
    augment: AugmentConfig

    @classmethod
    def of(cls, data: ImageData, seed: int, augment: AugmentConfig | None = None) -> ImageIdentity:
        """Of a training on ``data`` with this seed; ``augment`` as ``TrainConfig.augment``."""
        return cls(
            data=data.fingerprint,
            num_images=len(data.train),
            num_classes=data.num_classes,
            resolution=data.resolution,
            seed=seed,
            augment=data.augmentation(augment),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-able."""
        return asdict(self) | {"augment": self.augment.to_dict()}


class LogitSource(Protocol):
    """A teacher: ``supernet.training.teachers.Teacher`` or alike; ``identity`` is JSON-able."""

    identity: dict[str, Any]

    def __call__(self, images: torch.Tensor, /) -> torch.Tensor:
        """Logits (n, classes) of images (n, 3, side, side)."""
        ...


def check_unmixed(augment: AugmentConfig) -> None:
    """Stored predictions are of single images. Raises UsageError for mixup and cutmix."""
    if augment.mixup or augment.cutmix:
        raise UsageError(
            f"mixup is {augment.mixup} and cutmix {augment.cutmix}; stored logits are of single "
            "images and know none of mixed pairs: set both to 0, or give the teacher itself "
            "instead of its stored logits."
        )


def image_signature(images: torch.Tensor) -> torch.Tensor:
    """One number for each of images (n, channels, height, width), (n,) float32.

    The sum of pixels with fixed random signs, scaled to variance 1 for white images: unlike a mean
    it changes with flips and shifts.
    """
    count = images.shape[1:].numel()
    signs = np.random.RandomState(0).randint(0, 2, count) * 2 - 1  # a stream that NumPy froze
    pattern = torch.from_numpy(signs / max(1, count) ** 0.5).to(images.device, torch.float32)
    return (images.float().flatten(1) * pattern).sum(1)


def write_logits(
    teacher: LogitSource,
    batches: Callable[[int], Iterable[Batch]],
    path: str | Path,
    *,
    images: ImageIdentity,
    top_k: int,
    variants: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Store the teacher's predictions in the folder ``path``; continues by itself.

    batches: variant → its batches, every image of the split once and unmixed
        (``supernet.data.batches.augmented_batches``), where the variant's file is missing.
    top_k: probabilities kept of each image, at temperature 1.
    variants: draws of the augmentation, which training then repeats in turn.
    progress: called with (images done, all images).

    Raises UsageError for impossible settings, DataError where the folder holds others, the
    teacher's output is unusable or batches leave an image out, and CorruptFileError.
    """
    check_unmixed(images.augment)
    if not 1 <= top_k <= images.num_classes:
        raise UsageError(
            f"top_k is {top_k}; between 1 and all {images.num_classes} classes can be kept."
        )
    if variants < 1:
        raise UsageError(f"variants is {variants}; at least one must be stored.")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    description = _plain(
        {
            "format": FORMAT,
            "images": images.to_dict(),
            "teacher": teacher.identity,
            "top_k": top_k,
            "variants": variants,
        }
    )
    for variant, file in _files(folder).items():
        _require_same(file, read_description(file), description | {"variant": variant})
    for variant in range(variants):
        final = _file(folder, variant)
        if final.exists():
            continue
        for left in folder.glob(f".{final.name}.*"):
            left.unlink()
        temporary = folder / f".{final.name}.{os.getpid()}"
        writer = RowWriter(temporary, description | {"variant": variant}, top_k, images.num_classes)
        seen: list[torch.Tensor] = []
        for batch in batches(variant):
            writer.add(_rows(batch, teacher(batch.images), top_k, images.num_classes))
            seen.append(batch.indices)
            if progress is not None:
                done = variant * images.num_images + sum(map(len, seen))
                progress(done, variants * images.num_images)
        writer.close()
        _require_each_once(seen, images.num_images, variant)
        os.replace(temporary, final)


def _rows(batch: Batch, logits: torch.Tensor, top_k: int, num_classes: int) -> Rows:
    """What is stored of a batch."""
    wanted = (len(batch.images), num_classes)
    finite = bool(logits.isfinite().all())
    if tuple(logits.shape) != wanted or not finite:
        raise DataError(
            f"the teacher's output has shape {tuple(logits.shape)}"
            f"{'' if finite else ' and values that are not finite'}; it must be finite logits of "
            f"shape {wanted}: check the teacher's weights and its number of classes."
        )
    shares, classes = logits.float().softmax(-1).topk(top_k)
    return Rows(
        batch.indices.cpu().numpy().astype(np.int32),
        classes.cpu().numpy().astype(class_type(num_classes)),
        shares.half().cpu().numpy(),
        image_signature(batch.images).cpu().numpy(),
    )


def _require_each_once(seen: list[torch.Tensor], num_images: int, variant: int) -> None:
    found = torch.cat([torch.zeros(0, dtype=torch.int64), *seen]).cpu()
    if not torch.equal(found.sort().values, torch.arange(num_images)):
        raise DataError(
            f"the batches of variant {variant} hold {len(found.unique())} different images in "
            f"{len(found)} rows; each of the {num_images} training images must be there once: take "
            "the batches from augmented_batches."
        )


class StoredLogits:
    """Predictions that ``write_logits`` stored; those of one variant are held in memory.

    They take 4 bytes for each kept class of each image, 6 beyond 32,768 classes.
    ``identity`` is what they were stored with, for the identity of a training.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        self.top_k: int = identity["top_k"]
        self.variants: int = identity["variants"]
        self.num_classes: int = identity["images"]["num_classes"]
        self._loaded: tuple[int, Rows] | None = None
        self._compared = -1

    @classmethod
    def open(
        cls,
        path: str | Path,
        images: ImageIdentity,
        *,
        teacher: Mapping[str, Any] | None = None,
        top_k: int | None = None,
        variants: int | None = None,
    ) -> StoredLogits:
        """The predictions in the folder ``path`` for a training that shows ``images``.

        teacher, top_k, variants: what they must have been stored with; None for whatever it was.

        Raises UsageError for mixup and cutmix, DataError where they are of other images or
        settings or some are missing, and CorruptFileError.
        """
        check_unmixed(images.augment)
        folder = Path(path)
        files = _files(folder)
        if not files:
            raise DataError(
                f"{folder} holds no stored logits; write them first, or give the folder that they "
                "were written to."
            )
        asked: dict[str, Any] = {"format": FORMAT, "images": images.to_dict()}
        for key, value in (("teacher", teacher), ("top_k", top_k), ("variants", variants)):
            if value is not None:
                asked[key] = value
        asked = _plain(asked)
        for variant, file in files.items():
            found = read_description(file)
            _require_same(file, found, asked | {"variant": variant})
            del found["variant"]
            asked = found  # all files must agree on what was not asked for
        missing = [variant for variant in range(asked["variants"]) if variant not in files]
        if missing:
            raise DataError(
                f"{folder} lacks {len(missing)} of {asked['variants']} variants, the first is "
                f"{missing[0]}: all must be there. Write the logits again with the same settings, "
                "which makes only what is missing."
            )
        return cls(folder, asked)

    def __call__(self, variant: int, indices: torch.Tensor) -> torch.Tensor:
        """Probabilities (n, classes), float32, each row adding up to 1.

        indices: (n,) int64 positions in the training split. What the kept classes leave of 1 is
        spread evenly over the others (TinyViT, section 3.1). Kept probabilities are within 2⁻¹⁰ of
        their value and 2⁻²⁴, as float16 rounds; with all classes kept nothing else is lost.
        """
        rows = self._load(variant)
        chosen = indices.cpu().numpy()
        top = torch.from_numpy(rows.probabilities[chosen]).float()
        classes = torch.from_numpy(rows.classes[chosen]).long()
        rest = (1 - top.sum(1, keepdim=True)).clamp_min(0) / max(1, self.num_classes - self.top_k)
        full = rest.repeat(1, self.num_classes).scatter_(1, classes, top)
        return full / full.sum(1, keepdim=True)  # rounding may have lifted the kept ones above 1

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logarithms of a batch's probabilities, (n, classes), on its images' device.

        They are logits of the same distribution. The first batch of each variant is compared with
        the images that the teacher saw.
        """
        if batch.variant != self._compared:
            self.check_images(batch)
            self._compared = batch.variant
        shares = self(batch.variant, batch.indices).to(batch.images.device)
        return shares.clamp_min(torch.finfo(torch.float32).tiny).log()

    def check_images(self, batch: Batch) -> None:
        """Raises DataError where the batch's images are not those that the teacher saw."""
        stored = torch.from_numpy(self._load(batch.variant).signature)[batch.indices.cpu()]
        difference = (image_signature(batch.images).cpu() - stored).abs()
        wrong = int((~(difference <= SIGNATURE_TOLERANCE)).sum())
        if wrong:
            raise DataError(
                f"{wrong} of {len(stored)} images of variant {batch.variant} are not those that "
                f"the logits in {self.folder} were stored for, although all settings agree; they "
                "must be the same augmented images. The code that augments, or timm, torchvision "
                "or pillow, is not that of the writing: restore it, or write the logits again."
            )

    def _load(self, variant: int) -> Rows:
        if self._loaded is None or self._loaded[0] != variant:
            self._loaded = variant, read_rows(_file(self.folder, variant))
        return self._loaded[1]


def _file(folder: Path, variant: int) -> Path:
    return folder / f"variant-{variant:05d}.parquet"


def _files(folder: Path) -> dict[int, Path]:
    """The files that are there, by variant."""
    numbers = (path.stem.removeprefix("variant-") for path in folder.glob("variant-*.parquet"))
    return {int(n): _file(folder, int(n)) for n in sorted(numbers) if n.isdigit()}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back, so that tuples equal lists."""
    return dict(json.loads(json.dumps(values)))


def _require_same(file: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises DataError with every setting asked for that is another in the file."""
    differences = "; ".join(_differences(stored, asked))
    if differences:
        raise DataError(
            f"{file} holds logits of other settings: {differences}. They must be the same: use "
            "those of the writing, or write the logits into another folder."
        )


def _differences(stored: Any, asked: Any, name: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(asked, dict):
        return [
            line
            for key in asked
            for line in _differences(stored.get(key), asked[key], f"{name}.{key}" if name else key)
        ]
    return [] if stored == asked else [f"{name} is {stored!r} there, {asked!r} here"]
