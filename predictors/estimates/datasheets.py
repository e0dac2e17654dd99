"""Datasheets of GPUs (``datasheets.yaml``): what a device can do at best, for estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from predictors.tables.conditions import DeviceIdentity
from search_space.errors import UnknownNameError, UsageError

ALIASES = {"a100": "a100-80gb"}
_TF32_BY_DEFAULT = ("onnxruntime", "tensorrt")


@dataclass(frozen=True)
class Datasheet:
    """One GPU, as its maker describes it.

    Args:
        name: What people call it, such as ``a100-80gb``.
        model: Name that its driver gives.
        capability: CUDA compute capability, such as ``sm_80``.
        multiprocessors: Number of multiprocessors.
        peak_tflops: Dense TFLOP/s by number format: ``fp16``, ``bf16`` and ``tf32`` on tensor
            cores, where it has them, and ``fp32`` on plain cores.
        clock_ghz: Boost clock.
        sustained: Share of a format's peak that large products reach, where it was measured.
        bandwidth_gb_s: Bandwidth of the main memory, 10⁹ bytes per second.
        l2_bytes: Size of the second-level cache.
        source: Where the figures come from.
    """

    name: str
    model: str
    capability: str
    multiprocessors: int
    peak_tflops: tuple[tuple[str, float], ...]
    clock_ghz: float
    sustained: tuple[tuple[str, float], ...]
    bandwidth_gb_s: float
    l2_bytes: int
    source: str

    @property
    def identity(self) -> DeviceIdentity:
        """Identity that such a device would give itself."""
        return DeviceIdentity("cuda", self.model, self.multiprocessors, self.capability)

    def peak(self, number_format: str) -> float:
        """Returns dense TFLOP/s.

        Raises:
            UsageError: The device does not compute in this format.
        """
        peaks = dict(self.peak_tflops)
        if number_format not in peaks:
            raise UsageError(
                f"{self.name} ({self.capability}) does not compute in {number_format}: take one of "
                f"{', '.join(peaks)}."
            )
        return peaks[number_format]

    def sustained_share(self, number_format: str) -> float:
        """Returns the share of the peak that large products reach, 0.8 where nobody measured it."""
        known = dict(self.sustained)
        return known.get(number_format, known.get("fp16", 0.8) if number_format == "tf32" else 0.8)

    def number_format(self, precision: str, runtime: str) -> str:
        """Returns what a runtime multiplies in, by default, when weights have ``precision``.

        TensorRT and ONNX Runtime use TF32 for fp32 networks unless told otherwise; PyTorch does
        not.

        Raises:
            UsageError: The device lacks the format.
        """
        if precision == "fp32" and runtime in _TF32_BY_DEFAULT and "tf32" in dict(self.peak_tflops):
            return "tf32"
        self.peak(precision)
        return precision

    def computes_like(self, other: Datasheet) -> bool:
        """Decides whether at most the memories differ, as in the 40 and 80 GB versions of a GPU."""
        return (self.capability, self.multiprocessors, self.peak_tflops) == (
            other.capability,
            other.multiprocessors,
            other.peak_tflops,
        )


@cache
def _datasheets() -> Mapping[str, Datasheet]:
    text = (resources.files("predictors.estimates") / "datasheets.yaml").read_text("utf-8")
    sheets = {}
    for name, data in yaml.safe_load(text).items():
        peaks = tuple((key, float(value)) for key, value in data.pop("peak_tflops").items())
        sustained = tuple(data.pop("sustained", {}).items())
        l2_bytes = int(data.pop("l2_mib") * 2**20)
        sheets[name] = Datasheet(
            name=name, peak_tflops=peaks, sustained=sustained, l2_bytes=l2_bytes, **data
        )
    return sheets


def datasheet_names() -> list[str]:
    """Lists the names of all devices with a datasheet, aliases among them."""
    return sorted([*_datasheets(), *ALIASES])


def datasheet(name: str) -> Datasheet:
    """Returns the datasheet of ``name``.

    Raises:
        UnknownNameError: There is none; the message names the nearest.
    """
    sheet = _datasheets().get(ALIASES.get(name, name))
    if sheet is None:
        raise UnknownNameError("device", name, datasheet_names())
    return sheet


def datasheet_of(device: DeviceIdentity) -> Datasheet | None:
    """Finds the datasheet of a device by the name that its driver gives."""
    sheets = _datasheets().values() if device.kind == "cuda" else ()
    return next((sheet for sheet in sheets if sheet.model == device.model), None)
