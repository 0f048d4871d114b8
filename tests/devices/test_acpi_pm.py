"""ACPI's fixed hardware, mostly as Linux' ACPICA meets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.acpi_pm import POWER_ON, RESET_POWER_ON, AcpiPm, AcpiPmState, ResetControl
from tests.devices.fakes import FakeClock, FakeLine

STATUS, ENABLE, CONTROL, TIMER, GPE_STATUS, GPE_ENABLE = 0x00, 0x02, 0x04, 0x08, 0x20, 0x24     # offsets
SIZES = {STATUS: 2, ENABLE: 2, CONTROL: 2, TIMER: 4, GPE_STATUS: 4, GPE_ENABLE: 4}
TMR, GBL, PWRBTN, SLPBTN, RTC = 1 << 0, 1 << 5, 1 << 8, 1 << 9, 1 << 10
SCI_EN, SLP_EN = 1 << 0, 1 << 13
S5 = 5 << 10
HZ = 3_579_545
NS_PER_S = 1_000_000_000
CARRY_NS = -(-(1 << 31) * NS_PER_S // HZ)       # when the counter's highest bit changes first


class Board:
    """The registers and what they are wired to."""

    def __init__(self, state: AcpiPmState = POWER_ON, time_ns: int = 0) -> None:
        self.clock = FakeClock(time_ns)
        self.sci = FakeLine()
        self.powered_off = 0
        self.pm = AcpiPm(self.sci, self.clock, self.power_off, state)

    def power_off(self) -> None:
        self.powered_off += 1

    def get(self, register: int) -> int:
        """Read a register whole."""
        return self.pm.read(register, SIZES[register])

    def put(self, register: int, value: int) -> None:
        """Write a register whole."""
        self.pm.write(register, SIZES[register], value)


@pytest.fixture
def board() -> Board:
    return Board()


# --- events -----------------------------------------------------------------------------------------------------


def test_power_button_interrupts_once_enabled_until_its_status_is_cleared(board: Board) -> None:
    board.pm.press_power_button()
    assert board.get(STATUS) == PWRBTN
    assert not board.sci.level
    board.put(ENABLE, PWRBTN)
    assert board.sci.level
    board.put(STATUS, 0)
    assert board.sci.level, "a zero clears nothing"
    board.put(STATUS, PWRBTN)
    assert not board.sci.level
    assert board.get(STATUS) == 0


def test_disabling_an_event_lowers_the_line_and_keeps_its_status(board: Board) -> None:
    board.put(ENABLE, PWRBTN)
    board.pm.press_power_button()
    board.put(ENABLE, 0)
    assert not board.sci.level
    assert board.get(STATUS) == PWRBTN


def test_every_enable_bit_reads_back_as_acpica_checks_and_no_other_does(board: Board) -> None:
    board.put(ENABLE, 0xFFFF)
    assert board.get(ENABLE) == TMR | GBL | PWRBTN | SLPBTN | RTC
    assert not board.sci.level


def test_event_block_is_read_whole_in_one_access(board: Board) -> None:
    board.pm.press_power_button()
    board.put(ENABLE, GBL)
    assert board.pm.read(STATUS, 4) == GBL << 16 | PWRBTN


def test_byte_writes_leave_the_rest_of_a_register(board: Board) -> None:
    board.put(ENABLE, GBL | PWRBTN)
    board.pm.write(ENABLE, 1, 0)
    assert board.get(ENABLE) == PWRBTN
    board.pm.press_power_button()
    board.pm.write(STATUS, 1, 0xFF)
    assert board.get(STATUS) == PWRBTN
    board.pm.write(STATUS + 1, 1, PWRBTN >> 8)
    assert board.get(STATUS) == 0


def test_general_purpose_event_interrupts_until_cleared(board: Board) -> None:
    board.put(GPE_ENABLE, 1 << 5 | 1 << 31)
    board.pm.trigger_gpe(4)
    assert not board.sci.level
    board.pm.trigger_gpe(5)
    board.pm.trigger_gpe(31)
    assert board.get(GPE_STATUS) == 1 << 4 | 1 << 5 | 1 << 31
    board.pm.write(GPE_STATUS, 1, 1 << 5)
    assert board.sci.level
    board.pm.write(GPE_STATUS + 3, 1, 1 << 7)
    assert not board.sci.level
    assert board.get(GPE_STATUS) == 1 << 4


@pytest.mark.parametrize("number", [-1, 32])
def test_event_that_does_not_exist_is_refused(board: Board, number: int) -> None:
    with pytest.raises(ValueError, match="32"):
        board.pm.trigger_gpe(number)


# --- control ----------------------------------------------------------------------------------------------------


def test_machine_is_in_acpi_mode_and_stays_there(board: Board) -> None:
    assert board.get(CONTROL) == SCI_EN
    board.put(CONTROL, 0)
    assert board.get(CONTROL) == SCI_EN


def test_entering_s5_as_linux_does_powers_off_once(board: Board) -> None:
    board.put(CONTROL, SCI_EN | S5)
    assert board.powered_off == 0
    board.put(CONTROL, SCI_EN | S5 | SLP_EN)
    assert board.powered_off == 1
    assert board.get(CONTROL) == SCI_EN | S5, "SLP_EN reads as zero"


def test_entering_s5_by_the_high_byte_alone_powers_off(board: Board) -> None:
    board.pm.write(CONTROL + 1, 1, (S5 | SLP_EN) >> 8)
    assert board.powered_off == 1


@pytest.mark.parametrize("sleep_type", [0, 1, 2, 3, 4, 6, 7])
def test_other_sleep_states_are_not_entered(board: Board, sleep_type: int) -> None:
    board.put(CONTROL, sleep_type << 10 | SLP_EN)
    assert board.powered_off == 0


# --- the timer --------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000 * NS_PER_S))
def test_timer_counts_guest_time(now_ns: int) -> None:
    board = Board(time_ns=now_ns)
    assert board.get(TIMER) == now_ns * HZ // NS_PER_S % 2**32
    assert board.pm.read(TIMER + 2, 2) == board.get(TIMER) >> 16
    board.put(TIMER, 0)
    assert board.get(TIMER) == now_ns * HZ // NS_PER_S % 2**32


class RunningClock(FakeClock):
    """A clock that does not stand still: a tick of the PM timer passes whenever it is looked at."""

    def now_ns(self) -> int:
        self.time_ns += NS_PER_S // HZ + 1
        return self.time_ns


def test_timer_is_read_in_one_sample() -> None:
    shortly_before_a_carry_between_bytes = 0xFF_FFF0 * NS_PER_S // HZ
    pm = AcpiPm(FakeLine(), RunningClock(shortly_before_a_carry_between_bytes), lambda: None)
    samples = [pm.read(TIMER, 4) for _ in range(40)]
    assert samples == sorted(samples)
    assert samples[0] < 0x100_0000 < samples[-1] < 0x100_0100


def test_carry_is_seen_whichever_way_the_highest_bit_changes(board: Board) -> None:
    for carries in (1, 2, 3):
        carry_ns = -(-(carries << 31) * NS_PER_S // HZ)
        board.clock.advance_to(carry_ns - 1)
        assert not board.get(STATUS)
        board.clock.advance_to(carry_ns)
        assert board.get(TIMER) == carries << 31 & 0xFFFF_FFFF
        assert board.get(STATUS) == TMR
        board.put(STATUS, TMR)
        assert not board.get(STATUS)


def test_carry_interrupts_on_time_only_if_enabled(board: Board) -> None:
    assert [timer.deadline_ns for timer in board.clock.timers] == [None]
    board.put(ENABLE, TMR)
    board.clock.advance_to(CARRY_NS - 1)
    assert not board.sci.level
    board.clock.advance_to(CARRY_NS)
    assert board.sci.level
    board.put(STATUS, TMR)
    assert not board.sci.level
    board.clock.advance(CARRY_NS)
    assert board.sci.level
    board.put(ENABLE, 0)
    assert [timer.deadline_ns for timer in board.clock.timers] == [None]


def test_carry_that_came_while_disabled_interrupts_when_enabled(board: Board) -> None:
    board.clock.advance(CARRY_NS)
    board.put(ENABLE, TMR)
    assert board.sci.level


# --- any access, and snapshots ----------------------------------------------------------------------------------

Step = Callable[[Board], Any]

OFFSETS = st.sampled_from([first - 0x600 + index for first, length in AcpiPm.ports for index in range(length)])
VALUES = st.integers(0, 2**32 - 1) | st.integers(0, 31).map(lambda bit: 1 << bit)


def reads(offset: int, size: int) -> Step:
    return lambda board: board.pm.read(offset, size)


def writes(offset: int, size: int, value: int) -> Step:
    return lambda board: board.pm.write(offset, size, value & (1 << 8 * size) - 1)


STEPS = st.lists(st.one_of(
    st.builds(reads, OFFSETS, st.sampled_from([1, 2, 4])),
    st.builds(writes, OFFSETS, st.sampled_from([1, 2, 4]), VALUES),
    st.integers(0, 2 * CARRY_NS).map(lambda ns: lambda board: board.clock.advance(ns)),
    st.integers(0, 31).map(lambda number: lambda board: board.pm.trigger_gpe(number)),
    st.just(lambda board: board.pm.press_power_button()),
), max_size=30)


def play(board: Board, steps: list[Step]) -> list[Any]:
    """Everything that can be seen while the steps are taken."""
    trace = []
    for step in steps:
        trace += [step(board), board.sci.level, board.powered_off]
        expected = board.get(STATUS) & board.get(ENABLE) or board.get(GPE_STATUS) & board.get(GPE_ENABLE)
        assert board.sci.level == bool(expected)
    return trace


@given(STEPS, STEPS)
def test_restored_registers_answer_as_the_old_ones(before: list[Step], after: list[Step]) -> None:
    old = Board()
    play(old, before)
    old.powered_off = 0
    state = old.pm.save()
    new = Board(state, old.clock.now_ns())
    assert new.pm.save() == state
    assert new.sci.level == old.sci.level
    assert play(new, after) == play(old, after)
    assert new.pm.save() == old.pm.save()


@given(STEPS, OFFSETS, st.sampled_from([2, 4]))
def test_wide_read_is_its_bytes(steps: list[Step], offset: int, size: int) -> None:
    board = Board()
    play(board, steps)
    apart = bytes(board.pm.read(offset + index, 1) for index in range(size))
    assert board.pm.read(offset, size) == int.from_bytes(apart, "little")


@given(STEPS, OFFSETS, st.sampled_from([2, 4]), VALUES)
def test_wide_write_to_registers_is_its_bytes(steps: list[Step], offset: int, size: int, value: int) -> None:
    whole, apart = Board(), Board()
    play(whole, steps)
    play(apart, steps)
    value &= (1 << 8 * size) - 1
    whole.pm.write(offset, size, value)
    for index in range(size):
        apart.pm.write(offset + index, 1, value >> 8 * index & 0xFF)
    assert whole.pm.save() == apart.pm.save()
    assert whole.sci.level == apart.sci.level


def test_state_is_frozen(board: Board) -> None:
    with pytest.raises(FrozenInstanceError):
        board.pm.save().status = 1  # type: ignore[misc]


# --- reset control ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [[0x06], [0x02, 0x06], [0x02, 0x0E], [0x04]], ids=str)
def test_reset_comes_when_its_bit_rises(writes: list[int]) -> None:
    resets: list[int] = []
    control = ResetControl(lambda: resets.append(1))
    for value in writes:
        control.write(value)
    assert len(resets) == 1


def test_reset_does_not_come_from_preparing_it_or_from_holding_it() -> None:
    resets: list[int] = []
    control = ResetControl(lambda: resets.append(1))
    for value in (0x00, 0x02, 0x0A, 0xF1):
        control.write(value)
    assert not resets
    for value in (0x06, 0x06, 0x0E):
        control.write(value)
    assert len(resets) == 1


def test_reset_control_reads_back_what_it_has_and_is_restored() -> None:
    control = ResetControl(lambda: None)
    assert control.read() == 0 and control.save() == RESET_POWER_ON
    control.write(0xFA)
    assert control.read() == 0x0A
    resets: list[int] = []
    restored = ResetControl(lambda: resets.append(1), control.save())
    assert restored.read() == 0x0A
    restored.write(0x0E)
    assert resets
