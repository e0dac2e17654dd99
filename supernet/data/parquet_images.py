"""Images in Parquet files: a column of encoded images and an integer label column.

The layout is the common one: ``image`` is a struct ``{bytes, path}`` or plain bytes.
Row groups are read when asked for and a bounded number is kept, so a data set larger than
memory works; class names come from the schema's metadata where it has them.
"""

from __future__ import annotations

import io
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

from search_space.errors import DataError
from supernet.data.parquet_schema import READ_ERRORS, check_schemas, open_file, unreadable
from supernet.data.raw_images import (
    SPLIT_FOLDERS,
    Source,
    check_classes,
    check_covered,
    decode,
    header_of_bytes,
    verify_each,
)


class ParquetImages:
    """The rows of some Parquet files, in order; keys are ``file:row``.

    Row groups are kept up to a quarter of the memory that is free when the files are opened.
    """

    def __init__(self, root: Path, files: list[Path], image: str, label: str) -> None:
        self.image_column = image
        keys: list[str] = []
        labels: list[np.ndarray] = []
        self._files = [open_file(file) for file in files]
        self._cache_bytes = psutil.virtual_memory().available // 4
        self._lock = threading.Lock()
        self._names = [file.relative_to(root).as_posix() for file in files]
        self._paths = files
        self._groups: list[tuple[int, int]] = []  # (file, row group) and the first row of each
        self._starts: list[int] = []
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        total = 0
        for number, file in enumerate(self._files):
            try:
                column = file.read(columns=[label]).column(label)
            except READ_ERRORS as error:
                raise unreadable(files[number], error) from error
            if column.null_count:
                raise DataError(
                    f"label column {label!r} of {files[number]} has {column.null_count} empty "
                    "rows; every image needs a label"
                )
            labels.append(column.to_numpy().astype(np.int64))
            keys += [f"{self._names[number]}:{row}" for row in range(len(column))]
            for group in range(file.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(total)
                total += file.metadata.row_group(group).num_rows
        self.keys: Sequence[str] = keys
        self.labels = np.concatenate(labels) if labels else np.zeros(0, np.int64)

    def _encoded(self, index: int) -> bytes:
        position = bisect_right(self._starts, index) - 1
        with self._lock:
            column = self._cache.get(position)
            if column is None:
                column = self._cache[position] = self._read_group(*self._groups[position])
                kept = sum(entry.nbytes for entry in self._cache.values())
                while kept > self._cache_bytes and len(self._cache) > 1:
                    kept -= self._cache.popitem(last=False)[1].nbytes
        value: Any = column[index - self._starts[position]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise DataError(f"{self._where(index)} has no image bytes; store the encoded image")
        return bytes(data)

    def _read_group(self, number: int, group: int) -> pa.ChunkedArray:
        columns = [self.image_column]
        try:
            table = self._files[number].read_row_group(group, columns=columns, use_threads=False)
        except READ_ERRORS as error:
            raise unreadable(self._paths[number], error) from error
        return table.column(0)

    def __getstate__(self) -> dict[str, Any]:
        # For data-loading workers that are not forked: open files and locks stay behind.
        state = self.__dict__.copy()
        for name in ("_files", "_lock", "_cache"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._files = [open_file(path) for path in self._paths]
        self._lock = threading.Lock()
        self._cache = OrderedDict()

    def _where(self, index: int) -> str:
        name, _, row = self.keys[index].rpartition(":")
        return f"row {row} of {name}"

    def image(self, index: int) -> Image.Image:
        return decode(io.BytesIO(self._encoded(index)), self._where(index))

    def verify(self) -> None:
        verify_each(
            lambda index: header_of_bytes(self._encoded(index), self._where(index)),
            len(self.labels),
        )

    def content(self) -> bytes:
        return np.array([path.stat().st_size for path in self._paths], dtype="<i8").tobytes()


def parquet_files(folder: Path) -> Iterator[Path]:
    """The Parquet files below a folder; folders may have such names too."""
    return (path for path in folder.rglob("*.parquet") if path.is_file())


def open_parquet(path: Path, image_column: str, label_column: str) -> Source:
    """Open one Parquet file or a folder of them. Raises ``DataError``.

    Files (or their folders) named ``train…``, ``val…``, ``test…`` are those splits; any other
    file is training data.
    """
    root = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(parquet_files(path))
    by_role: dict[str, list[Path]] = {}
    for file in files:
        by_role.setdefault("train" if path.is_file() else _role(file, root), []).append(file)
    if "train" not in by_role:
        raise DataError(f"{path} has no training files; name them train*.parquet")
    class_names = check_schemas(files, image_column, label_column)
    images = {
        role: ParquetImages(root, members, image_column, label_column)
        for role, members in by_role.items()
    }
    for role, split in images.items():
        if len(split.labels) == 0:
            raise DataError(f"the {role} split of {path} is empty; add rows or remove its files")
    train = images["train"]
    if class_names:
        _check_range(images, class_names, label_column)
    else:
        # Without names, the label values that occur are the classes.
        values = np.unique(np.concatenate([split.labels for split in images.values()]))
        class_names = tuple(str(value) for value in values)
        for split in images.values():
            split.labels = np.searchsorted(values, split.labels).astype(np.int64)
    check_classes(class_names, train, str(path))
    for role in ("validation", "test"):
        if role in images:
            check_covered(class_names, train, images[role], role)
    return Source(
        kind="parquet",
        train=train,
        validation=images.get("validation"),
        test=images.get("test"),
        class_names=class_names,
    )


def _role(file: Path, root: Path) -> str:
    for name in (file.stem, *reversed(file.relative_to(root).parts[:-1])):
        word = name.lower().removesuffix(".parquet").replace("_", "-").split("-")[0]
        word = word.rstrip("0123456789")
        if word in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[word]
    return "train"


def _check_range(
    images: dict[str, ParquetImages], class_names: tuple[str, ...], label_column: str
) -> None:
    for role, split in images.items():
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(class_names):
            raise DataError(
                f"label column {label_column!r} of the {role} split has values from {low} to "
                f"{high}, but the file names {len(class_names)} classes (0 to "
                f"{len(class_names) - 1})"
            )
