"""The real-time clock: Linux' way of reading and setting it, formats, interrupts, CMOS contents."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.mc146818 import CENTURY, DATA, INDEX, REG_A, REG_B, REG_C, REG_D, Rtc, RtcState
from tests.devices.fakes import FakeClock, FakeLine

NS_PER_S = 1_000_000_000
MS = 1_000_000
MIB, GIB = 1 << 20, 1 << 30
SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
FORMATS = [0, BINARY, H24, BINARY | H24]
# A Thursday. Midnight is two seconds off: there the alarm, all zero at power-on, sets its flag.
EPOCH = datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC)


class Guest:
    """A clock on the bench, and what a guest does with it through its two ports."""

    def __init__(self, now: datetime = EPOCH, state: RtcState | None = None, clock: FakeClock | None = None) -> None:
        self.line = FakeLine()
        self.clock = clock or FakeClock(wall_epoch_ns=int(now.timestamp()) * NS_PER_S)
        arguments = () if state is None else (state,)
        self.rtc = Rtc(self.line, self.clock, 256 * MIB, 0, *arguments)

    def get(self, register: int) -> int:
        self.rtc.write(INDEX, register)
        return self.rtc.read(DATA)

    def put(self, register: int, value: int) -> None:
        self.rtc.write(INDEX, register)
        self.rtc.write(DATA, value)

    def number(self, register: int) -> int:
        value = self.get(register)
        return value if self.get(REG_B) & BINARY else (value >> 4) * 10 + (value & 15)

    def get_time(self) -> datetime:
        """As mc146818_get_time does, in whatever format register B says."""
        while self.get(REG_A) & 0x80:
            self.clock.advance(100_000)
        hour = self.get(4)
        pm = hour & 0x80 and not self.get(REG_B) & H24
        hour &= 0x7F
        if not self.get(REG_B) & BINARY:
            hour = (hour >> 4) * 10 + (hour & 15)
        if not self.get(REG_B) & H24:
            hour = hour % 12 + (12 if pm else 0)
        year = self.number(CENTURY) * 100 + self.number(9)
        return datetime(year, self.number(8), self.number(7), hour, self.number(2), self.number(0), tzinfo=UTC)

    def set_time(self, when: datetime, *, reset_divider: bool = True) -> None:
        """As mc146818_set_time does."""
        control, rate = self.get(REG_B), self.get(REG_A) & 0x7F
        self.put(REG_B, control | SET)
        if reset_divider:
            self.put(REG_A, rate | 0x70)
        fields = {0: when.second, 2: when.minute, 7: when.day, 8: when.month, 9: when.year % 100,
                  CENTURY: when.year // 100, 6: when.isoweekday() % 7 + 1}
        for register, value in fields.items():
            self.put(register, self.coded(value))
        self.put(4, self.coded_hour(when.hour))
        self.put(REG_B, control)
        self.put(REG_A, rate)

    def coded(self, value: int) -> int:
        return value if self.get(REG_B) & BINARY else value // 10 << 4 | value % 10

    def coded_hour(self, hour: int) -> int:
        if self.get(REG_B) & H24:
            return self.coded(hour)
        return self.coded(hour % 12 or 12) | (0x80 if hour >= 12 else 0)


@pytest.fixture
def guest() -> Guest:
    return Guest()


# --- time -------------------------------------------------------------------------------------------------------


def test_time_is_the_wall_clock_in_bcd_and_24_hours_at_power_on(guest: Guest) -> None:
    registers = [guest.get(register) for register in (CENTURY, 9, 8, 7, 6, 4, 2, 0)]
    assert registers == [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]


def test_time_goes_on_over_a_leap_day(guest: Guest) -> None:
    guest.clock.advance(2 * NS_PER_S)
    assert guest.get_time() == datetime(2024, 3, 1, 0, 0, 0, tzinfo=UTC)
    assert guest.get(6) == 6


@pytest.mark.parametrize(("hour", "bcd", "binary"), [(0, 0x12, 12), (1, 0x01, 1), (12, 0x92, 0x8C), (23, 0x91, 0x8B)])
def test_twelve_hour_format_has_pm_in_bit_7(hour: int, bcd: int, binary: int) -> None:
    guest = Guest(EPOCH.replace(hour=hour))
    guest.put(REG_B, 0)
    assert guest.get(4) == bcd
    guest.put(REG_B, BINARY)
    assert guest.get(4) == binary


WHEN = st.datetimes(datetime(1, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC)).map(
    lambda when: when.replace(microsecond=0)
)


@given(WHEN, st.sampled_from(FORMATS), st.booleans(), st.integers(0, 400 * 86_400))
def test_time_set_in_any_format_goes_on_from_there(
    when: datetime, form: int, reset_divider: bool, seconds: int
) -> None:
    guest = Guest()
    guest.put(REG_B, form)
    guest.set_time(when, reset_divider=reset_divider)
    assert guest.get_time() == when
    guest.clock.advance(seconds * NS_PER_S)
    later = when + timedelta(seconds=seconds)
    assert guest.get_time() == later
    assert guest.get(6) == later.isoweekday() % 7 + 1
    again = Guest(state=guest.rtc.save(), clock=guest.clock)
    assert again.get_time() == later
    assert again.rtc.save().offset_ns == guest.rtc.save().offset_ns


def test_day_of_the_week_is_the_guests_own_count(guest: Guest) -> None:
    guest.put(6, 2)
    guest.clock.advance(86_400 * NS_PER_S)
    assert guest.get(6) == 3
    guest.put(7, 0x10)                              # another date does not change it
    assert guest.get(6) == 3


def test_set_holds_the_registers_and_the_seconds_are_lost(guest: Guest) -> None:
    guest.put(REG_B, H24 | SET)
    guest.clock.advance(90 * NS_PER_S)
    assert guest.get(0) == 0x58
    guest.put(REG_B, H24)
    assert guest.get_time() == EPOCH
    guest.clock.advance(1 * NS_PER_S)
    assert guest.get_time() == EPOCH + timedelta(seconds=1)


def test_setting_a_running_register_keeps_the_fraction_of_the_second(guest: Guest) -> None:
    guest.clock.advance(700 * MS)
    guest.put(0, 0x10)
    guest.clock.advance(299 * MS)
    assert guest.get(0) == 0x10
    guest.clock.advance(1 * MS)
    assert guest.get(0) == 0x11


def test_first_update_comes_half_a_second_after_the_divider_starts(guest: Guest) -> None:
    guest.clock.advance(900 * MS)
    guest.put(REG_A, 0x76)
    guest.clock.advance(3 * NS_PER_S)
    assert guest.get(0) == 0x58
    guest.put(REG_A, 0x26)
    guest.clock.advance(499 * MS)
    assert guest.get(0) == 0x58
    guest.clock.advance(1 * MS)
    assert guest.get(0) == 0x59


def test_uip_warns_244_microseconds_before_the_second_changes(guest: Guest) -> None:
    levels = []
    for time_ns in (0, NS_PER_S - 244_001, NS_PER_S - 244_000, NS_PER_S - 1, NS_PER_S):
        guest.clock.advance_to(time_ns)
        levels.append(guest.get(REG_A) >> 7)
    assert levels == [0, 0, 1, 1, 0]


def test_uip_stays_clear_while_set_holds_the_registers(guest: Guest) -> None:
    guest.put(REG_B, H24 | SET)
    guest.clock.advance_to(NS_PER_S - 1)
    assert guest.get(REG_A) & 0x80 == 0


@given(st.lists(st.tuples(st.sampled_from([0, 2, 4, 6, 7, 8, 9, 10, 11, 0x32]), st.integers(0, 255)), max_size=20))
def test_nonsense_in_the_registers_never_fails(writes: list[tuple[int, int]]) -> None:
    guest = Guest()
    for register, value in writes:
        guest.put(register, value)
        guest.clock.advance(NS_PER_S)
        for other in (*range(14), CENTURY):
            assert 0 <= guest.get(other) <= 0xFF


# --- interrupts -------------------------------------------------------------------------------------------------


def armed(guest: Guest) -> list[int]:
    return [timer.deadline_ns for timer in guest.clock.timers if timer.deadline_ns is not None]


def test_no_timer_runs_while_no_interrupt_is_enabled(guest: Guest) -> None:
    assert armed(guest) == []
    guest.put(REG_B, H24 | UIE)
    assert armed(guest) == [NS_PER_S]
    guest.put(REG_B, H24)
    assert armed(guest) == []


def test_update_interrupt_comes_with_every_second_and_reading_c_lowers_the_line(guest: Guest) -> None:
    guest.put(REG_B, H24 | UIE)
    for second, alarm in ((1, 0), (2, AF), (3, 0)):
        guest.clock.advance_to(second * NS_PER_S - 1)
        assert not guest.line.level
        guest.clock.advance(1)
        assert guest.line.level
        assert guest.get(REG_C) & (IRQF | UF | AF) == IRQF | UF | alarm
        assert not guest.line.level
        assert guest.get(REG_C) == 0


def test_setting_the_time_is_no_update(guest: Guest) -> None:
    guest.put(0, 0x59)
    assert guest.get(REG_C) == 0


def test_set_clears_the_update_interrupts_enable(guest: Guest) -> None:
    guest.put(REG_B, H24 | SET | UIE)
    assert guest.get(REG_B) == H24 | SET


def test_flags_are_set_without_being_enabled_and_then_interrupt_when_they_are(guest: Guest) -> None:
    guest.clock.advance(NS_PER_S)
    assert guest.get(REG_C) == PF | UF
    guest.clock.advance(NS_PER_S)
    guest.put(REG_B, H24 | UIE)
    assert guest.line.level
    assert guest.get(REG_C) == IRQF | PF | AF | UF


@pytest.mark.parametrize(("rate", "per_second"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (10, 64), (15, 2)])
def test_periodic_interrupt_has_the_rate_of_register_a(guest: Guest, rate: int, per_second: int) -> None:
    guest.put(REG_A, 0x20 | rate)
    guest.put(REG_B, H24 | PIE)
    interrupts = []
    while guest.clock.now_ns() < NS_PER_S:
        guest.clock.advance_to(armed(guest)[0])
        interrupts.append(guest.clock.now_ns())
        assert guest.get(REG_C) & (IRQF | PF) == IRQF | PF
    assert len(interrupts) == per_second
    assert interrupts == [-(-NS_PER_S * n // per_second) for n in range(1, per_second + 1)]


def test_periodic_interrupt_is_off_at_rate_zero(guest: Guest) -> None:
    guest.put(REG_A, 0x20)
    guest.put(REG_B, H24 | PIE)
    assert armed(guest) == []


def test_late_reader_gets_one_periodic_interrupt_and_then_the_old_phase(guest: Guest) -> None:
    guest.put(REG_A, 0x2F)
    guest.put(REG_B, H24 | PIE)
    guest.clock.advance(1700 * MS)
    assert guest.line.rises == 1
    guest.get(REG_C)
    assert armed(guest) == [2 * NS_PER_S]


def test_alarm_with_all_registers_given_comes_once_a_day(guest: Guest) -> None:
    for register, value in ((1, 0x30), (3, 0x15), (5, 0x06)):
        guest.put(register, value)
    guest.put(REG_B, H24 | AIE)
    for day in (1, 2):
        assert armed(guest) == [int((datetime(2024, 3, day, 6, 15, 30, tzinfo=UTC) - EPOCH).total_seconds()) * NS_PER_S]
        guest.clock.advance_to(armed(guest)[0])
        assert guest.get(REG_C) & (IRQF | AF) == IRQF | AF


def test_alarm_that_no_time_matches_is_never_armed(guest: Guest) -> None:
    guest.put(1, 0x60)
    guest.put(REG_B, H24 | AIE)
    assert armed(guest) == []


@given(
    st.sampled_from(FORMATS),
    st.tuples(st.none() | st.integers(0, 23), st.none() | st.integers(0, 59), st.none() | st.integers(0, 59)),
    st.integers(0, 86_399),
)
def test_alarm_is_the_next_second_that_matches(
    form: int, alarm: tuple[int | None, int | None, int | None], start: int
) -> None:
    guest = Guest(datetime(2024, 5, 5, tzinfo=UTC) + timedelta(seconds=start))
    guest.put(REG_B, form)
    coders: tuple[Callable[[int], int], ...] = (guest.coded_hour, guest.coded, guest.coded)
    for register, value, coder in zip((5, 3, 1), alarm, coders, strict=True):
        guest.put(register, 0xC0 if value is None else coder(value))
    guest.put(REG_B, form | AIE)
    hours, minutes, seconds = (
        range(size) if value is None else [value] for value, size in zip(alarm, (24, 60, 60), strict=True)
    )
    matches = [hour * 3600 + minute * 60 + second for hour in hours for minute in minutes for second in seconds]
    wait = 1 + min((match - start - 1) % 86_400 for match in matches)
    assert armed(guest) == [wait * NS_PER_S]


def test_wall_clock_stepped_back_only_delays_the_interrupt(guest: Guest) -> None:
    guest.put(REG_B, H24 | UIE)
    guest.clock.wall_epoch_ns -= NS_PER_S // 2
    guest.clock.advance_to(NS_PER_S)
    assert not guest.line.level
    guest.clock.advance_to(NS_PER_S + NS_PER_S // 2)
    assert guest.line.level


def test_restored_clock_keeps_flags_line_and_deadline(guest: Guest) -> None:
    guest.put(REG_B, H24 | UIE)
    waiting = Guest(state=guest.rtc.save(), clock=guest.clock)
    guest.clock.advance(NS_PER_S)
    assert waiting.line.level
    raised = Guest(state=guest.rtc.save(), clock=guest.clock)
    assert raised.line.level
    assert raised.get(REG_C) & UF


# --- CMOS -------------------------------------------------------------------------------------------------------


def sizes(low_size: int, high_size: int, line: FakeLine, clock: FakeClock) -> dict[str, int]:
    rtc = Rtc(line, clock, low_size, high_size)
    ram = rtc.save().ram
    fields = {"base": (0x15, 2), "extended": (0x17, 2), "extended 2": (0x30, 2), "16M": (0x34, 2), "4G": (0x5B, 3)}
    return {name: int.from_bytes(ram[at : at + length], "little") for name, (at, length) in fields.items()}


def test_memory_sizes_are_where_firmware_puts_them(line: FakeLine, clock: FakeClock) -> None:
    assert sizes(64 * MIB, 0, line, clock) == {
        "base": 640, "extended": 63 * 1024, "extended 2": 63 * 1024, "16M": 48 * 16, "4G": 0,
    }
    assert sizes(3 * GIB, 5 * GIB, line, clock) == {
        "base": 640, "extended": 0xFFFF, "extended 2": 0xFFFF, "16M": (3 * 1024 - 16) * 16, "4G": 5 * 1024 * 16,
    }


def test_checksum_covers_the_standard_bytes(guest: Guest) -> None:
    total = sum(guest.get(register) for register in range(0x10, 0x2E))
    assert guest.get(0x2E) << 8 | guest.get(0x2F) == total


def test_ram_keeps_what_is_written_and_nmi_mask_does_not_select(guest: Guest) -> None:
    guest.put(0x80 | 0x40, 0xA5)
    assert guest.get(0x40) == 0xA5
    assert Guest(state=guest.rtc.save()).get(0x40) == 0xA5


def test_registers_c_and_d_and_uip_cannot_be_written(guest: Guest) -> None:
    for register in (REG_A, REG_C, REG_D):
        guest.put(register, 0xFF)
    assert guest.get(REG_A) == 0x7F
    assert guest.get(REG_C) == 0
    assert guest.get(REG_D) == 0x80


def test_index_port_cannot_be_read(guest: Guest) -> None:
    assert guest.rtc.read(INDEX) == 0xFF
