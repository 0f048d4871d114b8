"""What the CPU of a `MicroGuest` needs for itself, in 64 KiB outside of its RAM: page tables, GDT, IDT, TSS, stubs."""

from __future__ import annotations

import mmap
import struct
from functools import cache

from emu.assembler import HLT, RDMSR, WRMSR
from emu.memory import MIB, GuestMemory
from emu.micro import BOOT, GDT, LARGE, PD, PDPT, PML4, PRESENT, USER, WRITABLE, tables
from emu.paging import ACCESSED, DIRTY

__all__ = ["MEMORY_SIZE", "RDMSR_HLT", "SYSTEM", "SYSTEM_SIZE", "WRMSR_HLT", "Physical", "system_image"]

MEMORY_SIZE = 64 * MIB
SYSTEM, SYSTEM_SIZE = 0x4000_0000, 0x1_0000     # physical and virtual; inside as in `emu.micro`
PD_SYSTEM = PD + 0x1000
LARGE_PAGE = 2 * MIB
EVERY_VECTOR = range(256)                       # a broken RSP must not get into the way of an exception

WRMSR_HLT = range(SYSTEM + BOOT + 0x40, SYSTEM + BOOT + 0x43)
RDMSR_HLT = range(SYSTEM + BOOT + 0x50, SYSTEM + BOOT + 0x53)


@cache
def system_image() -> bytes:
    """Its content: all RAM is mapped as it is, for both rings, and this for ring 0."""
    system = bytearray(GDT) + tables(SYSTEM, (), EVERY_VECTOR)
    # Accessed and dirty already: whoever walks the tables for a hypercall has nothing to mark
    table = PRESENT | WRITABLE | USER | ACCESSED
    page = table | DIRTY | LARGE
    for address, entries in (
        (PML4, [SYSTEM + PDPT | table]),
        (PDPT, [SYSTEM + PD | table, SYSTEM + PD_SYSTEM | table]),
        (PD, [address | page for address in range(0, MEMORY_SIZE, LARGE_PAGE)]),
        (PD_SYSTEM, [SYSTEM | page & ~USER]),
    ):
        system[address : address + 8 * len(entries)] = struct.pack(f"<{len(entries)}Q", *entries)
    for place, code in ((WRMSR_HLT, WRMSR + HLT), (RDMSR_HLT, RDMSR + HLT)):
        system[place.start - SYSTEM : place.stop - SYSTEM] = code
    return bytes(system)


class Physical:
    """RAM to read and write, and this to read only: the page tables are in it.

    Args:
        memory: RAM.
        system: what stands at `SYSTEM`.
    """

    def __init__(self, memory: GuestMemory, system: mmap.mmap) -> None:
        self._memory = memory
        self._system = system
        self.write = memory.write

    def read(self, address: int, size: int) -> bytes:
        """Copy of bytes; OutsideMemory if they are not all of one of the two."""
        if SYSTEM <= address and address + size <= SYSTEM + SYSTEM_SIZE:
            return self._system[address - SYSTEM : address - SYSTEM + size]
        return self._memory.read(address, size)
