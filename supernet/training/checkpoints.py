"""Checkpoints: safetensors for tensors, JSON for the rest, checksums over all; never pickle.

A checkpoint is a folder that appears by one rename, so it is there whole or not at all. The
last two are kept: if a disk damages the newest, the one before it is used and the user told.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

from search_space.errors import CorruptFileError, RunError

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
METADATA = "metadata.json"
FORMAT = 1
AVERAGE = "average"  # of a parameter over steps, beside the optimiser's state


class PickleRefusedError(CorruptFileError):
    """A pickle where tensors were expected; loading one can run any code, so it is not read."""


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
    """Read one checkpoint folder. Raises ``CorruptFileError``, or ``PickleRefusedError``."""
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

    Raises ``PickleRefusedError``: damage does not make a pickle, somebody put it there.
    """
    paths = _checkpoints(directory)
    for path in paths:
        try:
            return load_checkpoint(path)
        except PickleRefusedError:
            raise
        except CorruptFileError as error:
            last = " No good one is left." if path == paths[-1] else ""
            warnings.warn(
                f"checkpoint {path.name} is damaged and left out: {error}.{last}", stacklevel=2
            )
            if set_aside:
                path.rename(path.with_name(f"damaged-{path.name}"))
    return None


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Save tensors by name as safetensors; raises RunError where the disk takes no more."""
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path
        )
    except SafetensorError as error:
        raise RunError(
            f"{path} cannot be written ({error}); free some space, then give the same command with "
            "--resume"
        ) from error


def read_tensors(path: Path, *, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Tensors by name from a safetensors file, on the CPU.

    sha256: expected checksum of the file, in hexadecimal digits.

    Raises ``PickleRefusedError`` for a pickle (nothing of it is interpreted), and
    ``CorruptFileError`` for a file that is missing, cut short, altered or something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read ({error})") from error
    _refuse_pickle(path, data)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptFileError(
            f"{path} was cut short or altered: its checksum is not the recorded one"
        )
    try:
        tensors: dict[str, torch.Tensor] = load_safetensors(data)
    except (SafetensorError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is not a whole safetensors file ({error}); copy it again or start anew"
        ) from error
    return tensors


def _refuse_pickle(path: Path, data: bytes) -> None:
    # A safetensors file is the header's length (8 bytes, little-endian) and a JSON object.
    if len(data) > 8 and data[8:9] == b"{" and struct.unpack("<Q", data[:8])[0] < len(data):
        return
    protocol = data[:1] == b"\x80" and data[1:2] <= b"\x10"
    archive = data[:4] == b"PK\x03\x04"  # what torch.save writes: a zip with a pickle in it
    old = data[-1:] == b"." and data[:1] in b"(]}cIKX"
    if protocol or archive or old:
        raise PickleRefusedError(
            f"{path} is a pickle, not a safetensors file; loading a pickle can run any code, so it "
            "was not read. Save weights with safetensors.torch.save_file, and get this file from "
            "its source again"
        )


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
