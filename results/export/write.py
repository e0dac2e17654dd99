"""Export of a network to formats that others load: timm, ONNX, torch.export.

Everything is written to a folder beside the final one, each format is loaded back and compared
with the network that it came from, and only then does the folder get its name. A folder with
a name is therefore complete and checked; a kill in between leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from results.files import sync_folder, to_json
from results.report.data import Export
from search_space.boundary import open_regular, read_model
from search_space.errors import CorruptFileError, ExportError, UsageError
from search_space.names import PlainName
from search_space.preprocessing import Preprocessing
from supernet.network.backbone import Backbone

ABSOLUTE_TOLERANCE = 1e-4  # of logits, times their largest magnitude where that is above 1
VERIFIED = "verified.json"
FORMATS = ("timm", "onnx", "torch_export")
FILES = {"timm": "model.safetensors", "onnx": "model.onnx", "torch_export": "model.pt2"}

MAX_WEIGHTS = 2**36  # bytes of an exported file
AGAIN = "Export again with `nas export`."

Reference = Callable[[Tensor], Tensor]


class Verified(TypedDict):
    """What ``verified.json`` holds: the formats, and the checksum of every file by its name."""

    exports: tuple[Export, ...]
    sha256: dict[PlainName, str]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What the README of an export says besides how to load it."""

    title: str
    metrics: Mapping[str, str] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    trained_on: str = "nothing: the weights are random"
    notes: Sequence[str] = ()


def export_network(
    network: Backbone,
    directory: Path,
    *,
    preprocessing: Preprocessing,
    card: ModelCard,
    reference: Reference | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Export]:
    """Write ``network`` to ``directory`` in every format, each verified.

    Args:
        network: the network, on any device; it is exported in eval mode.
        directory: created; an earlier export in it is replaced once the new one is complete.
        reference: images ``(batch, 3, side, side)`` → logits that the formats must reproduce;
            the supernet's subnet where weights are inherited, by default the network itself.
        formats: among ``FORMATS``.

    Raises:
        ExportError: A format's logits differ by more than the tolerance.
        UsageError: ``directory`` holds something else than an export.
    """
    training, device = network.training, next(network.parameters()).device
    check_replaceable(directory)
    network = network.eval().cpu()
    staging = directory.parent / f".{directory.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _write_timm(network, staging, preprocessing, card)
        images = _test_images(preprocessing.resolution)
        with torch.inference_mode():
            expected = (reference or network)(images[:3]).float().cpu()
        if {"onnx", "torch_export"} & set(formats):
            program = _program(network, images)
        if "onnx" in formats:
            _write_onnx(program, staging / FILES["onnx"])
        if "torch_export" in formats:
            torch.export.save(program, staging / FILES["torch_export"])
        exported = [_verify(name, staging, directory, images[:3], expected) for name in formats]
        text = _model_card(network, exported, preprocessing, card)
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
    """Raises UsageError where ``directory`` has what an export would delete and did not write."""
    if not directory.exists() or (directory / VERIFIED).is_file():
        return
    if not directory.is_dir() or any(directory.iterdir()):
        raise UsageError(
            f"{directory} exists and is no export, and an export replaces its folder; give a new "
            "folder with --output."
        )


