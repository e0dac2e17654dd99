"""Files of tensors: safetensors, and torch's own read without running code of theirs.

The suffix says which it is. A pickle under another name is read by the reader of that name, which
refuses it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from search_space.boundary import read_bytes
from search_space.errors import CorruptFileError, first_line

SUFFIX = ".safetensors"
MAX_BYTES = 2**35
"""Largest file that is read: 32 GiB."""


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


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Returns 12 hexadecimal digits of the names, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def parse_safetensors(data: bytes, where: object) -> dict[str, Tensor]:
    """Tensors by name from the content of a safetensors file, to the CPU.

    Raises:
        CorruptFileError: It is not whole; names ``where`` it is from.
    """
    try:
        tensors: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptFileError(
            f"{where} is not a whole safetensors file ({error}); copy it again or start anew"
        ) from error
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
