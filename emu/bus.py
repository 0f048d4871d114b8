"""The buses: named ranges that must not overlap; a device knows offsets, the bus knows addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from devices import Device
from hypercalls import GuestFault

OPEN_BUS = 0xFF                         # an unclaimed port reads all ones


@dataclass
class Traffic:
    """How often a device was reached."""

    reads: int = 0
    writes: int = 0


class PortBus:
    """Port I/O, 65,536 one-byte ports; wider accesses are split into bytes, low byte first."""

    def __init__(self) -> None:
        self._ports: dict[int, tuple[Callable[[int], int], Callable[[int, int], None], int, Traffic]] = {}
        self._names: dict[int, str] = {}
        self.traffic: dict[str, Traffic] = {}

    def add(self, name: str, device: Device) -> None:
        """Give a device its ports.

        Raises:
            ValueError: another device has one of them.
        """
        claimed = [port for first, length in device.ports for port in range(first, first + length)]
        for port in claimed:
            if port in self._ports:
                raise ValueError(f"{name}: port {port:#x} belongs to {self._names[port]}")
        traffic = self.traffic[name] = Traffic()
        base = device.ports[0][0]
        for port in claimed:
            self._ports[port] = device.read, device.write, port - base, traffic
            self._names[port] = name

    def read(self, port: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes."""
        if size == 1:
            entry = self._ports.get(port)
            if entry is None:
                return OPEN_BUS
            entry[3].reads += 1
            return entry[0](entry[2])
        return sum(self.read(port + i & 0xFFFF, 1) << 8 * i for i in range(size))

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes; what nobody claims is dropped."""
        if size == 1:
            entry = self._ports.get(port)
            if entry is not None:
                entry[3].writes += 1
                entry[1](entry[2], value & 0xFF)
            return
        for i in range(size):
            self.write(port + i & 0xFFFF, 1, value >> 8 * i)


class MsrBus:
    """MSRs that the machine answers; an unclaimed one is #GP, as on hardware."""

    def __init__(self) -> None:
        self._msrs: dict[int, tuple[str, Callable[[], int] | None, Callable[[int], None] | None]] = {}

    def add(
        self, name: str, number: int, read: Callable[[], int] | None = None, write: Callable[[int], None] | None = None
    ) -> None:
        """Claim an MSR, to be read, written or both.

        Raises:
            ValueError: it is claimed already.
        """
        if number in self._msrs:
            raise ValueError(f"{name}: MSR {number:#x} belongs to {self._msrs[number][0]}")
        self._msrs[number] = name, read, write

    def read(self, number: int) -> int:
        """RDMSR.

        Raises:
            GuestFault: nobody answers.
        """
        entry = self._msrs.get(number)
        if entry is None or entry[1] is None:
            raise GuestFault
        return entry[1]()

    def write(self, number: int, value: int) -> None:
        """WRMSR.

        Raises:
            GuestFault: nobody takes it, or the value is refused.
        """
        entry = self._msrs.get(number)
        if entry is None or entry[2] is None:
            raise GuestFault
        entry[2](value)
