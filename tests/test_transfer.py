"""Tables of one GPU carried to another by the ratio of rooflines."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from predictors.estimates.datasheets import datasheet
from predictors.estimates.estimate import estimate, estimated_conditions
from predictors.estimates.transfer import ratios, transfer
from predictors.tables.correction import Correction
from predictors.tables.latency_table import EntryLatency, LatencyTable, MissingLatencyError
from search_space import load_space
from search_space.errors import UsageError

SPACE = load_space("digits")


def measured_table(device: str = "h200", runtime: str = "cudagraph", seed: int = 0):
    """What a measured table could look like: estimates, disturbed, and a correction."""
    conditions = estimated_conditions(device, runtime=runtime)
    conditions = replace(conditions, protocol="cold interleaved p25, v1", runtime_version="torch")
    rng = np.random.default_rng(seed)
    values = {
        entry: 1.7 * value.latency_ms * float(rng.lognormal(sigma=0.2))
        for entry, value in estimate(
            estimated_conditions(device, runtime=runtime), SPACE, 10
        ).entries.items()
    }
    correction = Correction(
        space=SPACE.name,
        scale=0.9,
        offset_ms=0.02,
        expected_error=0.03,
        checks=(),
        rounds=12,
        seconds=1.0,
        stopped="converged",
    )
    return LatencyTable(
        conditions,
        {entry: EntryLatency(v, v, v, 12) for entry, v in values.items()},
        {SPACE.digest: correction},
    )


def test_transfer_to_the_same_device_changes_nothing() -> None:
    measured = measured_table()
    table = transfer(measured, datasheet("h200"), estimated_conditions("h200"), SPACE, 10)
    for entry, value in table.entries.items():
        assert value.latency_ms == pytest.approx(measured.entries[entry].latency_ms, rel=1e-12)
        assert value.origin == "estimated"
    correction = table.corrections[SPACE.digest]
    assert correction.expected_error == pytest.approx(0.03)
    genes = SPACE.sample(np.random.default_rng(0), 20)
    np.testing.assert_allclose(
        table.compile(SPACE, 10).predict(genes), measured.compile(SPACE, 10).predict(genes)
    )


def test_estimate_transfers_where_runtime_precision_and_batch_agree() -> None:
    measured = measured_table()
    conditions = estimated_conditions("l4")
    table = estimate(conditions, SPACE, 10, measured=measured)
    plain = estimate(conditions, SPACE, 10)
    assert "transferred" in table.corrections[SPACE.digest].warnings[0]
    spread = ratios(conditions, datasheet("h200"), datasheet("l4"))
    error = (spread[17] - spread[1]) / 2
    assert table.corrections[SPACE.digest].expected_error == pytest.approx(math.hypot(error, 0.03))
    assert table.corrections[SPACE.digest].ratios == spread
    assert plain.corrections[SPACE.digest].ratios != spread
    for entry, value in table.entries.items():  # a smaller device is faster by its clock at most
        assert value.latency_ms >= measured.entries[entry].latency_ms * 1.83 / 2.05
    other = estimated_conditions("l4", batch_size=8)
    assert estimate(other, SPACE, 10, measured=measured) == estimate(other, SPACE, 10)
    with pytest.raises(UsageError, match=r"batch_size=1 .* cannot stand for 8"):
        transfer(measured, datasheet("h200"), other, SPACE, 10)


def test_unmeasured_entries_are_estimated_like_their_kind() -> None:
    measured = measured_table()
    whole = transfer(measured, datasheet("h200"), estimated_conditions("h200"), SPACE, 10)
    blocks = [e for e in measured.entries if e[0].kind == "block"]
    left = blocks[::5]
    kept = {e: v for e, v in measured.entries.items() if e not in left}
    table = transfer(
        replace(measured, entries=kept), datasheet("h200"), estimated_conditions("h200"), SPACE, 10
    )
    ratios = [table.entries[e].latency_ms / whole.entries[e].latency_ms for e in left]
    assert np.median(np.abs(np.log(ratios))) < 0.3  # the disturbance is 0.2
    no_stems = {e: v for e, v in measured.entries.items() if e[0].kind != "stem"}
    with pytest.raises(MissingLatencyError, match="no entry of kind 'stem'"):
        transfer(
            replace(measured, entries=no_stems),
            datasheet("h200"),
            estimated_conditions("h200"),
            SPACE,
            10,
        )
    with pytest.raises(MissingLatencyError, match="has 0 entries"):
        transfer(
            replace(measured, entries={}), datasheet("h200"), estimated_conditions("l4"), SPACE, 10
        )


def test_how_a_table_splits_entries_and_correction_does_not_matter_to_transfer() -> None:
    """Half the entries under twice the correction are the same device."""
    measured = measured_table(runtime="eager")
    (correction,) = measured.corrections.values()
    halved = replace(
        measured,
        entries={
            e: EntryLatency(v.latency_ms / 2, v.low_ms / 2, v.high_ms / 2, v.runs)
            for e, v in measured.entries.items()
        },
        corrections={SPACE.digest: replace(correction, scale=2 * correction.scale)},
    )
    genes = SPACE.sample(np.random.default_rng(0), 20)
    target = estimated_conditions("a100", runtime="eager")  # with published figures of its own
    first, second = (
        transfer(table, datasheet("h200"), target, SPACE, 10).compile(SPACE, 10).predict(genes)
        for table in (measured, halved)
    )
    np.testing.assert_allclose(first, second, rtol=0.02)
