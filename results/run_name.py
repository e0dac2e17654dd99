"""The rule for names of runs, which are names of folders and stand in comments of their files."""

from __future__ import annotations

import os
import re

from search_space.errors import UsageError

MAX_LENGTH = 100
_MAX_BYTES = 200  # a file system's 255, less what temporary folders add
# would end the comment that a name stands in, or cannot be written as UTF-8
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check_run_name(name: str) -> None:
    """Raises UsageError for a name that no run can have."""
    if "/" in name or name in ("", ".", ".."):
        problem = "is no name of a folder"
    elif name.startswith("."):
        problem = "begins with a dot, which hides a folder"
    elif len(name) > MAX_LENGTH or len(os.fsencode(name)) > _MAX_BYTES:
        problem = f"has {len(name)} characters ({len(os.fsencode(name))} bytes)"
    elif has_control(name):
        problem = "has a line break or another control character"
    else:
        return
    raise UsageError(
        f"--name {name!r:.120} must be a plain name, but {problem}. Give another: at most "
        f"{MAX_LENGTH} characters and {_MAX_BYTES} bytes, without '/', control characters, or a "
        "dot at its beginning; the folder is --runs."
    )


def has_control(text: str) -> bool:
    """Whether ``text`` cannot stand in one line of a file."""
    return _CONTROL.search(text) is not None
