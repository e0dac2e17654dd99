"""Tables in Parquet files of one sort, with their provenance as JSON in the schema's metadata."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from search_space.boundary import open_regular
from search_space.errors import CorruptFileError
from search_space.parsing import UnreadableTextError, parse_json

MOST_ENTRIES = 200_000
MOST_BYTES = 2**26  # of a file, and of what it holds when unpacked
LONGEST_TEXT = 2000


def write_parquet(path: Path, table: pa.Table, key: bytes, metadata: Mapping[str, Any]) -> None:
    """Replaces ``path`` by ``table`` with ``metadata`` as JSON in its schema: all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metadata, sort_keys=True, allow_nan=False).encode()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            pq.write_table(
                table.replace_schema_metadata({key: text}), file, write_page_checksum=True
            )
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_parquet(
    path: Path, key: bytes, schema: pa.Schema, version: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Reads rows and metadata of a file that ``write_parquet`` wrote, of a schema's ``version``.

    Raises:
        CorruptFileError: The file is something else, damaged, or larger than any table, which is
            known from its end before anything is read.
    """
    texts = [field.name for field in schema if field.type == pa.string()]
    try:
        with os.fdopen(open_regular(path, MOST_BYTES), "rb") as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True, read_dictionary=texts)
            _check_size(path, file.metadata)
            stored = file.schema.to_arrow_schema()
            metadata = parse_json((stored.metadata or {})[key].decode())
            found = metadata.get("schema_version") if isinstance(metadata, dict) else None
            if found != version:
                raise CorruptFileError(
                    f"{path}: it has schema version {found!r:.40}, this program reads version "
                    f"{version}."
                )
            if not stored.remove_metadata().equals(schema):
                wanted = ", ".join(f"{f.name}: {f.type}" for f in schema)
                raise CorruptFileError(f"{path}: its columns are not {wanted}.")
            table = file.read()
            for chunk in (c for name in texts for c in table[name].chunks):
                # a text that many rows share would be copied for each of them
                if (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0) > LONGEST_TEXT:
                    raise CorruptFileError(
                        f"{path}: a text has more than {LONGEST_TEXT} characters."
                    )
            return table.cast(schema).to_pylist(), metadata
    except FileNotFoundError:
        raise CorruptFileError(f"{path}: there is no such file.") from None
    except (KeyError, UnicodeDecodeError, UnreadableTextError):
        raise CorruptFileError(
            f"{path}: it carries no provenance, so it is no table of ours."
        ) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFileError(
            f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:120]})."
        ) from None


def _check_size(path: Path, metadata: pq.FileMetaData) -> None:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    if metadata.num_rows > MOST_ENTRIES or size > MOST_BYTES:
        raise CorruptFileError(
            f"{path} has {metadata.num_rows:,} rows of {size:,} bytes; a table has at most "
            f"{MOST_ENTRIES:,} of {MOST_BYTES:,} bytes."
        )
