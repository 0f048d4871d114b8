"""Figures."""

from __future__ import annotations

from emu.errors import GuestTimeout
from emu.pool.metrics import KEPT, Quantiles, Recorder


def test_quantiles_are_samples_that_were_there() -> None:
    assert Quantiles.of(range(1, 102), 500) == Quantiles(500, 51, 91, 100, 101)
    assert Quantiles.of([7.0], 1) == Quantiles(1, 7.0, 7.0, 7.0, 7.0)
    assert Quantiles.of([], 0) == Quantiles()


def test_failures_are_counted_by_kind_and_the_last_times_are_kept() -> None:
    recorder = Recorder()
    for number in range(KEPT + 10):
        recorder.ended(float(number), GuestTimeout("late") if number % 2 else None)
    recorder.waited(0.5)
    recorder.forked(0.25)
    metrics = recorder.metrics(size=2, ready=1, in_use=1, waiting=3)
    assert (metrics.jobs, metrics.failures) == (KEPT + 10, {"GuestTimeout": (KEPT + 10) // 2})
    assert (metrics.runs.count, metrics.runs.p50, metrics.runs.longest) == (KEPT + 10, 510.0, KEPT + 9)
    assert (metrics.waits.longest, metrics.forks.longest) == (0.5, 0.25)
    assert (metrics.size, metrics.ready, metrics.in_use, metrics.waiting) == (2, 1, 1, 3)
