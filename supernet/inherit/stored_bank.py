"""Folders of weights for alternatives: a file for each, and what all of them depend on.

``identity.json`` says what the weights were made of and how; whoever makes others may not write or
read there. Each alternative is one safetensors file that appears at one stroke, so an interrupted
making goes on with what is missing, and several processes may make different alternatives.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from search_space.boundary import read_model
from search_space.errors import CorruptFileError, RunError, first_line
from supernet.inherit.bank import Entry, WeightBank, entry_name
from supernet.network.templates import template
from supernet.network.tensor_files import (
    SUFFIX,
    digest_of,
    read_tensors,
    replace_file,
    write_tensors,
)
from supernet.training.checkpoints import differences

IDENTITY = "identity.json"
FORMAT = 1
_AGAIN = "Delete the folder to have its weights made again."


class _Content(BaseModel):
    format: int
    identity: dict[str, Any]


def parent_identity(bank: WeightBank) -> dict[str, Any]:
    """Says which trained network a bank is around, JSON-able: architecture, classes, weights.

    Take it before the parent's modules in the bank are trained further.
    """
    state = {
        f"{item.path}.{name}": value
        for item, module in bank.chain(bank.parent)
        for name, value in module.state_dict().items()
    }
    return {
        "architecture": bank.parent.digest,
        "num_classes": bank.num_classes,
        "weights": digest_of(state),
    }


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Makes ``folder`` one of weights that depend on ``identity``; one that is already stays.

    Args:
        folder: New, empty, or claimed with the same identity before.
        identity: All that the weights depend on, JSON-able: ``parent_identity`` and the settings.

    Raises:
        RunError: It holds weights of another identity, which is told, or files of someone else.
        CorruptFileError: What it says about its weights is damaged.
    """
    content = _content(identity)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from None
    if not _is_claimed(folder, content):
        replace_file(folder / IDENTITY, content.model_dump_json(indent=2).encode())


def _content(identity: Mapping[str, Any]) -> _Content:
    return _Content(format=FORMAT, identity=json.loads(json.dumps(dict(identity))))


def _is_claimed(folder: Path, here: _Content) -> bool:
    """Whether there are weights of this identity; raises as ``claim_folder`` for any others."""
    try:
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(folder, error) from None
    if names and IDENTITY not in names:
        raise RunError(
            f"{folder} holds {names[0]!r} and no {IDENTITY}, so it is no folder of weights; give "
            "one that is new or empty"
        )
    if names:
        there = read_model(folder / IDENTITY, _Content, fix=_AGAIN)
        found = "; ".join(differences(there.model_dump(), here.model_dump()))
        if found:
            raise RunError(
                f"{folder} holds weights that were made otherwise: {found}. Give the same parent, "
                "images and settings, or another folder"
            )
    return bool(names)


def _unusable(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"{folder} cannot be used ({first_line(error)}); give a folder that can be written"
    )


def save_entries(
    folder: Path,
    bank: WeightBank,
    entries: Iterable[Entry] | None = None,
    *,
    identity: Mapping[str, Any],
) -> None:
    """Writes the weights of alternatives into a folder, each at one stroke.

    Example:
        >>> identity = {"parent": parent_identity(bank), "importance": "taylor"}
        >>> save_entries(run / "weights", bank, identity=identity)
        >>> load_entries(run / "weights", another_bank, identity=identity)

    Args:
        folder: As for ``claim_folder``.
        bank: Holds the weights.
        entries: Which alternatives; by default all that have weights.
        identity: As for ``claim_folder``.

    Raises:
        RunError, CorruptFileError: As ``claim_folder``, or the disk takes no more.
        InvalidArchitectureError: One has no weights.
    """
    claim_folder(folder, identity)
    chosen = [entry for entry in bank.entries if entry in bank] if entries is None else entries
    for entry in chosen:
        write_tensors(_file(folder, entry), bank[entry].state_dict())


def load_entries(
    folder: Path,
    bank: WeightBank,
    entries: Iterable[Entry] | None = None,
    *,
    identity: Mapping[str, Any],
) -> list[Entry]:
    """Puts the weights that a folder holds into a bank.

    A file that is damaged is warned about and left out, as one that is not there, so that whoever
    makes what is missing makes it again.

    Args:
        folder: As for ``claim_folder``.
        bank: Gets the weights, on its device.
        entries: Which alternatives; by default all of its space.
        identity: As for ``claim_folder``.

    Returns:
        The alternatives that were there.

    Raises:
        RunError, CorruptFileError: As ``claim_folder``.
    """
    if not _is_claimed(folder, _content(identity)):
        return []
    found = []
    device = next(bank.parameters()).device
    for entry in bank.entries if entries is None else entries:
        path = _file(folder, entry)
        if not path.exists():
            continue
        module = copy.deepcopy(template(entry[1]))
        try:
            module.load_state_dict(read_tensors(path), assign=True)
        except (CorruptFileError, RuntimeError) as error:
            warnings.warn(
                f"{path} is damaged, and the weights of {entry[1]} at {entry[0]} are left out: "
                f"{first_line(error)}",
                stacklevel=2,
            )
            continue
        bank.put(entry, module.to(device))
        found.append(entry)
    return found


def _file(folder: Path, entry: Entry) -> Path:
    return folder / f"{entry_name(entry)}{SUFFIX}"
