"""Checkpoints in folders: safetensors for tensors, JSON for the rest, checksums over all.

A folder is a path, or a URL that fsspec opens (NFS, an object store). The metadata of a checkpoint
are written last, and at one stroke: what has none is no checkpoint. The last two are kept; if a
disk damages the newest, the one before it is used and the user told. Nothing is unpickled, and
nothing is deleted but what carries the exact names that are written here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel
from safetensors.torch import save as save_safetensors

from search_space.boundary import MAX_BYTES, parse_model, read_bytes
from search_space.errors import CorruptFileError, RunError, first_line
from search_space.parsing import UnreadableTextError, parse_json
from supernet.network.tensor_files import MAX_BYTES as MAX_TENSOR_BYTES
from supernet.network.tensor_files import parse_safetensors

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
METADATA = "metadata.json"
FORMAT = 1
AVERAGE = "average"  # of a parameter over steps, beside the optimiser's state
BEST = "best"  # a tensor of the network after its best epoch, likewise
MARKER = ".nas-checkpoints"
KEEP = 2

_STEP = re.compile(r"step-(\d{9})-(\d{4})")
_DAMAGED = "damaged-"
_PATTERN = "*?["
# What Ray Train leaves in a folder, where workers train; it holds for one version of Ray.
_RAY_FILES = (".validate_storage_marker", "checkpoint_manager_snapshot.json")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Holds what was saved at ``step``: tensors by name and plain metadata.

    ``name`` is that of its folder, once it is in one.
    """

    name: str = ""
    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    metadata: dict[str, Any]

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """Returns the weights to use: those of the best epoch, or their average, where kept."""
        return self.weights | self.kept(AVERAGE) | self.kept(BEST)

    def kept(self, key: str) -> dict[str, torch.Tensor]:
        """Returns those of the optimiser's tensors that are called ``key``, by parameter."""
        return {
            name.removesuffix(f"/{key}"): tensor
            for name, tensor in self.optimizer.items()
            if name.endswith(f"/{key}")
        }


class CheckpointStore(Protocol):
    """Keeps the checkpoints of a training, wherever that is."""

    def load(self) -> Checkpoint | None:
        """Returns the newest good checkpoint."""
        ...

    def save(self, checkpoint: Checkpoint) -> None:
        """Keeps a checkpoint; called on every worker at the same step."""
        ...


class _Content(BaseModel):
    format: Literal[1]
    step: int
    sha256: dict[str, str]
    metadata: dict[str, Any]


class _Envelope(BaseModel):
    sha256: str
    content: _Content


