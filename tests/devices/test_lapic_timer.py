"""The local APIC's timer through its registers: one-shot, periodic and TSC-deadline, and one against a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.lapic_bench import TSC_DEADLINE, Guest

LVT_TIMER, INITIAL, CURRENT, DIVIDE, IRR, SVR = 0x320, 0x380, 0x390, 0x3E0, 0x200, 0xF0
VECTOR = 0xEC
ONE_SHOT, PERIODIC, DEADLINE, MASKED = 0, 0x2_0000, 0x4_0000, 0x1_0000
BY_1, BY_2, BY_16, BY_128 = 0b1011, 0b0000, 0b0011, 0b1010
MS = 1_000_000


def timer(mode: int, divide: int = BY_1) -> Guest:
    """A guest that has set the timer's mode and divider."""
    guest = Guest()
    guest.put(LVT_TIMER, VECTOR | mode)
    guest.put(DIVIDE, divide)
    return guest


def interrupts(guest: Guest) -> int:
    """How many interrupts there were since the last look, 0 or 1; it is served."""
    if not guest.intr.level:
        return 0
    assert guest.apic.acknowledge() == VECTOR
    guest.put(0xB0, 0)
    assert not guest.intr.level
    return 1


def armed(guest: Guest) -> list[int]:
    return [timer.deadline_ns for timer in guest.clock.timers if timer.deadline_ns is not None]


@pytest.mark.parametrize("bits", range(8))
def test_every_divider(bits: int) -> None:
    guest = timer(ONE_SHOT, (bits & 4) << 1 | bits & 3)
    guest.put(INITIAL, 10)
    assert armed(guest) == [10 * (1 if bits == 7 else 2 << bits)]


def test_one_shot_counts_nanoseconds_down_and_interrupts_once() -> None:
    guest = timer(ONE_SHOT)
    guest.put(INITIAL, 1000)
    assert guest.get(INITIAL) == guest.get(CURRENT) == 1000
    guest.clock.advance(999)
    assert guest.get(CURRENT) == 1 and not guest.intr.level
    guest.clock.advance(1)
    assert guest.get(CURRENT) == 0 and interrupts(guest) == 1
    guest.clock.advance(10_000)
    assert interrupts(guest) == 0 and guest.get(INITIAL) == 1000


def test_count_falls_once_in_a_divided_period() -> None:
    guest = timer(ONE_SHOT, BY_16)
    guest.put(INITIAL, 3)
    counts = []
    for _ in range(4):
        counts.append(guest.get(CURRENT))
        guest.clock.advance(15)
        counts.append(guest.get(CURRENT))
        guest.clock.advance(1)
    assert counts == [3, 3, 2, 2, 1, 1, 0, 0]


def test_greatest_count_is_measured_as_linux_calibrates() -> None:
    guest = timer(ONE_SHOT | MASKED, BY_16)
    guest.put(INITIAL, 0xFFFF_FFFF)
    guest.clock.advance(100 * MS)
    assert 0xFFFF_FFFF - guest.get(CURRENT) == 100 * MS // 16


def test_initial_count_zero_stops() -> None:
    guest = timer(PERIODIC)
    guest.put(INITIAL, MS)
    guest.put(INITIAL, 0)
    assert armed(guest) == [] and guest.get(CURRENT) == 0


def test_periodic_interrupts_again_and_again_in_phase() -> None:
    guest = timer(PERIODIC)
    guest.put(INITIAL, 4 * MS)
    times: list[int] = []
    while len(times) < 5:
        guest.clock.advance_to(armed(guest)[0])
        times.append(guest.clock.time_ns)
        assert guest.get(CURRENT) == 4 * MS and interrupts(guest) == 1
        guest.clock.advance(MS)
        assert guest.get(CURRENT) == 3 * MS
    assert times == [4 * MS * n for n in range(1, 6)]


def test_late_host_loses_periods_and_keeps_the_phase() -> None:
    guest = timer(PERIODIC)
    guest.put(INITIAL, 4 * MS)
    guest.clock.time_ns = 15 * MS
    guest.clock.timers[0].disarm()
    guest.clock.timers[0].expired()
    assert interrupts(guest) == 1
    assert armed(guest) == [16 * MS]
    assert guest.get(CURRENT) == MS


def test_current_count_of_a_periodic_timer_that_is_late_has_been_reloaded() -> None:
    guest = timer(PERIODIC)
    guest.put(INITIAL, 4 * MS)
    guest.clock.time_ns = 5 * MS
    assert guest.get(CURRENT) == 3 * MS
    one_shot = timer(ONE_SHOT)
    one_shot.put(INITIAL, 4 * MS)
    one_shot.clock.time_ns = 5 * MS
    assert one_shot.get(CURRENT) == 0


@pytest.mark.parametrize("count", [1, 100, 199_999])
def test_period_is_never_shorter_than_200_microseconds(count: int) -> None:
    guest = timer(PERIODIC)
    guest.put(INITIAL, count)
    expiries = 0
    while guest.clock.time_ns < 10 * MS:
        guest.clock.advance_to(armed(guest)[0])
        assert guest.get(CURRENT) <= count
        expiries += interrupts(guest)
    assert expiries == 50


def test_masked_timer_runs_and_does_not_interrupt() -> None:
    guest = timer(ONE_SHOT | MASKED)
    guest.put(INITIAL, MS)
    guest.clock.advance(MS)
    guest.put(LVT_TIMER, VECTOR)
    assert guest.vectors(IRR) == set()
    guest.put(INITIAL, MS)
    assert armed(guest) == [2 * MS]


