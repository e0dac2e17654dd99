"""Where int8 pays: from tables that hold both precisions, in words and as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from latency_cases import CLASSES, POOLING, made_up_table, small_space
from tiny_job import nas

from predictors.measuring.this_machine import local_conditions
from predictors.tables.additive import Entry, entries
from predictors.tables.folder import table_path
from predictors.tables.int8_gains import Int8Gain, int8_gains, int8_warnings
from predictors.tables.latency_table import LatencyTable
from search_space import SearchSpace
from search_space.precision import MIXED, with_precisions
from search_space.registry import INT8


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space((8,), (1,), (POOLING,))


def both(space: SearchSpace, ratio: Callable[[Entry], float]) -> LatencyTable:
    """A made-up table, and beside each entry the same in int8, ``ratio`` times as slow."""
    table = made_up_table(space, local_conditions(threads=1, runtime="onnxruntime"))
    in_int8 = {
        (spec.computing(INT8), side): replace(
            value, latency_ms=value.latency_ms * ratio((spec, side))
        )
        for (spec, side), value in table.entries.items()
    }
    return replace(table, entries={**table.entries, **in_int8})


def test_pairs_are_summed_by_kind_and_width(space: SearchSpace) -> None:
    table = both(space, lambda entry: 2.0 if entry[0].kind == "head" else 0.5)
    gains = {(gain.kind, gain.width): gain for gain in int8_gains(table)}
    asked = entries(space, CLASSES)
    assert set(gains) == {(spec.label, spec.as_dict()["dim"]) for spec, _ in asked}
    assert sum(gain.pairs for gain in gains.values()) == len(asked)
    for (kind, _), gain in gains.items():
        expected = 2.0 if kind == "head" else 0.5
        assert (gain.ratio, gain.low, gain.high) == pytest.approx((expected,) * 3)
        assert gain.pays == (kind != "head")


def test_a_ratio_is_one_of_sums(space: SearchSpace) -> None:
    table = both(space, lambda entry: 3.0 if entry[1] == 8 else 0.5)
    for gain in int8_gains(table):
        pairs = [
            (table.entries[spec.computing(INT8), side].latency_ms, value.latency_ms)
            for (spec, side), value in table.entries.items()
            if (spec.label, spec.as_dict()["dim"]) == (gain.kind, gain.width) and not spec.quantised
        ]
        assert gain.ratio == pytest.approx(sum(a for a, _ in pairs) / sum(b for _, b in pairs))
        assert gain.low <= gain.ratio <= gain.high


def test_what_stands_in_one_precision_says_nothing(space: SearchSpace) -> None:
    table = made_up_table(space, local_conditions(threads=1))
    assert int8_gains(table) == []
    assert int8_warnings(table) == []


def test_a_machine_that_is_slower_in_int8_is_told_with_what_it_is(space: SearchSpace) -> None:
    table = both(space, lambda entry: 1.5)
    (text,) = int8_warnings(table)
    assert "slower than float for every component" in text
    assert table.conditions.device.capability in text
    assert "1.50 to 1.50 times" in text
    assert "take precision fp32" in text
    assert int8_warnings(both(space, lambda entry: 0.5)) == []
    assert int8_warnings(table, entries(space, CLASSES)) == []  # of a search in float
    asked = entries(with_precisions(space, MIXED), CLASSES)
    assert int8_warnings(table, asked) == [text]


def test_what_alone_is_slower_is_named_the_worst_first(space: SearchSpace) -> None:
    slower = {"stem": 1.2, "head": 1.7}
    table = both(space, lambda entry: slower.get(entry[0].kind, 0.5))
    gains, (text,) = int8_gains(table), int8_warnings(table)
    assert f"{sum(gain.kind in slower for gain in gains)} of {len(gains)} kinds" in text
    assert 0 < text.index("head of width 8 (1.70)") < text.index("stem of width 8 (1.20)")


def test_the_command_says_where_int8_pays(
    space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_CACHE", str(tmp_path))
    table = both(space, lambda entry: 1.25 if entry[0].kind == "stem" else 0.5)
    table.save(table_path(table.conditions))
    command = ("devices", "show", "cpu", "--runtime", "onnxruntime", "--threads", "1")
    shown = nas(*command)
    assert shown.code == 0, shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["stem", "width", "8", "1.25"] in [line[:4] for line in lines]
    assert any(line[:1] == ["pooling"] and line[-1] == "pays" for line in lines)
    assert any(line[:1] == ["stem"] and line[-3:] == ["does", "not", "pay"] for line in lines)
    assert "warning: int8 was measured slower than float by onnxruntime for" in shown.out
    told = json.loads(nas(*command, "--json").out)
    assert [Int8Gain(**gain) for gain in told["int8"]] == int8_gains(table)
