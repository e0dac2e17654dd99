"""What a Parquet file of images must look like, and the classes that it names."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from search_space.errors import DataError

READ_ERRORS = (OSError, pa.ArrowException)


def unreadable(file: Path, error: Exception) -> DataError:
    """The error to raise where reading ``file`` raised one of ``READ_ERRORS``."""
    reason = " ".join(str(error).split())
    return DataError(f"{file} is not a readable Parquet file ({reason}); replace or remove it")


def open_file(file: Path) -> pq.ParquetFile:
    """Open a file, memory-mapped. Raises DataError."""
    # Such files have no shared position, so forked workers do not disturb each other. The name is
    # given as bytes because Arrow takes only UTF-8 as text.
    try:
        return pq.ParquetFile(pa.memory_map(os.fsencode(file)))
    except READ_ERRORS as error:
        raise unreadable(file, error) from error


def check_schemas(files: Sequence[Path], image_column: str, label_column: str) -> tuple[str, ...]:
    """Check the columns of every file; returns the class names, or () where none has any.

    Raises DataError naming the file, or both files where two name other classes.
    """
    named: tuple[Path, tuple[str, ...]] | None = None
    for file in files:
        names = _check_schema(file, image_column, label_column)
        if not names:
            continue
        if named is None:
            named = file, names
        elif names != named[1]:
            raise DataError(
                f"{named[0]} and {file} name other classes ({_first_difference(named[1], names)}); "
                "a label must mean the same in all files: write them with one list of classes, or "
                "open them as data sets of their own"
            )
    return () if named is None else named[1]


def _first_difference(left: tuple[str, ...], right: tuple[str, ...]) -> str:
    for label, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return f"label {label} is {one!r} in the first and {other!r} in the second"
    return f"{len(left)} in the first and {len(right)} in the second"


def _check_schema(file: Path, image_column: str, label_column: str) -> tuple[str, ...]:
    """Check the columns' presence and types; returns class names, or () where there are none."""
    schema = open_file(file).schema_arrow
    for column in (image_column, label_column):
        if column not in schema.names:
            raise DataError(
                f"{file} has no column {column!r}; it has {', '.join(schema.names)}. Name the "
                "image and label columns, or rename them to 'image' and 'label'"
            )
    label_type = schema.field(label_column).type
    if not pa.types.is_integer(label_type):
        raise DataError(
            f"label column {label_column!r} of {file} has type {label_type}, not integer; store "
            "class indices (0, 1, …) as int64, or name another label column"
        )
    image_type = schema.field(image_column).type
    inner = image_type
    if pa.types.is_struct(image_type) and image_type.get_field_index("bytes") >= 0:
        inner = image_type.field("bytes").type
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise DataError(
            f"image column {image_column!r} of {file} has type {image_type}; it must hold encoded "
            "images as bytes or as a struct {bytes, path}"
        )
    return _class_names(file, schema, label_column)


def _class_names(file: Path, schema: pa.Schema, label_column: str) -> tuple[str, ...]:
    """From the key ``classes`` (JSON list or comma-separated), or Hugging Face's features."""
    metadata = schema.metadata or {}
    raw = metadata.get(b"classes")
    if raw is not None:
        return _listed(file, raw)
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(str(name) for name in features[label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _listed(file: Path, raw: bytes) -> tuple[str, ...]:
    try:
        text = raw.decode("utf-8")
        names = json.loads(text)
    except UnicodeDecodeError:
        names = None
    except ValueError:
        names = [name.strip() for name in text.split(",")]
    if not isinstance(names, list):
        raise DataError(
            f"the metadata 'classes' of {file} is {raw!r}; it must be a JSON list of class names, "
            "or the names with commas between them, in UTF-8: write the file anew with such a "
            "list, or without 'classes'"
        )
    return tuple(str(name) for name in names)
