"""The buses: named ranges that must not overlap; a device knows offsets, the bus knows addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from devices import Device, MmioDevice, PortRanges
from hypercalls import GuestFault

__all__ = ["MmioBus", "MsrBus", "PortBus", "Traffic", "WideDevice"]

OPEN_BUS = 0xFF                         # an unclaimed port reads all ones


class WideDevice(Protocol):
    """A device on the port bus that takes an access of 1, 2 or 4 bytes whole."""

    ports: PortRanges

    def read(self, offset: int, size: int, /) -> int:
        """IN of `size` bytes."""

    def write(self, offset: int, size: int, value: int, /) -> None:
        """OUT of `size` bytes."""


@dataclass
class Traffic:
    """How often a device was reached."""

    reads: int = 0
    writes: int = 0


class PortBus:
    """Port I/O, 65,536 one-byte ports; wider accesses are split into bytes, low byte first, but for wide devices."""

    def __init__(self) -> None:
        self._ports: dict[int, tuple[Callable[[int], int], Callable[[int, int], None], int, Traffic]] = {}
        self._wide: dict[int, tuple[WideDevice, int, Traffic]] = {}
        self._names: dict[int, str] = {}
        self.traffic: dict[str, Traffic] = {}

    def add(self, name: str, device: Device) -> None:
        """Give a device its ports.

        Raises:
            ValueError: another device has one of them.
        """
        claimed, traffic = self._claim(name, device.ports)
        base = device.ports[0][0]
        for port in claimed:
            self._ports[port] = device.read, device.write, port - base, traffic

    def add_wide(self, name: str, device: WideDevice) -> None:
        """Give ports to a device that wants wide accesses whole.

        Raises:
            ValueError: another device has one of them.
        """
        claimed, traffic = self._claim(name, device.ports)
        base = device.ports[0][0]
        for port in claimed:
            self._wide[port] = device, port - base, traffic

    def _claim(self, name: str, ranges: PortRanges) -> tuple[list[int], Traffic]:
        claimed = [port for first, length in ranges for port in range(first, first + length)]
        for port in claimed:
            if port in self._names:
                raise ValueError(f"{name}: port {port:#x} belongs to {self._names[port]}")
        self._names.update(dict.fromkeys(claimed, name))
        return claimed, self.traffic.setdefault(name, Traffic())

    def read(self, port: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes."""
        if wide := self._wide.get(port):
            device, offset, traffic = wide
            traffic.reads += 1
            return device.read(offset, size)
        if size == 1:
            entry = self._ports.get(port)
            if entry is None:
                return OPEN_BUS
            entry[3].reads += 1
            return entry[0](entry[2])
        return sum(self.read(port + i & 0xFFFF, 1) << 8 * i for i in range(size))

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes; what nobody claims is dropped."""
        if wide := self._wide.get(port):
            device, offset, traffic = wide
            traffic.writes += 1
            device.write(offset, size, value & (1 << 8 * size) - 1)
            return
        if size == 1:
            entry = self._ports.get(port)
            if entry is not None:
                entry[3].writes += 1
                entry[1](entry[2], value & 0xFF)
            return
        for i in range(size):
            self.write(port + i & 0xFFFF, 1, value >> 8 * i)


class MmioBus:
    """The guest-physical addresses that are not RAM: fixed ranges, and behind them whatever the guest moves about.

    Args:
        others: gets the accesses that no fixed range claims, with the address as offset: the PCI bus.
    """

    def __init__(self, others: MmioDevice) -> None:
        self._others = others
        self._ranges: list[tuple[int, int, str, MmioDevice, Traffic]] = []
        self.traffic: dict[str, Traffic] = {"pci": Traffic()}

    def add(self, name: str, start: int, size: int, device: MmioDevice) -> None:
        """Give a device a range of addresses.

        Raises:
            ValueError: another device has some of it.
        """
        for first, end, other, *_ in self._ranges:
            if start < end and first < start + size:
                raise ValueError(f"{name}: {start:#x} belongs to {other}")
        traffic = self.traffic[name] = Traffic()
        self._ranges.append((start, start + size, name, device, traffic))

    def read(self, address: int, size: int) -> int:
        """Load of 1, 2, 4 or 8 bytes."""
        for start, end, _name, device, traffic in self._ranges:
            if start <= address < end:
                traffic.reads += 1
                return device.read(address - start, size)
        self.traffic["pci"].reads += 1
        return self._others.read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Store of 1, 2, 4 or 8 bytes."""
        for start, end, _name, device, traffic in self._ranges:
            if start <= address < end:
                traffic.writes += 1
                device.write(address - start, size, value)
                return
        self.traffic["pci"].writes += 1
        self._others.write(address, size, value)


class MsrBus:
    """MSRs that the machine answers; an unclaimed one is #GP, as on hardware."""

    def __init__(self) -> None:
        self._msrs: dict[int, tuple[str, Callable[[], int] | None, Callable[[int], None] | None]] = {}
        self._ranges: list[tuple[int, int, str, Callable[[int], int], Callable[[int, int], None]]] = []

    def add(
        self, name: str, number: int, read: Callable[[], int] | None = None, write: Callable[[int], None] | None = None
    ) -> None:
        """Claim an MSR, to be read, written or both.

        Raises:
            ValueError: it is claimed already.
        """
        self._check(name, number, number + 1)
        self._msrs[number] = name, read, write

    def add_range(
        self, name: str, first: int, end: int, read: Callable[[int], int], write: Callable[[int, int], None]
    ) -> None:
        """Claim the MSRs first..end - 1 for one device, which is told the number.

        Raises:
            ValueError: one of them is claimed already.
        """
        self._check(name, first, end)
        self._ranges.append((first, end, name, read, write))

    def _check(self, name: str, first: int, end: int) -> None:
        claimed = [(number, number + 1, entry[0]) for number, entry in self._msrs.items()]
        claimed += [entry[:3] for entry in self._ranges]
        for start, stop, owner in claimed:
            if start < end and first < stop:
                raise ValueError(f"{name}: MSR {max(first, start):#x} belongs to {owner}")

    def read(self, number: int) -> int:
        """RDMSR.

        Raises:
            GuestFault: nobody answers.
        """
        for first, end, _name, read_one, _write in self._ranges:
            if first <= number < end:
                return read_one(number)
        entry = self._msrs.get(number)
        if entry is None or entry[1] is None:
            raise GuestFault
        return entry[1]()

    def write(self, number: int, value: int) -> None:
        """WRMSR.

        Raises:
            GuestFault: nobody takes it, or the value is refused.
        """
        for first, end, _name, _read, write_one in self._ranges:
            if first <= number < end:
                write_one(number, value)
                return
        entry = self._msrs.get(number)
        if entry is None or entry[2] is None:
            raise GuestFault
        entry[2](value)
