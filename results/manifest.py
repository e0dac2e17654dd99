"""The manifest of a run: what made it, how far it is, and how long its phases took."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat
from typing_extensions import TypedDict

from results.files import WRITTEN_AGAIN, read_json
from search_space.errors import CorruptFileError


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
