"""The I/O APIC: its registers, triggering, shared pins, ends of interrupt; and all of it against a model."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.ioapic import PINS, POWER_ON, IoApic, IoApicState

SELECT, WINDOW, EOI = 0x00, 0x10, 0x40
ID, VERSION, ARBITRATION, TABLE = 0x00, 0x01, 0x02, 0x10
EDGE, LEVEL, MASKED, LOGICAL, LOW, REMOTE_IRR = 0, 0x8000, 0x1_0000, 0x800, 0x2000, 0x4000
FIXED, LOWEST, SMI, NMI, INIT, EXTINT = 0x000, 0x100, 0x200, 0x400, 0x500, 0x700
LEVEL_MESSAGE = 0xC000


class Guest:
    """An I/O APIC on the bench, and what a guest does with it.

    Attributes:
        messages: address and data of everything it sent.
    """

    def __init__(self, state: IoApicState = POWER_ON) -> None:
        self.messages: list[tuple[int, int]] = []
        self.ioapic = IoApic(lambda address, data: self.messages.append((address, data)), state)

    def get(self, register: int) -> int:
        self.ioapic.write(SELECT, 4, register)
        return self.ioapic.read(WINDOW, 4)

    def put(self, register: int, value: int) -> None:
        self.ioapic.write(SELECT, 4, register)
        self.ioapic.write(WINDOW, 4, value)

    def route(self, pin: int, low: int, destination: int = 0) -> None:
        self.put(TABLE + 2 * pin + 1, destination << 24)
        self.put(TABLE + 2 * pin, low)

    def vectors(self) -> list[int]:
        """Vectors sent since the last look."""
        sent = [data & 0xFF for _address, data in self.messages]
        self.messages.clear()
        return sent


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_version_register_tells_24_pins_and_an_eoi_register(guest: Guest) -> None:
    assert guest.get(VERSION) == 0x0017_0020


def test_every_entry_is_masked_at_power_on(guest: Guest) -> None:
    assert [guest.get(TABLE + 2 * pin) for pin in range(PINS)] == [MASKED] * PINS


def test_id_has_four_bits_and_arbitration_follows_it(guest: Guest) -> None:
    guest.put(ID, 0xFFFF_FFFF)
    assert guest.get(ID) == guest.get(ARBITRATION) == 0x0F00_0000
    guest.put(ARBITRATION, 0)
    guest.put(VERSION, 0)
    assert guest.get(ARBITRATION) == 0x0F00_0000 and guest.get(VERSION) == 0x0017_0020


def test_entry_keeps_its_writable_bits_only(guest: Guest) -> None:
    guest.put(TABLE + 6, 0xFFFF_FFFF)
    guest.put(TABLE + 7, 0xFFFF_FFFF)
    assert guest.get(TABLE + 6) == 0x0001_AFFF
    assert guest.get(TABLE + 7) == 0xFF00_0000


@pytest.mark.parametrize("register", [0x03, 0x0F, TABLE + 2 * PINS, 0xFF])
def test_register_that_does_not_exist_reads_zero(guest: Guest, register: int) -> None:
    guest.put(register, 0xFFFF_FFFF)
    assert guest.get(register) == 0
    assert guest.ioapic.save() == IoApicState(select=register)


def test_select_register_has_eight_bits_and_reads_back(guest: Guest) -> None:
    guest.ioapic.write(SELECT, 4, 0x1_0001)
    assert guest.ioapic.read(SELECT, 4) == 0x01


@pytest.mark.parametrize(("offset", "size"), [(WINDOW, 1), (WINDOW, 8), (WINDOW + 4, 4), (SELECT, 2), (EOI, 4)])
def test_other_accesses_read_zero(guest: Guest, offset: int, size: int) -> None:
    guest.ioapic.write(SELECT, 4, VERSION)
    assert guest.ioapic.read(offset, size) == 0


@pytest.mark.parametrize(("offset", "size"), [(WINDOW, 1), (WINDOW, 2), (WINDOW, 8), (WINDOW + 4, 4), (SELECT, 1)])
def test_other_accesses_write_nothing(guest: Guest, offset: int, size: int) -> None:
    guest.ioapic.write(SELECT, 4, TABLE)
    before = guest.ioapic.save()
    guest.ioapic.write(offset, size, 0x55)
    assert guest.ioapic.save() == before


def test_message_has_the_entrys_destination_vector_and_mode(guest: Guest) -> None:
    line = guest.ioapic.line(4)
    guest.route(4, 0x31 | EDGE, destination=0x12)
    line.set(True)
    line.set(False)
    guest.route(4, 0xE2 | LEVEL | LOWEST | LOGICAL | LOW, destination=0xFF)
    line.set(True)
    assert guest.messages == [(0xFEE1_2000, 0x31), (0xFEEF_F004, 0xE2 | LOWEST | LEVEL_MESSAGE)]


@pytest.mark.parametrize("mode", [SMI, NMI, INIT, EXTINT])
def test_modes_without_eoi_are_edge_triggered_whatever_the_trigger_bit_says(guest: Guest, mode: int) -> None:
    line = guest.ioapic.line(0)
    guest.route(0, 0x20 | mode | LEVEL)
    for level in (True, False, True):
        line.set(level)
    assert guest.messages == [(0xFEE0_0000, 0x20 | mode)] * 2
    assert not guest.get(TABLE) & REMOTE_IRR


def test_edge_is_sent_once_a_rise(guest: Guest) -> None:
    line = guest.ioapic.line(2)
    guest.route(2, 0x30)
    for level in (True, True, False, True):
        line.set(level)
    guest.ioapic.eoi(0x30)
    assert guest.vectors() == [0x30, 0x30]


def test_edge_at_a_masked_pin_is_lost(guest: Guest) -> None:
    line = guest.ioapic.line(2)
    guest.route(2, 0x30 | MASKED)
    line.set(True)
    guest.route(2, 0x30)
    assert guest.vectors() == []
    line.set(False)
    line.set(True)
    assert guest.vectors() == [0x30]


def test_level_at_a_masked_pin_is_sent_when_it_is_unmasked_if_still_there(guest: Guest) -> None:
    line = guest.ioapic.line(10)
    guest.route(10, 0x41 | LEVEL | MASKED)
    line.set(True)
    assert guest.vectors() == []
    guest.route(10, 0x41 | LEVEL)
    assert guest.vectors() == [0x41]


def test_level_waits_for_the_eoi_and_is_sent_again_while_the_line_is_high(guest: Guest) -> None:
    line = guest.ioapic.line(10)
    guest.route(10, 0x41 | LEVEL)
    line.set(True)
    assert guest.get(TABLE + 20) == 0x41 | LEVEL | REMOTE_IRR
    line.set(False)
    line.set(True)
    assert guest.vectors() == [0x41]
    guest.ioapic.eoi(0x42)
    assert guest.vectors() == []
    guest.ioapic.eoi(0x41)
    assert guest.vectors() == [0x41]
    line.set(False)
    guest.ioapic.eoi(0x41)
    assert guest.vectors() == []
    assert guest.get(TABLE + 20) == 0x41 | LEVEL


def test_eoi_register_does_what_the_processors_eoi_does(guest: Guest) -> None:
    guest.ioapic.line(10).set(True)
    guest.route(10, 0x41 | LEVEL)
    guest.vectors()
    guest.ioapic.write(EOI, 4, 0x41)
    assert guest.vectors() == [0x41]


def test_eoi_reaches_every_pin_with_the_vector(guest: Guest) -> None:
    for pin in (9, 16, 17):
        guest.ioapic.line(pin).set(True)
        guest.route(pin, (0x42 if pin == 17 else 0x41) | LEVEL)
    guest.vectors()
    guest.ioapic.eoi(0x41)
    assert guest.vectors() == [0x41, 0x41]


def test_remote_irr_cannot_be_written_and_making_a_pin_edge_triggered_clears_it(guest: Guest) -> None:
    line = guest.ioapic.line(10)
    guest.route(10, 0x41 | LEVEL | REMOTE_IRR)
    assert not guest.get(TABLE + 20) & REMOTE_IRR
    line.set(True)
    guest.route(10, 0x41 | LEVEL | MASKED)
    assert guest.get(TABLE + 20) & REMOTE_IRR
    guest.route(10, 0x41 | EDGE | MASKED)
    guest.route(10, 0x41 | LEVEL | MASKED)
    assert not guest.get(TABLE + 20) & REMOTE_IRR


def test_pin_is_high_while_any_of_its_wires_is(guest: Guest) -> None:
    first, second = guest.ioapic.line(16), guest.ioapic.line(16)
    guest.route(16, 0x50 | LEVEL)
    first.set(True)
    second.set(True)
    first.set(False)
    guest.vectors()
    guest.ioapic.eoi(0x50)
    assert guest.vectors() == [0x50]
    second.set(False)
    guest.ioapic.eoi(0x50)
    assert guest.vectors() == []


def test_second_wire_of_an_edge_triggered_pin_makes_no_edge_while_the_first_is_high(guest: Guest) -> None:
    first, second = guest.ioapic.line(16), guest.ioapic.line(16)
    guest.route(16, 0x50)
    first.set(True)
    second.set(True)
    assert guest.vectors() == [0x50]


@pytest.mark.parametrize("pin", [-1, PINS])
def test_pin_that_does_not_exist_is_refused(guest: Guest, pin: int) -> None:
    with pytest.raises(ValueError, match="pin"):
        guest.ioapic.line(pin)


def test_driving_restored_wires_to_their_old_levels_sends_nothing(guest: Guest) -> None:
    wires = [guest.ioapic.line(2), guest.ioapic.line(2), guest.ioapic.line(9)]
    guest.route(2, 0x30)
    guest.route(9, 0x39 | LEVEL)
    levels = [False, True, True]
    for wire, level in zip(wires, levels, strict=True):
        wire.set(level)
    restored = Guest(guest.ioapic.save())
    again = [restored.ioapic.line(2), restored.ioapic.line(2), restored.ioapic.line(9)]
    for wire, level in zip(again, levels, strict=True):
        wire.set(level)
    assert restored.messages == []
    again[1].set(False)
    again[0].set(True)
    restored.ioapic.eoi(0x39)
    assert restored.vectors() == [0x30, 0x39]


# --- a model ----------------------------------------------------------------------------------------------------


@dataclass
class Pin:
    """What the datasheet says of one pin with two wires."""

    wires: list[bool] = field(default_factory=lambda: [False, False])
    vector: int = 0
    level_triggered: bool = False
    masked: bool = True
    waiting: bool = False       # for the EOI

    def due(self) -> bool:
        """A level triggered interrupt is to be sent now."""
        if self.level_triggered and not self.masked and not self.waiting and any(self.wires):
            self.waiting = True
            return True
        return False

    def drive(self, wire: int, level: bool) -> bool:
        """One wire changes; True when a message is sent."""
        was_high = any(self.wires)
        self.wires[wire] = level
        if self.level_triggered:
            return self.due()
        return any(self.wires) and not was_high and not self.masked


MODEL_PINS = 0, 2, 23
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("drive"), st.sampled_from(MODEL_PINS), st.integers(0, 3)),
        st.tuples(st.just("route"), st.sampled_from(MODEL_PINS), st.integers(0, 7)),
        st.tuples(st.just("eoi"), st.just(0), st.integers(0, 1)),
        st.tuples(st.just("restore"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_pins_behave_as_the_model(sequence: list[tuple[str, int, int]]) -> None:
    guest = Guest()
    wires = {pin: [guest.ioapic.line(pin), guest.ioapic.line(pin)] for pin in MODEL_PINS}
    pins = {pin: Pin() for pin in MODEL_PINS}
    for what, number, value in sequence:
        expected: list[int] = []
        pin = pins.get(number)
        if what == "drive" and pin is not None:
            wires[number][value & 1].set(bool(value & 2))
            expected = [pin.vector] if pin.drive(value & 1, bool(value & 2)) else []
        elif what == "route" and pin is not None:
            pin.vector = 0x30 + (value & 1)
            pin.level_triggered, pin.masked = bool(value & 2), bool(value & 4)
            pin.waiting = pin.waiting and pin.level_triggered
            guest.route(number, pin.vector | (LEVEL if value & 2 else 0) | (MASKED if value & 4 else 0))
            expected = [pin.vector] if pin.due() else []
        elif what == "eoi":
            guest.ioapic.eoi(0x30 + value)
            for other in pins.values():
                if other.waiting and other.vector == 0x30 + value:
                    other.waiting = False
                    expected += [other.vector] if other.due() else []
        else:
            guest = Guest(guest.ioapic.save())
            wires = {pin: [guest.ioapic.line(pin), guest.ioapic.line(pin)] for pin in MODEL_PINS}
        assert guest.vectors() == expected
        for pin_number, model in pins.items():
            assert bool(guest.get(TABLE + 2 * pin_number) & REMOTE_IRR) == model.waiting


@given(st.lists(st.tuples(st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1))))
def test_no_access_fails(accesses: list[tuple[int, int, int]]) -> None:
    guest = Guest()
    wires = [guest.ioapic.line(pin) for pin in range(PINS)]
    for offset, size, value in accesses:
        guest.ioapic.write(offset, size, value)
        guest.ioapic.write(SELECT, 4, value)
        guest.ioapic.write(WINDOW, 4, value >> 8)
        wires[value % PINS].set(bool(value & 0x100))
        assert 0 <= guest.ioapic.read(offset, size) < 1 << 8 * size
        assert 0 <= guest.ioapic.read(WINDOW, 4) < 1 << 32
