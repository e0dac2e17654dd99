"""The memory that this process may still use: the machine's, or less in a container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

_CACHED = ("inactive_file", "active_file", "total_inactive_file", "total_active_file")


def available_memory(root: Path = Path("/")) -> int:
    """Returns the bytes that are free on the machine and within all control groups' limits.

    Control groups of version 1 and 2 are read below ``root``; what files are cached counts as free.
    """
    free = psutil.virtual_memory().available
    for folder, limit, usage in _groups(root):
        try:
            maximum = int((folder / limit).read_text())  # "max" where there is none
            used = int((folder / usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            stat = {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
        except (OSError, ValueError):
            continue
        # Version 1 has the cache of the group alone, and with its children as a total.
        names = _CACHED[2:] if _CACHED[2] in stat else _CACHED[:2]
        cached = sum(stat.get(name, 0) for name in names)
        free = min(free, maximum - max(0, used - cached))
    return max(0, free)


def _groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Yields folders of this process's groups up to the uppermost, with two file names of each.

    In a container the uppermost folder is often the container's group, whatever the path says.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if not controllers:
            files = "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            mount, files = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = PurePosixPath(path.strip("/"))
        for part in (group, *group.parents):
            yield mount / part, *files
