"""Interpolated tables: exact where latency is linear in the work, and honest where it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_job import SPACE, known_table, write_space

from predictors.counts import count_entry
from predictors.estimates.interpolate import interpolated
from predictors.tables.additive import entries
from predictors.tables.latency_table import EntryLatency, LatencyTable, MissingLatencyError
from search_space import SearchSpace, load_space


def linear_table(space: SearchSpace) -> LatencyTable:
    """Latencies that are exactly linear in the work of an entry."""

    def cost(spec: object, size: int) -> float:
        work = count_entry(spec, size)  # type: ignore[arg-type]
        return 0.01 + 2e-7 * work.macs + 3e-6 * work.activations

    table = known_table(space)
    known = {e: EntryLatency(cost(*e), cost(*e), cost(*e), 12) for e in entries(space, 10)}
    return replace(table, entries=known)


@pytest.fixture
def wide(tmp_path: Path) -> SearchSpace:
    text = SPACE.replace("[8, 16]", "[8, 16, 24, 32, 40]")
    path = tmp_path / "wide.yaml"
    path.write_text(text.replace("[16, 24]", "[16, 24, 32, 40, 48]"))
    return load_space(str(path))


def test_what_is_linear_is_interpolated_exactly(wide: SearchSpace) -> None:
    whole = linear_table(wide)
    gone = [e for e in whole.entries if e[0].as_dict().get("dim") == 32]
    kept = {e: v for e, v in whole.entries.items() if e not in gone}
    filled = interpolated(replace(whole, entries=kept), wide, 10)
    assert {e for e, v in filled.entries.items() if v.origin == "interpolated"} == set(gone)
    for entry in gone:
        value = filled.entries[entry]
        assert value.latency_ms == pytest.approx(whole.entries[entry].latency_ms, rel=1e-3)
        assert value.runs == 0
    assert (
        f"{len(gone)} of {len(whole.entries)} entries are interpolated"
        in (filled.correction(wide).warnings[-1])
    )
    rows = wide.sample(np.random.default_rng(0), 20)
    assert np.allclose(
        filled.compile(wide, 10).predict(rows), whole.compile(wide, 10).predict(rows), rtol=1e-3
    )


def test_an_interpolated_table_says_how_sure_it_is(wide: SearchSpace) -> None:
    """The stored error is that of leaving measured shapes out, weighted by time."""
    whole = linear_table(wide)
    rng = np.random.default_rng(0)
    noisy = {
        e: replace(v, latency_ms=v.latency_ms * rng.uniform(0.8, 1.2), low_ms=1e-3, high_ms=9.0)
        for e, v in whole.entries.items()
    }
    gone = [e for e in noisy if e[0].as_dict().get("dim") == 32]
    table = replace(whole, entries={e: v for e, v in noisy.items() if e not in gone})
    before = table.correction(wide).expected_error
    after = interpolated(table, wide, 10).correction(wide).expected_error
    assert before < after < before + 0.2


def test_too_few_shapes_are_not_interpolated(tmp_path: Path) -> None:
    space = load_space(str(write_space(tmp_path)))
    table = known_table(space)
    rest = list(table.entries)[1:]
    with pytest.raises(MissingLatencyError, match=r"cannot be interpolated: .*at least 4 are"):
        interpolated(replace(table, entries={e: table.entries[e] for e in rest}), space, 10)


def test_another_space_takes_the_correction_of_the_known_ones(wide: SearchSpace) -> None:
    table = linear_table(wide)
    filled = interpolated(table, replace(wide, name="renamed"), 10)
    assert filled == table  # a name is not part of what a space is
    other = replace(wide, stages=(*wide.stages[:3], replace(wide.stages[3], widths=(16, 24))))
    correction = interpolated(table, other, 10).correction(other)
    assert (correction.scale, correction.offset_ms) == (1.25, 0.5)
    with pytest.raises(MissingLatencyError, match=r"no end-to-end correction.*nas profile"):
        interpolated(replace(table, corrections={}), other, 10)
