"""Beginning and continuing a run of any kind."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from nas.cli.console import Console
from nas.config import MAY_DIFFER
from results.store import MANIFEST, RunDirectory, check_resumable, is_run, read_manifest
from search_space.errors import CorruptFileError


class Start(TypedDict, total=False):
    """How a run is begun: whether it continues one, by which command, and what shows it."""

    resume: bool
    command: str
    console: Console


def new_manifest(seed: int, command: str, packages: Sequence[str]) -> dict[str, Any]:
    """The manifest of a run that begins: time, command, seed, and versions of ``packages``."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "running",
        "command": command,
        "seed": seed,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "platform": platform.platform(),
    }


def header(what: str, again: Sequence[object], resume: Sequence[object]) -> str:
    """Comments that begin a configuration: how the run is repeated, if it can be, and continued."""
    lines = [f"# Configuration of this {what}, everything resolved: all that decides its result."]
    if again:
        lines.append(f"# The same again, in a new folder:     {shlex.join(map(str, again))}")
    lines.append(f"# Continue this where it stopped:      {shlex.join(map(str, resume))}")
    return "\n".join(lines) + "\n"


@contextmanager
def open_run(
    path: Path,
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    console: Console,
    *,
    resume: bool,
    comments: str = "",
) -> Iterator[tuple[RunDirectory, bool]]:
    """The run's directory, locked, and whether it is new; warnings go to ``console``.

    Args:
        path: Folder of the run.
        config: All that decides it.
        manifest: For a new run, or one whose own is damaged.
        console: Shows warnings.
        resume: Continue what is at ``path``, if there is a run.
        comments: Begin a new run's configuration.

    Raises:
        RunError, CorruptFileError: As ``RunDirectory.create`` and ``resume`` do.
    """
    new = not (resume and is_run(path))
    if new:
        if resume:
            check_resumable(path)
            console.say(f"nothing to continue at {path} yet: starting it")
        directory = RunDirectory.create(path, config, manifest, comments)
    else:
        directory = RunDirectory.resume(path, config, MAY_DIFFER)
        console.say(f"continuing {path}")
        try:
            read_manifest(path / MANIFEST, ("phases", *manifest))
        except CorruptFileError as error:
            console.warn(f"{error} It is written anew; times of earlier phases are lost.")
            directory.write_json(MANIFEST, {"phases": [], **manifest})
    with directory, console.python_warnings():
        yield directory, new
