"""Measuring: devices, the protocol, profiles, resumption. No wall times are asserted."""

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
import pytest
import torch
from latency_cases import CLASSES, QUICK, made_up_table, small_space
from pydantic import TypeAdapter
from torch import nn

from predictors.measuring import profile as profiling
from predictors.measuring.bench import (
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
from predictors.measuring.profile import check_architectures, profile
from predictors.measuring.remeasure import measure_networks
from predictors.measuring.this_machine import (
    identify,
    local_conditions,
    local_device_names,
    torch_device,
)
from predictors.tables.additive import entries
from predictors.tables.conditions import Conditions, DeviceIdentity
from predictors.tables.folder import table_path
from predictors.tables.latency_table import (
    LatencyTable,
)
from search_space import (
    SearchSpace,
    components,
    known,
    load_space,
    space_names,
)
from search_space.errors import CorruptFileError, InvalidQuantityError, UnknownNameError
from supernet.network.modules import build_module


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space()


@pytest.fixture(scope="module")
def conditions() -> Conditions:
    return local_conditions(threads=1)


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
    data = json.loads(json.dumps(conditions.to_dict()))
    assert TypeAdapter(Conditions).validate_python(data) == conditions


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


def test_portions_are_brought_to_the_level_of_the_first(
    space: SearchSpace,
    conditions: Conditions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profiling, "first_portion", lambda missing, _: missing[:-2] or missing)
    table = LatencyTable(conditions, {}, {})
    session = profiling._Session(table, space, CLASSES, tmp_path / "t.parquet", QUICK)
    networks = len(session.checks)
    session.bench = Bench([], conditions)
    session.bench.samples = [[1.0] * 4] * len(session.missing) + [[2.0] * 4] * networks
    table = session.extend(table)
    assert not table.corrections
    session.go_on(table)
    assert len(session.missing) == 2
    session.bench.samples = [[0.25] * 4, [0.5] * 4] + [[1.0] * 4] * networks  # twice as fast now
    table = session.extend(table)
    assert table.complete(space, CLASSES)
    assert [table.entries[e].latency_ms for e in session.missing] == [0.5, 1.0]
    assert {check.measured_ms for check in table.correction(space).checks} == {2.0}


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
        from predictors.measuring import profile as profiling
        from predictors.measuring.this_machine import local_conditions
        from predictors.measuring.bench import Limits
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
    single = measure_networks([space.smallest], CLASSES, conditions, limits=QUICK)[0]
    assert single.runs >= 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_profile_on_a_gpu(space: SearchSpace, tmp_path: Path, precision: str) -> None:
    conditions = local_conditions("cuda", precision=precision)
    table = profile(space, CLASSES, conditions, tmp_path, limits=QUICK)
    assert table.complete(space, CLASSES)
