"""The devices of this machine, and the conditions that it measures under."""

from __future__ import annotations

import ast
import hashlib
import os
import re
from functools import cache
from importlib import resources

import torch

from predictors.measuring.runner import processor, processor_name
from predictors.measuring.runtimes import find_runtime
from predictors.tables.conditions import Conditions, DeviceIdentity
from search_space.blocks import BLOCKS
from search_space.errors import UnknownNameError, UsageError
from search_space.macro import HEADS, STEMS, TRANSITIONS
from search_space.mixers import MIXERS

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def local_device_names() -> list[str]:
    """Lists devices of this machine: ``cpu``, and ``cuda`` where there is one."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names.append("cuda")
        names += [f"cuda:{i}" for i in range(1, torch.cuda.device_count())]
    return names


def is_cuda(name: str) -> bool:
    """Decides whether ``name`` is one of a CUDA device, there or not: ``cuda``, ``cuda:1``."""
    return re.fullmatch(r"cuda(:\d+)?", name) is not None


def _what_torch_sees() -> str:
    """Explains why a CUDA device is not there, and what to do about it."""
    names = local_device_names()[1:]
    if names:
        return f"PyTorch sees {len(names)} CUDA devices here. Use one of: {', '.join(names)}."
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"PyTorch sees no CUDA device, since the installed PyTorch {torch.__version__} is "
            "built for CPUs only. Install the build for CUDA (https://pytorch.org), or use "
            "--device cpu."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return (
            f"PyTorch sees no CUDA device with CUDA_VISIBLE_DEVICES={visible!r}. Unset that "
            "variable, or name a GPU that nvidia-smi lists; or use --device cpu."
        )
    return (
        f"PyTorch {torch.__version__} sees no CUDA device. Check with nvidia-smi that there is a "
        "GPU and a driver for CUDA "
        f"{torch.version.cuda}, and that a container was started with --gpus; or use --device cpu."
    )


def identify(name: str) -> DeviceIdentity:
    """Identifies a device of this machine.

    Raises:
        UsageError: A CUDA device is named that PyTorch does not see.
        UnknownNameError: The name is of no device here; lists those there are.
    """
    if name not in local_device_names():
        if is_cuda(name):
            raise UsageError(f"device {name!r} cannot be used: {_what_torch_sees()}")
        raise UnknownNameError("device", name, local_device_names())
    if name == "cpu":
        import psutil

        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        model, capability = processor_name(processor()), torch.backends.cpu.get_cpu_capability()
        return DeviceIdentity("cpu", model, cores, capability)
    properties = torch.cuda.get_device_properties(name)
    capability = f"sm_{properties.major}{properties.minor}"
    return DeviceIdentity("cuda", properties.name, properties.multi_processor_count, capability)


def local_conditions(
    device: str = "cpu",
    *,
    threads: int | None = None,
    batch_size: int = 1,
    precision: str = "fp32",
    runtime: str = "eager",
) -> Conditions:
    """Makes the conditions of a measurement on this machine.

    ``device`` is a name such as ``cuda:1``; ``threads`` are by default as many as torch uses.

    Raises:
        UnknownNameError: There is no such device, precision or runtime.
        UsageError: The runtime is not installed, or does not serve the device.
    """
    identity = identify(device)
    find_runtime(runtime).require(identity.kind, precision)
    return Conditions(
        device=identity,
        runtime=runtime,
        precision=precision,
        batch_size=batch_size,
        threads=torch.get_num_threads() if threads is None else threads,
        runtime_version=find_runtime(runtime).version(),
        implementation=implementation_digest(),
    )


def torch_device(conditions: Conditions) -> torch.device:
    """Finds the device of this machine that ``conditions`` speak of.

    Raises:
        UnknownNameError: They speak of another machine's.
    """
    for name in local_device_names():
        if identify(name) == conditions.device:
            return torch.device(name)
    local = [str(identify(name)) for name in local_device_names()]
    raise UnknownNameError("device on this machine", str(conditions.device), local)


@cache
def implementation_digest() -> str:
    """Computes a digest of the code of the static modules: other code may run at another speed.

    Comments, docstrings and formatting do not count.
    """
    package = resources.files("supernet.network")
    names = ("layers", "modules", "stems", "transitions", "heads", "quantised", "integer_graphs")
    files = [package / f"{name}.py" for name in names]
    for folder in ("blocks", "mixers"):
        files += sorted((package / folder).iterdir(), key=lambda item: item.name)
    for registry in (MIXERS, BLOCKS, STEMS, TRANSITIONS, HEADS):
        files += registry.files()
    digest = hashlib.sha256()
    for file in files:
        if file.name.endswith(".py"):
            tree = ast.parse(file.read_text("utf-8"))
            for node in ast.walk(tree):
                if (
                    isinstance(node, _DOCUMENTED)
                    and ast.get_docstring(node, clean=False) is not None
                ):
                    del node.body[0]
            digest.update(f"{file.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:12]
