"""The boundary: every file that is read is regular, of bounded size, and parsed by a model.

A file may be damaged, handmade or sent by a stranger. It is opened without waiting for a pipe, read
up to a stated size, and its data are validated by pydantic before anything else sees them, so that
code behind the boundary has values of the types that it states.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from search_space.errors import CorruptFileError
from search_space.parsing import UnreadableTextError, parse_json, parse_yaml

MAX_BYTES = 2**26
"""Largest file of text that is read where nothing else is stated: 64 MiB."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_SHOWN = 3  # errors of a file that are told at once

Model = TypeVar("Model")


def open_regular(path: Path, limit: int = MAX_BYTES) -> int:
    """Opens a file for reading; returns a descriptor, which the caller closes.

    Args:
        path: A regular file, or a symbolic link to one.
        limit: Largest size in bytes.

    Raises:
        FileNotFoundError: Nothing is there.
        CorruptFileError: It is a folder, pipe or device, is larger, or cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path} cannot be opened: {error}.") from None
    status = os.fstat(handle)
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        raise CorruptFileError(
            f"{path} is {_KINDS.get(kind, 'no file')}, not a regular file; give the file itself."
        )
    if status.st_size > limit:
        os.close(handle)
        raise CorruptFileError(
            f"{path} has {status.st_size:,} bytes, more than the {limit:,} that such a file of "
            "this tool can have; give the file that the tool wrote."
        )
    return handle


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Returns the content of a regular file; raises as ``open_regular`` does."""
    with os.fdopen(open_regular(path, limit), "rb") as file:
        # a file may grow, and some of /proc state no size
        limit = min(limit, max(os.fstat(file.fileno()).st_size, MAX_BYTES))
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise CorruptFileError(f"{path} cannot be read: {error}.") from None
    if len(content) > limit:
        raise CorruptFileError(f"{path} has more than the {limit:,} bytes that it can have.")
    return content


def read_data(path: Path, limit: int = MAX_BYTES) -> Any:
    """Returns the data of a JSON file, by its suffix, or of a YAML file.

    Raises:
        FileNotFoundError: Nothing is there.
        CorruptFileError: It cannot be read, or is no such text.
    """
    content = read_bytes(path, limit)
    try:
        text = content.decode("utf-8")
        return parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} cannot be read as text: {error}.") from None
    except UnreadableTextError as error:
        raise CorruptFileError(f"{path} {error}") from None


def read_model(
    path: Path, model: type[Model], *, limit: int = MAX_BYTES, fix: str = "Restore it from a copy."
) -> Model:
    """Reads a YAML or JSON file as a value of ``model``, any type that pydantic validates.

    Args:
        path: The file; JSON where its name ends in ``.json``, YAML otherwise.
        model: A pydantic model, a dataclass, or a type such as ``dict[str, float]``.
        limit: Largest size in bytes.
        fix: What the user can do about a damaged file; ends every message.

    Raises:
        FileNotFoundError: Nothing is there.
        CorruptFileError: The file is damaged; names it, the first wrong entries and ``fix``.
    """
    try:
        return parse_model(read_data(path, limit), model, path)
    except CorruptFileError as error:
        raise CorruptFileError(f"{error} {fix}") from None


def parse_model(data: Any, model: type[Model], where: object) -> Model:
    """Validates data from ``where`` as a value of ``model``; raises CorruptFileError."""
    try:
        return TypeAdapter(model).validate_python(data)
    except (ValidationError, RecursionError) as error:
        raise CorruptFileError(f"{where}: {explain(error)}") from None


def explain(error: ValidationError | RecursionError) -> str:
    """Returns the first entries that a model refused, with values and rules, in one line."""
    if isinstance(error, RecursionError):
        return "the data are nested too deeply."
    items = error.errors(include_url=False, include_context=False)
    texts = [
        f"{'.'.join(map(str, item['loc'])) or 'the whole'}={item['input']!r:.60}: {item['msg']}"
        for item in items[:_SHOWN]
    ]
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(texts) + more + "."
