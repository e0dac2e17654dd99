"""Metrics by name: what is minimised, limited, stored and shown, each declared once, here.

A metric's name is its key in journals, results and JSON, and carries the unit (``latency_ms``). Its
option is what people type (``--max latency=5ms``). Whoever needs to know which metrics there are,
how one is written or which direction is better, asks this registry; to add a metric, register it:

    register(Metric("energy_mJ", "energy", unit_of("mJ"), option="energy", cost=millijoules))

A name that nothing is registered under, as of a column in another's journal, is shown by the unit
at its end. ``latency_ms@a100`` is the latency on another device than the one that is searched for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from search_space.errors import InvalidQuantityError, UnknownNameError
from search_space.units import (
    format_count,
    format_duration,
    format_latency,
    format_memory,
    parse_count,
    parse_latency,
    parse_memory,
    parse_number,
)

if TYPE_CHECKING:
    from search_space.components import ModuleSpec

UNKNOWN = "–"
TABLE, EVALUATION = "table", "evaluation"  # sources


@dataclass(frozen=True)
class Unit:
    """A unit: reads and writes values of one kind.

    Example:
        >>> unit_of("mJ").parse("5J")
        5000.0

    Args:
        parse: Turns text with a unit, as typed, to a number; raises InvalidQuantityError.
        format: Writes a value as people read it.
        scales: Factors with their suffixes, largest first, for typed values and labels of axes.
        axis: Unit that stands in an axis' title instead of at every label.
    """

    parse: Callable[[str], float]
    format: Callable[[float], str]
    scales: tuple[tuple[float, str], ...] = ((1.0, ""),)
    axis: str = ""

    def typed(self, value: float, direction: float = 0.0, digits: int = 4) -> str:
        """Writes a value in ``digits`` digits, as it can be typed.

        It is rounded up or down by the sign of ``direction``, so that, typed as a limit, it is met.
        """
        factor, suffix = self._scale(value)
        scaled = value / factor
        places = digits - 1 - (math.floor(math.log10(abs(scaled))) if scaled else 0)
        number = round(scaled, places)
        if direction * (number * factor - value) < 0:
            number = round(scaled + math.copysign(10.0**-places, direction), places)
        return f"{number:.{max(digits, 12)}g}{suffix}"

    def tick(self, value: float) -> str:
        """Writes the short label of a value on an axis."""
        factor, suffix = self._scale(value)
        text = _plain(f"{value / factor:,.10g}" if 1e-4 <= abs(value) < 1e9 else f"{value:.4g}")
        return text if self.axis or not suffix else f"{text} {suffix}"

    def _scale(self, value: float) -> tuple[float, str]:
        fitting = (scale for scale in self.scales if abs(value) >= scale[0])
        return next(fitting, self.scales[-1])


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _parse_share(text: str) -> float:
    number = text.strip().removesuffix("%")
    value = parse_number(number) / (1.0 if number == text.strip() else 100.0)
    if not 0 <= value <= 1:
        raise InvalidQuantityError(f"{text!r} is no share; write one from 0 to 1, or as in 85%.")
    return value


def _number(value: float) -> str:
    return _plain(f"{value:.4g}")


def _score(value: float) -> str:
    """Three decimals, fewer from a hundred on; scores have no unit and any range."""
    size = math.floor(math.log10(abs(value))) if value else 0
    if not -3 <= size < 9:
        return _plain(f"{value:.3g}")
    return _plain(f"{value or 0.0:,.{min(3, max(0, 4 - size))}f}")


def _plain(number: str) -> str:
    """A formatted number with a true minus and narrow spaces between thousands."""
    sign, digits = ("−", number[1:]) if number.startswith("-") else ("", number)
    return sign + digits.replace(",", "\u202f")


MILLISECONDS = Unit(parse_latency, format_latency, ((1.0, "ms"),), axis="ms")
COUNT = Unit(parse_count, format_count, ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")))
BYTES = Unit(parse_memory, format_memory, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))
SHARE = Unit(_parse_share, _share, ((0.01, "%"),))
NUMBER = Unit(parse_number, _number)
SCORE_UNIT = Unit(parse_number, _score)
SECONDS = Unit(parse_number, format_duration, ((1.0, "s"),))

_PREFIXES = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_SI = re.compile(r"([nuµmkMG]?)(J|Wh|W|s|B|b)")


def unit_of(symbol: str) -> Unit:
    """Returns the unit of a physical quantity by its symbol with any prefix: ``mJ``, ``W``, ``MB``.

    Raises:
        UnknownNameError: The symbol is none.
    """
    match = _SI.fullmatch(symbol)
    if match is None:
        raise UnknownNameError("unit", symbol, ("J", "mJ", "Wh", "W", "s", "ms", "B", "kB", "b"))
    scale, base = _PREFIXES[match[1]], match[2]

    def parse(text: str) -> float:
        number = re.match(r"\s*[-+\d.]*(?:[eE][-+]?\d+)?", text)
        assert number is not None
        other = _SI.fullmatch(text[number.end() :].strip())
        if other is None or other[2] != base:
            raise InvalidQuantityError(
                f"{text!r} is not in {base}; write a number and a unit, as in 5{symbol}."
            )
        return parse_number(number[0]) * _PREFIXES[other[1]] / scale

    scales = tuple(
        (factor / scale, prefix + base)
        for prefix, factor in reversed(_PREFIXES.items())
        if prefix != "u"
    )

    def show(value: float) -> str:
        factor, suffix = unit._scale(value)
        return f"{_plain(f'{value / factor:#.3g}'.rstrip('.'))} {suffix}"

    unit = Unit(parse, show, scales)
    return unit


@dataclass(frozen=True)
class Metric:
    """A metric: a figure of a network, with its name, unit and direction.

    Example:
        >>> metric_named("latency_ms@a100").format(5.032)
        '5.03 ms'

    Args:
        name: Key in journals, results and JSON, with the unit in it.
        title: Name for people.
        unit: Reads and writes its values.
        better: Direction that is better.
        source: ``table`` (known for every architecture beforehand), ``evaluation`` (of a network
            with weights) or ``score`` (of an untrained one).
        option: Name on the command line; None where it can be neither limited nor minimised.
        floor: Lower bound of all its values, if any.
        ceiling: Upper bound of all its values, if any.
        cost: Value of one component by its spec and its input's side in pixels, where the metric
            is the sum over components: that alone makes its table.
    """

    name: str
    title: str
    unit: Unit
    better: Literal["smaller", "larger"] = "smaller"
    source: Literal["table", "evaluation", "score"] = "table"
    option: str | None = None
    floor: float | None = None
    ceiling: float | None = None
    cost: Callable[[ModuleSpec, int], float] | None = field(default=None, compare=False)

    @property
    def axis_title(self) -> str:
        """Title of an axis or a column whose labels may have no unit."""
        return f"{self.title} ({self.unit.axis})" if self.unit.axis else self.title

    @property
    def short(self) -> str:
        """Name for a narrow column: what people type, if anything."""
        return self.option or self.title

    def format(self, value: float | None) -> str:
        """Writes a value as people read it; a dash where it is unknown."""
        known = value is not None and math.isfinite(value)
        return self.unit.format(value) if known else UNKNOWN  # type: ignore[arg-type]


_REGISTRY: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Makes a metric known by its name and its option; both must be new."""
    options = {known.option for known in _REGISTRY.values()} - {None}
    assert metric.name not in _REGISTRY, metric
    assert metric.option not in options, metric
    assert "@" not in metric.name, metric
    _REGISTRY[metric.name] = metric
    return metric


