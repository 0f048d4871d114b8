"""What RAM a guest is told of, as by a BIOS (ACPI specification 6.4, section 15: INT 15h, E820h)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["EBDA", "HIGH_MEMORY", "RAM", "RESERVED", "Memory", "Region", "memory_map"]

RAM, RESERVED = 1, 2
EBDA = 0x9FC00                  # a BIOS keeps data there
LOW_END = 0xA0000
BIOS = 0xF0000                  # the ACPI tables lie there
HIGH_MEMORY = 0x100000
ABOVE_4G = 1 << 32


class Memory(Protocol):
    """What a loader needs of guest memory; sizes in bytes."""

    low_size: int
    high_size: int

    def write(self, gpa: int, data: bytes | memoryview, /) -> None:
        """Write `data` at guest-physical `gpa`."""

    def view(self, gpa: int, size: int, /) -> memoryview:
        """A writable view of `size` bytes at guest-physical `gpa`."""


class Region(NamedTuple):
    """A range of guest-physical addresses; `kind` is RAM or RESERVED."""

    start: int
    size: int
    kind: int


def memory_map(memory: Memory) -> list[Region]:
    """RAM from 0 to `low_size` and from 4 GiB on, with a BIOS' areas below 1 MiB; in order of addresses."""
    regions = [
        Region(0, EBDA, RAM),
        Region(EBDA, LOW_END - EBDA, RESERVED),
        Region(BIOS, HIGH_MEMORY - BIOS, RESERVED),
        Region(HIGH_MEMORY, memory.low_size - HIGH_MEMORY, RAM),
    ]
    if memory.high_size:
        regions.append(Region(ABOVE_4G, memory.high_size, RAM))
    return regions
