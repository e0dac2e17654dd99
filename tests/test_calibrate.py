"""Calibration from a user's CSV: what is read, what is refused, and what it corrects."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latency_cases import phone_table
from tiny_job import FAILED, every_architecture, known_table, latency_ms, nas

from predictors.devices import find_device, latency_table
from predictors.estimates.calibrate import (
    MeasurementError,
    NetworkMeasurement,
    calibrate,
    predict_network,
    read_measurements,
)
from predictors.estimates.datasheets import datasheet
from predictors.estimates.estimate import estimate, estimated_conditions
from predictors.tables.correction import leave_one_out_error
from predictors.tables.folder import table_path
from predictors.tables.latency_table import LatencyTable, MissingLatencyError
from search_space import (
    Architecture,
    SearchSpace,
    components,
    dump_architecture,
    known,
    known_names,
    load_space,
)
from search_space.errors import NasError


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "measured.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# Reading ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(known_names()), st.floats(1e-6, 1e6), min_size=1, max_size=8),
    st.sampled_from([("latency_ms", 1.0), ("latency_us", 1e-3), ("latency_s", 1e3)]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[str, float],
    unit: tuple[str, float],
    newline: str,
    noted: bool,
    encoding: str,
) -> None:
    path = tmp_path_factory.mktemp("csv") / "measured.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, lineterminator=newline)
        writer.writerow([*(["note"] if noted else []), unit[0], "network"])
        for name, value in values.items():
            writer.writerow([*(["one, two"] if noted else []), repr(value), name])
            file.write(newline)  # blank lines do not matter
    found = read_measurements(path)
    assert [m.name for m in found] == list(values)
    assert [m.architecture for m in found] == [known(name) for name in values]
    for m, value in zip(found, values.values(), strict=True):
        assert m.latency_ms == pytest.approx(value * unit[1], rel=1e-12)
    assert [m.line for m in found] == [2 + 2 * i for i in range(len(values))]


def test_networks_from_files_are_relative_to_the_csv(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(dump_architecture(known("hornet_t")), "utf-8")
    path = write(tmp_path, "network,latency_ms\nmine.yaml, 3.5\nswin_t,2\n")
    assert read_measurements(path) == [
        NetworkMeasurement("mine.yaml", known("hornet_t"), 3.5, 2),
        NetworkMeasurement("swin_t", known("swin_t"), 2.0, 3),
    ]


HEAD = "network,latency_ms\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is empty; its first line must be 'network' and one of 'latency_ms'"),
        ("\n\n", "is empty"),
        (HEAD, "has a header but no measurements"),
        ("model,latency_ms\nswin_t,3\n", r"line 1: the columns are 'model', 'latency_ms'; .*must"),
        ("network;latency_ms\nswin_t;3\n", "line 1: the columns are.*separated by a comma"),
        *(
            (f"{header}\nswin_t,3,3\n", f"line 1: .*'{name}'.*'latency_us'.*once each")
            for header, name in (
                ("network,ms", "ms"),
                ("network,latency", "latency"),
                ("network,latency_ns", "latency_ns"),
                ("network,latency_ms,latency_s", "latency_s"),
                ("network,latency_ms,latency", "latency"),
                ("network,network,latency_ms", "network"),
            )
        ),
        (HEAD + "swin_x,3\n", "line 2: unknown design 'swin_x'. Did you mean.*Known:.*convnext_b"),
        (HEAD + ",3\n", "line 2: no network; give one of"),
        (HEAD + "swin_t,fast\n", "line 2: latency_ms is 'fast' but must be a positive number"),
        (HEAD + "swin_t,\n", "latency_ms is ''"),
        (HEAD + "swin_t,3 ms\n", "latency_ms is '3 ms'.*no unit"),
        (HEAD + 'swin_t,"3,5"\n', "latency_ms is '3,5'.*a point for decimals"),
        (HEAD + "swin_t,1_0\n", "latency_ms is '1_0'"),
        (HEAD + "swin_t,nan\n", "latency_ms is 'nan'"),
        (HEAD + "swin_t,inf\n", "latency_ms is 'inf'"),
        (HEAD + "swin_t,-1\n", "latency_ms is '-1'"),
        (HEAD + "swin_t,0\n", "latency_ms is '0'"),
        (HEAD + "swin_t,3\n\nswin_s,x\n", "line 4: latency_ms is 'x'"),
        (HEAD + "swin_t,3,4\n", "line 2: 3 cells where the header has 2 columns"),
        (HEAD + "swin_t\n", "line 2: 1 cells where the header has 2 columns"),
        (HEAD + "swin_t,3\nswin_t,4\n", "line 3: network 'swin_t' is there already, in line 2"),
        (HEAD + "nothing.yaml,3\n", "line 2: .*nothing.yaml does not exist"),
        (HEAD + 'swin_t,"3\n', "line 2: not a line of a CSV file"),
        (b"\xff\xfe\x00network", "cannot be read as text"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(NasError, match=message) as caught:
        read_measurements(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_network_under_two_names_is_there_twice(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(dump_architecture(known("swin_t")), "utf-8")
    path = write(tmp_path, "network,latency_us\nswin_t,3\nmine.yaml,4\n")
    with pytest.raises(MeasurementError, match=r"'mine\.yaml' is there already, in line 2"):
        read_measurements(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NasError, match="does not exist"):
        read_measurements(tmp_path / "none.csv")
    with pytest.raises(NasError, match="is a folder"):
        read_measurements(tmp_path)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_measurements_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = write(tmp_path_factory.mktemp("bytes"), data)
    message = str(path)
    try:
        read_measurements(path)
    except NasError as error:
        message = str(error)
    assert str(path) in message


# Correcting ---------------------------------------------------------------------------------------


def test_a_line_is_found_from_four_networks_on() -> None:
    predicted = [1.0, 2.0, 3.0, 5.0, 8.0, 9.0]
    measured = [0.5 + 1.5 * x for x in predicted]
    found = calibrate(predicted, measured, list("abcdef"))
    assert (found.scale, found.offset_ms) == (pytest.approx(1.5), pytest.approx(0.5))
    assert found.error_after == pytest.approx(0.0, abs=1e-6)
    by_hand = np.mean([abs(x / y - 1) for x, y in zip(predicted, measured, strict=True)])
    assert found.error_before == pytest.approx(by_hand)
    assert found.networks == tuple("abcdef")
    few = calibrate(predicted[:3], measured[:3], list("abc"))
    assert few.offset_ms == 0.0
    assert few.scale == pytest.approx(np.median([m / p for p, m in zip(predicted, measured)][:3]))  # noqa: B905


def test_errors_afterwards_are_those_of_networks_left_out() -> None:
    predicted, measured = [1.0, 2.0, 4.0], [2.0, 4.4, 8.0]
    found = calibrate(predicted, measured, ["a", "b", "c"])
    ratios = [2.0, 2.2, 2.0]
    left = [np.median(np.delete(ratios, i)) * predicted[i] / measured[i] - 1 for i in range(3)]
    assert found.scale == pytest.approx(2.0)
    assert found.error_after == pytest.approx(np.mean(np.abs(left)))
    one = calibrate([1.0], [2.0], ["a"])
    assert (one.scale, one.error_before, one.error_after) == (2.0, 0.5, 0.5)
    with pytest.raises(MeasurementError, match="no networks"):
        calibrate([], [], [])


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(0.1, 100), min_size=4, max_size=12, unique=True),
    st.floats(0.2, 5),
    st.integers(0, 2**16),
)
def test_calibration_removes_a_wrong_scale(predicted: list[float], scale: float, seed: int) -> None:
    noise = np.random.default_rng(seed).lognormal(sigma=0.02, size=len(predicted))
    measured = [float(scale * x * n) for x, n in zip(predicted, noise, strict=True)]
    found = calibrate(predicted, measured, [str(i) for i in range(len(predicted))])
    corrected = found.offset_ms + found.scale * np.array(predicted)
    assert np.median(np.abs(corrected / measured - 1)) < 0.06
    assert found.error_after == pytest.approx(leave_one_out_error(predicted, measured))
    assert found.scale > 0
    assert math.isfinite(found.offset_ms)


# Predicting ---------------------------------------------------------------------------------------


def test_a_network_is_the_sum_of_its_components() -> None:
    space = load_space("digits")
    table = estimate(estimated_conditions("a100"), space, 10)
    (correction,) = table.corrections.values()
    network = space.smallest
    total = sum(
        table.entries[part.spec, part.in_size].latency_ms for part in components(network, 10)
    )
    assert predict_network(table, network, 10) == pytest.approx(total)
    scaled = replace(
        table, corrections={space.digest: replace(correction, scale=2.0, offset_ms=1.0)}
    )
    found = predict_network(scaled, network, 10)
    assert found == pytest.approx(1 + 2 * total)
    assert found == pytest.approx(scaled.compile(space, 10).predict(space.encode([network]))[0])


def test_estimates_fill_what_a_table_of_estimates_lacks_and_measured_tables_say_so() -> None:
    space = load_space("digits")
    conditions = estimated_conditions("t4")
    table = estimate(conditions, space, 10)
    empty = LatencyTable(conditions, {}, {})
    assert predict_network(empty, space.largest, 10) == pytest.approx(
        predict_network(table, space.largest, 10)
    )
    assert predict_network(table, known("swin_t")) > predict_network(table, space.smallest, 10)
    measured = replace(table, conditions=replace(conditions, protocol="cold interleaved p25, v1"))
    with pytest.raises(MissingLatencyError, match=r"lacks stem of network .*nas profile"):
        predict_network(measured, known("swin_t"))


def test_a_calibrated_estimate_meets_the_measurements() -> None:
    space = load_space("digits")
    table = estimate(estimated_conditions("a100", runtime="eager"), space, 1000)
    names = ["swin_t", "swin_s", "swin_b", "convnext_t", "focalnet_t_srf"]
    predicted = [predict_network(table, known(name)) for name in names]
    measured = [1.3 * x for x in predicted]
    found = calibrate(predicted, measured, names)
    assert found.error_before == pytest.approx(0.3 / 1.3)
    assert found.error_after < 1e-6
    corrected = replace(table, calibration=found).compile(space, 1000)
    plain = table.compile(space, 1000)
    genes = space.sample(np.random.default_rng(0), 10)
    np.testing.assert_allclose(corrected.predict(genes), 1.3 * plain.predict(genes), rtol=1e-6)


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def space(job: Path) -> SearchSpace:
    return load_space("pebble.yaml")


def write_networks(latencies_ms: Mapping[Architecture, float]) -> None:
    """``mine.csv``, and a file for each network."""
    rows = ["network,latency_ms"]
    for i, (architecture, value) in enumerate(latencies_ms.items()):
        Path(f"{i}.yaml").write_text(dump_architecture(architecture))
        rows.append(f"{i}.yaml,{value}")
    Path("mine.csv").write_text("\n".join(rows))


def calibration(device: str) -> tuple[object, ...]:
    return ("calibrate", "--device", device, "--measured", "mine.csv", "--num-classes", 10)


def test_calibration_of_an_estimate(space: SearchSpace) -> None:
    """Exact measurements of the estimate leave it as it is, whatever other tables there are."""
    conditions = estimated_conditions("a100")
    table = estimate(conditions, space, 10)
    measured = replace(
        known_table(space),
        conditions=replace(conditions, device=datasheet("h200").identity, protocol="measured"),
    )
    measured.save(table_path(measured.conditions))
    architectures = list(every_architecture(space))[::60]
    rows = space.encode(architectures)
    predicted = table.compile(space, 10).predict(rows)
    write_networks(dict(zip(architectures, predicted.tolist(), strict=True)))
    ran = nas(*calibration("a100"), "--json")
    assert json.loads(ran.out)["scale"] == pytest.approx(1.0)
    assert json.loads(ran.out)["error_before"] < 1e-6
    calibrated = latency_table(find_device("a100"), space, 10).compile(space, 10)
    np.testing.assert_allclose(calibrated.predict(rows), predicted)
    shown = nas("devices", "show", "a100").out
    assert shown.startswith("a100: NVIDIA A100")
    assert f"calibrated on {len(architectures)} whole networks" in shown


def test_calibration_from_a_handful_of_networks(space: SearchSpace) -> None:
    table = phone_table(space)
    networks = {a: 0.7 + 1.5 * latency_ms(table, a) for a in list(every_architecture(space))[::40]}
    write_networks(networks)
    command = calibration("phone")
    path = find_device("phone").path
    before = path.read_bytes()
    assert nas(*command, "--dry-run").code == 0
    assert path.read_bytes() == before
    ran = nas(*command, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["error_after"] < 1e-6 < 0.3 < found["error_before"]
    calibrated = LatencyTable.load(path).compile(space, 10)
    np.testing.assert_allclose(
        calibrated.predict(space.encode(list(networks))), list(networks.values())
    )
    # calibrating again starts from the table, not from the last calibration
    assert json.loads(nas(*command, "--json").out)["error_before"] == found["error_before"]


def test_calibration_needs_a_table(space: SearchSpace) -> None:
    write_networks({space.smallest: 5.0})
    ran = nas(*calibration("cpu"))
    assert ran.code == FAILED
    assert "measure one first with: nas profile --device cpu" in ran.err
