"""Metrics that a family can be scaled by: their names, units and words.

A metric is ``num_params``, ``macs``, ``activations`` or ``latency_ms@DEVICE``.
"""

from __future__ import annotations

from search_space.errors import UnknownNameError, UsageError
from search_space.units import format_count, format_latency, parse_count, parse_latency

COUNTS = {"params": "num_params", "macs": "macs", "activations": "activations"}
_WORDS = {"num_params": "parameters", "macs": "MACs", "activations": "activations"}
_LATENCY = "latency_ms@"


def latency_metric(device: str) -> str:
    """The metric of a device's latency."""
    return _LATENCY + device


def device_of(metric: str) -> str | None:
    """The device whose latency ``metric`` is, or None."""
    return metric.removeprefix(_LATENCY) if metric.startswith(_LATENCY) else None


def parse_metric(text: str) -> str:
    """The metric that ``params``, ``macs``, ``activations`` or ``latency@DEVICE`` stands for.

    Raises UnknownNameError naming the nearest, UsageError for a latency without a device.
    """
    name, at, device = text.partition("@")
    if name == "latency":
        if not device:
            raise UsageError(f"{text!r} names no device; write it as in latency@a100.")
        return latency_metric(device)
    if name not in COUNTS or at:
        raise UnknownNameError("metric to scale by", text, (*COUNTS, "latency@DEVICE"))
    return COUNTS[name]


def parse_budget(metric: str, text: str) -> float:
    """A value of ``metric`` from text such as ``5M`` or ``2ms``; raises InvalidQuantityError."""
    return parse_latency(text) if device_of(metric) is not None else parse_count(text)


def parse_limit(text: str) -> tuple[str, float]:
    """Metric and milliseconds of a limit such as ``5ms@a100``.

    Raises UsageError without a device, InvalidQuantityError for another quantity.
    """
    quantity, _, device = text.partition("@")
    milliseconds = parse_latency(quantity)
    if not device:
        raise UsageError(f"{text!r} names no device; write it as in {quantity}@a100.")
    return latency_metric(device), milliseconds


def metric_words(metric: str) -> str:
    """How a metric is called: ``parameters``, ``latency on a100``."""
    device = device_of(metric)
    return _WORDS.get(metric, metric) if device is None else f"latency on {device}"


def format_cost(metric: str, value: float) -> str:
    """A value with its unit, as people read it: ``28.29 M``, ``5.03 ms``."""
    return format_count(value) if device_of(metric) is None else format_latency(value)


def budget_name(metric: str, value: float) -> str:
    """A budget as people write it, which is a file's name too: ``25M``, ``2.5ms``."""
    if device_of(metric) is not None:
        return f"{value:.12g}ms"
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.12g}{suffix}"
    return f"{value:.12g}"
