"""Names that become part of a path: runs, devices, members of bundles, digests.

A name may come from a file that a stranger sent, so whatever reads one checks it here before it
builds a path from it. ``Digest`` and ``PlainName`` do so in pydantic models.
"""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from search_space.errors import CorruptFileError, UsageError

MAX_LENGTH = 100
_MAX_BYTES = 200  # a file system's 255, less what temporary folders add
# Would end the comment that a name stands in, or cannot be written as UTF-8.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def problem_of(name: str) -> str | None:
    """Says what keeps ``name`` from being the name of one file or folder, or returns None."""
    if "/" in name or name in ("", ".", ".."):
        return "is no name of a folder"
    if name.startswith("."):
        return "begins with a dot, which hides a folder"
    if len(name) > MAX_LENGTH or len(os.fsencode(name)) > _MAX_BYTES:
        return f"has {len(name)} characters ({len(os.fsencode(name))} bytes)"
    if has_control(name):
        return "has a line break or another control character"
    return None


def check_run_name(name: str) -> None:
    """Raises UsageError for a name that no run can have."""
    problem = problem_of(name)
    if problem is not None:
        raise UsageError(
            f"--name {name!r:.120} must be a plain name, but {problem}. Give another: at most "
            f"{MAX_LENGTH} characters and {_MAX_BYTES} bytes, without '/', control characters, or "
            "a dot at its beginning; the folder is --runs."
        )


def check_name(name: str, where: object) -> str:
    """Returns ``name``, which was read from ``where``, if it may become part of a path.

    Raises:
        CorruptFileError: It is no plain name of a file or folder.
    """
    problem = problem_of(name)
    if problem is not None:
        raise CorruptFileError(
            f"{where}: the name {name!r:.120} {problem}; names in files of this tool are plain "
            "names of at most 100 characters. Restore the file from where it was made."
        )
    return name


def has_control(text: str) -> bool:
    """Says whether ``text`` cannot stand in one line of a file."""
    return _CONTROL.search(text) is not None


def _plain(name: str) -> str:
    problem = problem_of(name)
    if problem is not None:
        raise ValueError(f"the name {problem}")
    return name


Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
"""A digest in a pydantic model: 12 hexadecimal digits."""

PlainName = Annotated[str, AfterValidator(_plain)]
"""A name in a pydantic model that may become part of a path."""
