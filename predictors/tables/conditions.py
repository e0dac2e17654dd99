"""Conditions of a latency: the device that it belongs to, and all else that it depends on.

Their digest names the table on disk, so that a table is never used for anything else than what
it was measured for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from search_space.errors import InvalidQuantityError, UnknownNameError
from search_space.names import PlainName
from search_space.precision import FORMATS

PRECISIONS = FORMATS
LAYOUT = "channels_last"
PROTOCOL = "cold interleaved p25, v1"
ESTIMATED = "kernels, v2"  # the protocol of what is estimated, not measured


@dataclass(frozen=True)
class DeviceIdentity:
    """What makes two machines give different latencies.

    ``model`` is the name of the processor or GPU, ``cores`` are physical ones, or multiprocessors
    of a GPU, ``capability`` the vector instructions that torch uses, or the CUDA compute
    capability.
    """

    kind: Literal["cpu", "cuda"]
    model: str
    cores: int
    capability: str

    def __str__(self) -> str:
        unit = "cores" if self.kind == "cpu" else "multiprocessors"
        return f"{self.model}, {self.cores} {unit}, {self.capability}"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Everything that a latency depends on; ``digest`` is the key of its table on disk.

    Args:
        device: Identity of the device.
        runtime: Name of what runs the network, see ``measuring.runtimes``.
        precision: ``fp32``, ``fp16`` or ``bf16``; weights and inputs have it.
        batch_size: Images per forward pass.
        threads: Threads of one operator, on CPUs.
        runtime_version: Such as ``torch 2.9.0``.
        layout: Memory layout at the borders of modules.
        implementation: Digest of the code of the static modules.
        protocol: How it was measured.

    Raises:
        UnknownNameError: There is no such precision.
        InvalidQuantityError: Batch size or threads are no positive integers.
    """

    device: DeviceIdentity
    runtime: PlainName = "eager"
    precision: str = "fp32"
    batch_size: int = 1
    threads: int
    runtime_version: str
    layout: str = LAYOUT
    implementation: str
    protocol: str = PROTOCOL

    def __post_init__(self) -> None:
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
        """Converts to plain JSON values."""
        return asdict(self)

    def differences(self, other: Conditions) -> list[str]:
        """Lists which of runtime, precision and batch size differ: none where devices compare."""
        names = ("runtime", "precision", "batch_size")
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    @property
    def estimated(self) -> bool:
        """Whether a table of these conditions holds estimates."""
        return self.protocol == ESTIMATED

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device.kind == "cpu" else ""
        return (
            f"{self.device}; {self.runtime}, {self.precision}, batch {self.batch_size}{threads}, "
            f"{self.runtime_version}, {self.layout}"
        )
