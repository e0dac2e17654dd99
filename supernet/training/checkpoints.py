"""Checkpoints: safetensors for tensors, JSON for the rest, checksums over all; never pickle.

A checkpoint is a folder that appears by one rename, so it is there whole or not at all. The
last two are kept: if a disk damages the newest, the one before it is used and the user told.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from search_space.errors import CorruptFileError
from supernet.network.tensor_files import read_tensors, write_tensors

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
METADATA = "metadata.json"
FORMAT = 1
AVERAGE = "average"  # of a parameter over steps, beside the optimiser's state


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What was saved at ``step``: tensors by name and plain metadata."""

    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    metadata: dict[str, Any]

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """The weights to use: their moving average where one was kept."""
        averages = {
            name.removesuffix(f"/{AVERAGE}"): tensor
            for name, tensor in self.optimizer.items()
            if name.endswith(f"/{AVERAGE}")
        }
        return self.weights | averages


class CheckpointStore(Protocol):
    """Where a training keeps its checkpoints."""

    def load(self) -> Checkpoint | None:
        """The newest good one."""
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep it. Called on every worker at the same step."""
        ...


class LocalStore:
    """A folder of checkpoints on this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __str__(self) -> str:
        return str(self.directory)

    def load(self) -> Checkpoint | None:
        return load_latest(self.directory, set_aside=True)

    def save(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(self.directory, checkpoint)


def save_checkpoint(directory: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write ``directory/step-…`` whole or not at all and drop all but the ``keep`` newest."""
    directory.mkdir(parents=True, exist_ok=True)
    # A step can be saved again, after a roll-back; the later one sorts as the newer.
    stem = f"step-{checkpoint.step:09d}-"
    taken = [int(path.name.removeprefix(stem)) for path in directory.glob(f"{stem}*")]
    final = directory / f"{stem}{max(taken, default=-1) + 1:04d}"
    temporary = directory / f".writing-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write_tensors(temporary / WEIGHTS, checkpoint.weights)
    write_tensors(temporary / OPTIMIZER, checkpoint.optimizer)
    content = {
        "format": FORMAT,
        "step": checkpoint.step,
        "sha256": {name: _sha256(temporary / name) for name in (WEIGHTS, OPTIMIZER)},
        "metadata": dict(checkpoint.metadata),
    }
    text = json.dumps(content, sort_keys=True)
    envelope = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": content}
    (temporary / METADATA).write_text(json.dumps(envelope, sort_keys=True), encoding="utf-8")
    for file in temporary.iterdir():
        _flush(file)
    temporary.rename(final)
    _flush(directory)
    for old in _checkpoints(directory)[keep:]:
        shutil.rmtree(old)
    for left in directory.glob(".writing-*"):
        shutil.rmtree(left, ignore_errors=True)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder; raises ``CorruptFileError``."""
    try:
        envelope = json.loads((path / METADATA).read_text(encoding="utf-8"))
        content = envelope["content"]
        text = json.dumps(content, sort_keys=True)
        if envelope["sha256"] != hashlib.sha256(text.encode()).hexdigest():
            raise CorruptFileError(f"{path / METADATA} was altered: its checksum does not match")
        sums, step, metadata = content["sha256"], content["step"], content["metadata"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"{path / METADATA} is missing, cut short or not what it should be ({error})"
        ) from error
    tensors = {}
    for name in (WEIGHTS, OPTIMIZER):
        tensors[name] = read_tensors(path / name, sha256=sums.get(name, ""))
    return Checkpoint(
        step=step, weights=tensors[WEIGHTS], optimizer=tensors[OPTIMIZER], metadata=metadata
    )


def load_latest(directory: Path, *, set_aside: bool = False) -> Checkpoint | None:
    """The newest good checkpoint, or ``None``; each damaged one is warned about.

    set_aside: rename damaged ones, as a training must that is going to write new ones.
    """
    paths = _checkpoints(directory)
    for path in paths:
        try:
            return load_checkpoint(path)
        except CorruptFileError as error:
            last = " No good one is left." if path == paths[-1] else ""
            warnings.warn(
                f"checkpoint {path.name} is damaged and left out: {error}.{last}", stacklevel=2
            )
            if set_aside:
                path.rename(path.with_name(f"damaged-{path.name}"))
    return None


def _checkpoints(directory: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in directory.glob("step-*") if path.is_dir()), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
