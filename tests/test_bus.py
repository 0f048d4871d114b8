"""The buses: who is claimed by whom, and what an access that nobody claims reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.accounting import Accounting
from emu.bus import MmioBus, MsrBus, PortBus
from emu.stats import UNCLAIMED, Kind
from hypercalls import GuestFault


class Recorder:
    """A device that remembers writes and reads its offset plus 0x10."""

    def __init__(self, *ports: tuple[int, int]) -> None:
        self.ports = ports
        self.writes: list[tuple[int, int]] = []

    def read(self, offset: int) -> int:
        return offset + 0x10

    def write(self, offset: int, value: int) -> None:
        self.writes.append((offset, value))


def test_a_device_sees_offsets_from_its_first_port() -> None:
    bus, device = PortBus(), Recorder((0x40, 4), (0x61, 1))
    bus.add("timer", device)
    bus.write(0x43, 1, 0x36)
    bus.write(0x61, 1, 3)
    assert device.writes == [(3, 0x36), (0x21, 3)]
    assert bus.read(0x42, 1) == 0x12


def test_overlapping_ports_are_refused_by_name_and_nothing_is_claimed() -> None:
    bus = PortBus()
    bus.add("first", Recorder((0x60, 8)))
    with pytest.raises(ValueError, match="second: port 0x67 belongs to first"):
        bus.add("second", Recorder((0x50, 4), (0x67, 1)))
    assert bus.read(0x50, 1) == 0xFF


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF)])
def test_an_unclaimed_port_reads_all_ones(size: int, ones: int) -> None:
    bus = PortBus()
    assert bus.read(0x1234, size) == ones
    bus.write(0x1234, size, 0)


EVERY_PORT = Recorder((0, 0x1_0000))
FULL_BUS = PortBus()
FULL_BUS.add("all", EVERY_PORT)


@given(st.integers(0, 0xFFFF), st.sampled_from((1, 2, 4)), st.integers(0, 0xFFFF_FFFF))
def test_a_wide_write_is_its_bytes_low_byte_first(port: int, size: int, value: int) -> None:
    EVERY_PORT.writes.clear()
    FULL_BUS.write(port, size, value)
    assert EVERY_PORT.writes == [(port + i & 0xFFFF, value >> 8 * i & 0xFF) for i in range(size)]


def test_a_wide_read_is_its_bytes_low_byte_first_and_ones_where_nobody_is() -> None:
    bus = PortBus()
    bus.add("two", Recorder((0x71, 2)))
    assert bus.read(0x70, 4) == 0xFF11_10FF
    assert bus.read(0xFFFF, 2) == 0xFFFF


def counts(accounting: Accounting) -> dict[tuple[str, str], int]:
    """What was counted, by kind and handler."""
    return {(row.kind, row.handler): row.count for row in accounting.rows()}


@pytest.mark.parametrize("timing", [False, True])
def test_port_accesses_are_counted_by_device_and_byte(timing: bool) -> None:
    accounting = Accounting(timing)
    bus = PortBus(accounting)
    bus.add("device", Recorder((0x10, 2)))
    bus.read(0x10, 2)
    bus.read(0x10, 1)
    bus.write(0x11, 1, 0)
    bus.read(0x50, 1)
    bus.write(0x50, 2, 0)
    assert counts(accounting) == {
        (Kind.PORT_IN, "device"): 3, (Kind.PORT_OUT, "device"): 1,
        (Kind.PORT_IN, UNCLAIMED): 1, (Kind.PORT_OUT, UNCLAIMED): 2,
    }  # fmt: skip


@pytest.mark.parametrize("timing", [False, True])
def test_msr_accesses_are_counted_by_name_and_refused_ones_too(timing: bool) -> None:
    def refuse(value: int) -> None:
        raise GuestFault

    accounting = Accounting(timing)
    bus = MsrBus(accounting)
    bus.add("PV_TEST", 0x4B56_4D20, write=refuse)
    bus.add_range("lapic", 0x800, 0x840, lambda number: number, lambda number, value: None)
    for access in (lambda: bus.write(0x4B56_4D20, 1), lambda: bus.read(0x4B56_4D20), lambda: bus.read(1)):
        with pytest.raises(GuestFault):
            access()
    bus.read(0x800)
    bus.read(0x801)
    assert counts(accounting) == {
        (Kind.WRMSR, "PV_TEST"): 1, (Kind.RDMSR, UNCLAIMED): 2, (Kind.RDMSR, "lapic"): 2,
    }  # fmt: skip
    assert all(row.total_ns > 0 for row in accounting.rows() if row.handler != UNCLAIMED) == timing


def test_an_msr_goes_to_who_claimed_it() -> None:
    bus, values = MsrBus(), []
    bus.add("both", 0x4B56_4D20, read=lambda: 5, write=values.append)
    assert bus.read(0x4B56_4D20) == 5
    bus.write(0x4B56_4D20, 1 << 63)
    assert values == [1 << 63]


def test_an_msr_that_nobody_takes_is_a_fault() -> None:
    bus = MsrBus()
    bus.add("to read", 1, read=lambda: 5)
    bus.add("to write", 2, write=lambda value: None)
    for access in (lambda: bus.read(3), lambda: bus.write(3, 0), lambda: bus.write(1, 0), lambda: bus.read(2)):
        with pytest.raises(GuestFault) as caught:
            access()
        assert (caught.value.vector, caught.value.error_code) == (13, 0)


def test_an_msr_has_one_owner() -> None:
    bus = MsrBus()
    bus.add("first", 0x10, read=lambda: 0)
    with pytest.raises(ValueError, match="second: MSR 0x10 belongs to first"):
        bus.add("second", 0x10, write=lambda value: None)


class WideRecorder:
    """A wide device that remembers accesses whole and reads its offset and the size."""

    def __init__(self, *ports: tuple[int, int]) -> None:
        self.ports = ports
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset << 8 | size

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


def test_a_wide_device_gets_accesses_whole() -> None:
    accounting = Accounting()
    bus, device = PortBus(accounting), WideRecorder((0xCF8, 8))
    bus.add_wide("pci", device)
    bus.write(0xCF8, 4, 0x8000_0010)
    bus.write(0xCFE, 2, 0x1_2345)
    assert device.writes == [(0, 4, 0x8000_0010), (6, 2, 0x2345)]
    assert bus.read(0xCFC, 4) == 0x404
    assert counts(accounting) == {(Kind.PORT_OUT, "pci"): 2, (Kind.PORT_IN, "pci"): 1}


def test_an_access_that_begins_before_a_wide_device_reaches_it_in_bytes() -> None:
    bus, device = PortBus(), WideRecorder((0xCF8, 8))
    bus.add_wide("pci", device)
    bus.write(0xCF6, 4, 0x4433_2211)
    assert device.writes == [(0, 1, 0x33), (1, 1, 0x44)]


def test_wide_and_narrow_devices_cannot_share_a_port() -> None:
    bus = PortBus()
    bus.add("narrow", Recorder((0x60, 8)))
    with pytest.raises(ValueError, match="wide: port 0x67 belongs to narrow"):
        bus.add_wide("wide", WideRecorder((0x67, 4)))


class Span:
    """A device in memory that remembers accesses and reads its offset."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