def metric_named(name: str) -> Metric:
    """Returns the metric ``name``; one that is not registered is known by the unit at its end.

    ``NAME@DEVICE`` is the same on a further device.
    """
    base, at, device = name.partition("@")
    result = _REGISTRY.get(base) or _unregistered(base)
    if not at:
        return result
    option = None if result.option is None else f"{result.option}@{device}"
    return replace(result, name=name, title=f"{result.title} on {device}", option=option)


def _unregistered(name: str) -> Metric:
    """A metric by the looks of its name, as in ``val_accuracy`` or ``energy_mJ``."""
    title, _, end = name.rpartition("_")
    words = name.replace("_", " ")
    if _SI.fullmatch(end) and title:
        unit = MILLISECONDS if end == "ms" else unit_of(end)
        return Metric(name, title.replace("_", " "), unit)
    alike = _REGISTRY.get(end) or {"bytes": _REGISTRY[MEMORY]}.get(end)
    if alike is not None:  # a registered metric of something: validation_accuracy, deepmad_score
        return replace(alike, name=name, title=words, option=None)
    return Metric(name, words, SECONDS if end == "seconds" else NUMBER)


def metrics(source: str | None = None) -> tuple[Metric, ...]:
    """Returns all registered metrics, or those of a source, in the order of tables."""
    return tuple(m for m in _REGISTRY.values() if source in (None, m.source))


