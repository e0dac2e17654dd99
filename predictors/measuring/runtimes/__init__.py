"""Runtimes: the programs that run a network, and whose speed differs by far.

One file each, registered by name; ``find_runtime(name).prepare(module, images, conditions)``
gives a call that runs one forward pass.
"""

from predictors.measuring.runtimes import (
    cudagraph,
    eager,
    inductor,
    onnx_runtime,
    tensor_rt,
)
from predictors.measuring.runtimes.base import Run, Runtime, find_runtime, runtime_names

__all__ = [
    "Run",
    "Runtime",
    "cudagraph",
    "eager",
    "find_runtime",
    "inductor",
    "onnx_runtime",
    "runtime_names",
    "tensor_rt",
]
