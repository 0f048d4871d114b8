"""What a machine does a second, between two moments."""

from __future__ import annotations

import pytest

from emu.rates import rates
from emu.stats import ExitRow, ExitStats, Kind

SECOND = 10**9
NOTHING = ExitStats((), 0, 0, 0)


def test_shares_and_numbers_a_second() -> None:
    rows = (
        ExitRow(Kind.WRMSR, "x2apic", 30), ExitRow(Kind.INTERRUPT, "lapic", 20),
        ExitRow(Kind.WRMSR, "TSC deadline", 40), ExitRow(Kind.NATIVE, "cpuid", 1000), ExitRow(Kind.RUN_END, "hlt", 10),
    )
    done = rates(NOTHING, ExitStats(rows, SECOND, SECOND // 2, SECOND // 4), 2 * SECOND)
    assert (done.seconds, done.guest, done.host, done.idle, done.interrupts) == (2, 0.25, 0.125, 0.125, 10)
    assert done.kinds() == {"wrmsr": 35, "interrupt": 10}           # what is not an exit is none
    assert [row.count for row in done.rows] == [1000, 40, 30, 20, 10] and done.of(done.rows[0]) == 500


def test_with_times_handlers_are_the_hosts() -> None:
    rows = (ExitRow(Kind.WRMSR, "x2apic", 1, SECOND // 4),)
    done = rates(NOTHING, ExitStats(rows, SECOND, SECOND // 2, 0, timed=True), SECOND)
    assert (done.guest, done.host, done.idle) == (0.25, 0.75, 0)


def test_only_what_came_between_counts() -> None:
    before = ExitStats((ExitRow(Kind.WRMSR, "x2apic", 30),), SECOND, SECOND, 0)
    assert rates(before, before, SECOND).rows == ()


@pytest.mark.parametrize("stats", [ExitStats((), 5, 1, 50), ExitStats((), -5, 7, -50), ExitStats((), 9 * SECOND, 0, 0)])
def test_no_share_is_impossible(stats: ExitStats) -> None:
    done = rates(NOTHING, stats, 0)
    assert all(0 <= share <= 1 for share in (done.guest, done.host, done.idle))
