"""Datasheets of GPUs: what a device can do at best, for estimates where nobody has measured.

The figures and where they come from are in ``datasheets.yaml``.
"""

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
    """One GPU.

    Args:
        name: what people call it, such as ``a100-80gb``.
        model: the name that its driver gives.
        capability: CUDA compute capability, such as ``sm_80``.
        multiprocessors: number of them.
        peak_tflops: dense TFLOP/s by number format: ``fp16``, ``bf16`` and ``tf32`` on tensor
            cores, where it has them, and ``fp32`` on plain cores.
        bandwidth_gb_s: of the main memory, 10⁹ bytes per second.
        l2_bytes: size of the second-level cache.
        source: where the figures come from.
    """

    name: str
    model: str
    capability: str
    multiprocessors: int
    peak_tflops: tuple[tuple[str, float], ...]
    bandwidth_gb_s: float
    l2_bytes: int
    source: str

    @property
    def identity(self) -> DeviceIdentity:
        """The identity that such a device would give itself."""
        return DeviceIdentity("cuda", self.model, self.multiprocessors, self.capability)

    def peak(self, number_format: str) -> float:
        """Dense TFLOP/s; raises UsageError where the device does not compute in this format."""
        peaks = dict(self.peak_tflops)
        if number_format not in peaks:
            raise UsageError(
                f"{self.name} ({self.capability}) does not compute in {number_format}: take one of "
                f"{', '.join(peaks)}."
            )
        return peaks[number_format]

    def number_format(self, precision: str, runtime: str) -> str:
        """What a runtime multiplies in, by default, when weights have ``precision``.

        TensorRT and ONNX Runtime use TF32 for fp32 networks unless told otherwise; PyTorch
        does not. Raises UsageError where the device lacks the format.
        """
        if precision == "fp32" and runtime in _TF32_BY_DEFAULT and "tf32" in dict(self.peak_tflops):
            return "tf32"
        self.peak(precision)
        return precision

    def computes_like(self, other: Datasheet) -> bool:
        """Whether at most the memories differ, as in the 40 and 80 GB versions of one GPU."""
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
        l2_bytes = int(data.pop("l2_mib") * 2**20)
        sheets[name] = Datasheet(name=name, peak_tflops=peaks, l2_bytes=l2_bytes, **data)
    return sheets


def datasheet_names() -> list[str]:
    """Names of all devices with a datasheet, aliases among them."""
    return sorted([*_datasheets(), *ALIASES])


def datasheet(name: str) -> Datasheet:
    """The datasheet of ``name``; raises UnknownNameError naming the nearest."""
    sheets = _datasheets()
    if ALIASES.get(name, name) not in sheets:
        raise UnknownNameError("device", name, datasheet_names())
    return sheets[ALIASES.get(name, name)]


def datasheet_of(device: DeviceIdentity) -> Datasheet | None:
    """The datasheet of a device by the name that its driver gives, or None."""
    for sheet in _datasheets().values():
        if device.kind == "cuda" and sheet.model == device.model:
            return sheet
    return None
