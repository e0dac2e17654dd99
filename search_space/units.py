"""Quantities with units, as typed on the command line: ``5ms``, ``30M``, ``4.5G``, ``200MB``.

A bare number where a unit is needed is refused, since ``5`` may mean 5 ms or 5 s.
"""

from __future__ import annotations

import math
import re

from search_space.errors import InvalidQuantityError

_LONGEST = 60  # characters; a quantity of more is a mistake, and slow to refuse
_NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Zµμ]*)", re.ASCII)

_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def _parse(text: str, units: dict[str, float], what: str, example: str, fix: str = "") -> float:
    if len(text) > _LONGEST:
        raise InvalidQuantityError(
            f"{text[:20]!r}… has {len(text)} characters, and a {what} at most {_LONGEST}; write a "
            f"number and a unit, as in {example}."
        )
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise InvalidQuantityError(
            f"{text!r} is not a {what}; write a number and a unit, as in {example}."
        )
    number, unit = float(match[1]), match[2]
    if unit not in units:
        if not unit:
            raise InvalidQuantityError(
                f"{text!r} has no unit; a {what} needs one of {', '.join(units)}: "
                f"write {match[1]}{fix}."
            )
        raise InvalidQuantityError(
            f"{text!r}: unknown unit {unit!r}; a {what} takes "
            f"{', '.join(u for u in units if u)}, as in {example}."
        )
    value = number * units[unit]
    if not math.isfinite(value) or value <= 0:
        raise InvalidQuantityError(
            f"{text!r}: a {what} must be positive and finite, as in {example}."
        )
    return value


def parse_latency(text: str) -> float:
    """Reads a latency in milliseconds from text such as ``5ms``, ``800us`` or ``0.1s``."""
    return _parse(text, _MILLISECONDS, "latency", "5ms", "ms for milliseconds")


def parse_count(text: str) -> float:
    """Reads a count, as of parameters or MACs, from text such as ``30M``, ``4.5G`` or ``1200``."""
    return _parse(text, _COUNT, "count", "30M, 4.5G or 1200")


def parse_memory(text: str) -> float:
    """Reads bytes from text such as ``200MB``, ``64kB`` or ``1.5GiB``."""
    return _parse(text, _BYTES, "memory size", "200MB", "MB for megabytes")


def parse_throughput(text: str) -> float:
    """Reads images per second from text such as ``2000/s``."""
    number, slash, unit = text.strip().partition("/")
    if slash and unit.strip() == "s":
        return _parse(number, _COUNT, "throughput", "2000/s")
    raise InvalidQuantityError(
        f"{text!r} is not a throughput; write images per second, as in 2000/s."
    )


def parse_number(text: str) -> float:
    """Reads a number without a unit."""
    try:
        value = float(text[:100])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidQuantityError(f"{text!r:.60} is not a number; write one, as in 0.5.")
    return value


def format_memory(number: float) -> str:
    """Writes bytes as people read them: ``14.5 MB``, ``812 kB``."""
    for scale, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= 0.9995 * scale:
            return f"{_three_digits(number / scale)} {suffix}"
    return f"{number:.0f} B"


def format_latency(milliseconds: float) -> str:
    """Writes milliseconds as people read them: ``812 µs``, ``5.03 ms``, ``1.20 s``."""
    rounded = float(f"{milliseconds:.3g}")  # 0.9999 ms is 1.00 ms, not 1000 µs
    if rounded < 1:
        return f"{_three_digits(rounded * 1e3)} µs"
    if rounded < 1000:
        return f"{_three_digits(rounded)} ms"
    return f"{_three_digits(rounded / 1e3)} s"


def _three_digits(number: float) -> str:
    places = 2 - math.floor(math.log10(number)) if number > 0 else 0
    return f"{number:.{max(0, places)}f}"


def format_count(count: float) -> str:
    """Writes a count as people read it: ``28.29 M``, ``4.51 G``."""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= 0.999995 * scale:  # 999 999 is 1.00 M, not 1000.00 k
            return f"{count / scale:.2f} {suffix}"
    return f"{count:.0f}"


def format_duration(seconds: float) -> str:
    """Writes seconds as people read them: ``48 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
