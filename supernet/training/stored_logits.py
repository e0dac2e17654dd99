"""A teacher's predictions on augmented images, stored once, so that training needs no teacher.

Of each augmented image the ``top_k`` largest probabilities are kept (TinyViT's fast distillation,
Wu et al., ECCV 2022, section 3.1; dataset reinforcement, Faghri et al., ICCV 2023). Instead of the
image its (seed, variant, position) is stored, from which the augmentation draws it again.

A folder holds one Parquet file for each variant, a draw of the augmentation over all images. Its
name is a digest of all that the predictions depend on, which each file states, and Parquet's own
checksums find damage. A file appears by one rename, so an interrupted writing goes on with what is
missing. Any number of processes may write one folder: each takes a variant that no other has.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from search_space.boundary import open_regular
from search_space.errors import CorruptFileError, DataError, UsageError
from supernet.data.batches import Batch
from supernet.data.dataset import ImageData
from supernet.training.config import TrainConfig

FORMAT = 2
TOP_K = 10  # TinyViT keeps 10 of ImageNet-1k's classes
ROWS_PER_GROUP = 65536
STALE_SECONDS = 86400.0  # a file is written at one go, in less than that
MAX_FILE_BYTES = 2**40
IDENTITY = b"nas.stored_logits"
COLUMNS = ("index", "classes", "probabilities")
_AUGMENTING = ("timm", "torchvision", "pillow")  # another version may draw other images


LogitSource = Callable[[torch.Tensor], torch.Tensor]
"""Gives logits (n, classes) of images (n, 3, side, side)."""


def identity_of(teacher: Mapping[str, Any], data: ImageData, config: TrainConfig) -> dict[str, Any]:
    """Gives all that the predictions of a teacher depend on, JSON-able.

    Args:
        teacher: Its own identity.
        config: Its augmentation, the seed of that, and in how many variants it repeats.

    Raises:
        UsageError: Mixup or cutmix is on; stored predictions are of single images.
    """
    augment = data.augmentation(config.augment)
    if augment.mixup or augment.cutmix:
        raise UsageError(
            f"mixup is {augment.mixup} and cutmix {augment.cutmix}; stored logits are of single "
            "images and know none of mixed pairs: set both to 0, or give the teacher itself "
            "instead of its stored logits."
        )
    identity = {
        "format": FORMAT,
        "teacher": dict(teacher),
        "data": data.fingerprint,
        "num_images": len(data.train),
        "num_classes": data.num_classes,
        "resolution": data.resolution,
        "seed": config.seed,
        "augment": augment.to_dict(),
        "variants": config.teacher_variants,
        "top_k": min(TOP_K, data.num_classes),
        "versions": {name: importlib.metadata.version(name) for name in _AUGMENTING},
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))  # tuples are lists from here on
    return plain


def store_logits(
    teacher: LogitSource,
    batches: Callable[[int], Iterable[Batch]],
    folder: Path,
    identity: dict[str, Any],
) -> StoredLogits:
    """Stores the teacher's predictions below ``folder``, as far as they are not there.

    Args:
        folder: Holds a folder of each identity.
        batches: Variant → its batches, every image of the split once and unmixed
            (``supernet.data.batches.augmented_batches``).
        identity: As ``identity_of`` gives it.

    Raises:
        DataError: The teacher's output is unusable.
    """
    folder = folder / _digest(identity)
    folder.mkdir(parents=True, exist_ok=True)
    # First what no other process writes; then others are waited for, which may be killed.
    for timeout in (0, -1):
        for variant in range(identity["variants"]):
            if _file(folder, variant).exists():
                continue
            lock = filelock.FileLock(folder / f".variant-{variant:05d}.lock", timeout=timeout)
            try:
                with lock:
                    if not _file(folder, variant).exists():
                        _write(teacher, batches(variant), folder, variant, identity)
                    Path(lock.lock_file).unlink(missing_ok=True)  # the file is there: no use for it
            except filelock.Timeout:
                continue
    return StoredLogits(folder, identity)


def _write(
    teacher: LogitSource,
    batches: Iterable[Batch],
    folder: Path,
    variant: int,
    identity: dict[str, Any],
) -> None:
    final = _file(folder, variant)
    for left in folder.glob(f".{final.name}.*"):  # of a writer that was killed
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            left.unlink(missing_ok=True)
    temporary = folder / f".{final.name}.{uuid.uuid4().hex}"
    schema = _schema(identity, variant)
    rows = [_rows(batch, teacher(batch.images), identity, schema) for batch in batches]
    try:
        pq.write_table(
            pa.Table.from_batches(rows, schema),
            temporary,
            row_group_size=ROWS_PER_GROUP,
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
        )
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(
    batch: Batch, logits: torch.Tensor, identity: Mapping[str, Any], schema: pa.Schema
) -> pa.RecordBatch:
    wanted = (len(batch.images), identity["num_classes"])
    finite = bool(logits.isfinite().all())
    if tuple(logits.shape) != wanted or not finite:
        raise DataError(
            f"the teacher's output has shape {tuple(logits.shape)}"
            f"{'' if finite else ' and values that are not finite'}; it must be finite logits of "
            f"shape {wanted}: check the teacher's weights and its number of classes."
        )
    top_k = identity["top_k"]
    shares, classes = logits.float().softmax(-1).topk(top_k)
    flat = (
        classes.cpu().numpy().astype(_class_type(identity["num_classes"])).ravel(),
        shares.half().cpu().numpy().ravel(),
    )
    lists = [pa.FixedSizeListArray.from_arrays(pa.array(values), top_k) for values in flat]
    indices = pa.array(batch.indices.cpu().numpy().astype(np.int32))
    return pa.RecordBatch.from_arrays([indices, *lists], schema=schema)


def _class_type(num_classes: int) -> type[np.signedinteger[Any]]:
    return np.int16 if num_classes <= 2**15 else np.int32


def _schema(identity: Mapping[str, Any], variant: int) -> pa.Schema:
    top_k = identity["top_k"]
    ids = pa.from_numpy_dtype(np.dtype(_class_type(identity["num_classes"])))
    types = (pa.int32(), pa.list_(ids, top_k), pa.list_(pa.float16(), top_k))
    fields = [
        pa.field(name, kind, nullable=False) for name, kind in zip(COLUMNS, types, strict=True)
    ]
    text = json.dumps({**identity, "variant": variant}, sort_keys=True)
    return pa.schema(fields, metadata={IDENTITY: text})


class StoredLogits:
    """Reads what ``store_logits`` stored; the predictions of one variant are held in memory.

    They take 4 bytes for each kept class of each image, 6 beyond 32,768 classes.

    Example:
        >>> stored = store_logits(teacher, batches, folder, identity)
        >>> stored.logits(batch)  # what the teacher says of a training batch
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        self._loaded: tuple[int, npt.NDArray[Any], npt.NDArray[Any]] | None = None

    def __call__(self, variant: int, indices: torch.Tensor) -> torch.Tensor:
        """Gives probabilities (n, classes), float32, each row adding up to 1.

        What the kept classes leave of 1 is spread evenly over the others (TinyViT, section 3.1).
        Kept probabilities are within 2⁻¹⁰ of their value and 2⁻²⁴, as float16 rounds; with all
        classes kept nothing else is lost.

        Args:
            indices: (n,) int64 positions in the training split.

        Raises:
            CorruptFileError: The variant's file is missing, damaged or of other predictions.
        """
        if self._loaded is None or self._loaded[0] != variant:
            self._loaded = variant, *self._read(variant)
        _, kept_classes, probabilities = self._loaded
        num_classes, top_k = self.identity["num_classes"], self.identity["top_k"]
        chosen = indices.cpu().numpy()
        top = torch.from_numpy(probabilities[chosen]).float()
        classes = torch.from_numpy(kept_classes[chosen]).long()
        rest = (1 - top.sum(1, keepdim=True)).clamp_min(0) / max(1, num_classes - top_k)
        full = rest.repeat(1, num_classes).scatter_(1, classes, top)
        return full / full.sum(1, keepdim=True)  # rounding may have lifted the kept ones above 1

    def logits(self, batch: Batch) -> torch.Tensor:
        """Gives the logarithms of a batch's probabilities, (n, classes), as logits.

        They are on the device of its images.
        """
        shares = self(batch.variant, batch.indices).to(batch.images.device)
        return shares.clamp_min(torch.finfo(torch.float32).tiny).log()

    def _read(self, variant: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Reads the classes and probabilities of a variant, by index, (images, top_k) each."""
        path = _file(self.folder, variant)
        try:
            with (
                os.fdopen(open_regular(path, MAX_FILE_BYTES), "rb") as raw,
                pq.ParquetFile(raw, page_checksum_verification=True) as file,
            ):
                there, here = file.schema_arrow, _schema(self.identity, variant)
                if not there.equals(here, check_metadata=False):
                    raise ValueError(f"its columns are {', '.join(map(str, there))}")
                if (there.metadata or {}).get(IDENTITY) != here.metadata[IDENTITY]:
                    raise ValueError("it states other settings")
                if file.metadata.num_rows != self.identity["num_images"]:
                    raise ValueError(f"it has {file.metadata.num_rows} rows")
                table = file.read(columns=list(COLUMNS))
            indices, *lists = (table.column(name).combine_chunks() for name in COLUMNS)
            order = np.argsort(np.asarray(indices))
            if not np.array_equal(np.asarray(indices)[order], np.arange(len(order))):
                raise ValueError("it has not one row for each image")
            classes, shares = (
                np.asarray(x.flatten()).reshape(-1, x.type.list_size)[order] for x in lists
            )
            return classes, shares
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            raise CorruptFileError(
                f"{path} is not a whole file of the stored logits that are needed ({text}); delete "
                "it, and what is missing is stored again."
            ) from None


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _file(folder: Path, variant: int) -> Path:
    return folder / f"variant-{variant:05d}.parquet"
