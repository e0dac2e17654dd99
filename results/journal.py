"""The journal of a run: finished evaluations, append-only, safe against ``kill -9``.

Each evaluation is one line, written by one system call, flushed to the disk, and carrying a
checksum of its own bytes. So after any interruption the file is valid up to at most one torn
line at its end, which is cut off and reported when the journal is opened again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError

from results.files import FileLock, atomic_write, sync_folder
from search_space.architecture import Architecture
from search_space.boundary import explain, read_bytes
from search_space.errors import CorruptFileError, RunError
from search_space.names import Digest
from search_space.parsing import UnreadableTextError, parse_json

logger = logging.getLogger(__name__)

_BEGINNING = b'{"digest":"'
_CHECKSUM_KEY = b',"checksum":"'
_CHECKSUM_DIGITS = 12
_COLUMNS = ("digest", "index", "status", "error", "seconds", "architecture")
SNAPSHOT_VERSION = 1
MAX_JOURNAL = 2**32  # bytes; a line has about 3 kB
_MOVE = (
    "Restore it from a copy, or move it away and continue the run with --resume to have everything "
    "evaluated again."
)

Status = Literal["ok", "failed", "stopped"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluated architecture and its metrics. A finished record never changes.

    Example:
        >>> Evaluation(architecture.digest, architecture.to_dict(), {"accuracy": 0.9}, index=0)

    Attributes:
        digest: key of the architecture.
        architecture: its plain form.
        metrics: name to value (``accuracy``, ``latency_ms``, …); NaN and infinities are kept.
        index: position in the order of evaluation.
        status: ``ok``, ``failed`` with ``error`` set, or ``stopped``: judged on a part of the
            images, so its metrics are estimates and it is no member of a front.
        seconds: time that the evaluation took.
    """

    digest: Digest
    architecture: Mapping[str, Any]
    metrics: Mapping[str, float]
    index: int
    status: Status = "ok"
    error: str | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        assert not set(self.metrics) & set(_COLUMNS), f"reserved names: {_COLUMNS}"
        metrics = {name: float(value) for name, value in self.metrics.items()}
        object.__setattr__(self, "metrics", metrics)

    @classmethod
    def of(
        cls, architecture: Architecture, metrics: Mapping[str, float], index: int = 0, **more: Any
    ) -> Self:
        """The evaluation of an architecture."""
        return cls(architecture.digest, architecture.to_dict(), metrics, index, **more)

    def to_line(self) -> bytes:
        """One line of strict JSON that ends with a checksum of what precedes it, and a newline."""
        body = {  # begins as ``_BEGINNING`` does
            **vars(self),
            "seconds": _encode_float(self.seconds),
            "metrics": {name: _encode_float(value) for name, value in self.metrics.items()},
        }
        text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()[:-1]
        return text + _CHECKSUM_KEY + _checksum(text) + b'"}\n'

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Inverse of ``to_line``, floats bit for bit.

        Raises:
            ValueError: The line was not written whole; names what is wrong.
            CorruptFileError: It was, and is no evaluation, so that somebody made it so.
        """
        if not line.endswith(b"\n"):
            raise ValueError("it is cut short")
        split = len(line) - len(_CHECKSUM_KEY) - _CHECKSUM_DIGITS - len(b'"}\n')
        text, tail = line[: max(split, 0)], line[max(split, 0) :]
        if tail != _CHECKSUM_KEY + _checksum(text) + b'"}\n':
            raise ValueError("its checksum does not match its content")
        try:
            return TypeAdapter(cls).validate_python(parse_json((text + b"}").decode()))
        except (ValidationError, UnreadableTextError, AssertionError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else f"it {error}"
            raise CorruptFileError(f"it is not an evaluation: {reason}") from None


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_CHECKSUM_DIGITS].encode()


def _encode_float(value: float) -> float | str:
    """JSON has no NaN or infinity: they are written as text that ``float`` reads."""
    return float(value) if math.isfinite(value) else str(float(value))


def _scan(path: Path) -> tuple[list[Evaluation], int, str | None]:
    """Intact evaluations of a journal, the byte where they end, and what is wrong after it.

    Lines may end with CR LF, as some editors and version control write them.
    """
    try:
        content = read_bytes(path, MAX_JOURNAL)
    except CorruptFileError as error:
        raise CorruptFileError(f"{error} {_MOVE}") from None
    evaluations: list[Evaluation] = []
    seen: dict[str, int] = {}
    good = 0
    lines = io.BytesIO(content).readlines()  # bytes.splitlines would split at CR alone, too
    for number, line in enumerate(lines, 1):
        sound = line[:-2] + b"\n" if line.endswith(b"\r\n") else line
        try:
            evaluation = Evaluation.from_line(sound)
        except CorruptFileError as error:
            raise CorruptFileError(f"{path}, line {number}: {error} {_MOVE}") from None
        except ValueError as error:
            if number == 1 and not _may_be_torn(line):
                raise CorruptFileError(
                    f"{path} is no journal of evaluations: it begins with {line[:20]!r}. {_MOVE}"
                ) from None
            if number == len(lines):
                return evaluations, good, f"{path}, line {number} (the last): {error}"
            raise CorruptFileError(
                f"{path}, line {number}: {error}, and {len(lines) - number} lines follow it, so "
                "this is not an interrupted write: the file was altered. Restore it from a copy, "
                f"or delete line {number} to have its architecture evaluated again."
            ) from None
        if evaluation.digest in seen:
            raise CorruptFileError(
                f"{path}, line {number}: architecture {evaluation.digest} is already in line "
                f"{seen[evaluation.digest]}; each is written once. Delete one of the two lines."
            )
        seen[evaluation.digest] = number
        evaluations.append(evaluation)
        good += len(line)
    return evaluations, good, None


def _may_be_torn(line: bytes) -> bool:
    """Whether it is a journal's line, or what an interrupted write of one may have left."""
    zeros = not line.strip(b"\0")  # blocks that a power cut left without their content
    return zeros or line.startswith(_BEGINNING) or _BEGINNING.startswith(line)


