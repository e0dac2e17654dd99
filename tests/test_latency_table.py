"""Latency tables: the correction, predictions, persistence, hostile files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latency_cases import CLASSES, made_up_table, small_space

from predictors.measuring.this_machine import local_conditions
from predictors.tables.additive import entries
from predictors.tables.correction import (
    CheckNetwork,
    Correction,
    correction_of,
    fit_correction,
    leave_one_out_error,
)
from predictors.tables.latency_table import (
    LatencyTable,
    MissingLatencyError,
    spec_from_json,
    spec_to_json,
)
from search_space import MIXERS, Mixer, SearchSpace, components, known, load_space, space_names
from search_space.around import Around, around
from search_space.errors import CorruptFileError


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space()


@pytest.fixture(scope="module")
def table(space: SearchSpace) -> LatencyTable:
    table = made_up_table(space, local_conditions(threads=1))
    correction = dataclasses.replace(table.correction(space), warnings=("made up",))
    return dataclasses.replace(table, corrections={space.digest: correction})


# Correction -----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    sums=st.lists(st.floats(0.5, 50.0), min_size=8, max_size=14, unique_by=lambda x: round(x, 1)),
    scale=st.floats(0.5, 2.0),
    offset=st.floats(0.0, 0.5),
)
def test_correction_is_exact_on_a_line(sums: list[float], scale: float, offset: float) -> None:
    measured = [offset + scale * x for x in sums]
    assert fit_correction(sums, measured) == pytest.approx((scale, offset), rel=1e-3, abs=1e-3)
    assert leave_one_out_error(sums, measured) < 1e-3


def test_correction_ignores_a_disturbed_network_and_never_falls() -> None:
    sums = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    measured = [0.2 + 1.1 * x for x in sums]
    measured[3] *= 4
    scale, offset = fit_correction(sums, measured)
    assert scale == pytest.approx(1.1, rel=0.02)
    assert offset == pytest.approx(0.2, abs=0.05)
    assert fit_correction([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]) == pytest.approx(
        (13 / 12, 0)
    )  # median ratio


def test_a_correction_says_where_it_is_not_to_be_relied_on() -> None:
    def found(stopped: str, *times: float) -> Correction:
        checks = [CheckNetwork(str(i), i + 1.0, value, 9) for i, value in enumerate(times)]
        return correction_of(
            "few", checks, halves=0.3, rounds=9, seconds=1.0, stopped=stopped, warnings=["busy."]
        )

    calm = found("converged", 2.0, 4.0, 6.0)
    assert (calm.scale, calm.offset_ms, calm.expected_error) == (2.0, 0.0, 0.0)
    assert calm.warnings == ("busy.",)
    first, limit, error = found("rounds", 2.0, 8.0, 3.0).warnings
    assert first == "busy."
    assert "limit of rounds" in limit
    assert "up to 30%" in limit
    assert "measure again on an idle device" in error


def test_a_single_check_network_has_no_others_to_be_predicted_from(
    table: LatencyTable, tmp_path: Path
) -> None:
    """That of a space of one architecture: NaN would be no error, and no JSON."""
    check = CheckNetwork("0123456789ab", 2.0, 2.5, 9)
    correction = correction_of(
        "one", [check], halves=0.0, rounds=9, seconds=1.0, stopped="converged"
    )
    assert (correction.scale, correction.offset_ms) == (1.25, 0.0)
    assert correction.expected_error == pytest.approx(0.2)
    one = dataclasses.replace(table, corrections={"fedcba987654": correction})
    one.save(tmp_path / "one.parquet")
    assert LatencyTable.load(tmp_path / "one.parquet") == one


def test_spaces_without_a_correction_take_what_others_have_in_common(
    space: SearchSpace, table: LatencyTable
) -> None:
    own = table.correction(space)
    assert table.typical_correction(space) == own
    other = dataclasses.replace(own, scale=1.75, offset_ms=0.0, expected_error=0.2)
    both = dataclasses.replace(table, corrections={"a": own, "b": other})
    found = both.typical_correction(space)
    assert (found.space, found.scale, found.offset_ms) == ("small", 1.5, 0.25)
    assert found.expected_error == 0.2  # the worst, to be on the safe side
    plain = dataclasses.replace(table, corrections={}).typical_correction()
    assert (plain.scale, plain.offset_ms, plain.expected_error) == (1.0, 0.0, 0.0)


# Tables ---------------------------------------------------------------------------------------


def test_compiled_table_is_the_corrected_sum(space: SearchSpace, table: LatencyTable) -> None:
    genes = space.sample(np.random.default_rng(0), 20)
    expected = [
        0.5
        + 1.25 * sum(table.entries[c.spec, c.in_size].latency_ms for c in components(a, CLASSES))
        for a in space.decode(genes)
    ]
    compiled = table.compile(space, CLASSES)
    np.testing.assert_allclose(compiled.predict(genes), expected)


def test_what_is_missing_is_named_with_the_command(space: SearchSpace, table: LatencyTable) -> None:
    assert table.complete(space, CLASSES)
    missing = table.missing(space, CLASSES + 1)
    assert [spec.kind for spec, _ in missing] == ["head", "head"]
    with pytest.raises(MissingLatencyError) as error:
        table.compile(space, CLASSES + 1)
    assert str(missing[0][0]) in str(error.value)
    assert "and 1 more entries" in str(error.value)
    assert "nas profile --space small" in str(error.value)
    uncorrected = dataclasses.replace(table, corrections={})
    with pytest.raises(MissingLatencyError, match=r"no end-to-end correction.*nas profile"):
        uncorrected.compile(space, CLASSES)


def test_tables_survive_the_disk(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table.parquet")
    assert LatencyTable.load(tmp_path / "table.parquet") == table
    assert [item.name for item in tmp_path.iterdir()] == ["table.parquet"]


@pytest.mark.parametrize("name", space_names())
def test_specs_survive_json(name: str) -> None:
    for spec, _ in entries(load_space(name), CLASSES):
        assert spec_from_json(spec_to_json(spec)) == spec


@pytest.mark.parametrize("name", ["swin_t", "caformer_s18", "efficientnet_b0", "resnet50"])
def test_specs_of_spaces_around_networks_survive_json(name: str) -> None:
    mixers = tuple(Mixer.of(each) for each in MIXERS if name == "swin_t")
    mixers = tuple(m for m in mixers if m.width_multiple <= 32)
    for spec, _ in entries(around(known(name), Around(mixers=mixers)), CLASSES):
        assert spec_from_json(spec_to_json(spec)) == spec


def _rewrite(path: Path, change: dict[str, object], metadata: dict[str, object]) -> None:
    table = pq.read_table(path)
    content = json.loads(table.schema.metadata[b"nas.latency_table"])
    columns = table.to_pydict()
    for name, value in change.items():
        columns[name][1] = value
    text = json.dumps({**content, **metadata}).encode()
    schema = table.schema.with_metadata({b"nas.latency_table": text})
    pq.write_table(pa.table(columns, schema=schema), path)


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        ({"latency_ms": float("nan")}, {}, "latency_ms=nan: Input should be a finite number"),
        ({"latency_ms": -1.0}, {}, "latency_ms=-1.0: Input should be greater than 0"),
        ({"latency_ms": None}, {}, "latency_ms=None: Input should be a valid number"),
        ({"runs": 0}, {}, "a measured entry has runs"),
        ({"in_size": None}, {}, "in_size=None: Input should be a valid integer"),
        ({"spec": "{"}, {}, "1.spec='{'"),
        ({"spec": None}, {}, "not the spec of a module"),
        ({}, {"schema_version": 99}, "schema version 99, this program reads version 2"),
        ({}, {"conditions_digest": "0"}, "conditions were altered"),
        ({}, {"conditions": {}}, "conditions.device={}: Field required"),
        ({}, {"corrections": {"a": {"scale": 1}}}, "corrections.a.[key]='a'"),
        ({}, {"corrections": [1]}, "corrections=[1]: Input should be a valid dictionary"),
    ],
)
def test_altered_tables_are_refused(
    table: LatencyTable,
    tmp_path: Path,
    change: dict[str, object],
    metadata: dict[str, object],
    message: str,
) -> None:
    path = tmp_path / "table.parquet"
    table.save(path)
    _rewrite(path, change, metadata)
    with pytest.raises(CorruptFileError) as error:
        LatencyTable.load(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "nas profile" in str(error.value)


def test_a_flipped_bit_changes_nothing_or_is_found(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    table.save(path)
    whole, found = path.read_bytes(), 0
    columns = pq.ParquetFile(path).metadata.row_group(0)
    end = columns.column(columns.num_columns - 1)
    for position in range(4, end.data_page_offset + end.total_compressed_size, 17):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        try:
            assert LatencyTable.load(path) == table
        except CorruptFileError:
            found += 1
    assert found > 10


def test_unreadable_tables_are_refused(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    table.save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no parquet at all"):
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match="not a readable Parquet file"):
            LatencyTable.load(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(CorruptFileError, match="no provenance"):
        LatencyTable.load(path)
    with pytest.raises(CorruptFileError, match="no such file"):
        LatencyTable.load(tmp_path / "nothing.parquet")


def _padded(table: LatencyTable, path: Path, rows: int, **columns: object) -> None:
    """The table with ``rows`` rows of the same, in a small file."""
    table.save(path)
    first = pq.read_table(path).slice(0, 1)
    for name, value in columns.items():
        first = first.set_column(first.column_names.index(name), name, pa.array([value]))
    again = pa.Table.from_arrays(
        [column.take(pa.array(np.zeros(rows, dtype=np.int64))) for column in first.columns],
        schema=pq.read_schema(path),
    )
    pq.write_table(again, path)


def test_a_table_of_too_many_rows_is_refused_before_it_is_read(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.parquet"
    _padded(table, path, 200_001)
    monkeypatch.setattr(pq.ParquetFile, "read", None)  # nothing calls it
    with pytest.raises(CorruptFileError, match=r"has 200,001 rows.*at most 200,000"):
        LatencyTable.load(path)


def test_a_long_text_that_many_rows_share_is_not_copied_for_each(
    table: LatencyTable, tmp_path: Path
) -> None:
    path = tmp_path / "table.parquet"
    _padded(table, path, 1000, spec="x" * 100_000)
    with pytest.raises(CorruptFileError, match="a text has more than 2000 characters"):
        LatencyTable.load(path)
