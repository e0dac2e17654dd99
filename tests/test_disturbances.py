"""What disturbs a measurement and is told: quotas of containers, clocks that are throttled."""

from __future__ import annotations

from pathlib import Path

import pytest
from latency_cases import CLASSES, POOLING, QUICK, small_space

from predictors.measuring import disturbances as load
from predictors.measuring import runner as bundle_runner
from predictors.measuring.disturbances import clock_warnings, cpu_clock
from predictors.measuring.remeasure import measure_networks
from predictors.measuring.this_machine import local_conditions


def _control_group(root: Path, version: int, throttled: int, quota: str = "150000") -> Path:
    """Files of a container's control group, as the kernel has them."""
    named = {1: "4:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc", 2: "0::/docker/abc"}
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(named[version])
    folder = root / "sys/fs/cgroup" / ("cpu" if version == 1 else "")
    folder.mkdir(parents=True, exist_ok=True)
    if version == 1:
        (folder / "cpu.cfs_quota_us").write_text(quota)
        (folder / "cpu.cfs_period_us").write_text("100000\n")
    else:
        (folder / "cpu.max").write_text(f"{quota} 100000\n")
    (folder / "cpu.stat").write_text(f"nr_periods {100 + throttled}\nnr_throttled {throttled}\n")
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_a_cpu_quota_is_named_as_that(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = {1: "-1", 2: "max"}[version]
    assert load.cpu_quota(_control_group(tmp_path, version, 0, unlimited)) is None
    before = load.cpu_quota(_control_group(tmp_path, version, 0))
    assert before == load.Quota(1.5, 100, 0)
    if version == 2:
        assert bundle_runner.cpu_quota(tmp_path / "sys/fs/cgroup") == 1.5
    quotas = iter([before, load.cpu_quota(_control_group(tmp_path, version, 30))])
    monkeypatch.setattr(load, "cpu_quota", lambda: next(quotas))
    meter = load.LoadMeter()
    monkeypatch.setattr(meter, "others", lambda: 0.9)
    (said,) = meter.warnings()
    assert "CPU quota of this container, 1.5 processors, stopped the measurement in 100%" in said
    assert "other work" not in said


def test_throttled_clocks_are_reported() -> None:
    assert clock_warnings([3000.0] * 9, 3500.0) == []
    assert clock_warnings([3000.0, 1000.0], 3500.0) == []  # too few to tell
    (text,) = clock_warnings([3000.0, 3000.0, 1800.0, 1750.0, 1800.0], None)
    assert "throttled" in text
    assert "from 3000 to 1800 MHz" in text
    (text,) = clock_warnings([1200.0] * 5, 3500.0)
    assert "stayed at 1200 MHz of the rated 3500 MHz" in text


def test_clocks_that_cannot_be_read_are_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "cpu_clock", lambda: None)
    meter = load.ClockMeter(local_conditions(threads=1))
    meter.sample()
    assert meter.warnings() == []
    assert meter.seen_mhz == []


def test_clock_of_this_machine_is_plausible() -> None:
    clock = cpu_clock()
    if clock is None:
        pytest.skip("this machine does not tell its clock")
    assert 100 < clock[0] < 10_000


def test_clock_is_read_between_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    space = small_space((8,), (1,), (POOLING,))
    clocks = iter([3000.0, 1500.0, 1500.0, 1500.0, *[1500.0] * 99])
    monkeypatch.setattr(load, "cpu_clock", lambda: (next(clocks), None))
    monkeypatch.setitem(load._SAMPLE_SECONDS, "cpu", 0.0)
    results = measure_networks([space.smallest], CLASSES, local_conditions(threads=1), limits=QUICK)
    assert any("the clock was throttled" in text for text in results[0].warnings)
