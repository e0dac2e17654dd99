"""Bundles: measurements of a device that this package is not installed on.

``write_bundle`` leaves a folder with an ONNX file per component and check network, a manifest, and
``run.py``, which needs numpy and onnxruntime only. Run on the device, it writes a results file that
``import_bundle`` turns into a latency table. Weights do not change the speed, so all models read
theirs from one file of noise, and constants that several share are stored once.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import set_external_data
from torch import nn

from predictors.measuring import runner as bundle_runner
from predictors.measuring.bench import Subject, WeightPool, entry_subject, network_subject
from predictors.measuring.entry_plan import empty_subject
from predictors.measuring.profile import check_architectures
from predictors.measuring.runner import FORMAT, sha256
from predictors.measuring.runtimes import find_runtime
from predictors.measuring.runtimes.onnx_graph import to_onnx
from predictors.measuring.this_machine import identify, implementation_digest
from predictors.operators import DTYPES
from predictors.tables.additive import entries
from predictors.tables.conditions import LAYOUT, PRECISIONS, PROTOCOL, Conditions
from predictors.tables.latency_table import spec_to_json
from search_space import SearchSpace, components
from search_space.errors import UnknownNameError, UsageError

RUNTIME = "onnxruntime"
MODELS, WEIGHTS, CONSTANTS = "models", "weights.bin", "constants.bin"
_WEIGHTS_MOST = 2**23  # bytes of noise, unless one tensor is larger
_SMALL = 1024  # bytes: smaller tensors stay in the graph
_PAGE = 4096  # where files can be mapped into memory

Progress = Callable[[int, int], None]


def write_bundle(
    folder: Path,
    space: SearchSpace,
    num_classes: int = 1000,
    *,
    batch_size: int = 1,
    precision: str = "fp32",
    progress: Progress | None = None,
) -> Path:
    """Writes what measures the entries of ``space`` elsewhere into ``folder``, and returns it.

    The folder appears when it is complete. ``progress`` is called with models done and all models.

    Raises:
        UsageError: ``folder`` exists and is not empty, or onnxruntime cannot run the precision.
        UnknownNameError: There is no such precision.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    if precision not in bundle_runner.NUMPY_TYPES:
        raise UsageError(
            f"precision {precision!r} cannot be measured by a bundle, since onnxruntime has no "
            f"kernels for it. Use {' or '.join(bundle_runner.NUMPY_TYPES)}."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already. Choose another folder, or remove it.")
    staging = folder.with_name(f".{folder.name}.nas.partial")  # a name of this tool alone
    shutil.rmtree(staging, ignore_errors=True)
    (staging / MODELS).mkdir(parents=True)
    try:
        conditions = Conditions(  # this machine's CPU, on which models are made for any device
            device=identify("cpu"),
            runtime=RUNTIME,
            precision=precision,
            batch_size=batch_size,
            threads=1,
            runtime_version=RUNTIME,
            implementation=implementation_digest(),
        )
        manifest = _Writer(staging, conditions, progress).write(space, num_classes)
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


@dataclass
class _Writer:
    folder: Path
    conditions: Conditions
    progress: Progress | None
    shared: _SharedTensors = field(init=False)

    def write(self, space: SearchSpace, num_classes: int) -> dict[str, Any]:
        """Writes all files but the manifest, which is returned."""
        self.shared = _SharedTensors()
        wanted, checks = entries(space, num_classes), check_architectures(space)
        conditions, pool = self.conditions, WeightPool(self.conditions)
        self._done, self._total = 0, len(wanted) + len(checks) + 1
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "space": {"name": space.name, "digest": space.digest},
            "num_classes": num_classes,
            "batch_size": conditions.batch_size,
            "precision": conditions.precision,
            "layout": LAYOUT,
            "protocol": PROTOCOL,
            "settle": find_runtime(RUNTIME).settle,
            "implementation": conditions.implementation,
        }
        manifest["entries"] = [
            {
                "spec": spec_to_json(spec),
                "in_size": size,
                **self._model(f"entry_{i:04d}", entry_subject(spec, size, conditions, pool)),
            }
            for i, (spec, size) in enumerate(wanted)
        ]
        manifest["checks"] = [
            {
                "digest": architecture.digest,
                "components": [
                    [spec_to_json(part.spec), part.in_size]
                    for part in components(architecture, num_classes)
                ],
                **self._model(
                    f"network_{i:02d}", network_subject(architecture, num_classes, conditions, pool)
                ),
            }
            for i, architecture in enumerate(checks)
        ]
        manifest["empty"] = self._model("empty", empty_subject(conditions, pool))
        self.shared.write(self.folder / MODELS, DTYPES[conditions.precision])
        runner = Path(bundle_runner.__file__).read_text("utf-8")
        (self.folder / "run.py").write_text(runner, "utf-8")
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        manifest["sha256"] = {
            path.relative_to(self.folder).as_posix(): sha256(path) for path in files
        }
        return manifest

    def _model(self, name: str, subject: Subject) -> dict[str, Any]:
        """Writes one ONNX file, and returns what the runner needs to know of it."""
        graph = to_onnx(subject.module, subject.images)
        self.shared.take_from(graph, subject.module)
        path = self.folder / MODELS / f"{name}.onnx"
        onnx.save_model(graph, path)
        with torch.no_grad():
            output = subject.module(subject.images)
        self._done += 1
        if self.progress is not None:
            self.progress(self._done, self._total)
        weights = sum(p.numel() * p.element_size() for p in subject.module.parameters())
        return {
            "file": f"{MODELS}/{name}.onnx",
            "input_shape": list(subject.images.shape),
            "output_shape": list(output.shape),
            "weight_bytes": weights,
        }


