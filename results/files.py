"""Files that survive ``kill -9``: atomic replacement, checked reading, and locks.

A lock is freed by the kernel when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from search_space.boundary import read_model
from search_space.errors import CorruptFileError, RunError

MAX_JSON = 2**30  # bytes; results of tens of thousands of networks have some 100 MB


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content``: a reader sees the old file or the new one, never a part.

    The data and the folder entry are on the disk when this returns. What is not UTF-8 in the name
    of a file is written as an escape, from which JSON gives it back.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(handle, 0o644)
            os.fsync(handle)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def check_parents(path: Path, fix: str) -> None:
    """Refuses a ``path`` below a file.

    Raises:
        RunError: A parent is a file; the message ends with ``fix``.
    """
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise RunError(f"{path} cannot be made: {parent} is a file, not a folder; {fix}")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a new or renamed file survives a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


WRITTEN_AGAIN = (
    "Restore it from a copy, or delete it and continue the run with --resume to have it written "
    "again."
)


def read_json(path: Path, model: Any = object) -> Any:
    """Data of a JSON file of a run, validated as ``model``: any type that pydantic knows.

    Raises:
        CorruptFileError: It is missing, cut short, no JSON, or no ``model``.
    """
    try:
        return read_model(path, model, limit=MAX_JSON, fix=WRITTEN_AGAIN)
    except FileNotFoundError:
        raise CorruptFileError(
            f"{path} does not exist; the run is incomplete. Continue it with --resume."
        ) from None


def to_json(value: object) -> str:
    """Strict JSON of plain data. Unknown numbers (NaN, infinities), which JSON lacks, are null."""
    return json.dumps(as_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_plain(value: Any) -> Any:
    """Plain data as strict JSON gives them back: text for keys, lists for tuples, None for NaN."""
    return to_jsonable_python(value, inf_nan_mode="null", fallback=dict)


_held_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """Exclusive lock that the kernel frees when its process ends, however it ends.

    Args:
        path: The file that is locked; it is made where it is missing.
        what: What the lock protects, for the message.

    Raises:
        RunError: Another process holds it.
    """

    _fork_hook = False

    def __init__(self, path: Path, what: str) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._handle, 64, 0).decode(errors="replace").strip()
            os.close(self._handle)
            raise RunError(
                f"{what} is being written by another process ({holder or 'of unknown id'}). "
                "Wait until it ends, stop it, or choose another --name."
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()}".encode(), 0)
        _held_locks.add(self)
        if not FileLock._fork_hook:
            # A forked worker shares the lock and would keep it after the driver is killed.
            os.register_at_fork(after_in_child=_close_inherited_locks)
            FileLock._fork_hook = True

    def close(self) -> None:
        """Free the lock; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _close_inherited_locks() -> None:
    for lock in list(_held_locks):
        lock.close()
