"""TensorRT through its own ONNX parser: engines are built for one shape and one GPU.

Building tries kernels out and takes seconds to minutes per component. A timing cache that all
builds of a process share spares what was tried before.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from predictors.measuring.runtimes.base import Method, Run, Runtime
from predictors.tables.conditions import Conditions
from search_space.errors import UsageError

_WORKSPACE_BYTES = 2**30


class TensorRT(Runtime):
    """Networks compiled by TensorRT."""

    method: ClassVar[Method] = "constant"
    device_kinds = ("cuda",)
    int8 = True
    library = "tensorrt"
    install = 'pip install "nas[tensorrt]"'

    def __init__(self) -> None:
        self._timing = b""  # of the kernels that earlier builds tried

    def version(self) -> str:
        import tensorrt

        return f"tensorrt {tensorrt.__version__}, CUDA {torch.version.cuda}"

    def prepare(self, module: nn.Module, images: Tensor, conditions: Conditions) -> Run:
        import tensorrt

        from predictors.measuring.runtimes.onnx_graph import INPUT, OUTPUT, to_onnx

        with torch.inference_mode(False), torch.no_grad():
            output = torch.empty_like(module(images), memory_format=torch.contiguous_format)
        images = images.contiguous()
        plan = self._build(to_onnx(module, images).SerializeToString(), conditions)
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan)
        context = engine.create_execution_context()
        context.set_tensor_address(INPUT, images.data_ptr())
        context.set_tensor_address(OUTPUT, output.data_ptr())
        stream = torch.cuda.current_stream(images.device).cuda_stream
        return partial(_run, (runtime, engine), context, stream, images, output)

    def _build(self, model: bytes, conditions: Conditions) -> Any:
        """Builds an engine, serialised; types are those of the graph, whose precision it keeps."""
        import tensorrt

        builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
        flag = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flag)
        parser = tensorrt.OnnxParser(network, tensorrt.Logger(tensorrt.Logger.ERROR))
        config = builder.create_builder_config()
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
        timing = config.create_timing_cache(self._timing)
        config.set_timing_cache(timing, ignore_mismatch=False)
        plan = None
        if parser.parse(model):
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            reasons = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise UsageError(
                f"TensorRT cannot build a component in precision {conditions.precision!r}: "
                f"{'; '.join(reasons)[:200] or 'no kernel serves it'}. Use another precision or "
                "runtime."
            )
        self._timing = bytes(config.get_timing_cache().serialize())
        return plan


def _run(owners: object, context: Any, stream: int, images: Tensor, output: Tensor) -> Tensor:
    """``owners`` and ``images`` must live as long as the context uses them."""
    context.execute_async_v3(stream)
    return output
