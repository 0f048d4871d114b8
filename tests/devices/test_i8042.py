"""The keyboard controller, mostly as Linux' i8042, atkbd and psmouse drivers meet it."""

from __future__ import annotations

import pytest

from devices.i8042 import I8042
from tests.devices.fakes import FakeLine

DATA, STATUS = 0, 4  # offsets
FULL, BUSY, SYSTEM, COMMAND_LAST, UNLOCKED, AUX, TIMEOUT = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40


class Board:
    """A controller and what it is wired to."""

    def __init__(self) -> None:
        self.keyboard_irq = FakeLine()
        self.aux_irq = FakeLine()
        self.resets = 0
        self.controller = I8042(self.keyboard_irq, self.aux_irq, self.count_reset)

    def count_reset(self) -> None:
        self.resets += 1

    def command(self, command: int, *parameters: int) -> None:
        """Give a command and its parameters, waiting for the input buffer as a driver does."""
        for offset, value in [(STATUS, command), *((DATA, parameter) for parameter in parameters)]:
            assert not self.status & BUSY
            self.controller.write(offset, value)

    def ask(self, command: int, *parameters: int) -> int:
        """Give a command and take its answer."""
        self.command(command, *parameters)
        assert self.status & FULL
        return self.take()

    def take(self) -> int:
        return self.controller.read(DATA)

    @property
    def status(self) -> int:
        return self.controller.read(STATUS)


@pytest.fixture
def board() -> Board:
    return Board()


def test_idle_controller_has_been_tested_is_unlocked_and_has_nothing_to_say(board: Board) -> None:
    assert board.status == SYSTEM | UNLOCKED
    assert board.controller.ports == ((0x60, 1), (0x64, 1))


def test_self_test_and_interface_tests_pass(board: Board) -> None:
    assert board.ask(0xAA) == 0x55
    assert board.ask(0xAB) == 0x00
    assert board.ask(0xA9) == 0x00


def test_command_byte_reads_back_as_written_without_its_reserved_bit(board: Board) -> None:
    board.command(0x60, 0xC7)
    assert board.ask(0x20) == 0x47


def test_status_shows_the_system_flag_of_the_command_byte(board: Board) -> None:
    board.command(0x60, 0x00)
    assert not board.status & SYSTEM
    board.ask(0xAA)
    assert board.status & SYSTEM


def test_status_tells_a_command_from_data(board: Board) -> None:
    board.command(0x60)
    assert board.status & COMMAND_LAST
    board.controller.write(DATA, 0x45)
    assert not board.status & COMMAND_LAST


@pytest.mark.parametrize(("off", "on", "bit"), [(0xA7, 0xA8, 0x20), (0xAD, 0xAE, 0x10)])
def test_ports_are_switched_by_commands_and_seen_in_the_command_byte(board: Board, off: int, on: int, bit: int) -> None:
    board.command(off)
    assert board.ask(0x20) & bit
    board.command(on)
    assert not board.ask(0x20) & bit


def test_reading_empties_the_output_buffer(board: Board) -> None:
    board.command(0xAA)
    board.take()
    assert not board.status & FULL
    assert board.take() == 0x55  # the latch keeps its byte


def test_aux_loopback_comes_back_as_from_the_mouse_and_raises_irq_12(board: Board) -> None:
    board.command(0x60, 0x47)
    board.command(0xD3, 0xA5)
    assert board.status & (FULL | AUX) == FULL | AUX
    assert board.aux_irq.level
    assert not board.keyboard_irq.level
    assert board.take() == 0xA5
    assert not board.aux_irq.level


def test_aux_loopback_shows_no_multiplexer(board: Board) -> None:
    assert [board.ask(0xD3, value) for value in (0xF0, 0x56, 0xA4)] == [0xF0, 0x56, 0xA4]


def test_keyboard_buffer_write_raises_irq_1(board: Board) -> None:
    board.command(0xD2, 0x1C)
    assert board.keyboard_irq.level
    assert board.status & (FULL | AUX) == FULL
    assert board.take() == 0x1C
    assert not board.keyboard_irq.level


