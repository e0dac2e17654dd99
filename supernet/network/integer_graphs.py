"""ONNX graphs of quantised modules: what is exported with float weights gets integer ones.

The exporter writes each rounding as QuantizeLinear and DequantizeLinear, of weights, too. Runtimes
compute in int8 where a convolution or a product of matrices stands between DequantizeLinear of
integer constants and of its input (ONNX, QDQ format); biases of convolutions are int32 then, with
the scales of input and weight multiplied.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"

Array = npt.NDArray[np.generic]


def with_integer_weights(model: ModelProto) -> ModelProto:
    """Makes the weights and biases of quantised layers integers, in place, and returns the graph.

    A graph without QuantizeLinear stays as it is.
    """
    graph = model.graph
    if not any(node.op_type == _QUANTISE for node in graph.node):
        return model
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    kept: list[NodeProto] = []
    made: dict[str, Array] = {}
    for node in graph.node:  # exporters sort nodes by what they need
        known = all(name in constants for name in node.input if name)
        if known and node.op_type != _DEQUANTISE:
            values = _values(node, constants)
            made |= values
            constants |= values
        else:
            kept.append(node)
    kept = _with_padding_inside(kept, constants)
    writers = {name: node for node in kept for name in node.output}
    nodes: list[NodeProto] = []
    for node in kept:
        nodes += _with_integer_bias(node, writers, constants, made)
        nodes.append(node)
    used = Counter(name for node in nodes for name in node.input)
    initial = [item for item in graph.initializer if used[item.name]]
    initial += [numpy_helper.from_array(v, name) for name, v in made.items() if used[name]]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initial)
    return model


def _with_padding_inside(nodes: list[NodeProto], constants: dict[str, Array]) -> list[NodeProto]:
    """Moves zeros around a map into the convolution that reads it, which may round it before.

    Zero is a level of every rounding, so the order of the two does not matter.
    """
    writers = {name: node for node in nodes for name in node.output}
    uses = Counter(name for node in nodes for name in node.input)
    gone: set[str] = set()
    for conv in nodes:
        if conv.op_type != "Conv":
            continue
        reader, source = conv, writers.get(conv.input[0])
        while source is not None and source.op_type in (_QUANTISE, _DEQUANTISE):
            reader, source = source, writers.get(source.input[0])
        if source is None or source.op_type != "Pad" or uses[source.output[0]] != 1:
            continue
        amounts, own = _padding(source, constants), _attribute(conv, "pads")
        if amounts is None or own is None:
            continue
        own.ints[:] = [int(a) + b for a, b in zip(amounts, own.ints, strict=True)]
        reader.input[0] = source.input[0]
        gone.add(source.output[0])
    return [node for node in nodes if node.output[0] not in gone]


def _padding(pad: NodeProto, constants: dict[str, Array]) -> list[int] | None:
    """Rows and columns of zeros before and after a map; None for any other padding."""
    mode, amounts = _attribute(pad, "mode"), constants.get(pad.input[1])
    value = constants.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(1)
    if amounts is None or value is None or np.any(value) or (mode and mode.s != b"constant"):
        return None
    batch, channels, *before = map(int, amounts[: len(amounts) // 2])
    batch_after, channels_after, *after = map(int, amounts[len(amounts) // 2 :])
    if any((batch, channels, batch_after, channels_after)) or min(*before, *after) < 0:
        return None
    return [*before, *after]


def _attribute(node: NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((item for item in node.attribute if item.name == name), None)


def _values(node: NodeProto, constants: dict[str, Array]) -> dict[str, Array]:
    feed = {name: constants[name] for name in node.input if name}
    values = ReferenceEvaluator(node).run(None, feed)
    return {name: np.asarray(v) for name, v in zip(node.output, values, strict=True)}


def _with_integer_bias(
    node: NodeProto,
    writers: dict[str, NodeProto],
    constants: dict[str, Array],
    made: dict[str, Array],
) -> list[NodeProto]:
    """Gives a quantised layer an int32 bias; returns what must stand before it.

    ``node`` is a convolution with a bias, or the sum of a product of matrices and one, which
    runtimes join to a layer with a bias before they look for integers.
    """
    if node.op_type == "Conv" and len(node.input) == 3:
        layer, place = node, 2
    elif node.op_type == "Add" and sum(name in constants for name in node.input) == 1:
        place = 0 if node.input[0] in constants else 1
        product = writers.get(node.input[1 - place])
        if product is None or product.op_type != "MatMul":
            return []
        layer = product
    else:
        return []
    scales = []
    for name in layer.input[:2]:
        writer = writers.get(name)
        if writer is None or writer.op_type != _DEQUANTISE or writer.input[1] not in constants:
            return []
        scales.append(constants[writer.input[1]].astype(np.float64))
    bias = constants[node.input[place]].astype(np.float64)
    scale = np.broadcast_to(scales[0] * scales[1], bias.shape)
    limits = np.iinfo(np.int32)
    integers = np.clip(np.round(bias / scale), limits.min, limits.max).astype(np.int32)
    base = f"{node.output[0]}.bias"
    names = f"{base}.int32", f"{base}.scale", f"{base}.zero"
    values = integers, scale.astype(np.float32), np.zeros(bias.shape, np.int32)
    made |= dict(zip(names, values, strict=True))
    node.input[place] = base
    return [helper.make_node(_DEQUANTISE, names, [base], axis=0)]


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a graph holds integer weights."""
    integer = (TensorProto.INT8, TensorProto.UINT8)
    return any(item.data_type in integer and len(item.dims) > 1 for item in model.graph.initializer)
