"""Runtimes: the programs that run a network, and whose speed differs by far.

``find_runtime(name).prepare(module, images, conditions)`` gives a call that runs one forward pass.
A package of the user's adds a runtime by an entry point in the group ``nas.runtimes``, which names
a subclass of ``Runtime``:

    [project.entry-points."nas.runtimes"]
    myruntime = "my_package.runtime:MyRuntime"
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import get_args

from predictors.measuring.runtimes.base import Method, Run, Runtime
from search_space.errors import UnknownNameError, UsageError

__all__ = ["Run", "Runtime", "find_runtime", "require_int8", "runtime_names"]

GROUP = "nas.runtimes"
_OURS = {
    "cudagraph": "eager:CudaGraph",
    "eager": "eager:Eager",
    "inductor": "inductor:Inductor",
    "onnxruntime": "onnx_runtime:OnnxRuntime",
    "openvino": "open_vino:OpenVino",
    "tensorrt": "tensor_rt:TensorRT",
}


@cache
def _known() -> dict[str, EntryPoint]:
    """Finds entry points by name; other packages add runtimes and replace none of ours."""
    others = {point.name: point for point in entry_points(group=GROUP)}
    return others | {
        name: EntryPoint(name, f"{__name__}.{place}", GROUP) for name, place in _OURS.items()
    }


def runtime_names() -> list[str]:
    """Lists all runtimes, whether they can be used here or not."""
    return sorted(_known())


def require_int8(name: str) -> None:
    """Checks that a runtime runs modules in int8 in integers.

    Raises:
        UsageError: It does not; names those that do.
    """
    if find_runtime(name).int8:
        return
    others = []
    for other in runtime_names():
        with suppress(UsageError):  # another package's that is broken
            others += [other] if find_runtime(other).int8 else []
    raise UsageError(
        f"runtime {name!r} runs nothing in int8, so it would be no faster; take one that does "
        f"({', '.join(others)}), or precision fp32."
    )


@cache
def find_runtime(name: str) -> Runtime:
    """Returns the runtime of that name, always the same object.

    Raises:
        UnknownNameError: There is none.
        UsageError: Another package's cannot be imported, or is no ``Runtime``.
    """
    if name not in _known():
        raise UnknownNameError(
            "runtime",
            name,
            runtime_names(),
            "Another package's is known once that package is installed in this environment.",
        )
    point = _known()[name]
    package = point.dist.name if point.dist is not None else "nas"
    try:
        runtime = _made(point.load())
    except Exception as error:  # whatever the import of a foreign module raises
        raise UsageError(
            f"runtime {name!r} of the package {package!r} cannot be used "
            f"({type(error).__name__}: {error}); correct it and install the package again, or "
            f"remove it: pip uninstall {package}"
        ) from error
    runtime.name = name
    return runtime


def _made(kind: type[Runtime]) -> Runtime:
    """Returns the runtime of a class, which another package may have written."""
    if not issubclass(kind, Runtime):
        raise TypeError("it is no subclass of Runtime")
    runtime = kind()
    methods = get_args(Method)
    if getattr(runtime, "method", None) not in methods:
        raise ValueError(f"its method must be one of {', '.join(methods)}")
    return runtime
