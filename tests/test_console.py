"""Remaining time: honest for steady work, for a pace that changes, and for work that jumps."""

from __future__ import annotations

import pytest

from nas.cli import console
from nas.cli.console import Remaining


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def told(clock: Clock, seconds: float, rate: float, remaining: Remaining, start: float) -> float:
    """Steady work, a call every tenth of a second, out of 1000; how much is done at its end."""
    for tick in range(1, round(seconds * 10) + 1):
        clock.now += 0.1
        remaining(start + rate * tick / 10, 1000)
    return start + rate * seconds


def test_there_is_no_rate_at_first(clock: Clock) -> None:
    remaining = Remaining()
    assert remaining(0, 10) is None
    clock.now += 10
    assert remaining(0, 10) is None


def test_steady_work_ends_when_it_says(clock: Clock) -> None:
    remaining = Remaining()
    done = told(clock, 30, 2.0, remaining, 0)
    assert remaining(done, 1000) == pytest.approx((1000 - done) / 2, rel=0.01)


def test_a_continued_run_counts_from_where_it_continues(clock: Clock) -> None:
    remaining = Remaining()
    done = told(clock, 5, 2.0, remaining, 800)
    assert remaining(done, 1000) == pytest.approx((1000 - done) / 2, rel=0.03)


def test_the_pace_of_the_first_half_is_forgotten(clock: Clock) -> None:
    remaining = Remaining()
    done = told(clock, 60, 10.0, remaining, 0)
    done = told(clock, 61, 1.0, remaining, done)
    assert remaining(done, 1000) == pytest.approx(1000 - done, rel=0.02)


def test_a_pause_is_forgotten_too(clock: Clock) -> None:
    remaining = Remaining()
    done = told(clock, 5, 2.0, remaining, 0)
    clock.now += 100
    done = told(clock, 106, 2.0, remaining, done)
    assert remaining(done, 1000) == pytest.approx((1000 - done) / 2, rel=0.02)


def test_a_pause_at_each_epochs_end_counts_by_its_share(clock: Clock) -> None:
    """50 s of steps, then 15 s of validation; just after each pause, when it looks worst."""
    remaining, done, pause = Remaining(), 0.0, 15.0
    for epoch in range(16):
        done = told(clock, 50, 1.0, remaining, done)
        clock.now += pause
        done = told(clock, 1, 1.0, remaining, done)
        epochs_left = 19 - epoch
        left = remaining(done, 1000)
        assert left == pytest.approx(epochs_left * (50 + pause), rel=0.55 if epoch == 0 else 0.25)


def test_jumps_of_a_minute_are_no_sprint(clock: Clock) -> None:
    remaining, total = Remaining(), 100.0
    for jump in range(6):
        for second in range(60):
            left = remaining(10 * jump, total)
            if jump >= 2:
                assert left == pytest.approx(60 * (10 - jump) - second, abs=1.5)
            clock.now += 1


def test_a_jump_that_is_late_slows_the_rest(clock: Clock) -> None:
    remaining = Remaining()
    for jump in range(3):
        remaining(10 * jump, 100)
        clock.now += 60
    clock.now += 600
    left = remaining(20, 100)
    assert left is not None
    assert left > 2 * 8 * 60