class _SharedTensors:
    """Two files that all models read: noise for weights, and constants by their content."""

    def __init__(self) -> None:
        self._next, self._used, self._size = 0, 0, _WEIGHTS_MOST
        self._constants = bytearray()
        self._known: dict[str, int] = {}

    def take_from(self, model: onnx.ModelProto, module: nn.Module) -> None:
        """Replaces all large tensors of ``model`` by places in the two files."""
        weights = {name for name, _ in module.named_parameters()}
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                self._place(tensor, WEIGHTS, self._weights(len(_content(tensor))))
            else:
                self._constant(tensor)
        for node in list(model.graph.node):
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                tensor = node.attribute[0].t
                if len(_content(tensor)) > _SMALL:
                    # as an initialiser, since files can hold the data of no other kind of tensor
                    moved = model.graph.initializer.add()
                    moved.CopyFrom(tensor)
                    moved.name = node.output[0]
                    model.graph.node.remove(node)
                    self._constant(moved)

    def _constant(self, tensor: TensorProto) -> None:
        content = _content(tensor)
        key = hashlib.sha256(content).hexdigest()
        if key not in self._known:
            self._constants += bytes(-len(self._constants) % _PAGE)
            self._known[key] = len(self._constants)
            self._constants += content
        self._place(tensor, CONSTANTS, self._known[key])

    def _weights(self, size: int) -> int:
        """Places the next ``size`` bytes of noise; the file starts over at its end."""
        self._size = max(self._size, size)
        if self._next + size > self._size:
            self._next = 0
        offset = self._next
        self._next += math.ceil(size / _PAGE) * _PAGE
        self._used = max(self._used, offset + size)
        return offset

    @staticmethod
    def _place(tensor: TensorProto, file: str, offset: int) -> None:
        if (size := len(_content(tensor))) > _SMALL:
            set_external_data(tensor, file, offset, size)
            tensor.ClearField("raw_data")

    def write(self, folder: Path, dtype: torch.dtype) -> None:
        count = math.ceil(self._used / dtype.itemsize)
        generator = torch.Generator().manual_seed(0)
        noise = torch.empty(count).normal_(0, 0.02, generator=generator).to(dtype)
        (folder / WEIGHTS).write_bytes(noise.numpy().tobytes())
        (folder / CONSTANTS).write_bytes(self._constants)


def _content(tensor: TensorProto) -> bytes:
    """Returns the raw bytes of a tensor."""
    if not tensor.HasField("raw_data"):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return bytes(tensor.raw_data)