def read_journal(path: Path) -> tuple[Evaluation, ...]:
    """The journal's evaluations in order, read without lock or repair; a torn last line is left.

    For readers beside a running search.

    Raises:
        CorruptFileError: A line before the end is broken.
    """
    return tuple(_scan(path)[0])


class Journal:
    """Append-only file of evaluations; each architecture is in it once.

    Example:
        >>> with Journal(Path("evaluations.jsonl")) as journal:
        ...     journal.append(evaluation)
        ...     journal.get(evaluation.digest)

    Opening it repairs it: a torn last line is cut off and described in ``warnings``.

    Raises:
        CorruptFileError: A line before the last is broken.
        RunError: Another process writes it.
    """

    def __init__(self, path: Path, lock: FileLock | None = None) -> None:
        self.path = path
        self.warnings: list[str] = []
        # The lock of a run directory protects the journal already, and stays that directory's.
        self._lock = lock or FileLock(path.with_name(f"{path.name}.lock"), str(path))
        self._owns_lock = lock is None
        self._handle = -1
        try:
            fresh = not path.exists()
            evaluations, self._size, torn = ([], 0, None) if fresh else _scan(path)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._handle = os.open(path, flags, 0o644)
            if fresh:
                sync_folder(path.parent)
            if torn:
                cut = os.fstat(self._handle).st_size - self._size
                os.ftruncate(self._handle, self._size)
                os.fsync(self._handle)
                message = f"{torn}; cut off {cut} bytes, that evaluation will be made again."
                self.warnings.append(message)
                logger.warning("%s", message)
        except BaseException:
            self.close()
            raise
        self._evaluations = {evaluation.digest: evaluation for evaluation in evaluations}

    def append(self, evaluation: Evaluation) -> None:
        """Write one evaluation; it is on the disk when this returns.

        Raises:
            RunError: Its architecture is already there, or the disk takes no more.
        """
        if evaluation.digest in self._evaluations:
            raise RunError(
                f"{self.path}: architecture {evaluation.digest} is already evaluated; "
                "read it with get() instead of evaluating it again."
            )
        line = evaluation.to_line()
        try:
            written = os.write(self._handle, line)
            if written != len(line):
                raise OSError("the disk is full")
            os.fsync(self._handle)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._size)
            raise RunError(
                f"{self.path}: cannot append evaluation {evaluation.digest}: {error}. "
                "Free some space and continue with --resume; nothing before it is lost."
            ) from error
        self._size += len(line)
        self._evaluations[evaluation.digest] = evaluation

    def get(self, digest: str) -> Evaluation | None:
        """The evaluation of an architecture, or None where there is none yet."""
        return self._evaluations.get(digest)

    def __contains__(self, digest: object) -> bool:
        return digest in self._evaluations

    def __len__(self) -> int:
        return len(self._evaluations)

    def __iter__(self) -> Iterator[Evaluation]:
        return iter(tuple(self._evaluations.values()))

    def snapshot(self, path: Path) -> None:
        """Write a Parquet table for analysis: one row an evaluation, one float64 column a metric.

        Columns ``digest``, ``index``, ``status``, ``error``, ``seconds``, ``architecture`` (JSON),
        then the metrics by name; a metric that an evaluation lacks is null. The schema's metadata
        holds ``nas_snapshot_version``.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = list(self)
        kinds = zip(_COLUMNS[:-1], ("string", "int64", "string", "string", "float64"), strict=True)
        columns = {name: pa.array([getattr(r, name) for r in rows], kind) for name, kind in kinds}
        architectures = [json.dumps(row.architecture, separators=(",", ":")) for row in rows]
        columns["architecture"] = pa.array(architectures, "string")
        for name in sorted({name for row in rows for name in row.metrics}):
            columns[name] = pa.array([row.metrics.get(name) for row in rows], "float64")
        table = pa.table(columns, metadata={"nas_snapshot_version": str(SNAPSHOT_VERSION)})
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        atomic_write(path, buffer.getvalue().to_pybytes())

    def close(self) -> None:
        """Close the file and free the lock; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        if self._owns_lock:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
