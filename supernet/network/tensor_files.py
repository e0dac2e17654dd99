"""Files of tensors: safetensors, and torch's own read without running code of theirs.

The suffix says which it is. A pickle under another name is read by the reader of that name, which
refuses it. What is written here states a digest of its tensors, which is checked when it is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from search_space.boundary import read_bytes
from search_space.errors import CorruptFileError, RunError, first_line

SUFFIX = ".safetensors"
MAX_BYTES = 2**35
"""Largest file that is read: 32 GiB."""
_DIGEST = "nas.digest"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Returns 12 hexadecimal digits for names, shapes, types and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a ``.safetensors`` file at one stroke: a reader sees all of it or none.

    A file has one writer at a time; what one left that was killed is overwritten by the next.

    Raises:
        RunError: The disk takes no more, or the folder cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, save(plain, {_DIGEST: digest_of(plain)}))


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file as ``write_tensors`` does, and raises as it does."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({first_line(error)}); free some space, or give a folder "
            "that can be written, and give the same command with --resume"
        ) from error


def read_tensors(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Reads tensors by name, to the CPU.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.load(weights_only=True)`` reads: a state
            dict, alone or under the key ``model`` or ``state_dict``.
        sha256: Expected checksum of the file, in hexadecimal digits.

    Raises:
        CorruptFileError: It is missing, cut short, altered or something else.
    """
    try:
        data = read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        raise CorruptFileError(
            f"{path} does not exist; give the path of a checkpoint file."
        ) from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptFileError(
            f"{path} was cut short or altered: its checksum is not the recorded one"
        )
    return parse_safetensors(data, path) if path.suffix == SUFFIX else _from_torch(path, data)


def parse_safetensors(data: bytes, where: object) -> dict[str, Tensor]:
    """Tensors by name from the content of a safetensors file, to the CPU.

    Raises:
        CorruptFileError: It is not whole, or not what it was written as; names ``where`` it is
            from.
    """
    try:
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptFileError(
            f"{where} is not a whole safetensors file ({error}); copy it again or start anew"
        ) from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    stated = header.get("__metadata__", {}).get(_DIGEST)
    if stated is not None and stated != digest_of(tensors):
        raise CorruptFileError(
            f"{where} was altered: its tensors are not those that were written; copy it again or "
            "start anew"
        )
    return tensors


def _from_torch(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many types for broken files
        raise CorruptFileError(
            f"{path} is not a readable tensor file ({first_line(error):.300}); "
            "a .safetensors file or a plain state dict is needed."
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise CorruptFileError(f"{path} holds no state dict of tensors.")
    return state
