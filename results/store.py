"""The store: the single writer of a run directory (configuration, manifest, journal, results).

The directory appears all at once (built beside its final name, then renamed), is resumed only
with the configuration that it was made with, and is written by one process at a time.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import FiniteFloat
from typing_extensions import TypedDict

from results.files import (
    WRITTEN_AGAIN,
    FileLock,
    as_plain,
    atomic_write,
    check_parents,
    read_json,
    sync_folder,
    to_json,
)
from results.journal import Evaluation, Journal, read_journal
from search_space.errors import CorruptFileError, RunError
from search_space.files import read_mapping
from search_space.names import has_control

__all__ = ["Evaluation", "Journal", "RunDirectory", "atomic_write", "is_run", "read_journal"]

CONFIG = "config.yaml"
MANIFEST = "manifest.json"
JOURNAL = "evaluations.jsonl"
SNAPSHOT = "evaluations.parquet"
RESULT = "result.json"
REPORT = "report.html"
SUPERNET = "supernet"
EXPORT = "export"
RESTORE = "Restore it from a copy, or start a new run with another --name."
_LOCK = ".lock"
_ABSENT = "(absent)"


class RunDirectory:
    """Handle on a run that this process may write; made by ``create`` or ``resume``.

    Example:
        >>> with RunDirectory.create(Path("runs/one"), config, manifest) as run:
        ...     with run.phase("searching"), run.journal() as journal:
        ...         journal.append(evaluation)
    """

    def __init__(self, path: Path, lock: FileLock, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self._lock = lock

    @classmethod
    def create(
        cls, path: Path, config: Mapping[str, Any], manifest: Mapping[str, Any], header: str = ""
    ) -> Self:
        """Start a run in ``path``, which must not exist or be empty.

        Args:
            path: Folder of the run.
            config, manifest: Plain data (JSON-able).
            header: Comments that begin the configuration and say how the run is repeated.

        Raises:
            RunError: Something is there, or the folder cannot be made.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(_taken(path))
        if has_control(str(path)):  # its name is in comments of the configuration
            raise RunError(
                f"{str(path)!r} has a line break or another control character, and a run's folder "
                "cannot; choose another folder with --runs, or another --name."
            )
        check_parents(path, "choose another folder with --runs.")
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        lock = None
        try:
            fresh.chmod(0o755)
            lock = FileLock(fresh / _LOCK, f"run {path.name!r}")
            plain = as_plain(config)
            text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
            atomic_write(fresh / CONFIG, header + text)
            atomic_write(fresh / MANIFEST, to_json({"phases": [], **manifest}))
            for folder in (SUPERNET, EXPORT):
                (fresh / folder).mkdir()
            sync_folder(fresh)
            os.rename(fresh, path)  # the lock moves along: it is on the file, not on its name
        except OSError as error:
            if lock is not None:
                lock.close()
            shutil.rmtree(fresh, ignore_errors=True)
            if path.exists():
                raise RunError(_taken(path)) from error
            raise
        sync_folder(path.parent)
        return cls(path, lock, plain)

    @classmethod
    def resume(
        cls, path: Path, config: Mapping[str, Any], may_differ: Set[str] = frozenset()
    ) -> Self:
        """Continue the run in ``path``.

        Args:
            path: Folder of the run.
            config: Compared with the stored one key by key, nested keys by dotted name.
            may_differ: Keys that cannot change a result; they and what is below them may differ.

        Raises:
            RunError: The run is missing, differs, or is being written.
            CorruptFileError: Its configuration cannot be read.
        """
        if not is_run(path):
            raise RunError(_missing(path))
        lock = FileLock(path / _LOCK, f"run {path.name!r}")
        try:
            stored = _read_config(path / CONFIG)
            changes = differences(stored, as_plain(config), may_differ)
            if changes:
                raise RunError(
                    f"run {path.name!r} was made with another configuration, so continuing it "
                    "would mix two runs (stored -> asked):\n  "
                    + "\n  ".join(changes)
                    + "\nAsk for the stored values, or start a new run with another --name."
                    + _supernet_hint(path)
                )
            for leftover in path.glob(".*.tmp"):  # a file that was being replaced at the kill
                leftover.unlink(missing_ok=True)
        except BaseException:
            lock.close()
            raise
        return cls(path, lock, stored)

    def journal(self) -> Journal:
        """The run's journal, repaired if its last line is torn (see ``Journal.warnings``)."""
        return Journal(self.path / JOURNAL, lock=self._lock)

    def write_json(self, name: str, value: object) -> Path:
        """Write plain data to the file ``name`` in the run, atomically."""
        atomic_write(self.path / name, to_json(value))
        return self.path / name

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, device, command line, phases … as stored.

        Raises:
            CorruptFileError: The file is damaged.
        """
        return read_manifest(self.path / MANIFEST)

    def update_manifest(self, **entries: Any) -> None:
        """Set top-level entries of the manifest, atomically."""
        self.write_json(MANIFEST, {**self.manifest, **entries})

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note in the manifest how long a phase took, and whether the block raised."""
        start, status = time.monotonic(), "interrupted"
        try:
            yield
            status = "done"
        finally:
            seconds = round(time.monotonic() - start, 3)
            ended = datetime.now(UTC).isoformat(timespec="seconds")
            entry = {"name": name, "seconds": seconds, "status": status, "ended": ended}
            self.update_manifest(phases=[*self.manifest["phases"], entry])

    def close(self) -> None:
        """Free the run for other processes; a second call does nothing."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Phase(TypedDict):
    name: str
    seconds: FiniteFloat


class Manifest(TypedDict, total=False):
    """Entries of a manifest that are read; there may be others."""

    status: str
    created: str
    command: str
    data: str
    test_data: str | None
    parent: str | None
    seed: int
    versions: dict[str, Any]
    phases: list[_Phase]


def read_manifest(path: Path, required: Iterable[str] = ("phases",)) -> dict[str, Any]:
    """All entries of the manifest at ``path``, of which ``required`` must be there.

    Raises:
        CorruptFileError: It is damaged; names what is missing or of the wrong kind.
    """
    stored: dict[str, Any] = read_json(path, dict)
    read_json(path, Manifest)
    missing = [key for key in required if key not in stored]
    if missing:
        raise CorruptFileError(f"{path} lacks {', '.join(map(repr, missing))}. {WRITTEN_AGAIN}")
    return stored


def is_run(path: Path) -> bool:
    """Whether ``path`` holds a run that can be resumed."""
    return (path / CONFIG).is_file()


def check_resumable(path: Path) -> None:
    """Refuses a ``path`` that holds something that cannot be continued as a run.

    Raises:
        RunError: It is no run.
    """
    if path.is_dir() and any(path.iterdir()) and not is_run(path):
        raise RunError(
            f"{path} exists and is not empty, but has no {CONFIG}, so it is no run that can be "
            "continued: restore that file from a copy, or start a new run with another --name."
        )


def differences(stored: Any, wanted: Any, may_differ: Set[str] = frozenset()) -> list[str]:
    """Lines ``key: stored -> asked`` for each dotted key whose value differs or is on one side."""

    def lines(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[str]:
        if ".".join(path) in may_differ:
            return
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for key in sorted(old.keys() | new.keys()):
                yield from lines(old.get(key, _ABSENT), new.get(key, _ABSENT), (*path, key))
        elif old != new:
            yield f"{'.'.join(path)}: {old} -> {new}"

    return list(lines(stored, wanted, ()))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_mapping(path)
    except CorruptFileError as error:
        raise CorruptFileError(f"{error} {RESTORE}") from None


def _taken(path: Path) -> str:
    return (
        f"{path} exists and is not empty. Continue that run with --resume, or choose another "
        "--name for a new one."
    )


def _supernet_hint(path: Path) -> str:
    if not (path / SUPERNET).exists():
        return ""
    return f" With --supernet {path} it need not train another supernet for the same images."


def _missing(path: Path) -> str:
    runs = {p.name for p in path.parent.iterdir() if is_run(p)} if path.parent.is_dir() else set()
    nearest = difflib.get_close_matches(path.name, sorted(runs), n=3, cutoff=0.3)
    if nearest:
        hint = f"Nearest runs there: {', '.join(nearest)}."
    elif runs:
        hint = f"Runs there: {', '.join(sorted(runs)[:10])}."
    else:
        hint = "There are no runs there."
    return f"no run to resume at {path}. {hint} Start it without --resume, or correct --name."