def options(source: str | None = None) -> tuple[str, ...]:
    """Returns names on the command line, of all metrics or of those of a source."""
    return tuple(m.option for m in metrics(source) if m.option is not None)


def metric_of_option(
    text: str, source: str | None = None, further: Mapping[str, Metric] | None = None
) -> Metric:
    """Returns the metric of an option.

    Args:
        text: What was typed: ``params``, or ``latency@a100``.
        source: Only metrics of this source count; None for all.
        further: Metrics of one run, by their options.

    Raises:
        UnknownNameError: There is none; names the nearest.
    """
    option, at, device = text.partition("@")
    by_option = {m.option: m for m in metrics(source) if m.option is not None}
    by_option.update(further or {})
    if option not in by_option or (at and not (device and option == _LATENCY_OPTION)):
        devices = (f"{_LATENCY_OPTION}@DEVICE",) if _LATENCY_OPTION in by_option else ()
        own = "One of your own is given by --cost NAME=FILE." if further is not None else ""
        raise UnknownNameError("metric", text, (*by_option, *devices), own)
    known = by_option[option]
    return metric_named(on_device(known.name, device)) if device else known


def format_metric(name: str, value: float | None) -> str:
    """Writes a value of the metric ``name`` as people read it; a dash where it is unknown."""
    return metric_named(name).format(value)


def title_of(name: str) -> str:
    """Returns the title of the metric ``name``."""
    return metric_named(name).title


def typed(name: str, value: float, direction: float = 0.0, digits: int = 4) -> str:
    """Writes a value of the metric ``name`` as it can be typed; see ``Unit.typed``."""
    return metric_named(name).unit.typed(value, direction, digits)


def on_device(name: str, device: str) -> str:
    """Returns the name of a metric on another device than the one that is searched for."""
    return f"{name}@{device}"


def device_of(name: str) -> str | None:
    """Returns the further device of ``latency_ms@DEVICE``; None for a metric without one."""
    return name.partition("@")[2] or None


ACCURACY, LOSS, SCORE = "accuracy", "loss", "score"
BALANCED_ACCURACY, IMAGES = "balanced_accuracy", "validation_images"
LATENCY, MEMORY = "latency_ms", "memory_bytes"
PARAMS, MACS, ACTIVATIONS = "num_params", "macs", "activations"
_LATENCY_OPTION = "latency"

for _metric in (
    Metric(ACCURACY, "accuracy", SHARE, "larger", "evaluation", ACCURACY, 0.0, 1.0),
    Metric(
        BALANCED_ACCURACY,
        "balanced accuracy",
        SHARE,
        "larger",
        "evaluation",
        BALANCED_ACCURACY,
        0.0,
        1.0,
    ),
    Metric(SCORE, "score", SCORE_UNIT, "larger", "score"),
    Metric(LOSS, "loss", NUMBER, "smaller", "evaluation", LOSS, 0.0),
    Metric(IMAGES, "validation images", COUNT, "larger", "evaluation"),
    Metric(LATENCY, "latency", MILLISECONDS, option=_LATENCY_OPTION, floor=0.0),
    Metric(PARAMS, "parameters", COUNT, option="params", floor=0.0),
    Metric(MACS, "MACs", COUNT, option="macs", floor=0.0),
    Metric(ACTIVATIONS, "activations", COUNT, option="activations", floor=0.0),
    Metric(MEMORY, "peak memory", BYTES, option="memory", floor=0.0),
):
    register(_metric)
