"""Images in Parquet files: a column of encoded images and a column of labels.

The layout is the common one: ``image`` is a struct ``{bytes, path}`` or plain bytes.
Row groups are read when asked for and a bounded number is kept, so a data set larger than
memory works; class names come from the schema's metadata where it has them.
"""

from __future__ import annotations

import io
import json
import os
import threading
import warnings
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from search_space.errors import DataError
from supernet.data.folder import files_below
from supernet.data.images import SUFFIXES, Source, decode, read_size, reading
from supernet.data.labels import TRAIN, Labels, join_labels, label_type, splits_named
from supernet.data.memory import available_memory

_SHARE_KEPT = 0.25  # of the memory that is free, for row groups


class ParquetImages:
    """The rows of some Parquet files, in order; keys are ``file:row``.

    Row groups are kept up to a quarter of the memory that this process may use at the time, so
    that several processes, and the limit of a container, are respected.
    """

    def __init__(self, root: Path, paths: Sequence[Path], column: str, labels: np.ndarray) -> None:
        self.labels = labels
        self.image_column = column
        self._paths = list(paths)
        self._reopen()
        rows = [
            [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            for file in self._files
        ]
        self._groups = [(file, group) for file, of in enumerate(rows) for group in range(len(of))]
        self._starts = list(accumulate(chain(*rows), initial=0))  # of each group, and the end
        if self._starts[-1] != len(labels):
            raise DataError(
                f"{paths[0]}, …: {len(labels)} labels for {self._starts[-1]} rows; replace them"
            )
        self.keys: Sequence[str] = [
            f"{path.relative_to(root).as_posix()}:{row}"
            for path, of in zip(paths, rows, strict=True)
            for row in range(sum(of))
        ]

    def _reopen(self) -> None:
        self._files = [open_file(path) for path in self._paths]
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # For data-loading workers that are not forked: open files and locks stay behind.
        left = ("_files", "_lock", "_kept")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reopen()

    def _encoded(self, index: int) -> bytes:
        position = bisect_right(self._starts, index) - 1
        with self._lock:
            column = self._kept.get(position)
            if column is None:
                column = self._kept[position] = self._read_group(*self._groups[position])
                kept = sum(group.nbytes for group in self._kept.values())
                allowed = _SHARE_KEPT * (available_memory() + kept)
                while kept > allowed and len(self._kept) > 1:
                    kept -= self._kept.popitem(last=False)[1].nbytes
                    pa.default_memory_pool().release_unused()
        with _reading(self._paths[self._groups[position][0]]):
            value: Any = column[index - self._starts[position]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise DataError(f"{self._where(index)} has no image bytes; store the encoded image")
        return bytes(data)

    def _read_group(self, number: int, group: int) -> pa.ChunkedArray:
        with _reading(self._paths[number]):
            file, columns = self._files[number], [self.image_column]
            return file.read_row_group(group, columns=columns, use_threads=False).column(0)

    def _where(self, index: int) -> str:
        name, _, row = self.keys[index].rpartition(":")
        return f"row {row} of {name}"

    def image(self, index: int) -> Image.Image:
        return decode(io.BytesIO(self._encoded(index)), self._where(index))

    def size(self, index: int) -> tuple[int, int]:
        return read_size(io.BytesIO(self._encoded(index)), self._where(index))

    def content(self) -> bytes:
        return np.array([path.stat().st_size for path in self._paths], dtype="<i8").tobytes()


def holds_parquet_images(folder: Path, image_column: str) -> bool:
    """Says whether a folder is a Parquet data set: one of its files has the column of images.

    Image folders may have Parquet files, too, of captions or features, or damaged ones. A folder
    with such files and nothing else counts, so that what is wrong with them is said.
    """
    files = list(files_below(folder, {".parquet"}))
    for file in files:
        with suppress(DataError), _reading(file):
            if image_column in open_file(file).schema_arrow.names:
                return True
    return bool(files) and next(files_below(folder, SUFFIXES), None) is None


def open_parquet(path: Path, image_column: str, label_column: str) -> Source:
    """Opens one Parquet file or a folder of them.

    Files are of the split that their name or a folder's says anywhere between separators, as in
    ``x-test.parquet``, ``test-00000.parquet`` or ``split=test/0.parquet``. Where none is for
    training by its name, those whose names say nothing are.

    Raises:
        DataError: A file is damaged, lacks a column, or says two splits.
    """
    single = path.is_file()
    files = [path] if single else list(files_below(path, {".parquet"}))
    splits = {TRAIN: files} if single else _by_split(files, path)
    root = path.parent if single else path
    names = _class_names(
        [file for members in splits.values() for file in members], image_column, label_column
    )
    labels = {}
    for split, members in splits.items():
        column = _label_column(members, label_column)
        if len(column) == 0:
            raise DataError(f"the {split} split of {path} is empty; add rows or remove its files")
        labels[split] = Labels.of_column(column, f"column {label_column!r} of {path}")
    classes, codes = join_labels(labels, names, path)
    images = {
        split: ParquetImages(root, splits[split], image_column, codes[split]) for split in codes
    }
    return Source(kind="parquet", class_names=classes, **images)


def _by_split(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for file in files:
        parts = file.relative_to(root).with_suffix("").parts
        said = set().union(*map(splits_named, parts))
        if len(said) > 1:
            raise DataError(
                f"{file} says {' and '.join(sorted(said))}; a file is of one split: rename it or "
                "its folder"
            )
        (splits.setdefault(said.pop(), []) if said else unnamed).append(file)
    if TRAIN not in splits and unnamed:
        splits[TRAIN] = unnamed
    elif unnamed:
        warnings.warn(
            f"{len(unnamed)} Parquet files in {root} are left out, since others are for training "
            f"by their name and these say no split: {unnamed[0]} …; rename them if they are to "
            "be used",
            stacklevel=2,
        )
    if TRAIN not in splits:
        raise DataError(f"{root} has no training files; name them train*.parquet")
    return splits


def open_file(file: Path) -> pq.ParquetFile:
    """Opens a file, memory-mapped; raises DataError."""
    # Such files have no shared position, so forked workers do not disturb each other. The name is
    # given as bytes because Arrow takes only UTF-8 as text.
    with _reading(file):
        return pq.ParquetFile(pa.memory_map(os.fsencode(file)))


def _reading(file: Path) -> AbstractContextManager[None]:
    return reading(f"{file} is not a readable Parquet file")


def _label_column(files: Sequence[Path], column: str) -> pa.ChunkedArray:
    """Reads the labels of all rows of these files."""
    chunks: list[pa.Array] = []
    kinds: dict[pa.DataType, Path] = {}
    for file in files:
        where = f"label column {column!r} of {file}"
        with _reading(file):
            part = open_file(file).read(columns=[column]).column(column)
            kind = label_type(part.type, where)
            chunks += part.cast(kind).chunks
        if 0 < part.null_count < len(part):
            raise DataError(f"{where} has {part.null_count} empty rows; every image needs a label")
        kinds.setdefault(kind, file)
    for (kind, file), (other, second) in pairwise(kinds.items()):
        raise DataError(
            f"column {column!r} has type {kind} in {file} and {other} in {second}; write the "
            "labels of all files alike"
        )
    return pa.chunked_array(chunks, type=next(iter(kinds)))


# What the schemas say


def _class_names(files: Sequence[Path], image_column: str, label_column: str) -> tuple[str, ...]:
    """Checks the columns of every file; returns the class names, or () where none has any.

    Raises:
        DataError: Names the file, or both files where two name other classes.
    """
    named: tuple[Path, tuple[str, ...]] | None = None
    for file in files:
        with _reading(file):
            names = _check_schema(file, image_column, label_column)
        if names and named and names != named[1]:
            raise DataError(
                f"{named[0]} and {file} name other classes ({_first_difference(named[1], names)}); "
                "a label must mean the same in all files: write them with one list of classes, or "
                "open them as data sets of their own"
            )
        if names:
            named = named or (file, names)
    return () if named is None else named[1]


def _first_difference(left: tuple[str, ...], right: tuple[str, ...]) -> str:
    for label, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return f"label {label} is {one!r} in the first and {other!r} in the second"
    return f"{len(left)} in the first and {len(right)} in the second"


def _check_schema(file: Path, image_column: str, label_column: str) -> tuple[str, ...]:
    """Checks the columns of a file; returns its class names, or () where there are none."""
    schema = open_file(file).schema_arrow
    for column in (image_column, label_column):
        if schema.names.count(column) != 1:
            number = "two columns" if column in schema.names else "no column"
            raise DataError(
                f"{file} has {number} {column!r}; it has {', '.join(schema.names)}. Name the "
                "image and label columns with --image-column and --label-column, or rename them"
            )
    label_type(schema.field(label_column).type, f"label column {label_column!r} of {file}")
    image_type = schema.field(image_column).type
    inner = image_type
    if pa.types.is_struct(image_type) and image_type.get_field_index("bytes") >= 0:
        inner = image_type.field("bytes").type
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise DataError(
            f"image column {image_column!r} of {file} has type {image_type}; it must hold encoded "
            "images as bytes or as a struct {bytes, path}"
        )
    return _names_in(file, schema.metadata or {}, label_column)


def _names_in(file: Path, metadata: dict[bytes, bytes], column: str) -> tuple[str, ...]:
    """Reads class names from the key ``classes`` (JSON or comma-separated), or Hugging Face's."""
    raw = metadata.get(b"classes")
    if raw is None:
        try:
            features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
            return tuple(str(name) for name in features[column]["names"])
        except (KeyError, TypeError, ValueError, RecursionError):
            return ()
    names = None
    try:
        text = raw.decode("utf-8")
        names = json.loads(text)
    except (UnicodeDecodeError, RecursionError):
        pass
    except ValueError:
        names = [name.strip() for name in text.split(",")]
    if not isinstance(names, list) or not names:
        raise DataError(
            f"the metadata 'classes' of {file} is {raw!r:.200}; it must be a JSON list of class "
            "names, or the names with commas between them, in UTF-8: write the file anew with "
            "such a list, or without 'classes'"
        )
    return tuple(map(str, names))
