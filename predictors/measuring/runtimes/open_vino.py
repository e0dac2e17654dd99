"""OpenVINO: networks compiled for the processor, whose layouts and kernels it chooses itself.

Float is float32: by default OpenVINO computes in bfloat16 where the processor has instructions for
it, which is another network than the one that was trained. Inputs and outputs are bound once and
stay where they are. Graphs with integer weights run in int8, and what is float in them in float32.
Threads are not pinned to cores, since other work may hold those that are chosen.

Networks are timed cold, as entries are.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from predictors.measuring.runtimes.base import Method, Run, Runtime
from predictors.tables.conditions import Conditions
from search_space.errors import UsageError


class OpenVino(Runtime):
    """Networks compiled by OpenVINO for the CPU."""

    method: ClassVar[Method] = "constant"
    device_kinds = ("cpu",)
    settle = 0
    keeps_memory = True
    int8 = True
    library = "openvino"
    install = 'pip install "nas[openvino]"'

    def version(self) -> str:
        import openvino

        return f"openvino {openvino.__version__.split('-')[0]}"  # without the build's commit

    def require(self, device_kind: str, precision: str = "fp32") -> None:
        super().require(device_kind, precision)
        if precision != "fp32":
            raise UsageError(
                f"precision {precision!r} cannot be measured with runtime 'openvino', whose "
                "inputs and outputs are float32 here. Use fp32, or another runtime."
            )

    def prepare(self, module: nn.Module, images: Tensor, conditions: Conditions) -> Run:
        import openvino

        from predictors.measuring.runtimes.onnx_graph import INPUT, OUTPUT, to_onnx

        with torch.inference_mode(False), torch.no_grad():
            output = torch.empty_like(module(images), memory_format=torch.contiguous_format)
        images = images.contiguous()
        graph = to_onnx(module, images).SerializeToString()
        try:
            compiled = _core().compile_model(
                _core().read_model(graph), "CPU", _settings(conditions)
            )
            request = compiled.create_infer_request()
        except Exception as error:  # OpenVINO's own classes derive from Exception only
            raise UsageError(
                f"OpenVINO cannot compile a component: {_reason(error):.200}. Use another runtime."
            ) from error
        request.set_tensor(INPUT, openvino.Tensor(images.numpy(), shared_memory=True))
        request.set_tensor(OUTPUT, openvino.Tensor(output.numpy(), shared_memory=True))
        return partial(_run, request, images, output)


def _run(request: Any, images: Tensor, output: Tensor) -> Tensor:
    """``images`` are bound by address, so the call has to keep them alive."""
    request.infer({}, share_outputs=True)
    return output


def _reason(error: Exception) -> str:
    """The text without the lines of its source that threw it."""
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith("Exception from"))


def _settings(conditions: Conditions) -> dict[str, object]:
    """One request at a time, in float32.

    Each compiled network has threads of its own, hundreds in a table, even for one thread only:
    without a stream that one is the caller's, which is as fast.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 0 if conditions.threads == 1 else 1,
        "INFERENCE_NUM_THREADS": conditions.threads,
        "ENABLE_CPU_PINNING": False,
    }


@cache
def _core() -> Any:
    """The plugins are loaded once."""
    import openvino

    return openvino.Core()
