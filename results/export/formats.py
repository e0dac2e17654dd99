"""Formats of an export: how each is written, loaded back, and compared with the network."""

from __future__ import annotations

import io
import json
import logging
import runpy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import save_file
from torch import Tensor

from results.files import to_json
from results.report.data import Export
from search_space.errors import ExportError
from search_space.preprocessing import Preprocessing
from supernet.network.backbone import Backbone
from supernet.network.integer_graphs import with_integer_weights
from supernet.network.timm_models import to_timm
from supernet.network.timm_proposals import TimmModel

AGREEMENT = 0.8  # of classes, in int8: less is a defect, and not ties of unsure networks
ABSOLUTE_TOLERANCE = 1e-4  # of logits, times their largest magnitude where that is above 1

Reference = Callable[[Tensor], Tensor]


def write_timm(
    network: Backbone, folder: Path, preprocessing: Preprocessing, class_names: Sequence[str]
) -> None:
    """Write weights and ``config.json`` to ``folder``, as ``timm.create_model`` reads them."""
    pretrained_cfg: dict[str, Any] = {
        **preprocessing.timm(),
        "fixed_input_size": False,
        "num_classes": network.num_classes,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
    }
    if class_names:
        pretrained_cfg["label_names"] = list(class_names)
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


PLAIN, INT8 = "plain_timm", "onnx_int8"
_PROGRAM = """{source}
from pathlib import Path

from safetensors.torch import load_file

model.load_state_dict(load_file(Path(__file__).parent / "model.safetensors"))
model.eval()
"""


def write_plain_timm(network: Backbone, model: TimmModel, folder: Path) -> None:
    """Writes weights by timm's own names, and what builds its class for them.

    That is a program, ``model.py``, and for a registered model ``config.json`` beside what
    ``write_timm`` wrote, as ``timm.create_model`` reads it.
    """
    weights = folder / FILES[PLAIN]
    weights.parent.mkdir()
    state = {key: value.contiguous() for key, value in to_timm(network).items()}
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    program = _PROGRAM.format(source=model.source(network.num_classes))
    (weights.parent / "model.py").write_text(program)
    if model.registered:
        config = json.loads((folder / "config.json").read_text())
        with torch.device("meta"):
            own: dict[str, Any] = vars(model.build(network.num_classes))["default_cfg"]
        layers = {key: own[key] for key in ("first_conv", "classifier")}
        config |= {"architecture": model.name, "model_args": dict(model.arguments)}
        config["pretrained_cfg"] |= layers
        del config["digest"]  # of an architecture in our words, which is not there
        (weights.parent / "config.json").write_text(to_json(config))


def program(network: Backbone, images: Tensor) -> torch.export.ExportedProgram:
    """The network's graph for any batch size."""
    batch = torch.export.Dim("batch", min=1)
    with quiet():
        return torch.export.export(network, (images,), dynamic_shapes=({0: batch},))


def write_onnx(network: Backbone, images: Tensor, path: Path, opset: int) -> None:
    """Writes the network for any number of images of this height and width.

    The exporter that traces is used, as for the modules that latencies are measured of: what a
    bundle ran on a board's runtime, that runtime loads. It decomposes what ``opset`` lacks, as
    LayerNorm (before 17) and GELU (before 20); the other exporter writes opset 20 at least.
    """
    batch = {0: "batch"}
    with quiet(), torch.no_grad():
        network(images)  # modules make their constants in eager mode, not while traced
        torch.onnx.export(
            network,
            (images,),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": batch, "logits": batch},
        )
    model = onnx.load(path)
    side = images.shape[-1]
    facts = {
        "digest": network.architecture.digest,
        "images": f"float32, (batch, 3, {side}, {side}); height and width are fixed",
        "logits": f"float32, (batch, {network.num_classes})",
    }
    onnx.helper.set_model_props(model, facts)
    onnx.save(with_integer_weights(model), path)


@contextmanager
def quiet() -> Iterator[None]:
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

    with quiet():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return lambda images: model(images)


def _load_plain_timm(folder: Path) -> Reference:
    own = (folder / FILES[PLAIN]).parent
    if (own / "config.json").is_file():
        return _load_timm(own)
    model = runpy.run_path(str(own / "model.py"))["model"]
    return lambda images: model(images)


def _load_onnx(folder: Path, name: str = "onnx") -> Reference:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(folder / FILES[name]), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: torch.from_numpy(
        np.asarray(session.run(None, {"images": images.numpy()})[0])
    )


