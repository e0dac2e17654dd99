"""Quantities as typed and as shown."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from search_space.errors import InvalidQuantityError
from search_space.units import (
    format_count,
    format_duration,
    format_latency,
    parse_count,
    parse_latency,
)

PARSERS = [parse_latency, parse_count]


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_latency, "5ms", 5.0),
        (parse_latency, " 5 ms ", 5.0),
        (parse_latency, "800us", 0.8),
        (parse_latency, "800µs", 0.8),  # micro sign
        (parse_latency, "800μs", 0.8),  # Greek mu
        (parse_latency, "250ns", 0.00025),
        (parse_latency, "0.1s", 100.0),
        (parse_latency, ".5ms", 0.5),
        (parse_latency, "5.ms", 5.0),
        (parse_latency, "1e-3s", 1.0),
        (parse_latency, "+2ms", 2.0),
        (parse_count, "30M", 30e6),
        (parse_count, "4.5G", 4.5e9),
        (parse_count, "4.5B", 4.5e9),
        (parse_count, "12k", 12e3),
        (parse_count, "1.2T", 1.2e12),
        (parse_count, "1200", 1200.0),
        (parse_count, "28.29 M", 28.29e6),
    ],
)
def test_parse(parse: Callable[[str], float], text: str, value: float) -> None:
    assert parse(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (parse_latency, "5", ["has no unit", "write 5ms for milliseconds"]),
        (parse_latency, " 0.8 ", ["has no unit", "write 0.8ms for milliseconds"]),
        (parse_latency, "5m", ["unknown unit 'm'", "ns, us, µs, μs, ms, s", "5ms"]),
        (parse_latency, "5MS", ["unknown unit 'MS'"]),
        (parse_count, "30m", ["unknown unit 'm'", "k, K, M, G, B, T", "30M"]),
        (parse_count, "4.5 GMACs", ["unknown unit 'GMACs'"]),
    ],
)
def test_a_missing_or_unknown_unit_is_refused_with_the_fix(
    parse: Callable[[str], float], text: str, words: list[str]
) -> None:
    with pytest.raises(InvalidQuantityError) as info:
        parse(text)
    for word in [repr(text), *words]:
        assert word in str(info.value)


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("text", ["", "ms", "five ms", "5,5ms", "5ms 3", "1_000s", "nan", "0x5s"])
def test_no_number(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(InvalidQuantityError, match=r"is not a .*write a number and a unit") as info:
        parse(text)
    assert repr(text) in str(info.value)


@pytest.mark.parametrize("text", ["0ms", "-5ms", "1e999ms", "1e-999s"])
def test_must_be_positive_and_finite(text: str) -> None:
    with pytest.raises(InvalidQuantityError, match="positive and finite, as in 5ms") as info:
        parse_latency(text)
    assert repr(text) in str(info.value)


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (format_latency, 0.812, "812 µs"),
        (format_latency, 0.00137, "1.37 µs"),
        (format_latency, 0.99949, "999 µs"),
        (format_latency, 0.9999, "1.00 ms"),
        (format_latency, 5.03, "5.03 ms"),
        (format_latency, 20, "20.0 ms"),
        (format_latency, 999.4, "999 ms"),
        (format_latency, 999.9, "1.00 s"),
        (format_latency, 1200, "1.20 s"),
        (format_latency, 5e6, "5000 s"),
        (format_latency, 0, "0 µs"),
        (format_count, 28_288_354, "28.29 M"),
        (format_count, 4.509e9, "4.51 G"),
        (format_count, 1200, "1.20 k"),
        (format_count, 999, "999"),
        (format_count, 0, "0"),
        (format_count, 999_999, "1.00 M"),
        (format_count, 999_999_999, "1.00 G"),
        (format_count, -1500, "-1.50 k"),
        (format_duration, 0.04, "0.0 s"),
        (format_duration, 2.26, "2.3 s"),
        (format_duration, 9.97, "10 s"),
        (format_duration, 48, "48 s"),
        (format_duration, 59.7, "1 min 00 s"),
        (format_duration, 200, "3 min 20 s"),
        (format_duration, 3599.8, "1 h 00 min"),
        (format_duration, 7500, "2 h 05 min"),
        (format_duration, 90_000, "25 h 00 min"),
    ],
)
def test_format(form: Callable[[float], str], value: float, text: str) -> None:
    assert form(value) == text


@given(st.floats(1e-4, 1e7))
@example(0.9995)
@example(999.5)
def test_latency_as_shown_reads_back(milliseconds: float) -> None:
    shown = format_latency(milliseconds)
    assert "e" not in shown
    assert parse_latency(shown) == pytest.approx(milliseconds, rel=0.0051)


@given(st.integers(1, 10**12))
@example(999_995)
@example(999_994)
def test_count_as_shown_reads_back(count: int) -> None:
    shown = format_count(count)
    assert len(re.findall(r"\d", shown.partition(".")[0])) <= (3 if count < 10**12 - 10**7 else 4)
    assert parse_count(shown) == pytest.approx(count, rel=0.0051)


@given(st.sampled_from(PARSERS), st.text(max_size=12))
@settings(max_examples=200)
def test_any_text_is_a_positive_number_or_our_error(
    parse: Callable[[str], float], text: str
) -> None:
    try:
        value = parse(text)
    except InvalidQuantityError:
        return
    assert 0 < value < float("inf")


@pytest.mark.parametrize("text", ["9" * 100_000 + "x!", "9" * 61 + "ms", "1" * 10**6 + "."])
def test_a_quantity_of_very_many_digits_is_refused_at_once(text: str) -> None:
    with pytest.raises(InvalidQuantityError, match=r"characters, and a .* at most 60"):
        parse_latency(text)