def read_export(directory: Path) -> tuple[Export, ...]:
    """What a complete export holds.

    Raises CorruptFileError where it is not there, cut short or altered: every file is checked.
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
    digests = {item.name: _sha256(item) for item in sorted(folder.iterdir())}
    content = {"exports": [asdict(item) for item in exported], "sha256": digests}
    (folder / VERIFIED).write_text(to_json(content))


def _sha256(path: Path) -> str:
    with os.fdopen(open_regular(path, MAX_WEIGHTS), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _test_images(resolution: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, resolution, resolution, generator=generator)


def _write_timm(
    network: Backbone, folder: Path, preprocessing: Preprocessing, card: ModelCard
) -> None:
    pretrained_cfg: dict[str, Any] = {
        **preprocessing.timm(),
        "fixed_input_size": False,
        "num_classes": network.num_classes,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
    }
    if card.class_names:
        pretrained_cfg["label_names"] = list(card.class_names)
    config = {
        "architecture": "nas_backbone",
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        "model_args": {"architecture": network.architecture.to_dict()},
        "digest": network.architecture.digest,
        "pretrained_cfg": pretrained_cfg,
    }
    (folder / "config.json").write_text(to_json(config))
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, folder / FILES["timm"], metadata={"format": "pt"})
    (folder / FILES["timm"]).chmod(0o644)  # safetensors writes files that only the owner reads


def _program(network: Backbone, images: Tensor) -> torch.export.ExportedProgram:
    """The network's graph for any batch size; ``onnx`` and ``torch_export`` share it."""
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        return torch.export.export(network, (images,), dynamic_shapes=({0: batch},))


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    with _quiet():
        torch.onnx.export(
            program,
            (),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters chat on standard output and in warnings; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _load_timm(folder: Path) -> Reference:
    import timm

    with _quiet():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return lambda images: model(images)


def _load_onnx(folder: Path) -> Reference:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(folder / FILES["onnx"]), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: torch.from_numpy(
        np.asarray(session.run(None, {"images": images.numpy()})[0])
    )


def _load_program(folder: Path) -> Reference:
    module = torch.export.load(folder / FILES["torch_export"]).module()
    return lambda images: module(images)


_LOADERS: dict[str, Callable[[Path], Reference]] = {
    "timm": _load_timm,
    "onnx": _load_onnx,
    "torch_export": _load_program,
}


def _verify(name: str, staging: Path, directory: Path, images: Tensor, expected: Tensor) -> Export:
    """Load a format back and compare logits, for a batch and for single images."""
    run = _LOADERS[name](staging)
    with torch.inference_mode():
        actual = torch.cat([run(images), run(images[:1]), run(images[1:2])])
    expected = torch.cat([expected, expected[:2]])
    tolerance = ABSOLUTE_TOLERANCE * max(1.0, float(expected.abs().max()))
    difference = float((actual - expected).abs().max())
    if not difference <= tolerance:  # also refuses NaN
        raise ExportError(
            f"{FILES[name]}: logits differ from the network's by {difference:.2g}, more than "
            f"{tolerance:.2g}; the export was discarded. Try another format, and report this "
            "architecture."
        )
    return Export(
        format=name,
        path=str(directory / FILES[name]),
        load=_load_line(name, directory),
        max_difference=difference,
        tolerance=tolerance,
    )


def _load_line(name: str, directory: Path) -> str:
    """How to load a format, in one line of Python."""
    match name:
        case "timm":
            load = f'timm.create_model("local-dir:{directory}", pretrained=True)'
            return f"import nas.timm, timm; model = {load}"
        case "onnx":
            path = directory / FILES["onnx"]
            return f'import onnxruntime; session = onnxruntime.InferenceSession("{path}")'
        case _:
            path = directory / FILES["torch_export"]
            return f'import torch; model = torch.export.load("{path}").module()'


def _model_card(
    network: Backbone,
    exported: Sequence[Export],
    preprocessing: Preprocessing,
    card: ModelCard,
) -> str:
    side = preprocessing.resolution
    lines = [
        f"# {card.title}",
        "",
        f"Architecture `{network.architecture.digest}`: {network.architecture}.",
        f"Trained on: {card.trained_on}.",
        "",
    ]
    if card.metrics:
        lines += ["| metric | value |", "| --- | --- |"]
        lines += [f"| {key} | {value} |" for key, value in card.metrics.items()]
        lines.append("")
    lines += [
        "## Input and output",
        "",
        f"`images`: float32, (batch, 3, {side}, {side}), any batch size. {preprocessing} "
        f"`logits`: float32, (batch, {network.num_classes}).",
        "",
        "## Loading",
        "",
    ]
    needs = {
        "timm": "with this package and timm (fine-tuning, feature extraction)",
        "onnx": "without this package, on onnxruntime",
        "torch_export": "without this package, on PyTorch",
    }
    for item in exported:
        lines += [
            f"{FILES[item.format]}, {needs[item.format]}; checked on export, logits within "
            f"{item.max_difference:.1e} of the network's:",
            "",
            "```python",
            _load_line(item.format, Path(".")),
            "```",
            "",
        ]
    if card.class_names:
        shown = ", ".join(map(str, card.class_names[:100]))
        lines += ["## Classes", "", f"In the order of the logits: {shown}.", ""]
    if card.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in card.notes), ""]
    return "\n".join(lines)