def test_masked_interrupts_stay_low_until_the_command_byte_allows_them(board: Board) -> None:
    board.command(0x60, 0x44)
    board.command(0xD2, 0x1C)
    assert not board.keyboard_irq.changes
    board.command(0x60, 0x45)
    assert board.keyboard_irq.level


def test_missing_keyboard_is_a_timeout_at_once(board: Board) -> None:
    board.controller.write(DATA, 0xF2)
    assert board.status & (FULL | AUX | TIMEOUT) == FULL | TIMEOUT
    assert board.keyboard_irq.level
    assert board.take() == 0xFE
    assert not board.status & TIMEOUT


def test_missing_mouse_is_a_timeout_at_once(board: Board) -> None:
    board.command(0x60, 0x47)
    board.command(0xD4, 0xF2)
    assert board.status & (FULL | AUX | TIMEOUT) == FULL | AUX | TIMEOUT
    assert board.aux_irq.level
    assert board.take() == 0xFE


def test_sending_to_a_port_switches_it_on(board: Board) -> None:
    board.command(0x60, 0x34)
    board.controller.write(DATA, 0xFF)
    board.take()
    board.command(0xD4, 0xFF)
    board.take()
    assert board.ask(0x20) == 0x04


def test_a_parameter_belongs_to_the_last_command_only(board: Board) -> None:
    board.command(0x60)
    board.command(0xAE)
    board.controller.write(DATA, 0x00)
    assert board.take() == 0xFE, "the byte was for the keyboard"
    assert board.ask(0x20) == 0x65


def test_reboot_command_resets_the_cpu(board: Board) -> None:
    board.command(0xFE)
    assert board.resets == 1


@pytest.mark.parametrize("command", [0xF1, 0xFD, 0xFF])
def test_pulse_that_leaves_the_reset_line_alone_does_not_reset(board: Board, command: int) -> None:
    board.command(command)
    assert board.resets == 0


def test_output_port_reads_back_and_its_lowest_bit_resets(board: Board) -> None:
    assert board.ask(0xD0) & 0x03 == 0x03
    board.command(0xD1, 0xDD)
    assert board.ask(0xD0) & 0x03 == 0x01
    assert board.resets == 0
    board.command(0xD1, 0xDE)
    assert board.resets == 1


def test_output_port_shows_the_interrupt_pins(board: Board) -> None:
    board.command(0xD2, 0x1C)
    assert board.ask(0xD0) & 0x30 == 0x10
    board.command(0x60, 0x47)
    board.command(0xD3, 0x1C)
    assert board.ask(0xD0) & 0x30 == 0x20


def test_unknown_command_is_ignored(board: Board) -> None:
    board.command(0xC8)
    assert not board.status & FULL


def test_linux_probe_finds_both_ports_without_one_wait(board: Board) -> None:
    """The order of drivers/input/serio/i8042.c: `take` never has to wait for the answer it expects."""
    assert not board.status & FULL  # flush
    assert board.ask(0xAA) == 0x55
    control = board.ask(0x20)
    assert board.ask(0x20) == control
    assert board.status & UNLOCKED  # else "Warning: Keylock active"
    assert control & 0x40  # else untranslated mode
    control = control & ~0x01 | 0x10
    board.command(0x60, control)
    assert board.ask(0xD3, 0x5A) == 0x5A
    board.command(0xA7)
    assert board.ask(0x20) & 0x20
    board.command(0xA8)
    assert not board.ask(0x20) & 0x20
    board.command(0x60, control & ~0x20 | 0x02)
    board.command(0xD3, 0xA5)
    assert board.aux_irq.level
    assert board.take() == 0xA5
    board.command(0x60, control & ~0x30 | 0x03)
    for prefix in ((DATA,), (STATUS, DATA)):  # atkbd asks its port for an identity, then psmouse its own
        if len(prefix) == 2:
            board.controller.write(STATUS, 0xD4)
        board.controller.write(DATA, 0xF2)
        assert board.status & FULL
        assert board.take() == 0xFE
    assert board.keyboard_irq.rises >= 1
