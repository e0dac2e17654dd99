"""Checkpoints in a folder that all workers of a training see: a plain one, NFS, or an object store.

The format is that of ``supernet.training.checkpoints``. In a plain folder a checkpoint appears
by one rename; elsewhere its metadata are written last, so what has none is no checkpoint.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, fs

from search_space.errors import CorruptFileError, RunError
from supernet.training.checkpoints import (
    METADATA,
    OPTIMIZER,
    WEIGHTS,
    Checkpoint,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)

TOKEN = ".seen-by-all"


class Storage:
    """The folder ``name`` below ``place``: a path, or a URL that pyarrow or fsspec opens.

    Raises RunError for a URL that nothing opens.
    """

    def __init__(self, place: str, name: str) -> None:
        self.place, self.name = place, name
        self.filesystem, self.base = _filesystem(place)
        self.path = f"{self.base.rstrip('/')}/{name}"
        self.folder = Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def __str__(self) -> str:
        return f"{self.place.rstrip('/')}/{self.name}"

    def create(self, token: str) -> None:
        """Make the folder, and leave ``token`` there for all workers to find.

        Of an earlier training only whole checkpoints are kept. Ray's own list of them in particular
        is not: it is not written at one stroke, and holds for one version of Ray.
        """
        try:
            self.filesystem.create_dir(self.path)
            self._tidy(sys.maxsize)
            self._write(TOKEN, token.encode())
        except (OSError, ArrowException) as error:
            raise RunError(
                f"storage {self} cannot be written ({_first_line(error)}); give a folder or URL "
                "that can be"
            ) from None

    def is_shared(self, token: str) -> bool:
        """Whether the folder seen from here is the one that ``create`` made."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{TOKEN}") as stream:
                return bool(stream.read() == token.encode())
        except (OSError, ArrowException):
            return False

    def names(self) -> list[str]:
        """Whole checkpoints, newest first."""
        selector = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        found = [Path(info.path) for info in self.filesystem.get_file_info(selector)]
        whole = {path.parent.name for path in found if path.name == METADATA}
        return sorted((name for name in whole if name.startswith("step-")), reverse=True)

    def load(self, name: str) -> Checkpoint:
        """Raises CorruptFileError where it is damaged or not there."""
        if self.folder is not None:
            return load_checkpoint(self.folder / name)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder)
            for part in (WEIGHTS, OPTIMIZER, METADATA):
                try:
                    self._copy(f"{self.path}/{name}/{part}", target / part)
                except (OSError, ArrowException) as error:
                    raise CorruptFileError(
                        f"{self}/{name}/{part} cannot be read ({_first_line(error)})"
                    ) from None
            return load_checkpoint(target)

    def newest(self) -> tuple[str, Checkpoint] | None:
        """The newest good checkpoint and its name; damaged ones are warned about."""
        if self.folder is not None:
            found = load_latest(self.folder, set_aside=True)
            return None if found is None else (self.names()[0], found)
        for name in self.names():
            try:
                return name, self.load(name)
            except CorruptFileError as error:
                warnings.warn(f"{error}; the checkpoint before it is used", stacklevel=2)
        return None

    def save(self, checkpoint: Checkpoint) -> str:
        """Write a checkpoint beside the others; its path on ``filesystem``."""
        if self.folder is not None:
            return str(save_checkpoint(self.folder, checkpoint, keep=sys.maxsize))
        with tempfile.TemporaryDirectory() as folder:
            written = save_checkpoint(Path(folder), checkpoint)
            stem = f"step-{checkpoint.step:09d}-"
            taken = [int(name.removeprefix(stem)) for name in self._folders(stem)]
            target = f"{self.path}/{stem}{max(taken, default=-1) + 1:04d}"
            self.filesystem.create_dir(target)
            for part in (WEIGHTS, OPTIMIZER, METADATA):
                self._write(f"{Path(target).name}/{part}", (written / part).read_bytes())
        return target

    def tidy(self, keep: int = 2) -> None:
        """Leave the ``keep`` newest checkpoints and nothing else of a training that ended.

        Does what it can: the storage may be what ended the training.
        """
        with suppress(OSError, ArrowException):
            self._tidy(keep)
            if self.folder is not None and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _tidy(self, keep: int) -> None:
        kept = {f"{self.path}/{name}" for name in self.names()[:keep]}
        selector = fs.FileSelector(self.path, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.path in kept or info.base_name.startswith("damaged-"):
                continue
            if info.type is fs.FileType.Directory:
                self.filesystem.delete_dir(info.path)
            else:
                self.filesystem.delete_file(info.path)

    def _folders(self, stem: str) -> list[str]:
        infos = self.filesystem.get_file_info(fs.FileSelector(self.path))
        return [info.base_name for info in infos if info.base_name.startswith(stem)]

    def _write(self, name: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(f"{self.path}/{name}") as stream:
            stream.write(content)

    def _copy(self, source: str, target: Path) -> None:
        with self.filesystem.open_input_stream(source) as stream:
            target.write_bytes(stream.read())


def _filesystem(place: str) -> tuple[Any, str]:
    """A pyarrow file system, and the path of ``place`` on it."""
    if "://" not in place:
        return fs.LocalFileSystem(), str(Path(place).resolve())
    with suppress(ArrowException, ValueError, OSError):  # fsspec knows more of them
        return fs.FileSystem.from_uri(place)
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        filesystem, path = url_to_fs(place)
    except (ImportError, ValueError, OSError) as error:
        raise RunError(
            f"storage {place!r} cannot be opened ({_first_line(error)}); give a folder, or a URL "
            "whose file system is installed (s3fs for s3://, gcsfs for gs://)"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