def _load_program(folder: Path) -> Reference:
    module = torch.export.load(folder / FILES["torch_export"]).module()
    return lambda images: module(images)


@dataclass(frozen=True)
class Format:
    """A format: its file, what it needs, and how it is loaded.

    Args:
        file: Name of the file.
        needs: With what it is loaded, in words.
        hint: What to know of it, with ``side`` for the images'.
        line: Python that loads it, with ``folder`` of the export.
        load: Loads it from an export's folder.
    """

    file: str
    needs: str
    hint: str
    line: str
    load: Callable[[Path], Reference]


_FIXED = "Images must be {side} px high and wide, any number of them."
FORMATS = {
    "timm": Format(
        "model.safetensors",
        "with this package and timm (fine-tuning, feature extraction)",
        "With `features_only=True` its maps are channels last: (batch, height, width, channels).",
        'import nas.timm, timm; model = timm.create_model("local-dir:{folder}", pretrained=True)',
        _load_timm,
    ),
    PLAIN: Format(
        "plain_timm/model.safetensors",
        "with timm alone, as its own architecture",
        "Where `plain_timm` holds a config.json, `timm.create_model` loads it like any model: "
        '`timm.create_model("local-dir:plain_timm", pretrained=True)`.',
        'import runpy; model = runpy.run_path("{folder}/plain_timm/model.py")["model"]',
        _load_plain_timm,
    ),
    "onnx": Format(
        "model.onnx",
        "without this package, on onnxruntime",
        _FIXED,
        'import onnxruntime; session = onnxruntime.InferenceSession("{file}")',
        _load_onnx,
    ),
    INT8: Format(
        "model.int8.onnx",
        "without this package, in int8 on onnxruntime, OpenVINO or TensorRT",
        _FIXED,
        'import onnxruntime; session = onnxruntime.InferenceSession("{file}")',
        partial(_load_onnx, name=INT8),
    ),
    "torch_export": Format(
        "model.pt2",
        "without this package, on PyTorch",
        _FIXED,
        'import torch; model = torch.export.load("{file}").module()',
        _load_program,
    ),
}
FILES = {name: format.file for name, format in FORMATS.items()}


def verify(name: str, staging: Path, directory: Path, images: Tensor, expected: Tensor) -> Export:
    """Load a format back and compare logits, for a batch and for single images.

    Args:
        name: Of the format.
        staging: Folder that holds it now.
        directory: Folder that it will be in.
        images: ``(n, 3, side, side)``, two at least.
        expected: The network's logits of them.

    Raises:
        ExportError: They differ by more than ``ABSOLUTE_TOLERANCE``.
    """
    run = FORMATS[name].load(staging)
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
        load=load_line(name, directory),
        max_difference=difference,
        tolerance=tolerance,
    )


def verify_int8(
    staging: Path, directory: Path, batches: Iterable[Tensor], network: Backbone
) -> Export:
    """Loads the file in int8 back and compares classes with those of the network in simulation.

    Integers and floats round ties in different ways, and one that differs changes others further
    on, so no tolerance of logits tells a defect from rounding; classes are compared one by one.

    Args:
        staging: Folder that holds it now.
        directory: Folder that it will be in.
        batches: Images (n, 3, side, side).
        network: What it was made of.

    Raises:
        ExportError: Classes agree on fewer than ``AGREEMENT`` of the images.
    """
    run, seen, agreeing, largest = FORMATS[INT8].load(staging), 0, 0, 0.0
    with torch.inference_mode():
        for images in batches:
            expected, actual = network(images), run(images)
            seen += len(images)
            agreeing += int((expected.argmax(1) == actual.argmax(1)).sum())
            largest = max(largest, float((expected - actual).abs().max()))
    share = agreeing / max(1, seen)
    if share < AGREEMENT:
        raise ExportError(
            f"{FILES[INT8]}: onnxruntime says the class of the simulated network of {share:.1%} of "
            f"{seen} images, and {AGREEMENT:.0%} are asked for; the export was discarded. On "
            "processors without instructions for int8 sums may overflow: export where there are "
            "some, or search with --precision fp32."
        )
    return Export(
        format=INT8,
        path=str(directory / FILES[INT8]),
        load=load_line(INT8, directory),
        max_difference=largest,
        agreement=share,
    )


def load_line(name: str, directory: Path) -> str:
    """A line of Python that loads a format."""
    return FORMATS[name].line.format(folder=directory, file=directory / FILES[name])
