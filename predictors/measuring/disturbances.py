"""Disturbances of a measurement from outside: other work, a CPU quota, a throttled clock."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from predictors.measuring.this_machine import torch_device
from predictors.tables.conditions import Conditions

BUSY_SHARE = 0.1
THROTTLED_PERIODS = 0.05
THROTTLED_SHARE = 0.9  # of the fastest clock seen: below it the clock was lowered meanwhile
SLOW_SHARE = 0.7  # of the rated maximum, which a processor under load need not reach
_SAMPLE_SECONDS = {"cpu": 1.0, "cuda": 5.0}


@dataclass(frozen=True)
class Quota:
    """Processor time that the control group of a container allows.

    Of ``periods`` so far all was used up and work stopped in the ``throttled`` ones.
    """

    processors: float
    periods: int
    throttled: int


def cpu_quota(root: Path = Path("/")) -> Quota | None:
    """Reads the quota of this process's control group (version 1 or 2) or of a parent, if any."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return None
    for controllers, path in (line.split(":", 2)[1:] for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount) and (quota := _quota_of(folder)):
                return quota
    return None


def _quota_of(folder: Path) -> Quota | None:
    try:
        if (folder / "cpu.max").exists():
            most, period = (folder / "cpu.max").read_text("utf-8").split()
        else:
            most = (folder / "cpu.cfs_quota_us").read_text("utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text("utf-8")
        if most in ("max", "-1"):
            return None
        pairs = (line.split() for line in (folder / "cpu.stat").read_text("utf-8").splitlines())
        stat = {name: int(value) for name, value in pairs}
        return Quota(int(most) / int(period), stat["nr_periods"], stat["nr_throttled"])
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return None


class LoadMeter:
    """Meter of what others, or a quota, took from this process since it was made."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start, self._quota = self._read(), cpu_quota()

    def _read(self) -> tuple[float, float, float]:
        cpu, mine = psutil.cpu_times(), self._process.cpu_times()
        busy = sum(cpu) - cpu.idle - getattr(cpu, "iowait", 0.0)
        busy -= getattr(cpu, "guest", 0.0) + getattr(cpu, "guest_nice", 0.0)  # in user already
        return busy, mine.user + mine.system, time.monotonic()

    def others(self) -> float:
        """Computes the share of the machine that others took, guests of a hypervisor included."""
        busy, mine, now = (b - a for a, b in zip(self._start, self._read(), strict=True))
        return max(0.0, (busy - mine) / max(now * (psutil.cpu_count() or 1), 1e-9))

    def warnings(self) -> list[str]:
        now, share, then = cpu_quota(), self.others(), self._quota
        if now is not None and then is not None:
            throttled = (now.throttled - then.throttled) / max(now.periods - then.periods, 1)
            if throttled >= THROTTLED_PERIODS:
                return [
                    f"the CPU quota of this container, {now.processors:.3g} processors, stopped "
                    f"the measurement in {throttled:.0%} of its periods: latencies are too high; "
                    "raise the quota (docker run --cpus), or measure with fewer --threads."
                ]
        if share < BUSY_SHARE:
            return []
        return [
            f"other work took {share:.0%} of the machine during the measurement: latencies may be "
            "too high; measure again on an idle machine."
        ]


class ClockMeter:
    """Meter of the device's clock during a measurement, read now and then between rounds.

    On CPUs the fastest core counts, since idle ones are slowed on purpose. Where the clock
    cannot be read, as in many virtual machines, nothing is said about it.
    """

    def __init__(self, conditions: Conditions) -> None:
        self._device = torch_device(conditions)
        self._read_at = 0.0
        self.rated_mhz: float | None = None
        self.seen_mhz: list[float] = []

    def sample(self) -> None:
        """Reads the clock, unless it was read a moment ago."""
        now = time.monotonic()
        if now - self._read_at < _SAMPLE_SECONDS[self._device.type]:
            return
        self._read_at = now
        clock = gpu_clock(self._device) if self._device.type == "cuda" else cpu_clock()
        if clock is not None:
            self.seen_mhz.append(clock[0])
            self.rated_mhz = clock[1] or self.rated_mhz

    def warnings(self) -> list[str]:
        return clock_warnings(self.seen_mhz, self.rated_mhz)


def clock_warnings(seen_mhz: list[float], rated_mhz: float | None) -> list[str]:
    """Warns where a clock was lowered meanwhile, or was low all the time."""
    if len(seen_mhz) < 3:
        return []
    ordered = sorted(seen_mhz)
    low, fastest = ordered[len(ordered) // 4], ordered[-1]
    advice = "cool the device, plug in its power supply, and turn power saving off."
    if low < THROTTLED_SHARE * fastest:
        return [
            f"the clock was throttled during the measurement, from {fastest:.0f} to {low:.0f} MHz: "
            f"latencies may be too high; {advice}"
        ]
    if rated_mhz and fastest < SLOW_SHARE * rated_mhz:
        return [
            f"the clock stayed at {fastest:.0f} MHz of the rated {rated_mhz:.0f} MHz: latencies "
            f"hold for this speed only; {advice}"
        ]
    return []


def cpu_clock() -> tuple[float, float | None] | None:
    """Reads the MHz of the fastest core, and the rated maximum where it is known."""
    try:
        cores = psutil.cpu_freq(percpu=True)
    except (OSError, NotImplementedError, AttributeError):  # not on every platform
        return None
    current = max((core.current for core in cores or ()), default=0.0)
    return (current, max(core.max for core in cores) or None) if current > 0 else None


def gpu_clock(device: torch.device) -> tuple[float, float | None] | None:
    """Asks ``nvidia-smi`` for the MHz of the multiprocessors now and at most."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    which = f"GPU-{uuid}" if uuid is not None else str(device.index or 0)
    query = ["--query-gpu=clocks.sm,clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        command = ["nvidia-smi", "-i", which, *query]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        now, most = map(float, done.stdout.split(","))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return now, most
