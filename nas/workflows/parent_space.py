"""What a trained parent decides of a configuration: its space and how images are normalised."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.config import TrainedConfig
from nas.config_parts import named_file, parent_sources
from nas.resolving import stored_config
from nas.workflows.default_space import look_at
from predictors.counts import count_architecture
from search_space.around import alone, around
from search_space.errors import NasError, RunError, UsageError
from search_space.metrics import MACS
from search_space.stitched import routes_of
from supernet.inherit.parents import Parent, find_parent

SMALLEST = 64  # of images that are enlarged for a parent
EVALUATIONS = 48  # assembled networks, which a table has told apart before
ENLARGED = 2  # times the images' side: what a parent of larger images still makes use of


_OF_THE_RUN = (
    *("data", "image_column", "label_column", "data_root", "validation_fraction", "fit", "mirror"),
    *("parent", "parent_weights", "resolution", "mean", "std", "space", "seed", "adapt"),
)


def put_inherited(data: dict[str, Any], run: Path) -> None:
    """Fills in what a run that is inherited from has decided and nobody has said.

    Raises:
        RunError: It is no run that searched from a parent.
    """
    stored = stored_config(run)
    if not isinstance(stored, TrainedConfig) or stored.parent is None:
        raise RunError(
            f"--inherit {run} did not start from a trained network; give the folder of a run of "
            "`nas search --from`."
        )
    plain = stored.to_dict()
    for key in _OF_THE_RUN:
        if plain[key] is not None:
            data.setdefault(key, plain[key])
    data["inherit"] = {**plain["inherit"], **data.get("inherit", {})}


def put_parent(data: dict[str, Any], say: Callable[[str], None] | None) -> None:
    """Fills in what the parent of a configuration decides and nobody has said.

    Args:
        data: The plain configuration; changed in place.
        say: Is told the resolution, where nobody said it.

    Raises:
        UsageError: There is no such parent, or several are of different families.
    """
    sources = parent_sources(data["parent"], data.get("parent_weights"))
    parents = [find_parent(name, weights) for name, weights in sources]
    parent = min(parents, key=lambda parent: parent.architecture.resolution)
    data.setdefault("mean", parent.mean)
    data.setdefault("std", parent.std)
    data.setdefault("search", {}).setdefault("evaluations", EVALUATIONS)
    if data.get("space") is not None:
        return
    side = data.get("resolution")
    if side is None:
        side = _side(parent, data)
        data["resolution"] = side
        if say is not None:
            own = parent.architecture.resolution
            why = "its own" if side == own else f"the images are smaller than its own {own} px"
            names = " and ".join(each.name for each in parents)
            are = "is" if len(parents) == 1 else "are"
            say(f"{names} {are} trained at {side} px: {why}. --resolution sets another.")
    if len(parents) > 1:
        data["space"] = alone(ordered(parents, side)[-1].architecture, "stitched").to_dict()
        return
    data["space"] = space_of(parent, side)
    for name, weights in named_parents(data.get("parents") or ()):
        try:
            space_of(find_parent(name, weights), side)
        except NasError as error:
            raise UsageError(f"--parents {name}: {error}") from None


def ordered(parents: Sequence[Parent], side: int) -> list[Parent]:
    """Parents that can be stitched together, at one resolution, from the smallest to the largest.

    Raises:
        UsageError: They know images by different figures, or are of different families.
    """
    names = ",".join(Path(parent.name).name for parent in parents)
    for figure in ("mean", "std"):
        if len({getattr(parent, figure) for parent in parents}) > 1:
            told = " and ".join(f"{getattr(p, figure)} ({Path(p.name).name})" for p in parents)
            raise UsageError(
                f"--from {names}: images have the {figure} {told}, and one network can have but "
                "one; give networks that were trained alike."
            )
    try:
        placed = [
            replace(parent, architecture=replace(parent.architecture, resolution=side))
            for parent in parents
        ]
    except NasError as error:
        raise UsageError(f"--resolution {side} does not suit {names}: {error}") from None
    placed.sort(key=lambda parent: count_architecture(parent.architecture)[MACS])
    try:
        routes_of([parent.architecture for parent in placed])
    except UsageError as error:
        text = str(error)
        for parent in placed:
            text = text.replace(parent.architecture.digest, Path(parent.name).name)
        raise UsageError(f"--from {names}: {text}") from None
    return placed


def space_of(parent: Parent, side: int) -> dict[str, Any]:
    """The space around a parent at a resolution, in plain form; raises UsageError."""
    try:
        name = "around-" + re.sub(r"[^a-z0-9_]+", "-", Path(parent.name).name.lower())
        return around(replace(parent.architecture, resolution=side), name=name).to_dict()
    except NasError as error:
        raise UsageError(f"--resolution {side} does not suit {parent.name}: {error}") from None


def named_parents(others: Iterable[str]) -> list[tuple[str, str | None]]:
    """Those of ``--parents`` that are names, with files of their weights."""
    return [named_file(text) for text in map(str, others) if not text.isdigit()]


def _side(parent: Parent, data: Mapping[str, Any]) -> int:
    """The parent's own resolution, or less for images that are much smaller."""
    source = {key: data[key] for key in _SOURCE if key in data}
    config = TrainedConfig.model_validate({**source, "space": "tiny"})
    enlarged = -(-ENLARGED * look_at(config).side // 32) * 32
    return min(parent.architecture.resolution, max(SMALLEST, enlarged))


_SOURCE = ("data", "image_column", "label_column", "data_root", "data_download")
