"""The machine's devices, one a file; none of them knows the machine or the CPU.

A device is handed everything it needs: an interrupt line, a clock, a sink for its output.
The protocols below are all that a device may ask for, and all that it must offer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["Clock", "Device", "Files", "IrqLine", "Memory", "MmioDevice", "OutsideMemory", "PortRanges", "Timer"]

PortRanges = tuple[tuple[int, int], ...]
"""(first port, length) of each range a device claims; offsets count from the first range's first port."""


class IrqLine(Protocol):
    """One wire into an interrupt controller."""

    def set(self, level: bool) -> None:
        """Drive the line high (True) or low (False); driving it to the level it has is free."""


class Timer(Protocol):
    """A one-shot timer that belongs to one device."""

    deadline_ns: int | None
    """Guest time at which it expires, None while disarmed."""

    def arm(self, deadline_ns: int) -> None:
        """Expire once when guest time reaches `deadline_ns`; replaces what was armed before."""

    def disarm(self) -> None:
        """Forget the deadline; nothing happens if there is none."""


class Clock(Protocol):
    """Guest time, and timers on it."""

    def now_ns(self) -> int:
        """Guest monotonic time in nanoseconds, 0 when the machine was made."""

    def wall_ns(self) -> int:
        """Guest wall-clock time: nanoseconds since 1970-01-01 UTC."""

    def timer(self, expired: Callable[[], None]) -> Timer:
        """A disarmed timer that calls `expired` on the CPU's thread, never before its deadline."""


class Device(Protocol):
    """What every device offers; `Kind(..., state=device.save())` is a restore."""

    ports: PortRanges

    def read(self, offset: int) -> int:
        """Read one byte register (0..0xff); wider accesses are split by the bus."""

    def write(self, offset: int, value: int) -> None:
        """Write one byte register; `value` is 0..0xff."""

    def save(self) -> Any:
        """The whole state as a frozen dataclass of plain values."""


class OutsideMemory(ValueError):
    """A guest-physical range that is not all RAM."""


class Memory(Protocol):
    """Guest RAM as a device's DMA sees it; addresses are guest-physical.

    Every method raises `OutsideMemory` unless the whole range is RAM.
    """

    def read(self, address: int, size: int, /) -> bytes:
        """Copy of `size` bytes."""

    def write(self, address: int, data: bytes | bytearray | memoryview, /) -> None:
        """Store bytes; code that the CPU translated from there is dropped."""

    def view(self, address: int, size: int, /) -> memoryview:
        """The RAM itself, for vectored I/O; after writing to it, `written` must be called."""

    def written(self, address: int, size: int, /) -> None:
        """Bytes were stored through a view: drop the code that the CPU translated from there."""

    def views(self, addresses: Sequence[int], sizes: Sequence[int], /) -> list[memoryview]:
        """`view` of many ranges, none of them empty."""

    def written_all(self, addresses: Sequence[int], sizes: Sequence[int], /) -> None:
        """`written` of many ranges."""


class MmioDevice(Protocol):
    """A device in the memory address space; a device knows offsets, the bus knows addresses."""

    def read(self, offset: int, size: int, /) -> int:
        """Read 1, 2, 4 or 8 bytes."""

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Write 1, 2, 4 or 8 bytes."""


class Files(Protocol):
    """Host files that the machine's thread waits for beside the guest."""

    def watch(
        self, fd: int, readable: Callable[[], None] | None = None, writable: Callable[[], None] | None = None
    ) -> None:
        """Call back on the machine's thread while `fd` can be read, or written; replaces what was asked before."""

    def forget(self, fd: int) -> None:
        """End that; nothing happens if it was not watched."""
