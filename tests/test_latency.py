"""Latency tables: protocol, persistence, hostile files, resumption. No wall times are asserted."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from predictors.additive import entries
from predictors.latency import profile as profiling
from predictors.latency.correction import (
    CheckNetwork,
    Correction,
    fit_correction,
    leave_one_out_error,
)
from predictors.latency.devices import (
    Conditions,
    DeviceIdentity,
    identify,
    local_conditions,
    local_device_names,
    torch_device,
)
from predictors.latency.measure import (
    Bench,
    Limits,
    Subject,
    WeightPool,
    entry_subject,
    network_subject,
    run_rounds,
    split_half_disagreement,
    statistic,
    steady,
)
from predictors.latency.profile import check_architectures, profile, table_path
from predictors.latency.remeasure import measure_network, measure_networks
from predictors.latency.table import (
    EntryLatency,
    LatencyTable,
    MissingLatencyError,
    spec_from_json,
    spec_to_json,
)
from search_space import (
    Block,
    Macro,
    Mixer,
    SearchSpace,
    StageSpace,
    components,
    known,
    load_space,
    space_names,
)
from search_space.errors import CorruptFileError, InvalidQuantityError, UnknownNameError
from supernet.modules import build_module

QUICK = Limits(min_rounds=3, max_rounds=4, min_seconds=0.0)
CLASSES = 5


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    blocks = (
        Block(Mixer.of("pooling"), 2.0),
        Block(Mixer.of("window_attention", window=4, head_dim=8), 2.0),
    )
    stages = tuple(StageSpace((8, 16), (1, 2), blocks) for _ in range(4))
    return SearchSpace("small", Macro(stem_kernel=2, stem_stride=2), (16,), stages)


@pytest.fixture(scope="module")
def conditions() -> Conditions:
    return local_conditions(threads=1)


def made_up_table(space: SearchSpace, conditions: Conditions) -> LatencyTable:
    """Known numbers instead of measured ones."""
    asked = entries(space, CLASSES)
    measured = {e: EntryLatency(0.1 + 0.01 * i, 0.1, 9.0, 12) for i, e in enumerate(asked)}
    checks = tuple(
        CheckNetwork(architecture.digest, 1.0 + i, 2.0 + 2 * i, 12)
        for i, architecture in enumerate(check_architectures(space))
    )
    correction = Correction(
        space=space.name,
        scale=1.25,
        offset_ms=0.5,
        expected_error=0.03,
        checks=checks,
        rounds=12,
        seconds=3.0,
        stopped="converged",
        warnings=("made up",),
    )
    return LatencyTable(conditions, measured, {space.digest: correction})


# Devices and conditions -----------------------------------------------------------------------


def test_the_cpu_is_a_device_and_unknown_ones_list_all() -> None:
    assert "cpu" in local_device_names()
    assert identify("cpu").cores >= 1
    assert identify("cpu").model
    with pytest.raises(UnknownNameError, match=r"unknown device 'cpuu'. Did you mean 'cpu'\?"):
        local_conditions("cpuu")


def test_every_condition_changes_the_digest(conditions: Conditions) -> None:
    other = DeviceIdentity("cpu", "another", 3, "SSE")
    changes = [
        {"device": other},
        {"precision": "bf16"},
        {"batch_size": 8},
        {"threads": conditions.threads + 1},
        {"runtime_version": "0"},
        {"layout": "channels_first"},
        {"implementation": "0"},
        {"protocol": "hot"},
    ]
    digests = [dataclasses.replace(conditions, **change).digest for change in changes]
    assert len({conditions.digest, *digests}) == len(changes) + 1
    assert Conditions.from_dict(json.loads(json.dumps(conditions.to_dict()))) == conditions


def test_wrong_conditions_are_refused(conditions: Conditions) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown runtime 'tensort'.* 'tensorrt'"):
        local_conditions(runtime="tensort")
    with pytest.raises(UnknownNameError, match="unknown precision 'fp8'"):
        local_conditions(precision="fp8")
    with pytest.raises(InvalidQuantityError, match="batch_size=0 must be a positive integer"):
        local_conditions(batch_size=0)
    elsewhere = dataclasses.replace(conditions, device=DeviceIdentity("cpu", "X9", 1, "none"))
    with pytest.raises(UnknownNameError, match="unknown device on this machine 'X9"):
        torch_device(elsewhere)


# Protocol -------------------------------------------------------------------------------------


class Recorder(nn.Module):
    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not gc.isenabled()
        assert torch.is_inference_mode_enabled()
        self.log.append(self.name)
        return x


def test_rounds_visit_everything_once_in_changing_order(conditions: Conditions) -> None:
    log: list[str] = []
    x = torch.zeros(1)
    subjects = [Subject(Recorder(name, log), x) for name in "abcdefgh"]
    subjects.append(Subject(Recorder("N", log), x, settle=1))
    bench = Bench(subjects, conditions)
    threads = torch.get_num_threads()
    with steady(conditions):
        bench.warm_up()
        assert sorted(log) == sorted("abcdefghN" * 2)
        orders = []
        for _ in range(4):
            log.clear()
            bench.round()
            orders.append("".join(log))
    assert gc.isenabled()
    assert torch.get_num_threads() == threads
    assert len(set(orders)) == 4
    assert all(sorted(order) == sorted("abcdefghNN") and "NN" in order for order in orders)
    assert [len(samples) for samples in bench.samples] == [4] * 9


def test_rounds_stop_for_a_stated_reason(conditions: Conditions) -> None:
    def bench() -> Bench:
        return Bench([Subject(nn.Identity(), torch.zeros(1))], conditions)

    heard: list[tuple[int, int, float]] = []
    calm = bench()
    assert run_rounds(calm, QUICK, lambda _: True, lambda *a: heard.append(a)) == "converged"
    assert calm.rounds == QUICK.min_rounds
    assert [done for done, _, _ in heard] == [1, 2, 3]
    assert all(total >= done and eta >= 0 for done, total, eta in heard)
    restless = bench()
    assert run_rounds(restless, QUICK, lambda _: False) == "rounds"
    assert restless.rounds == QUICK.max_rounds
    assert run_rounds(bench(), Limits(budget_s=0.0), lambda _: True) == "time"


def test_statistics() -> None:
    assert statistic([1.0, 2.0, 3.0, 4.0, 100.0]) == 2.0
    assert split_half_disagreement([2.0, 2.0, 3.0, 3.0]) == pytest.approx(0.5)
    assert split_half_disagreement([1.0]) == float("inf")


@pytest.mark.parametrize("name", [*space_names(), "swin_t", "focalnet_t_srf", "poolformer_s12"])
def test_module_boundaries_have_the_layout_that_entries_assume(
    name: str, conditions: Conditions
) -> None:
    if name in space_names():
        candidates = load_space(name)
        (architecture,) = candidates.decode(candidates.sample(np.random.default_rng(3), 1))
    else:
        architecture = known(name)
    side = architecture.resolution
    pool = WeightPool(conditions)
    x = pool.take((1, 3, side, side))
    with torch.inference_mode():
        for item in components(architecture, CLASSES):
            with torch.device("meta"):
                module = build_module(item.spec)
            x = pool.fill(module)(x)
            assert x.is_contiguous(), item.path


def test_pooled_weights_share_memory(space: SearchSpace, conditions: Conditions) -> None:
    pool = WeightPool(conditions)
    subjects = [network_subject(a, CLASSES, conditions, pool) for a in check_architectures(space)]
    subjects += [entry_subject(spec, size, conditions, pool) for spec, size in entries(space, 5)]
    storages = {
        parameter.untyped_storage().data_ptr()
        for subject in subjects
        for parameter in subject.module.parameters()
    }
    assert len(storages) == 1
    with torch.inference_mode():
        for subject in subjects:
            assert bool(torch.isfinite(subject.module(subject.images)).all())


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


# Tables ---------------------------------------------------------------------------------------


def test_compiled_table_is_the_corrected_sum(space: SearchSpace, conditions: Conditions) -> None:
    table = made_up_table(space, conditions)
    genes = space.sample(np.random.default_rng(0), 20)
    expected = [
        0.5
        + 1.25 * sum(table.entries[c.spec, c.in_size].latency_ms for c in components(a, CLASSES))
        for a in space.decode(genes)
    ]
    compiled = table.compile(space, CLASSES)
    np.testing.assert_allclose(compiled.predict(genes), expected)


def test_what_is_missing_is_named_with_the_command(
    space: SearchSpace, conditions: Conditions
) -> None:
    table = made_up_table(space, conditions)
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


def test_tables_survive_the_disk(
    space: SearchSpace, conditions: Conditions, tmp_path: Path
) -> None:
    table = made_up_table(space, conditions)
    table.save(tmp_path / "table.parquet")
    assert LatencyTable.load(tmp_path / "table.parquet") == table
    assert [item.name for item in tmp_path.iterdir()] == ["table.parquet"]


@pytest.mark.parametrize("name", space_names())
def test_specs_survive_json(name: str) -> None:
    for spec, _ in entries(load_space(name), CLASSES):
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
        ({"latency_ms": float("nan")}, {}, "latency_ms=nan must be a positive number"),
        ({"latency_ms": -1.0}, {}, "latency_ms=-1.0 must be a positive number"),
        ({"latency_ms": None}, {}, "latency_ms=None must be a positive number"),
        ({"runs": 0}, {}, "runs=0 must be a positive number"),
        ({"in_size": None}, {}, "in_size must be positive"),
        ({"spec": "{"}, {}, "is not the spec of a module"),
        ({"spec": None}, {}, "is not the spec of a module"),
        ({}, {"schema_version": 99}, "schema version 99, this program reads version 2"),
        ({}, {"conditions_digest": "0"}, "conditions were altered"),
        ({}, {"conditions": {}}, "conditions must be a mapping"),
        ({}, {"corrections": {"a": {"scale": 1}}}, "correction is not what this program writes"),
        ({}, {"corrections": [1]}, "corrections must be a mapping"),
    ],
)
def test_altered_tables_are_refused(
    space: SearchSpace,
    conditions: Conditions,
    tmp_path: Path,
    change: dict[str, object],
    metadata: dict[str, object],
    message: str,
) -> None:
    path = tmp_path / "table.parquet"
    made_up_table(space, conditions).save(path)
    _rewrite(path, change, metadata)
    with pytest.raises(CorruptFileError) as error:
        LatencyTable.load(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "nas profile" in str(error.value)


def test_unreadable_tables_are_refused(
    space: SearchSpace, conditions: Conditions, tmp_path: Path
) -> None:
    path = tmp_path / "table.parquet"
    made_up_table(space, conditions).save(path)
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


# Profiling ------------------------------------------------------------------------------------


def test_profile_measures_once_and_only_what_is_missing(
    space: SearchSpace, conditions: Conditions, tmp_path: Path
) -> None:
    rounds: list[int] = []
    first = profile(
        space,
        CLASSES,
        conditions,
        tmp_path,
        limits=QUICK,
        progress=lambda d, t, e: rounds.append(d),
    )
    assert rounds
    assert set(first.entries) == set(entries(space, CLASSES))
    correction = first.correction(space)
    assert correction.rounds == rounds[-1]
    assert len(correction.checks) == len(check_architectures(space))
    content = table_path(conditions, tmp_path).read_bytes()
    rounds.clear()
    again = profile(
        space,
        CLASSES,
        conditions,
        tmp_path,
        limits=QUICK,
        progress=lambda d, t, e: rounds.append(d),
    )
    assert again == first
    assert not rounds
    assert table_path(conditions, tmp_path).read_bytes() == content
    more = profile(space, CLASSES + 2, conditions, tmp_path, limits=QUICK)
    assert len(more.entries) == len(first.entries) + 2  # two heads
    assert more.corrections == first.corrections
    assert all(more.entries[entry] == value for entry, value in first.entries.items())
    assert [item.suffix for item in tmp_path.iterdir()] == [".parquet"]
    genes = space.sample(np.random.default_rng(0), 50)
    assert bool(np.isfinite(more.compile(space, CLASSES + 2).predict(genes)).all())


def test_later_entries_are_brought_to_the_level_of_the_correction(
    space: SearchSpace, conditions: Conditions, tmp_path: Path
) -> None:
    table = made_up_table(space, conditions)
    session = profiling._Session(table, space, CLASSES + 1, tmp_path / "t.parquet", QUICK)
    assert len(session.missing) == 2
    # the check networks take half of what they took when the correction was fitted
    checks = [[c.measured_ms / 2] * 4 for c in table.correction(space).checks]
    session.bench = Bench([], conditions)
    session.bench.samples = [[0.25] * 4, [0.5] * 4, *checks]
    extended = session.extend(table)
    assert [extended.entries[e].latency_ms for e in session.missing] == [0.5, 1.0]


def test_a_table_of_other_conditions_is_not_used(
    space: SearchSpace, conditions: Conditions, tmp_path: Path
) -> None:
    other = dataclasses.replace(conditions, batch_size=2)
    made_up_table(space, other).save(table_path(conditions, tmp_path))
    with pytest.raises(CorruptFileError, match="table of other conditions"):
        profile(space, CLASSES, conditions, tmp_path, limits=QUICK)


def test_interrupted_profile_continues(
    space: SearchSpace, conditions: Conditions, tmp_path: Path
) -> None:
    limits = Limits(min_rounds=6, max_rounds=6, min_seconds=0.0)

    def interrupt(done: int, total: int, eta_s: float) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(space, CLASSES, conditions, tmp_path, limits=limits, progress=interrupt)
    rounds: list[int] = []
    table = profile(
        space,
        CLASSES,
        conditions,
        tmp_path,
        limits=limits,
        progress=lambda d, t, e: rounds.append(d),
    )
    assert rounds == [5, 6]
    assert {value.runs for value in table.entries.values()} == {6}


def test_unusable_partial_results_are_reported_and_measured_again(
    space: SearchSpace, conditions: Conditions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = LatencyTable(conditions, {}, {})
    path = table_path(conditions, tmp_path)
    partial = profiling._Session(table, space, CLASSES, path, QUICK).partial
    partial.write_bytes(b"PAR1 cut short")
    profile(space, CLASSES, conditions, tmp_path, limits=QUICK)
    assert "not a readable Parquet file" in caplog.text
    assert "starts over" in caplog.text
    assert not partial.exists()


def test_killed_profile_loses_only_the_last_seconds(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from predictors.latency import profile as profiling
        from predictors.latency.devices import local_conditions
        from predictors.latency.measure import Limits
        from search_space import load_space

        profiling.SAVE_SECONDS = 0.0
        limits = Limits(min_rounds=int(sys.argv[2]), max_rounds=int(sys.argv[2]), min_seconds=0.0)
        table = profiling.profile(
            load_space("digits"), 10, local_conditions(threads=1), Path(sys.argv[1]),
            limits=limits, progress=lambda done, total, eta: print(done, flush=True),
        )
        print(len(table.entries), table.correction(load_space("digits")).rounds)
        """
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)]
    with subprocess.Popen([*command, "1000"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [int(process.stdout.readline()) for _ in range(3)]
        os.kill(process.pid, signal.SIGKILL)
    assert seen == [1, 2, 3]
    finished = subprocess.run([*command, "20"], capture_output=True, text=True, check=True)
    lines = finished.stdout.split("\n")
    assert int(lines[0]) >= 4  # rounds of the killed process count
    assert lines[-2].split()[0] == str(len(entries(load_space("digits"), 10)))


# Whole networks -------------------------------------------------------------------------------


def test_networks_are_measured_in_the_order_given(
    space: SearchSpace, conditions: Conditions
) -> None:
    results = measure_networks([space.smallest, space.largest], CLASSES, conditions, limits=QUICK)
    for result in results:
        assert 0 < result.low_ms <= result.latency_ms <= result.high_ms
        assert QUICK.min_rounds <= result.runs <= QUICK.max_rounds
    assert measure_networks([], CLASSES, conditions) == []
    single = measure_network(space.smallest, CLASSES, conditions, time_budget_s=0.0)
    assert single.runs >= 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_profile_on_a_gpu(space: SearchSpace, tmp_path: Path, precision: str) -> None:
    conditions = local_conditions("cuda", precision=precision)
    table = profile(space, CLASSES, conditions, tmp_path, limits=QUICK)
    assert table.complete(space, CLASSES)
