"""Networks of timm in int8, as onnxruntime's own quantiser makes them.

Layers with weights become integers, and what stands between them (sums, clipping, pooling, changes
of shape) stays in integers; softmax, norms and curved activations remain in float, as they are
deployed.
Ranges are those of one image of noise: they decide the accuracy and not the speed.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from predictors.measuring.runtimes.onnx_graph import INPUT, OwnGraph, to_onnx

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_BETWEEN = (
    *("Add", "Relu", "Clip", "Concat", "Reshape", "Transpose"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
)


class Quantised(OwnGraph):
    """A network that runtimes are given in int8.

    It computes in float itself, and has float inputs and outputs.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.network(images)
        return output

    def graph(self, images: Tensor) -> onnx.ModelProto:
        """Makes the graph in int8, for inputs of exactly this shape."""
        with tempfile.TemporaryDirectory() as folder, _quiet():
            prepared, written = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            model = to_onnx(self.network, images)
            quant_pre_process(model, prepared, skip_symbolic_shape=True)  # constants are folded
            quantize_static(
                prepared,
                written,
                _OneBatch(images),
                op_types_to_quantize=[*_WEIGHTED, *_BETWEEN],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},  # products of attention stay in float
            )
            return onnx.load(written)


class _OneBatch(CalibrationDataReader):
    def __init__(self, images: Tensor) -> None:
        self._batches = iter([{INPUT: images.numpy()}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser recommends on the root logger what has been done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
