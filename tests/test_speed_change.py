"""A machine whose speed changed since its table was measured is said to have, and by how much."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_job import SPACE, Job, known_table

from nas.workflows.measuring import Measured, check_networks, speed_change, speed_note
from predictors.measuring.profile import check_architectures
from predictors.measuring.remeasure import Measurement
from results.files import read_json
from results.journal import Evaluation
from results.report.data import read_result
from search_space import load_space
from search_space.parsing import parse_yaml
from search_space.space_definition import space_from_dict

PEBBLE = space_from_dict(parse_yaml(SPACE))
TABLE = known_table(PEBBLE)
CHECKS = TABLE.corrections[PEBBLE.digest].checks


def measured(latency_ms: float) -> Measured:
    one = Measurement(latency_ms, latency_ms, latency_ms, 12, 0.0)
    return Measured(one, one)


def evaluation(index: int, latency_ms: float) -> Evaluation:
    return Evaluation(f"{index:012x}", {}, {"latency_ms": latency_ms}, index)


def test_networks_of_the_table_are_measured_again() -> None:
    again = check_networks(TABLE, PEBBLE)
    assert again == {a.digest: a for a in check_architectures(PEBBLE)}
    assert again.keys() == {check.digest for check in CHECKS}
    assert check_networks(TABLE, load_space("digits")) == {}


@given(st.floats(0.1, 10), st.sets(st.sampled_from(CHECKS), min_size=3))
def test_the_change_is_the_median_of_what_was_measured_twice(change, checks) -> None:
    found = {check.digest: measured(change * check.measured_ms) for check in checks}
    assert speed_change(TABLE, PEBBLE, found) == pytest.approx(change)
    outlier = min(found)
    found[outlier] = measured(1e6)  # one that was disturbed
    assert speed_change(TABLE, PEBBLE, found) == pytest.approx(change)


def test_nothing_measured_twice_tells_nothing() -> None:
    assert speed_change(TABLE, PEBBLE, {"0" * 12: measured(1.0)}) is None
    assert speed_change(TABLE, load_space("digits"), {}) is None


def test_the_note_tells_drift_from_error() -> None:
    front = [evaluation(1, 1.0), evaluation(2, 2.0)]
    found = {front[0].digest: measured(1.25 / 1.02), front[1].digest: measured(2.5 / 0.98)}
    note = speed_note(1.25, front, found)
    assert note is not None
    assert "took 1.25 times as long" in note
    assert "off by 20% on average, and by 2% at the table's speed" in note
    assert speed_note(1.04, front, found) is None
    assert speed_note(0.96, front, found) is None
    assert speed_note(1.25, front, {}) is None


def test_a_search_says_it(finished: Job) -> None:
    """With a table whose check networks were ten times as fast as they are."""
    run = finished.copy("slowed", "running")
    (run / "result.json").unlink()
    content = read_json(run / "measured.json", dict)
    digests = {check.digest for check in CHECKS}
    assert digests <= content.keys()
    for digest in digests:
        for session in content[digest]:
            session["latency_ms"] *= 10
    (run / "measured.json").write_text(json.dumps(content))
    said = finished.resume("slowed")
    assert said.code == 0, said.err
    data = read_result(run / "result.json")
    note = next(note for note in data.notes if note.startswith("The machine took"))
    assert note in said.err
    assert 3 < float(note.split()[3]) < 30
    assert note.replace("'", "&#39;") in Path(run / "report.html").read_text()
