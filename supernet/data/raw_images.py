"""What every source of images has in common: how it is read, checked and split.

Images stay undecoded here; ``supernet.data.splits`` decodes them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from search_space.errors import DataError
from supernet.data.image_modes import check_mode, to_rgb

# Opening a header takes some 50 µs; beyond this many, an evenly spaced selection is checked.
VERIFY_AT_MOST = 100_000
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


class RawImages(Protocol):
    """Undecoded labelled images. ``labels``: (n,) int64; ``keys``: n stable unique names."""

    labels: np.ndarray
    keys: Sequence[str]

    def image(self, index: int) -> Image.Image:
        """The RGB image; raises ``DataError`` naming the file if it cannot be decoded."""
        ...

    def verify(self) -> None:
        """Read every image's header; ``DataError`` names the first unreadable one."""
        ...

    def content(self) -> bytes:
        """Bytes that change when the images do (for the fingerprint)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set: its own splits (``None`` where it has none) and its class names."""

    kind: str
    train: RawImages
    validation: RawImages | None = None
    test: RawImages | None = None
    class_names: tuple[str, ...]


def key_bytes(key: str) -> bytes:
    """A key to be hashed; names of files need not be UTF-8, those of old archives are not."""
    return key.encode(errors="surrogateescape")


def printable(name: str) -> str:
    """A name with what is not UTF-8 in it as an escape, which every file and terminal takes."""
    return name.encode(errors="backslashreplace").decode()


def decode(stream: Any, name: str) -> Image.Image:
    """Decode to RGB."""
    try:
        with Image.open(stream) as image:
            return to_rgb(image, name)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} cannot be read as an image ({error}); replace or remove it"
        ) from error


def check_header(stream: Any, name: str) -> None:
    """Read the header only."""
    try:
        with Image.open(stream) as image:
            check_mode(image, name)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} cannot be read as an image ({error}); replace or remove it"
        ) from error


def verify_each(check: Callable[[int], None], count: int) -> None:
    """Run ``check`` on up to ``VERIFY_AT_MOST`` indices, several at a time."""
    indices = range(0, count, max(1, -(-count // VERIFY_AT_MOST)))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(check, indices, chunksize=64):
            pass


def check_classes(class_names: Sequence[str], train: RawImages, name: str) -> None:
    """At least two classes, each with a training image."""
    present = np.unique(train.labels)
    if len(present) < 2:
        only = class_names[int(present[0])] if len(present) else "none"
        raise DataError(
            f"{name} has one class only ({only!r}); classification needs at least two: "
            "one subfolder (or label value) per class"
        )


def check_covered(
    class_names: Sequence[str], train: RawImages, other: RawImages, split: str
) -> None:
    """A class that is only in a held-out split can never be learnt."""
    extra = np.setdiff1d(other.labels, train.labels)
    if len(extra):
        names = ", ".join(repr(class_names[int(label)]) for label in extra[:5])
        raise DataError(
            f"class {names} is in the {split} split but has no training image; "
            "add training images of it or remove it"
        )


def header_of_bytes(data: bytes, name: str) -> None:
    """``check_header`` for encoded bytes."""
    check_header(io.BytesIO(data), name)
