"""The manifest of a run: what made it, how far it is, and the time that its phases took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from results.files import KINDS, WRITTEN_AGAIN, read_json
from search_space.errors import CorruptFileError

_ENTRIES: dict[str, type] = {
    **dict.fromkeys(("status", "created", "command", "data"), str),
    "versions": dict,
    "phases": list,
}


def read_manifest(path: Path, required: Iterable[str] = ("phases",)) -> dict[str, Any]:
    """What the manifest at ``path`` holds, of which ``required`` must be there.

    Raises CorruptFileError that names what is missing or of the wrong kind.
    """
    manifest: dict[str, Any] = read_json(path, dict)
    missing = [key for key in required if key not in manifest]
    if missing:
        raise CorruptFileError(f"{path} lacks {', '.join(map(repr, missing))}. {WRITTEN_AGAIN}")
    for key in manifest.keys() & _ENTRIES:
        value, kind = manifest[key], _ENTRIES[key]
        if not isinstance(value, kind):
            raise CorruptFileError(
                f"{path}: {key!r} is {value!r:.60} instead of {KINDS[kind]}. {WRITTEN_AGAIN}"
            )
    for phase in manifest.get("phases", ()):
        if not _is_phase(phase):
            raise CorruptFileError(
                f"{path}: {phase!r:.60} is no phase, which has a name and seconds. {WRITTEN_AGAIN}"
            )
    return manifest


def _is_phase(phase: object) -> bool:
    if not isinstance(phase, Mapping):
        return False
    return isinstance(phase.get("name"), str) and isinstance(phase.get("seconds"), (int, float))
