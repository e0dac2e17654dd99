"""The registry of metrics: one place says how each is named, read, shown and judged."""

from __future__ import annotations

import pytest

from search_space.errors import InvalidQuantityError, NasError, UnknownNameError
from search_space.metrics import (
    LATENCY,
    device_of,
    format_metric,
    metric_named,
    metric_of_option,
    metrics,
    on_device,
    options,
    unit_of,
)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("latency_ms", 5.032, "5.03 ms"),
        ("latency_ms@a100", 0.812, "812 µs"),
        ("num_params", 28_288_354, "28.29 M"),
        ("macs", 4.51e9, "4.51 G"),
        ("memory_bytes", 14.5e6, "14.5 MB"),
        ("accuracy", 0.8125, "81.25 %"),
        ("validation_accuracy", 0.5, "50.00 %"),
        ("loss", 0.12345, "0.1235"),
        ("score", -1.5, "−1.500"),
        ("score", 123456.0, "123\u202f456"),
        ("latency_low_ms", 1.0, "1.00 ms"),
        ("energy_mJ", 5.0, "5.00 mJ"),
        ("energy_mJ", 0.05, "50.0 µJ"),
        ("energy_mJ", 12_340.0, "12.3 J"),
        ("rounds", 12.0, "12"),
        ("accuracy", float("nan"), "–"),
        ("accuracy", None, "–"),
    ],
)
def test_a_value_is_shown_with_the_unit_of_its_name(
    name: str, value: float | None, text: str
) -> None:
    assert format_metric(name, value) == text


def test_an_option_names_a_metric_and_further_devices() -> None:
    assert metric_of_option("latency").name == LATENCY
    assert metric_of_option("latency@a100").name == on_device(LATENCY, "a100") == "latency_ms@a100"
    assert metric_of_option("latency@a100").title == "latency on a100"
    assert device_of("latency_ms@a100") == "a100"
    assert device_of(LATENCY) is None
    assert set(options("table")) == {"latency", "params", "macs", "activations", "memory"}
    for text in ("latancy", "latency@", "params@a100", "accuracy"):
        with pytest.raises(UnknownNameError):
            metric_of_option(text, "table")


@pytest.mark.parametrize("name", [m.name for m in metrics()])
def test_a_typed_value_is_read_back_rounded_as_needed(name: str) -> None:
    unit = metric_named(name).unit
    for value in (
        (0.1234567, 0.5, 0.98765) if unit.typed(0.5).endswith("%") else (0.1234567, 98765.4)
    ):
        assert unit.parse(unit.typed(value, 1.0)) >= value
        assert unit.parse(unit.typed(value, -1.0)) <= value
        assert unit.parse(unit.typed(value)) == pytest.approx(value, rel=1e-3)


def test_quantities_of_a_physical_unit_take_any_prefix_and_no_other_unit() -> None:
    unit = unit_of("mJ")
    assert [unit.parse(t) for t in ("5mJ", "5 J", "250uJ", "2e-3J")] == pytest.approx(
        [5.0, 5000.0, 0.25, 2.0], rel=1e-12
    )
    for text in ("5", "5ms", "mJ", "5kW", "nanmJ"):
        with pytest.raises(InvalidQuantityError):
            unit.parse(text)
    with pytest.raises(NasError, match="unknown unit 'furlong'"):
        unit_of("furlong")


@pytest.mark.parametrize(
    ("name", "value", "label"),
    [
        ("latency_ms", 0.05, "0.05"),  # the axis' title carries the unit
        ("num_params", 2_500_000, "2.5 M"),
        ("accuracy", 0.85, "85 %"),
        ("memory_bytes", 15e6, "15 MB"),
        ("score", -2000.0, "−2\u202f000"),
        ("epoch", 5.0, "5"),
    ],
)
def test_labels_of_an_axis(name: str, value: float, label: str) -> None:
    assert metric_named(name).unit.tick(value) == label