def test_a_memory_device_sees_offsets_and_the_rest_sees_addresses() -> None:
    apic, others, accounting = Span(), Span(), Accounting()
    bus = MmioBus(others, accounting)
    bus.add("apic", 0xFEE0_0000, 0x2000, apic)
    bus.write(0xFEE0_00B0, 4, 7)
    bus.write(0xFEE0_1FFF, 1, 8)
    bus.write(0xFEE0_2000, 8, 9)
    assert apic.writes == [(0xB0, 4, 7), (0x1FFF, 1, 8)]
    assert others.writes == [(0xFEE0_2000, 8, 9)]
    assert (bus.read(0xFEE0_0020, 4), bus.read(0xC000_0000, 1)) == (0x20, 0xC000_0000)
    assert counts(accounting) == {(Kind.MMIO_READ, "apic"): 1, (Kind.MMIO_WRITE, "apic"): 2}


def test_overlapping_memory_ranges_are_refused_by_name() -> None:
    bus = MmioBus(Span())
    bus.add("first", 0x1000, 0x1000, Span())
    bus.add("second", 0x2000, 0x1000, Span())
    with pytest.raises(ValueError, match="third: 0x0 belongs to first"):
        bus.add("third", 0, 0x2000, Span())


def test_a_range_of_msrs_is_told_the_number() -> None:
    bus, written = MsrBus(), []
    bus.add_range("lapic", 0x800, 0x840, lambda number: number + 1, lambda *access: written.append(access))
    assert bus.read(0x80B) == 0x80C
    bus.write(0x83F, 7)
    assert written == [(0x83F, 7)]
    with pytest.raises(GuestFault):
        bus.read(0x840)


def test_msrs_are_claimed_once() -> None:
    bus = MsrBus()
    bus.add("tsc", 0x10, read=lambda: 0)
    bus.add_range("lapic", 0x800, 0x840, lambda number: 0, lambda number, value: None)
    with pytest.raises(ValueError, match="x: MSR 0x83f belongs to lapic"):
        bus.add("x", 0x83F)
    with pytest.raises(ValueError, match="x: MSR 0x10 belongs to tsc"):
        bus.add_range("x", 0, 0x20, lambda number: 0, lambda number, value: None)
    with pytest.raises(ValueError, match="x: MSR 0x800 belongs to lapic"):
        bus.add_range("x", 0x700, 0x801, lambda number: 0, lambda number, value: None)
