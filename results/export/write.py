"""Export of a network to formats that others load: timm, ONNX, torch.export.

Everything is written to a folder beside the final one, each format is loaded back and compared
with the network that it came from, and only then does the folder get its name. A folder with
a name is therefore complete and checked; a kill in between leaves nothing that looks finished.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor
from typing_extensions import TypedDict

from results.export import OPSET
from results.export.card import ModelCard, model_card
from results.export.formats import (
    FILES,
    FORMATS,
    INT8,
    PLAIN,
    Reference,
    program,
    verify,
    verify_int8,
    write_onnx,
    write_plain_timm,
    write_timm,
)
from results.files import sync_folder, to_json
from results.report.data import Export
from search_space.boundary import open_regular, read_model
from search_space.errors import CorruptFileError, UsageError
from search_space.names import problem_of
from search_space.precision import quantised
from search_space.preprocessing import Preprocessing
from supernet.network.backbone import Backbone
from supernet.network.layers import fold_batch_norms
from supernet.network.timm_models import timm_model

VERIFIED = "verified.json"
MAX_WEIGHTS = 2**36  # bytes of an exported file
AGAIN = "Export again with `nas export`."


def _path_inside(name: str) -> str:
    problem = next(filter(None, map(problem_of, name.split("/"))), None)
    if problem is not None:
        raise ValueError(f"the name of a file {problem}")
    return name


_FilePath = Annotated[str, AfterValidator(_path_inside)]


class Verified(TypedDict):
    """Content of ``verified.json``: the formats, and the checksum of every file by its path."""

    exports: tuple[Export, ...]
    sha256: dict[_FilePath, str]


def export_network(
    network: Backbone,
    directory: Path,
    *,
    preprocessing: Preprocessing,
    card: ModelCard,
    reference: Reference | None = None,
    formats: Sequence[str] = tuple(FORMATS),
    opset: int = OPSET,
    validation: Iterable[Tensor] = (),
) -> list[Export]:
    """Write ``network`` to ``directory`` in every format, each verified.

    Args:
        network: the network, on any device; it is exported in eval mode, and with its batch norms
            folded where the format cannot be trained on.
        directory: created; an earlier export in it is replaced once the new one is complete.
        reference: images ``(batch, 3, side, side)`` → logits that the formats must reproduce;
            the supernet's subnet where weights are inherited, by default the network itself.
        formats: among ``FORMATS``; that of plain timm is left out where timm has no such network.
            A network in int8 is written for this package, as it is simulated, and as an ONNX graph
            of integers, others as all but the latter.
        opset: of the ONNX file, within ``OPSETS``; older runtimes load older ones.
        validation: batches of images (n, 3, side, side) by which a file in int8 is verified; random
            ones where there are none.

    Raises:
        ExportError: A format's logits differ by more than the tolerance.
        UsageError: ``directory`` holds something else than an export.
    """
    training, device = network.training, next(network.parameters()).device
    check_replaceable(directory)
    network = network.eval().cpu()
    staging = directory.parent / f".{directory.name}.nas.partial"  # a name of this tool alone
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        write_timm(network, staging, preprocessing, card.class_names)
        int8 = quantised(network.architecture)
        own = {"timm", INT8} if int8 else set(FORMATS) - {INT8}
        formats = [name for name in formats if name in own]
        model = timm_model(network.architecture) if PLAIN in formats else None
        if model is not None:
            write_plain_timm(network, model, staging)
        formats = [name for name in formats if name != PLAIN or model is not None]
        folded = fold_batch_norms(copy.deepcopy(network))  # as runtimes are to run it
        images = _test_images(preprocessing.resolution)
        with torch.inference_mode():
            expected = (reference or network)(images[:3]).float().cpu()
        if "onnx" in formats:
            write_onnx(folded, images, staging / FILES["onnx"], opset)
        if "torch_export" in formats:
            torch.export.save(program(folded, images), staging / FILES["torch_export"])
        if INT8 in formats:
            write_onnx(folded, images, staging / FILES[INT8], opset)
        exported = [
            verify(name, staging, directory, images[:3], expected)
            if name != INT8
            else verify_int8(staging, directory, validation or [images], network)
            for name in formats
        ]
        text = model_card(network, exported, preprocessing, card)
        (staging / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")
        _seal(staging, exported)
        sync_folder(staging)
        if directory.exists():
            shutil.rmtree(directory)
        staging.rename(directory)
        sync_folder(directory.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        network.train(training).to(device)
    return exported


def check_replaceable(directory: Path) -> None:
    """Refuses a ``directory`` with what an export would delete and did not write.

    Raises:
        UsageError: It is a file, or holds something else than an export.
    """
    if not directory.exists() or (directory / VERIFIED).is_file():
        return
    if not directory.is_dir() or any(directory.iterdir()):
        raise UsageError(
            f"{directory} exists and is no export, and an export replaces its folder; give a new "
            "folder with --output."
        )


def read_export(directory: Path) -> tuple[Export, ...]:
    """Formats of a complete export; every file is checked.

    Raises:
        CorruptFileError: It is not there, cut short or altered.
    """
    try:
        stored = read_model(directory / VERIFIED, Verified, fix=AGAIN)
        for name, digest in stored["sha256"].items():
            if _sha256(directory / name) != digest:
                raise CorruptFileError(f"{directory / name} was altered or cut short. {AGAIN}")
    except FileNotFoundError as error:
        raise CorruptFileError(f"{directory} holds no complete export ({error}). {AGAIN}") from None
    return stored["exports"]


def _seal(folder: Path, exported: Sequence[Export]) -> None:
    """Write what was verified, with the checksum of every file."""
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    digests = {item.relative_to(folder).as_posix(): _sha256(item) for item in files}
    content = {"exports": [asdict(item) for item in exported], "sha256": digests}
    (folder / VERIFIED).write_text(to_json(content))


def _sha256(path: Path) -> str:
    with os.fdopen(open_regular(path, MAX_WEIGHTS), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _test_images(resolution: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, resolution, resolution, generator=generator)
