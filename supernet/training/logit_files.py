"""The Parquet file of one variant of stored logits: columns, checksum, and a writer by batches.

The checksum in the file's metadata covers the decoded columns and the description, so that
damage is found wherever it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from search_space.errors import CorruptFileError

DESCRIPTION, CHECKSUM = b"nas.stored_logits", b"nas.sha256"
COLUMNS = ("index", "classes", "probabilities", "signature")
ROWS_PER_GROUP = 65536


class Rows(NamedTuple):
    """indices: (n,) int32 positions; classes: (n, top_k) int16 or int32, by falling probability;
    probabilities: (n, top_k) float16; signature: (n,) float32."""

    indices: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    signature: np.ndarray


def class_type(num_classes: int) -> type[np.signedinteger[Any]]:
    """The smallest integer type that holds all classes."""
    return np.int16 if num_classes <= 2**15 else np.int32


def schema(top_k: int, num_classes: int) -> pa.Schema:
    """The columns of a file."""
    ids = pa.from_numpy_dtype(np.dtype(class_type(num_classes)))
    types = (pa.int32(), pa.list_(ids, top_k), pa.list_(pa.float16(), top_k), pa.float32())
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in zip(COLUMNS, types, strict=True)]
    )


class RowWriter:
    """Writes rows to ``path`` as they come; the file is whole after ``close``."""

    def __init__(
        self, path: Path, description: Mapping[str, Any], top_k: int, num_classes: int
    ) -> None:
        self.path, self.top_k = path, top_k
        text = json.dumps(description, sort_keys=True).encode()
        self._checksum = _Checksum(text)
        self._schema = schema(top_k, num_classes).with_metadata({DESCRIPTION: text})
        self._pending: list[Rows] = []
        self._file = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            use_dictionary=False,
        )

    def add(self, rows: Rows) -> None:
        self._pending.append(rows)
        if sum(len(item.indices) for item in self._pending) >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        rows = Rows(*(np.concatenate(parts) for parts in zip(*self._pending, strict=True)))
        self._pending = []
        self._checksum.update(rows)
        arrays = [
            pa.array(column)
            if column.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), self.top_k)
            for column in rows
        ]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the rest and put the file on the disk."""
        if self._pending:
            self._flush()
        self._file.add_key_value_metadata({CHECKSUM: self._checksum.hexdigest()})
        self._file.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())


class _Checksum:
    """SHA-256 of a description and of columns, each on its own: row groups leave no trace."""

    def __init__(self, description: bytes) -> None:
        self._description = description
        self._columns = [hashlib.sha256() for _ in COLUMNS]

    def update(self, rows: Rows) -> None:
        for column, checksum in zip(rows, self._columns, strict=True):
            checksum.update(np.ascontiguousarray(column).data)

    def hexdigest(self) -> str:
        parts = (checksum.digest() for checksum in self._columns)
        return hashlib.sha256(
            b"".join([hashlib.sha256(self._description).digest(), *parts])
        ).hexdigest()


def read_description(path: Path) -> dict[str, Any]:
    """What the file says of itself; only its end is read.

    Raises CorruptFileError for anything but a whole file with the columns of stored logits.
    """
    try:
        found = pq.read_schema(path)
        description = json.loads((found.metadata or {})[DESCRIPTION])
        expected = schema(description["top_k"], description["images"]["num_classes"])
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if not found.equals(expected, check_metadata=False):
        raise _damaged(path, f"its columns are {', '.join(map(str, found))}")
    return dict(description)


def read_rows(path: Path) -> Rows:
    """All rows, by index. Raises CorruptFileError."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=list(COLUMNS))
            metadata = file.metadata.metadata
        rows = Rows(*(_values(table.column(name)) for name in COLUMNS))
        checksum = _Checksum(metadata[DESCRIPTION])
        checksum.update(rows)
        recorded = metadata[CHECKSUM].decode()
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if checksum.hexdigest() != recorded:
        raise _damaged(path, "its checksum is not the recorded one")
    order = np.argsort(rows.indices)
    return Rows(*(column[order] for column in rows))


def _values(column: pa.ChunkedArray) -> np.ndarray:
    values = column.combine_chunks()
    if not pa.types.is_fixed_size_list(values.type):
        return np.asarray(values)
    return np.asarray(values.flatten()).reshape(-1, values.type.list_size)


def _damaged(path: Path, what: str) -> CorruptFileError:
    return CorruptFileError(
        f"{path} is not a whole file of stored logits ({' '.join(what.split())[:200]}); copy it "
        "again, or delete it and write the logits again, which makes only what is missing."
    )