def test_new_divider_changes_the_rate_of_what_is_left() -> None:
    guest = timer(ONE_SHOT, BY_2)
    guest.put(INITIAL, 1000)
    guest.clock.advance(1000)
    guest.put(DIVIDE, BY_128)
    assert guest.get(CURRENT) == 500
    assert armed(guest) == [1000 + 500 * 128]
    assert guest.get(DIVIDE) == BY_128


def test_one_shot_made_periodic_goes_on_and_repeats() -> None:
    guest = timer(ONE_SHOT)
    guest.put(INITIAL, 4 * MS)
    guest.clock.advance(MS)
    guest.put(LVT_TIMER, VECTOR | PERIODIC)
    assert guest.get(CURRENT) == 3 * MS
    guest.clock.advance(3 * MS)
    assert interrupts(guest) == 1 and armed(guest) == [8 * MS]


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC])
def test_changing_to_tsc_deadline_and_back_disarms(mode: int) -> None:
    guest = timer(mode)
    guest.put(INITIAL, MS)
    guest.put(LVT_TIMER, VECTOR | DEADLINE)
    assert armed(guest) == [] and guest.get(CURRENT) == guest.get(INITIAL) == 0
    guest.apic.write_msr(TSC_DEADLINE, 3 * MS)
    guest.put(LVT_TIMER, VECTOR | mode)
    assert armed(guest) == [] and guest.apic.read_msr(TSC_DEADLINE) == 0


def test_tsc_deadline_interrupts_once_when_the_tsc_is_there() -> None:
    guest = timer(DEADLINE)
    guest.apic.write_msr(TSC_DEADLINE, 3001)
    assert guest.apic.read_msr(TSC_DEADLINE) == 3001
    guest.clock.advance(1000)
    assert not guest.intr.level
    guest.clock.advance(1)
    assert interrupts(guest) == 1
    assert guest.apic.read_msr(TSC_DEADLINE) == 0 and armed(guest) == []


@pytest.mark.parametrize("deadline", [1, 2999, 3000])
def test_tsc_deadline_in_the_past_interrupts_at_once(deadline: int) -> None:
    guest = timer(DEADLINE)
    guest.apic.write_msr(TSC_DEADLINE, 30_000)
    guest.clock.advance(1000)
    guest.apic.write_msr(TSC_DEADLINE, deadline)
    assert guest.apic.read_msr(TSC_DEADLINE) == 0 and armed(guest) == []
    assert interrupts(guest) == 1


def test_tsc_deadline_zero_disarms() -> None:
    guest = timer(DEADLINE)
    guest.apic.write_msr(TSC_DEADLINE, 3000)
    guest.apic.write_msr(TSC_DEADLINE, 0)
    guest.clock.advance(MS)
    assert interrupts(guest) == 0


def test_tsc_deadline_that_never_comes_replaces_one_that_does() -> None:
    guest = timer(DEADLINE)
    guest.apic.write_msr(TSC_DEADLINE, 3000)
    guest.apic.write_msr(TSC_DEADLINE, (1 << 64) - 1)
    assert armed(guest) == []
    assert guest.apic.read_msr(TSC_DEADLINE) == (1 << 64) - 1


def test_tsc_deadline_is_ignored_in_the_counting_modes() -> None:
    guest = timer(ONE_SHOT)
    guest.apic.write_msr(TSC_DEADLINE, 3000)
    assert guest.apic.read_msr(TSC_DEADLINE) == 0 and armed(guest) == []


def test_counts_are_ignored_in_tsc_deadline_mode() -> None:
    guest = timer(DEADLINE)
    guest.put(INITIAL, MS)
    assert guest.get(INITIAL) == guest.get(CURRENT) == 0 and armed(guest) == []


def test_timer_of_a_software_disabled_apic_does_not_interrupt() -> None:
    guest = timer(DEADLINE)
    guest.apic.write_msr(TSC_DEADLINE, 3000)
    guest.put(SVR, 0xFF)
    guest.clock.advance(1000)
    assert not guest.intr.level
    assert guest.get(LVT_TIMER) & MASKED


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC, DEADLINE])
def test_restored_timer_expires_at_the_same_time(mode: int) -> None:
    guest = timer(mode)
    guest.put(INITIAL, MS)
    guest.apic.write_msr(TSC_DEADLINE, 3 * MS)
    guest.clock.advance(MS // 2)
    restored = guest.restored()
    assert armed(restored) == [MS]
    assert restored.get(CURRENT) == guest.get(CURRENT)
    restored.clock.advance(MS // 2)
    assert interrupts(restored) == 1


# --- a model: the counter as the manual has it, step by step ------------------------------------------------------


@given(
    st.sampled_from([ONE_SHOT, PERIODIC]),
    st.integers(1, 40),
    st.lists(st.integers(0, 300_000), max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_counter_counts_as_one_that_is_stepped(mode: int, count: int, winds: list[int], saves: list[bool]) -> None:
    """By 128 with 16,000 counts a unit: every 2.048 ms or a multiple an interrupt; the counter falls every 128 ns."""
    count *= 16_000
    guest = timer(mode, BY_128)
    guest.put(INITIAL, count)
    elapsed = 0
    for wind, save in zip(winds, saves, strict=False):
        before = elapsed // (128 * count)
        elapsed += wind * 128
        guest.clock.advance(wind * 128)
        turns, phase = divmod(elapsed // 128, count)
        running = mode == PERIODIC or turns == 0
        assert guest.get(CURRENT) == (count - phase if running else 0)
        expired = turns > before if mode == PERIODIC else turns > 0 and before == 0
        assert interrupts(guest) == expired
        if save:
            guest = guest.restored()
