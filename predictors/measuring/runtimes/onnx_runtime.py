"""onnxruntime: graph optimisation at load, fused kernels, hardly any cost per operator.

Inputs and outputs are bound once and stay where they are, so that a call neither copies nor
allocates. Threads stop spinning when a call ends: hundreds of sessions are loaded at once, and
those that wait must not take the cores of the one that is timed.

Networks are timed cold, as entries are: sums of components predict a network cold within 3–4 % but
one that was just run only within 10 % (space ``digits``; for larger networks both are the same).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from predictors.measuring.runtimes.base import Method, Run, Runtime
from predictors.tables.conditions import Conditions
from search_space.errors import UsageError

if TYPE_CHECKING:
    import onnx

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime(Runtime):
    """Networks run by onnxruntime, on the CPU or on CUDA."""

    method: ClassVar[Method] = "constant"
    settle = 0
    keeps_memory = True
    int8 = True
    library = "onnxruntime"

    def version(self) -> str:
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def require(self, device_kind: str, precision: str = "fp32") -> None:
        super().require(device_kind, precision)
        if precision == "bf16":
            raise UsageError(
                "precision 'bf16' cannot be measured with runtime 'onnxruntime', which has no "
                "kernels for it. Use fp32 or fp16."
            )
        if _PROVIDERS[device_kind] not in _available():
            raise UsageError(
                f"the installed onnxruntime has no {_PROVIDERS[device_kind]}, only "
                f"{', '.join(_available())}. Install the one for GPUs with: "
                "pip install onnxruntime-gpu"
            )

    def prepare(self, module: nn.Module, images: Tensor, conditions: Conditions) -> Run:
        from predictors.measuring.runtimes.onnx_graph import INPUT, OUTPUT, to_onnx

        with torch.inference_mode(False), torch.no_grad():
            output = torch.empty_like(module(images), memory_format=torch.contiguous_format)
        images = images.contiguous()
        model = to_onnx(module, images)
        weights = _take_weights(model, module) if images.device.type == "cpu" else {}
        session = _session(model.SerializeToString(), weights, images, conditions)
        binding = session.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, INPUT, images),
            (binding.bind_output, OUTPUT, output),
        ):
            device, index = tensor.device.type, tensor.device.index or 0
            dtype = np.float16 if tensor.dtype == torch.float16 else np.float32
            bind(name, device, index, dtype, list(tensor.shape), tensor.data_ptr())

        return partial(_run, session, binding, (images, weights), output)


def _run(session: Any, binding: Any, inputs: object, output: Tensor) -> Tensor:
    """``inputs`` are bound by address, so the call has to keep them alive."""
    session.run_with_iobinding(binding)
    return output


def _take_weights(model: onnx.ModelProto, module: nn.Module) -> dict[str, np.ndarray]:
    """Takes the weights out of ``model``, by name.

    A session that is given them where they lie keeps what it packs for its kernels only; with a
    model of its own it takes twice the memory, and a table's sessions are all loaded at once.
    """
    parameters, weights = dict(module.named_parameters()), {}
    for tensor in model.graph.initializer:
        if tensor.name in parameters:
            weights[tensor.name] = parameters[tensor.name].detach().contiguous().numpy()
            tensor.ClearField("raw_data")
            tensor.data_location = tensor.EXTERNAL
            tensor.external_data.add(key="location", value="weights")  # there is no such file
    return weights


def _session(
    model: bytes, weights: Mapping[str, np.ndarray], images: Tensor, conditions: Conditions
) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = conditions.threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if weights:
        values = map(onnxruntime.OrtValue.ortvalue_from_numpy, weights.values())
        options.add_external_initializers(list(weights), list(values))
    provider: Any = _PROVIDERS[images.device.type]
    if images.device.type == "cuda":
        stream = torch.cuda.current_stream(images.device).cuda_stream  # so that events time it
        provider = (
            provider,
            {"device_id": images.device.index or 0, "user_compute_stream": str(stream)},
        )
    try:
        return onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # onnxruntime's own classes derive from Exception only
        text = " ".join(str(error).split())[:200]
        raise UsageError(
            f"onnxruntime cannot load a component in precision {conditions.precision!r}: {text}. "
            "Use precision fp32, or another runtime."
        ) from error


@cache
def _available() -> tuple[str, ...]:
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())
