"""The folder of latency tables: one file per conditions, which ``nas devices`` lists."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from predictors.tables.conditions import Conditions
from predictors.tables.latency_table import LatencyTable
from search_space.errors import CorruptFileError, NasError, UsageError


def cache_folder() -> Path:
    """Returns the folder of latency tables: ``$NAS_CACHE/latency`` or ``~/.cache/nas/latency``.

    Raises:
        UsageError: A file stands in the way of what the variable says, or there is no home folder.
    """
    if root := os.environ.get("NAS_CACHE"):
        folder = Path(root) / "latency"
        for part in (folder, *folder.parents):
            if part.is_file():
                raise UsageError(
                    f"NAS_CACHE={root} is no folder: {part} is a file; set NAS_CACHE to a folder, "
                    "or unset it."
                )
        return folder
    return _users_cache() / "nas" / "latency"


def _users_cache() -> Path:
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # neither $HOME nor an entry in /etc/passwd, as in many containers
        raise UsageError(
            "there is no home folder to keep latency tables in (HOME is not set and the user has "
            "no entry in /etc/passwd); set NAS_CACHE to a folder that can be written to."
        ) from None


def writable(folder: Path) -> Path:
    """Makes ``folder`` where it is not there, and returns it.

    Raises:
        UsageError: It cannot be written to, which is better known before half a minute is measured.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        reason = "no permission"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    raise UsageError(
        f"latency tables cannot be written to {folder} ({reason}); set NAS_CACHE to a folder that "
        "can be written to."
    )


def table_path(conditions: Conditions, folder: Path | None = None) -> Path:
    """Returns the file of the table of ``conditions``, by default in ``cache_folder``."""
    name = f"{conditions.device.kind}-{conditions.digest}.parquet"
    return (cache_folder() if folder is None else folder) / name


def cached_table(conditions: Conditions, folder: Path | None = None) -> LatencyTable:
    """Loads the table of ``conditions``, or makes an empty one.

    Raises:
        CorruptFileError: The file cannot be read, or holds a table of other conditions.
    """
    path = table_path(conditions, folder)
    if not path.exists():
        return LatencyTable(conditions, {}, {})
    table = LatencyTable.load(path)
    if table.conditions != conditions:
        raise CorruptFileError(
            f"{path} holds a table of other conditions ({table.conditions}). Delete the file and "
            "run `nas profile` to measure it again."
        )
    return table


@dataclass(frozen=True)
class Known:
    """A table on disk; ``problem`` says why it cannot be read."""

    path: Path
    table: LatencyTable | None
    problem: str = ""


def known_tables(folder: Path | None = None) -> list[Known]:
    """Lists every latency table in the folder of tables, by file name."""
    result = []
    for path in sorted((folder or cache_folder()).glob("*.parquet")):
        if ".partial" in path.name:
            continue
        try:
            result.append(Known(path, LatencyTable.load(path)))
        except NasError as error:
            result.append(Known(path, None, str(error)))
    return result


def readable_tables(folder: Path | None = None) -> list[tuple[Path, LatencyTable]]:
    """Lists the tables in the folder of tables that can be read, with their files."""
    return [(known.path, known.table) for known in known_tables(folder) if known.table is not None]


def provenance(table: LatencyTable) -> str:
    """Says in words how the latencies of ``table`` came about."""
    origins = Counter(value.origin for value in table.entries.values())
    if table.conditions.estimated:
        text = "estimated from datasheet figures, not measured"
    elif not table.entries:
        text = "not measured yet"
    else:
        text = "measured block by block"
        if origins["interpolated"]:
            text += f", {origins['interpolated']} of {origins.total()} entries interpolated"
        if origins["estimated"]:
            text += f", {origins['estimated']} of {origins.total()} entries estimated"
    if table.calibration is not None:
        text += f", calibrated on {len(table.calibration.networks)} whole networks"
    return text
