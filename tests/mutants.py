"""Damaged files: each a small change of a sound one, and a watch over what reads it.

A file is changed as bytes (flipped, cut, overwritten), as data (values of other types and sizes,
deep nesting, keys that are gone or swapped) or as a table (other columns, types and rows). Where a
format has a checksum, it is made to fit again, since otherwise nothing behind it would be reached.
"""

from __future__ import annotations

import io
import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml

CPU_SECONDS, WAITING_SECONDS = 10, 300  # the second for what blocks, on a machine that is busy
MOST_BYTES = 2 * 2**30
_DEEP = "a value that is nested deeply"
_DEPTH = 20_000
_HUGE = 10**60
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, 1e308, -1e308, 2**31, 2**63, 2**64, _HUGE, -_HUGE),
    *(float("nan"), float("inf"), "", "x", "x" * 100_000, "\0", "../../../victim", "/dev/zero"),
    *("nan", "1e400", "9" * 60, "\ud800", "{0.__class__}", [], {}, [[]], {"x": {}}, [None]),
    *(list(range(1000)), {str(i): i for i in range(100)}, _DEEP),
)

Mutation = Callable[[bytes, random.Random], bytes]


class TookTooLongError(BaseException):
    """Passes every ``except Exception`` of the code under test."""


@contextmanager
def watched() -> Iterator[None]:
    """Raises TookTooLongError after the seconds above, MemoryError beyond 2 GB."""

    def ring(number: int, frame: object) -> None:
        raise TookTooLongError(f"more than {CPU_SECONDS} s")

    _reset_peak()
    before = _status("VmRSS")
    signal.signal(signal.SIGPROF, ring)
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = _status("VmHWM") - before
    if grown > MOST_BYTES:
        raise MemoryError(f"{grown / 1e9:.1f} GB")


def _reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    """Bytes of resident memory, now (``VmRSS``) or at most (``VmHWM``)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Bytes --------------------------------------------------------------------------------------------


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    at = rng.randrange(len(data))
    match rng.randrange(7):
        case 0:
            for _ in range(rng.choice([1, 1, 1, 8, 64])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + rng.randrange(1, 64)]
        case 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 64))
        case 4:
            data[at : at + 16] = bytes(16)
        case 5:
            data[at : at + 4] = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"])
        case 6:
            data[at:at] = data[rng.randrange(len(data)) :][:256]
    return bytes(data) if rng.random() < 0.98 else b""


# Data ---------------------------------------------------------------------------------------------


def mutate_data(data: Any, rng: random.Random) -> Any:
    """``data`` (plain, as JSON gives it) with one or two places changed; it is changed itself."""
    for _ in range(rng.choice([1, 1, 2])):
        places = list(_places(data))
        if not places:
            return rng.choice(VALUES)
        if rng.random() < 0.02:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1:
                other, index = rng.choice(places)
                with suppress(KeyError, IndexError):
                    holder[key] = other[index]
            case 2 if isinstance(holder, dict):
                holder[rng.choice(["", "x" * 1000, "__class__", f"{key}2"])] = holder.pop(key)
            case 3 if isinstance(holder, list):
                holder.extend(holder[:100])
            case _:
                holder[key] = rng.choice(VALUES)
        data = _without_circles(data)
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, dict):
        for key in data:
            yield data, key
            yield from _places(data[key])
    elif isinstance(data, list):
        for index, item in enumerate(data):
            yield data, index
            yield from _places(item)


def _without_circles(data: Any) -> Any:
    """A copy, so that no value stands in two places; what would hold itself is cut off."""
    try:
        return json.loads(json.dumps(data))
    except ValueError:
        return {}


def to_json(data: Any) -> bytes:
    return _deepened(json.dumps(data))


def _deepened(text: str) -> bytes:
    return text.replace(f'"{_DEEP}"', "[" * _DEPTH + "]" * _DEPTH).encode(errors="replace")


def of_json(
    seal: Callable[[Any], Any] = lambda data: data, lines: bool = False
) -> Callable[[bytes, random.Random], bytes]:
    """Mutations of a JSON file, or of one line of a file of lines; ``seal`` mends checksums."""

    def mutate(content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.25:
            return mutate_bytes(content, rng)
        parts = content.splitlines() if lines else [content]
        at = rng.randrange(len(parts))
        data = mutate_data(json.loads(parts[at]), rng)
        with suppress(TypeError, KeyError, AttributeError, ValueError, IndexError):
            data = seal(data)
        parts[at] = data if isinstance(data, bytes) else to_json(data)
        return b"\n".join(parts) + b"\n"

    return mutate


def of_yaml(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.25:
        return mutate_bytes(content, rng)
    data = mutate_data(json.loads(json.dumps(yaml.safe_load(content))), rng)
    text = yaml.safe_dump(data, default_flow_style=rng.random() < 0.5, width=10**6)
    return _deepened(text.replace(f"'{_DEEP}'", f'"{_DEEP}"').replace(_DEEP, f'"{_DEEP}"'))


def of_csv(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    rows = [line.split(",") for line in content.decode().splitlines()]
    row = rng.choice(rows)
    match rng.randrange(5):
        case 0:
            row[rng.randrange(len(row))] = str(rng.choice(VALUES))
        case 1:
            rng.shuffle(row)
        case 2:
            row.append(row[0])
        case 3:
            row.pop()
        case 4:
            rows.remove(row)
    return "\n".join(",".join(cells) for cells in rows).encode(errors="replace")


# Tables -------------------------------------------------------------------------------------------

_TYPES = (pa.string(), pa.float64(), pa.int64(), pa.bool_(), pa.binary(), pa.null())


def of_parquet(content: bytes, rng: random.Random) -> bytes:
    """Mutations of a Parquet file: bytes, columns, rows, or the JSON of its metadata."""
    choice = rng.random()
    if choice < 0.25:
        return mutate_bytes(content, rng)
    table = pq.read_table(io.BytesIO(content))
    metadata = dict(table.schema.metadata or {})
    if metadata and choice < 0.6:
        key = rng.choice(list(metadata))
        metadata[key] = of_json()(metadata[key], rng)
    else:
        with suppress(pa.ArrowException, ValueError, OverflowError):
            table = _other_table(table, rng)
    if rng.random() < 0.02:
        metadata.clear()
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, write_page_checksum=True)
    return buffer.getvalue()


def _other_table(table: pa.Table, rng: random.Random) -> pa.Table:
    names = table.column_names
    at = rng.randrange(len(names))
    column, name = table.column(at), names[at]
    match rng.randrange(8):
        case 0:
            return table.drop_columns([name])
        case 1:
            rng.shuffle(names)
            return table.rename_columns(names)
        case 2:
            values = [rng.choice([value, None]) for value in column.to_pylist()]
            return table.set_column(at, name, pa.array(values, column.type))
        case 3:
            return table.set_column(at, name, column.cast(rng.choice(_TYPES), safe=False))
        case 4:
            return table.slice(0, rng.randrange(2))
        case 5:
            return pa.concat_tables([table] * rng.choice([2, 50]))
        case 6:
            return table.append_column(rng.choice([name, "more"]), column)
    values = column.to_pylist()
    values[rng.randrange(len(values))] = rng.choice(VALUES)
    return table.set_column(at, name, pa.array(values, column.type))