class CheckpointFolder:
    """Keeps checkpoints in a folder, on this machine or wherever fsspec reaches.

    Example:
        >>> folder = CheckpointFolder("runs/mine/supernet/checkpoints")
        >>> folder.save(Checkpoint(step=3, weights=weights, optimizer={}, metadata={}))
        >>> folder.load().step
        3

    Args:
        place: A path, or a URL.
        name: Of the folder below ``place``; empty for ``place`` itself.

    Raises:
        RunError: Nothing that is installed opens the URL, or its path is a pattern.
    """

    def __init__(self, place: str | Path, name: str = "") -> None:
        try:
            self.filesystem, base = url_to_fs(str(place))
        except (ImportError, ValueError, OSError) as error:
            raise RunError(
                f"storage {str(place)!r} cannot be opened ({first_line(error)}); give a folder, "
                "or a URL whose file system is installed (s3fs for s3://, gcsfs for gs://)"
            ) from None
        self.path = f"{base.rstrip('/')}/{name}".rstrip("/")
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        self._shown = f"{str(place).rstrip('/')}/{name}".rstrip("/")
        special = sorted(set(_PATTERN) & set(self.path))
        if special and not self.is_local:  # fsspec would delete and move all that the pattern fits
            raise RunError(
                f"storage {self} has {special[0]!r} in its path, which stands for other names on "
                f"file systems of URLs; give a folder and a --name without {' '.join(_PATTERN)}"
            )

    def __str__(self) -> str:
        return self._shown

    # Who may write here -----------------------------------------------------------------------

    def check(self) -> None:
        """Checks that the folder is new, empty, or one of this tool; changes nothing.

        Raises:
            RunError: There are files that this tool did not write, or it cannot be read.
        """
        try:
            names = self._names()
        except OSError as error:
            raise self._unusable(error) from None
        foreign = [name for name in names if not _is_ours(name)]
        if foreign and MARKER not in names:
            raise RunError(
                f"storage {self} is no folder of this tool's checkpoints: it holds {foreign[0]!r}"
                f"{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}, which is left "
                "alone; give a folder that is new or empty, or another --name"
            )

    def claim(self, token: str) -> None:
        """Makes the folder, and leaves ``token`` there for all workers to find.

        Of an earlier training only whole checkpoints are kept.

        Raises:
            RunError: As of ``check``, or it cannot be written.
        """
        self.check()
        try:
            self.filesystem.makedirs(self.path, exist_ok=True)
            self._remove_unfinished()
            self._remove(*_RAY_FILES)
            self._write(MARKER, token.encode())
        except OSError as error:
            raise self._unusable(error) from None

    def is_shared(self, token: str) -> bool:
        """Tells whether the folder seen from here is the one that was claimed with ``token``."""
        try:
            return self._read(MARKER) == token.encode()
        except CorruptFileError:
            return False

    def close(self, keep: int = KEEP) -> None:
        """Leaves the ``keep`` newest checkpoints of a training that ended, and the marker.

        Without checkpoints the folder goes too, if nothing else is in it. Does what it can: the
        storage may be what ended the training.
        """
        with suppress(OSError):
            self._remove_unfinished()
            self._remove(*_RAY_FILES, *self.names()[keep:])
            if not [name for name in self._names() if name != MARKER]:
                self._remove(MARKER)
                self.filesystem.rmdir(self.path)

    # Checkpoints ------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Returns the names of whole checkpoints, newest first."""
        steps = (name for name in self._names() if _STEP.fullmatch(name))
        return sorted(filter(self._is_whole, steps), reverse=True)

    def load(self) -> Checkpoint | None:
        """Loads the newest good checkpoint of a training that goes on; sets damaged ones aside."""
        with suppress(OSError):
            self._remove_unfinished()
        return self.newest(set_aside=True)

    def newest(self, *, set_aside: bool = False) -> Checkpoint | None:
        """Returns the newest good checkpoint; each damaged one is warned about.

        Args:
            set_aside: Rename damaged ones, as a training must that is going to write new ones.
        """
        names = self.names()
        for name in names:
            try:
                return self.read(name)
            except CorruptFileError as error:
                last = " No good one is left." if name == names[-1] else ""
                warnings.warn(
                    f"checkpoint {name} is damaged and left out: {error}.{last}", stacklevel=2
                )
                if set_aside:
                    target = f"{self.path}/{_DAMAGED}{name}"
                    with suppress(OSError):  # the one before it is still good
                        self.filesystem.mv(f"{self.path}/{name}", target, recursive=True)
        return None

    def read(self, name: str) -> Checkpoint:
        """Reads one checkpoint by its name. Raises CorruptFileError: it is damaged or not there."""
        where = f"{self}/{name}/{METADATA}"
        try:
            data = parse_json(self._read(f"{name}/{METADATA}").decode("utf-8"))
        except (UnicodeDecodeError, UnreadableTextError) as error:
            raise CorruptFileError(f"{where} is cut short or altered ({error})") from None
        envelope = parse_model(data, _Envelope, where)
        if envelope.sha256 != _sha256(_text(data["content"])):
            raise CorruptFileError(f"{where} was altered: its checksum does not match")
        content = envelope.content
        tensors = {}
        for part in (WEIGHTS, OPTIMIZER):
            raw = self._read(f"{name}/{part}", MAX_TENSOR_BYTES)
            if _sha256(raw) != content.sha256.get(part):
                raise CorruptFileError(
                    f"{self}/{name}/{part} was cut short or altered: its checksum is not the "
                    "recorded one"
                )
            tensors[part] = parse_safetensors(raw, f"{self}/{name}/{part}")
        return Checkpoint(
            name=name,
            step=content.step,
            weights=tensors[WEIGHTS],
            optimizer=tensors[OPTIMIZER],
            metadata=content.metadata,
        )

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint and drops all but the ``KEEP`` newest."""
        self.write(checkpoint)
        with suppress(OSError):  # the new one is there
            self._remove(*self.names()[KEEP:])

    def write(self, checkpoint: Checkpoint) -> str:
        """Writes a checkpoint beside the others and returns its name.

        Raises:
            RunError: The disk takes no more.
        """
        # A step can be saved again, after a roll-back; the later one sorts as the newer.
        matches = filter(None, map(_STEP.fullmatch, self._names()))
        taken = [int(match[2]) for match in matches if int(match[1]) == checkpoint.step]
        name = f"step-{checkpoint.step:09d}-{max(taken, default=-1) + 1:04d}"
        tensors = {WEIGHTS: checkpoint.weights, OPTIMIZER: checkpoint.optimizer}
        raw = {part: _raw(values) for part, values in tensors.items()}
        content = {
            "format": FORMAT,
            "step": checkpoint.step,
            "sha256": {part: _sha256(data) for part, data in raw.items()},
            "metadata": dict(checkpoint.metadata),
        }
        envelope = {"sha256": _sha256(_text(content)), "content": content}
        try:
            self.filesystem.makedirs(f"{self.path}/{name}", exist_ok=True)
            for part, data in raw.items():
                self._write(f"{name}/{part}", data)
            self._write(f"{name}/.{METADATA}", json.dumps(envelope, sort_keys=True).encode())
            self.filesystem.mv(f"{self.path}/{name}/.{METADATA}", f"{self.path}/{name}/{METADATA}")
        except OSError as error:
            raise RunError(
                f"{self}/{name} cannot be written ({first_line(error)}); free some space, then "
                "give the same command with --resume"
            ) from error
        return name

    # Files ------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        self.filesystem.invalidate_cache(self.path)
        try:
            paths = self.filesystem.ls(self.path, detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in paths]

    def _is_whole(self, name: str) -> bool:
        return bool(self.filesystem.exists(f"{self.path}/{name}/{METADATA}"))

    def _remove_unfinished(self) -> None:
        """Drops what a writer left that was killed; a folder has one writer at a time."""
        steps = (name for name in self._names() if _STEP.fullmatch(name))
        self._remove(*(name for name in steps if not self._is_whole(name)))

    def _remove(self, *names: str) -> None:
        for name in names:
            assert _is_ours(name), name
            with suppress(FileNotFoundError):
                self.filesystem.rm(f"{self.path}/{name}", recursive=bool(_STEP.fullmatch(name)))

    def _read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        path = f"{self.path}/{name}"
        try:
            if self.is_local:
                return read_bytes(Path(path), limit)
            return bytes(self.filesystem.cat_file(path))
        except OSError as error:
            raise CorruptFileError(f"{self}/{name} cannot be read ({first_line(error)})") from None

    def _write(self, name: str, data: bytes) -> None:
        with self.filesystem.open(f"{self.path}/{name}", "wb") as file:
            file.write(data)
            if self.is_local:
                file.flush()
                os.fsync(file.fileno())

    def _unusable(self, error: OSError) -> RunError:
        return RunError(
            f"storage {self} cannot be used ({first_line(error)}); give a folder or URL that can "
            "be written"
        )


def check_identity(stored: Any, here: Any, where: object) -> None:
    """Checks that the training in ``where`` is of the same configuration as here.

    Raises:
        RunError: It is another one; the message lists what differs.
    """
    difference = list(differences(stored, here))
    if difference:
        raise RunError(
            f"{where} holds a training of another configuration: {'; '.join(difference)}. Resume "
            "with the same settings, or train into another directory"
        )


def differences(stored: Any, here: Any, path: str = "") -> Iterator[str]:
    """Yields ``train.lr is 0.001 there, 0.002 here`` for each leaf of plain data that differs."""
    if isinstance(stored, dict) and isinstance(here, dict):
        for key in sorted(stored.keys() | here.keys()):
            yield from differences(
                stored.get(key), here.get(key), f"{path}.{key}" if path else str(key)
            )
    elif stored != here:
        yield f"{path} is {stored!r} there, {here!r} here"


def _raw(tensors: Mapping[str, torch.Tensor]) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return bytes(save_safetensors(plain))


def _is_ours(name: str) -> bool:
    plain = name.removeprefix(_DAMAGED)
    return name in (MARKER, *_RAY_FILES) or _STEP.fullmatch(plain) is not None


def _text(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
