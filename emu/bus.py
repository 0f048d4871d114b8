"""The buses: named ranges that must not overlap; a device knows offsets, the bus knows addresses.

Each counts how often it calls a handler, and has the calls timed if the machine accounts for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from devices import Device, MmioDevice, PortRanges
from emu.accounting import Accounting, Tally
from emu.stats import UNCLAIMED, Kind
from hypercalls.call import GuestFault

__all__ = ["MmioBus", "MsrBus", "PortBus", "WideDevice"]

OPEN_BUS = 0xFF                         # an unclaimed port reads all ones
PAGE_SHIFT = 12

ReadMsr = Callable[[], int]
WriteMsr = Callable[[int], None]

# Where a device's offsets count from (or an offset), and its two handlers, each with its tally
_Narrow = tuple[int, Callable[[int], int], Tally, Callable[[int, int], None], Tally]
_Wide = tuple[int, Callable[[int, int], int], Tally, Callable[[int, int, int], None], Tally]


class WideDevice(Protocol):
    """A device on the port bus that takes an access of 1, 2 or 4 bytes whole."""

    ports: PortRanges

    def read(self, offset: int, size: int, /) -> int:
        """IN of `size` bytes."""

    def write(self, offset: int, size: int, value: int, /) -> None:
        """OUT of `size` bytes."""


class PortBus:
    """Port I/O, 65,536 one-byte ports; wider accesses are split into bytes, low byte first, but for wide devices.

    Args:
        accounting: counts each byte, or each access of a wide device.
    """

    def __init__(self, accounting: Accounting | None = None) -> None:
        self._accounting = accounting or Accounting()
        self._ports: dict[int, _Narrow] = {}
        self._wide: dict[int, _Wide] = {}
        self._unclaimed_in, self._unclaimed_out = self._tallies(UNCLAIMED)

    def _tallies(self, name: str) -> tuple[Tally, Tally]:
        return self._accounting.tally(Kind.PORT_IN, name), self._accounting.tally(Kind.PORT_OUT, name)

    def add(self, name: str, device: Device) -> None:
        """Give a device its ports.

        Raises:
            ValueError: another device has one of them.
        """
        reads, writes = self._tallies(name)
        read, write = self._accounting.timed(reads, device.read), self._accounting.timed(writes, device.write)
        for port, offset in self._claim(name, device.ports):
            self._ports[port] = offset, read, reads, write, writes

    def add_wide(self, name: str, device: WideDevice) -> None:
        """Give ports to a device that wants wide accesses whole.

        Raises:
            ValueError: another device has one of them.
        """
        reads, writes = self._tallies(name)
        read, write = self._accounting.timed(reads, device.read), self._accounting.timed(writes, device.write)
        for port, offset in self._claim(name, device.ports):
            self._wide[port] = offset, read, reads, write, writes

    def _claim(self, name: str, ranges: PortRanges) -> list[tuple[int, int]]:
        """Each port with the device's offset for it."""
        claimed = [port for first, length in ranges for port in range(first, first + length)]
        for port in claimed:
            if owner := self._ports.get(port) or self._wide.get(port):
                raise ValueError(f"{name}: port {port:#x} belongs to {owner[2].handler}")
        return [(port, port - ranges[0][0]) for port in claimed]

    def read(self, port: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes."""
        if wide := self._wide.get(port):
            wide[2].count += 1
            return wide[1](wide[0], size)
        if size == 1:
            entry = self._ports.get(port)
            if entry is None:
                self._unclaimed_in.count += 1
                return OPEN_BUS
            entry[2].count += 1
            return entry[1](entry[0])
        return sum(self.read(port + i & 0xFFFF, 1) << 8 * i for i in range(size))

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes; what nobody claims is dropped."""
        if wide := self._wide.get(port):
            wide[4].count += 1
            wide[3](wide[0], size, value & (1 << 8 * size) - 1)
            return
        if size == 1:
            entry = self._ports.get(port)
            if entry is None:
                self._unclaimed_out.count += 1
                return
            entry[4].count += 1
            entry[3](entry[0], value & 0xFF)
            return
        for i in range(size):
            self.write(port + i & 0xFFFF, 1, value >> 8 * i)


class MmioBus:
    """The guest-physical addresses that are not RAM: fixed ranges, and behind them whatever the guest moves about.

    Args:
        others: gets the accesses that no fixed range claims, with the address as offset: the PCI bus. It counts them.
        accounting: counts the other accesses.
    """

    def __init__(self, others: MmioDevice, accounting: Accounting | None = None) -> None:
        self._accounting = accounting or Accounting()
        self._read_others, self._write_others = others.read, others.write
        self._pages: dict[int, _Wide] = {}

    def add(self, name: str, start: int, size: int, device: MmioDevice) -> None:
        """Give a device a range of whole pages.

        Raises:
            ValueError: another device has some of it.
        """
        pages = range(start >> PAGE_SHIFT, (start + size - 1 >> PAGE_SHIFT) + 1)
        for page in pages:
            if owner := self._pages.get(page):
                raise ValueError(f"{name}: {start:#x} belongs to {owner[2].handler}")
        reads = self._accounting.tally(Kind.MMIO_READ, name)
        writes = self._accounting.tally(Kind.MMIO_WRITE, name)
        read, write = self._accounting.timed(reads, device.read), self._accounting.timed(writes, device.write)
        self._pages |= dict.fromkeys(pages, (start, read, reads, write, writes))

    def read(self, address: int, size: int) -> int:
        """Load of 1, 2, 4 or 8 bytes."""
        entry = self._pages.get(address >> PAGE_SHIFT)
        if entry is None:
            return self._read_others(address, size)
        entry[2].count += 1
        return entry[1](address - entry[0], size)

    def write(self, address: int, size: int, value: int) -> None:
        """Store of 1, 2, 4 or 8 bytes."""
        entry = self._pages.get(address >> PAGE_SHIFT)
        if entry is None:
            self._write_others(address, size, value)
            return
        entry[4].count += 1
        entry[3](address - entry[0], size, value)


class MsrBus:
    """MSRs that the machine answers; an unclaimed one is #GP, as on hardware.

    Args:
        accounting: counts the accesses.
    """

    def __init__(self, accounting: Accounting | None = None) -> None:
        self._accounting = accounting or Accounting()
        self._msrs: dict[int, tuple[ReadMsr | None, Tally, WriteMsr | None, Tally]] = {}
        self._unclaimed_read = self._accounting.tally(Kind.RDMSR, UNCLAIMED)
        self._unclaimed_write = self._accounting.tally(Kind.WRMSR, UNCLAIMED)

    def add(self, name: str, number: int, read: ReadMsr | None = None, write: WriteMsr | None = None) -> None:
        """Claim an MSR, to be read, written or both.

        Raises:
            ValueError: it is claimed already.
        """
        self._check(name, number, number + 1)
        reads = self._accounting.tally(Kind.RDMSR, name)
        writes = self._accounting.tally(Kind.WRMSR, name)
        timed_read = None if read is None else self._accounting.timed(reads, read)
        timed_write = None if write is None else self._accounting.timed(writes, write)
        self._msrs[number] = timed_read, reads, timed_write, writes

    def add_range(
        self, name: str, first: int, end: int, read: Callable[[int], int], write: Callable[[int, int], None]
    ) -> None:
        """Claim the MSRs first..end - 1 for one device, which is told the number.

        Raises:
            ValueError: one of them is claimed already.
        """
        self._check(name, first, end)
        for number in range(first, end):
            self.add(name, number, partial(read, number), partial(write, number))

    def _check(self, name: str, first: int, end: int) -> None:
        for number in range(first, end):
            if owner := self._msrs.get(number):
                raise ValueError(f"{name}: MSR {number:#x} belongs to {owner[1].handler}")

    def read(self, number: int) -> int:
        """RDMSR.

        Raises:
            GuestFault: nobody answers.
        """
        entry = self._msrs.get(number)
        if entry is None or entry[0] is None:
            self._unclaimed_read.count += 1
            raise GuestFault
        entry[1].count += 1
        return entry[0]()

    def write(self, number: int, value: int) -> None:
        """WRMSR.

        Raises:
            GuestFault: nobody takes it, or the value is refused.
        """
        entry = self._msrs.get(number)
        if entry is None or entry[2] is None:
            self._unclaimed_write.count += 1
            raise GuestFault
        entry[3].count += 1
        entry[2](value)
