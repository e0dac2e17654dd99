"""Which device a latency belongs to, and under which conditions it holds.

A latency without device, runtime, precision, batch size and threads means nothing, and eager
latency also depends on the version of torch and on the code of the modules. ``Conditions``
holds all of them; its digest names the table on disk, so that a table is never used for
anything else than what it was measured for.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_space.errors import CorruptFileError, InvalidQuantityError, UnknownNameError

if TYPE_CHECKING:
    import torch

RUNTIMES = ("eager", "cudagraph", "inductor", "onnxruntime", "tensorrt")
PRECISIONS = ("fp32", "fp16", "bf16")
LAYOUT = "channels_last"
PROTOCOL = "cold interleaved p25, v1"


@dataclass(frozen=True)
class DeviceIdentity:
    """What makes two machines give different latencies.

    Args:
        kind: ``cpu`` or ``cuda``.
        model: name of the processor or GPU.
        cores: physical cores, or multiprocessors of a GPU.
        capability: vector instructions that torch uses, or the CUDA compute capability.
    """

    kind: str
    model: str
    cores: int
    capability: str

    def __str__(self) -> str:
        unit = "cores" if self.kind == "cpu" else "multiprocessors"
        return f"{self.model}, {self.cores} {unit}, {self.capability}"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Everything that a latency is true under; ``digest`` is the key of its table on disk.

    Args:
        device: identity of the device.
        runtime: one of ``RUNTIMES``.
        precision: ``fp32``, ``fp16`` or ``bf16``; weights and inputs have it.
        batch_size: images per forward pass.
        threads: threads of one operator (CPU).
        runtime_version: name and version of what runs the network, such as ``torch 2.9.0``.
        layout: memory layout at the borders of modules.
        implementation: digest of the code of the static modules.
        protocol: how it was measured.
    """

    device: DeviceIdentity
    runtime: str = "eager"
    precision: str = "fp32"
    batch_size: int = 1
    threads: int
    runtime_version: str
    layout: str = LAYOUT
    implementation: str
    protocol: str = PROTOCOL

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise UnknownNameError("runtime", self.runtime, RUNTIMES)
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidQuantityError(f"{name}={value!r} must be a positive integer.")

    @cached_property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the content."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; ``from_dict`` inverts it."""
        return asdict(self)

    def differences(self, other: Conditions) -> list[str]:
        """Which of runtime, precision and batch size differ.

        Latencies of two devices can be compared where none does.
        """
        names = ("runtime", "precision", "batch_size")
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    @classmethod
    def from_dict(cls, data: object) -> Conditions:
        """Raises CorruptFileError where keys are missing, unknown or of the wrong type."""
        if not isinstance(data, Mapping) or not isinstance(data.get("device"), Mapping):
            raise CorruptFileError("conditions must be a mapping with a mapping 'device'.")
        for part, kind in ((data, cls), (data["device"], DeviceIdentity)):
            names = {item.name for item in fields(kind)}
            if set(part) != names:
                wrong = ", ".join(sorted(names.symmetric_difference(map(str, part))))
                raise CorruptFileError(f"conditions: missing or unknown keys: {wrong}.")
        return cls(**{**data, "device": DeviceIdentity(**data["device"])})

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device.kind == "cpu" else ""
        return (
            f"{self.device}; {self.runtime}, {self.precision}, batch {self.batch_size}{threads}, "
            f"{self.runtime_version}, {self.layout}"
        )


def local_device_names() -> list[str]:
    """Devices of this machine that can be measured: ``cpu``, and ``cuda`` where there is one."""
    import torch

    names = ["cpu"]
    if torch.cuda.is_available():
        names.append("cuda")
        names += [f"cuda:{i}" for i in range(1, torch.cuda.device_count())]
    return names


def identify(name: str) -> DeviceIdentity:
    """Identity of a device of this machine.

    Raises UnknownNameError that lists the devices there are.
    """
    import torch

    if name not in local_device_names():
        raise UnknownNameError("device", name, local_device_names())
    if name == "cpu":
        import psutil

        cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        return DeviceIdentity("cpu", _cpu_model(), cores, torch.backends.cpu.get_cpu_capability())
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
    """Conditions of a measurement on this machine; ``threads`` defaults to torch's own number.

    Raises UnknownNameError for a device, precision or runtime that is not there, UsageError for
    a runtime that is not installed or does not serve the device.
    """
    import torch

    from predictors.measuring.runtimes import find_runtime

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
    """The device of this machine that ``conditions`` speak of.

    Raises UnknownNameError where they speak of another machine's.
    """
    import torch

    for name in local_device_names():
        if identify(name) == conditions.device:
            return torch.device(name)
    local = [str(identify(name)) for name in local_device_names()]
    raise UnknownNameError("device on this machine", str(conditions.device), local)


@cache
def implementation_digest() -> str:
    """Digest of the code of the static modules: other code may run at another speed.

    Comments, docstrings and formatting do not count.
    """
    package = resources.files("supernet.network")
    files = [package / "modules.py"]
    files += sorted((package / "mixers").iterdir(), key=lambda item: item.name)
    digest = hashlib.sha256()
    for file in files:
        if file.name.endswith(".py"):
            tree = ast.parse(file.read_text("utf-8"))
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list) and body and _is_docstring(body[0]):
                    del body[0]
            digest.update(f"{file.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:12]


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _cpu_model() -> str:
    """Name of the processor; on Linux with family, model and stepping, since names are vague."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    info = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name = info.get("model name") or platform.machine()
    numbers = [info[key] for key in ("cpu family", "model", "stepping") if key in info]
    return f"{name} ({'/'.join(numbers)})" if numbers else name
