"""The PCI bus and its functions, through ports and memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import MmioDevice
from devices.pci import WINDOW, PciBus, PciBusState
from devices.pci_function import PAGE, Bar, Capability, Identity, PciFunction, PciFunctionState
from tests.devices.fakes import FakeLine

ONES = 0xFFFF_FFFF
MEMORY, INTX_DISABLE = 2, 1 << 10
IDENTITY = Identity(0x1234, 0x5678, 0xABCDEF, 0x9, 0x1111, 0x2222)


class Scratch:
    """A page that answers with its name and keeps what is written."""

    def __init__(self, name: int) -> None:
        self.name = name
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return (self.name << 4) + offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


class FakeReset:
    """A reset register."""

    value = 0

    def read(self) -> int:
        return self.value

    def write(self, value: int) -> None:
        self.value = value


def function(
    name: int = 0, line: FakeLine | None = None, state: PciFunctionState | None = None, capabilities: bool = True
) -> PciFunction:
    """A function with a 32-bit BAR 0 of 8 KiB and a 64-bit BAR 2 of 4 KiB."""
    pages: dict[int, MmioDevice] = {0: Scratch(name), PAGE: Scratch(name + 1)}
    bars = [Bar(0, 2 * PAGE, pages), Bar(2, PAGE, {0: Scratch(name + 2)}, is_64_bit=True)]
    listed = [Capability(0x09, b"\1\2\3", b"\xf0\0\xff"), Capability(0x05, b"\4\5")] if capabilities else []
    return PciFunction(IDENTITY, bars, listed, line, state)


class Guest:
    """A bus as a guest sees it."""

    def __init__(self, bus: PciBus) -> None:
        self.bus = bus

    def read(self, slot: int, register: int, size: int = 4) -> int:
        """Configuration read."""
        self.bus.write(0, 4, 1 << 31 | slot << 11 | (register & 0xFC))
        return self.bus.read(4 + (register & 3), size)

    def write(self, slot: int, register: int, value: int, size: int = 4) -> None:
        """Configuration write."""
        self.bus.write(0, 4, 1 << 31 | slot << 11 | (register & 0xFC))
        self.bus.write(4 + (register & 3), size, value)


@pytest.fixture
def guest() -> Guest:
    """A bus with a function in slot 2."""
    bus = PciBus()
    bus.add(2, function())
    return Guest(bus)


# --- configuration mechanism #1 ---------------------------------------------------------------------------------------


def test_linux_finds_mechanism_1(guest: Guest) -> None:
    guest.bus.write(3, 1, 1)                # its first step, for mechanism #2's sake
    guest.bus.write(0, 4, 0x8000_0000)
    assert guest.bus.read(0, 4) == 0x8000_0000
    assert guest.read(0, 0x0A, 2) == 0x0600, "a host bridge"


def test_address_register_takes_only_doublewords(guest: Guest) -> None:
    guest.bus.write(0, 4, ONES)
    assert guest.bus.read(0, 4) == 0x80FF_FFFC
    guest.bus.write(0, 2, 0)
    guest.bus.write(2, 1, 0)
    assert guest.bus.read(0, 4) == 0x80FF_FFFC
    assert guest.bus.read(0, 2) == 0xFFFF


def test_nothing_answers_elsewhere(guest: Guest) -> None:
    assert guest.read(1, 0) == guest.read(31, 0) == ONES
    for address in 2 << 11, 1 << 31 | 2 << 11 | 1 << 8, 1 << 31 | 1 << 16 | 2 << 11:
        guest.bus.write(0, 4, address)      # not enabled; function 1; bus 1
        assert guest.bus.read(4, 4) == ONES
        assert guest.bus.read(4, 2) == 0xFFFF
        guest.bus.write(4, 4, 0)
    assert guest.read(2, 0) == 0x5678_1234


def test_access_across_the_data_port_is_dropped(guest: Guest) -> None:
    guest.bus.write(0, 4, 1 << 31 | 2 << 11)
    assert guest.bus.read(7, 2) == 0xFFFF
    guest.bus.write(6, 4, 0)
    assert guest.read(2, 0) == 0x5678_1234


def test_header_by_every_size(guest: Guest) -> None:
    assert guest.read(2, 0x00, 2) == 0x1234
    assert guest.read(2, 0x02, 2) == 0x5678
    assert guest.read(2, 0x08) == 0xABCDEF09
    assert guest.read(2, 0x0B, 1) == 0xAB
    assert guest.read(2, 0x0E, 1) == 0, "type 0, one function"
    assert guest.read(2, 0x2C) == 0x2222_1111


def test_reset_register_is_the_byte_at_cf9() -> None:
    reset = FakeReset()
    bus = PciBus(reset)
    bus.write(0, 4, 0x8000_0600)
    assert reset.value == 0
    bus.write(1, 1, 6)
    bus.write(1, 2, 7)
    assert (reset.value, bus.read(1, 1)) == (6, 6)
    assert bus.read(0, 4) == 0x8000_0600
    assert PciBus().read(1, 1) == 0xFF


@pytest.mark.parametrize("slot", [0, 2, 32, -1])
def test_slot_has_to_be_there_and_free(guest: Guest, slot: int) -> None:
    with pytest.raises(ValueError, match="slot"):
        guest.bus.add(slot, function())


# --- registers --------------------------------------------------------------------------------------------------------


def test_read_only_registers_stay(guest: Guest) -> None:
    before = [guest.read(2, register) for register in (0x00, 0x08, 0x2C, 0x34)]
    for register in 0x00, 0x08, 0x2C, 0x34:
        guest.write(2, register, 0x5A5A_5A5A)
    assert [guest.read(2, register) for register in (0x00, 0x08, 0x2C, 0x34)] == before


def test_command_keeps_the_bits_there_are(guest: Guest) -> None:
    guest.write(2, 0x04, ONES)
    assert guest.read(2, 0x04) == 0x0010_0546
    guest.write(2, 0x05, 0, 1)
    assert guest.read(2, 0x04, 2) == 0x0046


def test_capabilities_are_a_list(guest: Guest) -> None:
    first = guest.read(2, 0x34, 1)
    assert guest.read(2, first) == 0x0201_0009 | first + 8 << 8
    assert guest.read(2, first + 8) == 0x0504_0005
    assert guest.read(2, 0x06, 2) & 0x10


def test_only_writable_bits_of_a_capability_change(guest: Guest) -> None:
    first = guest.read(2, 0x34, 1)
    guest.write(2, first, ONES)
    guest.write(2, first + 4, ONES)
    assert guest.read(2, first) >> 16 == 0x02F1
    assert guest.read(2, first + 4) == 0xFF


def test_function_without_capabilities_says_so() -> None:
    bus = PciBus()
    bus.add(1, function(capabilities=False))
    assert Guest(bus).read(1, 0x04) >> 16 & 0x10 == Guest(bus).read(1, 0x34) == 0


def test_too_many_capabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="fit"):
        PciFunction(IDENTITY, capabilities=[Capability(9, bytes(100))] * 2)


# --- BARs -------------------------------------------------------------------------------------------------------------


def test_bars_tell_their_size(guest: Guest) -> None:
    for register in range(0x10, 0x28, 4):
        guest.write(2, register, ONES)
    assert [guest.read(2, register) for register in range(0x10, 0x28, 4)] == [0xFFFF_E000, 0, 0xFFFF_F004, ONES, 0, 0]
    guest.write(2, 0x30, ONES)
    assert guest.read(2, 0x30) == 0, "no expansion ROM"


def test_firmware_has_given_addresses(guest: Guest) -> None:
    guest.bus.add(5, function())
    starts = [guest.read(slot, register) & ~0xF for slot in (2, 5) for register in (0x10, 0x18)]
    assert starts == [WINDOW, WINDOW + 0x2000, WINDOW + 0x4000, WINDOW + 0x6000]
    assert guest.read(2, 0x1C) == 0


@pytest.mark.parametrize("size", [0, 256, PAGE + 1, 3 * PAGE])
def test_bar_is_pages_a_power_of_two(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        PciFunction(IDENTITY, [Bar(0, size, {})])


def test_memory_answers_once_enabled(guest: Guest) -> None:
    memory = guest.bus.memory
    assert memory.read(WINDOW + 4, 4) == ONES
    memory.write(WINDOW, 4, 0)
    guest.write(2, 0x04, MEMORY, 2)
    assert memory.read(WINDOW + 4, 4) == 4
    assert memory.read(WINDOW + PAGE, 4) == 0x10
    assert memory.read(WINDOW + 2 * PAGE + 0xFFC, 8) == 0x20 + 0xFFC
    assert memory.read(WINDOW + 3 * PAGE, 8) == (1 << 64) - 1
    guest.write(2, 0x04, 0, 2)
    assert memory.read(WINDOW, 1) == 0xFF


def test_write_reaches_the_page(guest: Guest) -> None:
    bus = PciBus()
    page = Scratch(0)
    bus.add(1, PciFunction(IDENTITY, [Bar(0, PAGE, {0: page})]))
    Guest(bus).write(1, 0x04, MEMORY)
    bus.memory.write(WINDOW + 0x123, 2, 0xBEEF)
    bus.memory.write(WINDOW + PAGE, 2, 0xBEEF)
    assert page.written == [(0x123, 2, 0xBEEF)]


class Metered:
    """A page with a meter in front."""

    def __init__(self, name: str, page: MmioDevice, met: list[str]) -> None:
        self.name, self.page, self.met = name, page, met

    def read(self, offset: int, size: int) -> int:
        self.met.append(f"read {self.name}")
        return self.page.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.met.append(f"write {self.name}")
        self.page.write(offset, size, value)


def test_a_meter_stands_before_every_page_and_before_nobody() -> None:
    met: list[str] = []
    ours = function()
    bus = PciBus(meter=lambda owner, page: Metered("ours" if owner is ours else "nobody's", page, met))
    bus.add(1, ours)
    assert bus.memory.read(WINDOW, 4) == ONES
    Guest(bus).write(1, 0x04, MEMORY)
    assert bus.memory.read(WINDOW + PAGE, 4) == 0x10
    bus.memory.write(WINDOW, 4, 0)
    bus.memory.write(WINDOW - PAGE, 4, 0)
    assert met == ["read nobody's", "read ours", "write ours", "write nobody's"]


def test_guest_moves_a_bar(guest: Guest) -> None:
    guest.write(2, 0x04, MEMORY)
    guest.write(2, 0x10, 0xE000_1234)
    guest.write(2, 0x18, 0x1000)
    guest.write(2, 0x1C, 0x12)
    memory = guest.bus.memory
    assert memory.read(WINDOW, 4) == ONES
    assert memory.read(0xE000_0000, 4) == 0
    assert memory.read(0xE000_1000, 4) == 0x10
    assert memory.read(0x12_0000_1000, 4) == 0x20


def test_lowest_slot_answers_where_functions_overlap(guest: Guest) -> None:
    guest.bus.add(1, function(0x100))
    for slot in 1, 2:
        guest.write(slot, 0x04, MEMORY)
        guest.write(slot, 0x10, 0xE000_0000)
        guest.write(slot, 0x18, 0xE000_0000)
    assert guest.bus.memory.read(0xE000_0000, 4) == 0x1000
    guest.write(1, 0x04, 0)
    assert guest.bus.memory.read(0xE000_0000, 4) == 0


# --- INTx -------------------------------------------------------------------------------------------------------------


def test_line_follows_the_function_unless_disabled(line: FakeLine) -> None:
    bus = PciBus()
    device = function(line=line)
    bus.add(1, device)
    guest = Guest(bus)
    device.set_intx(True)
    assert line.level
    assert guest.read(1, 0x06, 2) & 8
    guest.write(1, 0x04, INTX_DISABLE, 2)
    assert not line.level
    assert guest.read(1, 0x06, 2) & 8, "status tells of it all the same"
    guest.write(1, 0x04, 0, 2)
    assert line.level
    device.set_intx(False)
    assert not line.level
    assert not guest.read(1, 0x06, 2) & 8


def test_interrupt_line_is_a_note_for_software(line: FakeLine) -> None:
    bus = PciBus()
    bus.add(1, function(line=line))
    bus.add(2, function())
    guest = Guest(bus)
    guest.write(1, 0x3C, 0xFF0A, 2)
    guest.write(2, 0x3C, 0xFF0A, 2)
    assert guest.read(1, 0x3C, 2) == 0x010A
    assert guest.read(2, 0x3C, 2) == 0


# --- state ------------------------------------------------------------------------------------------------------------

accesses = st.lists(
    st.tuples(st.sampled_from([1, 2, 3]), st.integers(0, 63), st.sampled_from([0, ONES, MEMORY, 0xE000_0000, 0x1234])),
    max_size=30,
)


@settings(max_examples=50, deadline=None)
@given(accesses, st.booleans())
def test_restored_bus_is_the_old_one(steps: list[tuple[int, int, int]], level: bool) -> None:
    lines = [FakeLine(), FakeLine()]
    old = PciBus()
    functions = [function(0x100, lines[0]), function(0x200)]
    for slot, device in enumerate(functions, start=1):
        old.add(slot, device)
    for slot, register, value in steps:
        Guest(old).write(slot, 4 * register, value)
    functions[0].set_intx(level)
    states = [device.save_function() for device in functions]
    assert len({*states, old.save()}) == 3, "states are plain values"
    new = PciBus(state=old.save())
    copies = [function(0x100, lines[1], states[0]), function(0x200, None, states[1])]
    for slot, device in enumerate(copies, start=1):
        new.add(slot, device)
    assert new.save() == old.save()
    assert isinstance(new.save(), PciBusState)
    assert [device.save_function() for device in copies] == states
    assert lines[0].level == lines[1].level
    for page in range(16):
        for base in WINDOW, 0xE000_0000, 0:
            assert new.memory.read(base + PAGE * page, 4) == old.memory.read(base + PAGE * page, 4)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 7),
            st.sampled_from([1, 2, 4]),
            st.integers(0, ONES) | st.sampled_from([0x8000_0804, 0x8000_0810]),
        ),
        max_size=40,
    )
)
def test_no_access_to_the_ports_escapes(steps: list[tuple[int, int, int]]) -> None:
    bus = PciBus(FakeReset())
    bus.add(1, function(line=FakeLine()))
    for offset, size, value in steps:
        bus.write(offset, size, value & (1 << 8 * size) - 1)
        assert 0 <= bus.read(offset, size) < 1 << 8 * size
        assert bus.memory.read(value, 8) >= 0
