"""Modules as ONNX graphs: for runtimes that read ONNX, and for bundles.

Quantised modules are graphs with integer weights.

Uses the exporter that traces (``dynamo=False``): 10–100 ms per component where the other takes
seconds; networks of both run equally fast on onnxruntime, which brings them to the same form when
it loads them. No constants are folded here for the same reason; batch norms are, in the modules.
"""

from __future__ import annotations

import io
import logging
import warnings
from abc import ABC, abstractmethod

import onnx
import torch
from torch import Tensor, nn

from supernet.network.integer_graphs import with_integer_weights

INPUT, OUTPUT = "images", "output"
OPSET = 18


class OwnGraph(nn.Module, ABC):
    """A module that is given to runtimes as another graph than what it computes itself."""

    @abstractmethod
    def graph(self, images: Tensor) -> onnx.ModelProto:
        """Makes the graph, with the input and the output of ``to_onnx``."""


def to_onnx(module: nn.Module, images: Tensor) -> onnx.ModelProto:
    """Makes the graph of ``module`` for inputs of exactly this shape, weights included."""
    if isinstance(module, OwnGraph):
        return module.graph(images)
    buffer = io.BytesIO()
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing: shapes are fixed on purpose
            module(images)  # modules make their constants in eager mode, not while traced
            torch.onnx.export(
                module,
                (images,),
                buffer,  # type: ignore[arg-type]  # this exporter writes to buffers too
                dynamo=False,
                opset_version=OPSET,
                do_constant_folding=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
    finally:
        log.setLevel(level)
    return with_integer_weights(onnx.load_model_from_string(buffer.getvalue()))
