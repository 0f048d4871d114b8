"""The guest's virtual memory, by its current page tables (Intel SDM volume 3A, chapter 4; AMD64 manual volume 2, 5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from devices import OutsideMemory
from devices.frozen import frozen
from emu.cpu.constants import EFER_LMA

__all__ = ["AddressSpace", "NotMapped"]

CR0_WP, CR0_PG = 1 << 16, 1 << 31
CR4_PSE, CR4_PAE, CR4_LA57 = 1 << 4, 1 << 5, 1 << 12

# Bits of an entry
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7
FRAME_64 = 0x000F_FFFF_FFFF_F000
FRAME_32 = 0xFFFF_F000
POINTERS_PAE = 0xFFFF_FFE0              # CR3: the table of four pointers is aligned to its size
LARGE_32 = 0xFFC0_0000                  # of a 4 MiB page's entry:
HIGH_32, HIGH_32_SHIFT = 0x1F_E000, 32 - 13     # its bits 20-13 are bits 39-32 of the address

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
MASK_32 = (1 << 32) - 1

ERROR_PRESENT, ERROR_WRITE, ERROR_USER, ERROR_RESERVED = 1 << 0, 1 << 1, 1 << 2, 1 << 3    # of a page fault


class NotMapped(OutsideMemory):
    """A virtual address that cannot be accessed so.

    Attributes:
        address: the first byte that cannot.
        error_code: of the page fault that the CPU would raise; 0 where it is #GP, for what is not canonical.
    """

    def __init__(self, address: int, error_code: int) -> None:
        super().__init__(f"virtual {address:#x} is not mapped for this access")
        self.address = address
        self.error_code = error_code


class Physical(Protocol):
    """Guest RAM; `OutsideMemory` for what is not all RAM."""

    def read(self, address: int, size: int, /) -> bytes: ...

    def write(self, address: int, data: bytes | bytearray | memoryview, /) -> None: ...


class PagingRegisters(Protocol):
    """A CPU's registers (`emu.cpu.registers.Registers`)."""

    @property
    def paging(self) -> tuple[int, int, int, int]:
        """CR0, CR3, CR4 and EFER."""


@frozen
class _Format:
    """One kind of page tables.

    Attributes:
        shifts: of the address for each level's index, from the top.
        large: those of them at which a page may begin in place of a table.
        entry_bytes, index_mask, frame: of its entries.
        refuses_large: bit 7 is reserved where no page may begin; else it is ignored.
    """

    shifts: tuple[int, ...]
    large: tuple[int, ...]
    entry_bytes: int = 8
    index_mask: int = 0x1FF
    frame: int = FRAME_64
    refuses_large: bool = True


FIVE_LEVELS = _Format((48, 39, 30, 21, 12), (30, 21))
FOUR_LEVELS = _Format((39, 30, 21, 12), (30, 21))
PAE = _Format((21, 12), (21,))          # below the four pointers
TWO_LEVELS = _Format((22, 12), (), 4, 0x3FF, FRAME_32, refuses_large=False)
TWO_LEVELS_PSE = _Format((22, 12), (22,), 4, 0x3FF, FRAME_32)


class AddressSpace:
    """Guest memory by virtual address.

    The tables are walked anew each time: nothing is remembered that the guest might change. As in the CPU, what is
    used is marked accessed and what is written dirty: a kernel drops pages of files and swap that are not dirty, and
    what the host wrote would be lost.

    Protection keys, SMAP and the no-execute bit are not looked at.

    Args:
        memory: guest RAM, in which the page tables are.
        registers: of the CPU whose page tables are used.
    """

    __slots__ = ("_memory", "_registers")

    def __init__(self, memory: Physical, registers: PagingRegisters) -> None:
        self._memory = memory
        self._registers = registers

    def translate(self, address: int, write: bool = False, user: bool = False) -> int:
        """Guest-physical address of a byte.

        Args:
            address: virtual.
            write: it is to be written, not read.
            user: by code of ring 3.

        Raises:
            NotMapped: the CPU would raise a page fault, or #GP for an address that is not canonical.
        """
        cr0, cr3, cr4, efer = self._registers.paging
        access = (ERROR_WRITE if write else 0) | (ERROR_USER if user else 0)
        needed = access if user or cr0 & CR0_WP else 0      # the bits of an entry are those of the error code
        if efer & EFER_LMA:
            form, bits = (FIVE_LEVELS, 57) if cr4 & CR4_LA57 else (FOUR_LEVELS, 48)
            if address >> bits - 1 not in (0, (1 << 65 - bits) - 1):
                raise NotMapped(address, 0)
            return self._walk(form, cr3 & FRAME_64, address, access, needed)
        address &= MASK_32
        if not cr0 & CR0_PG:
            return address
        if cr4 & CR4_PAE:
            pointer = self._entry((cr3 & POINTERS_PAE) + (address >> 30) * 8, 8, address, access)
            return self._walk(PAE, pointer & FRAME_64, address, access, needed)
        return self._walk(TWO_LEVELS_PSE if cr4 & CR4_PSE else TWO_LEVELS, cr3 & FRAME_32, address, access, needed)

    def _entry(self, at: int, size: int, address: int, access: int) -> int:
        try:
            entry = int.from_bytes(self._memory.read(at, size), "little")
        except OutsideMemory:
            raise NotMapped(address, access) from None
        if not entry & PRESENT:
            raise NotMapped(address, access)
        return entry

    def _walk(self, form: _Format, table: int, address: int, access: int, needed: int) -> int:
        """Follow the tables down to the page, whose `needed` bits every entry must have."""
        size, index_mask, allowed = form.entry_bytes, form.index_mask, needed
        for shift in form.shifts:
            at = table + (address >> shift & index_mask) * size
            entry = self._entry(at, size, address, access)
            allowed &= entry
            if shift == PAGE_SHIFT:
                break
            if entry & LARGE:
                if shift in form.large:
                    break
                if form.refuses_large:
                    raise NotMapped(address, access | ERROR_PRESENT | ERROR_RESERVED)
            if not entry & ACCESSED:
                self._memory.write(at, (entry | ACCESSED).to_bytes(size, "little"))
            table = entry & form.frame
        if allowed != needed:
            raise NotMapped(address, access | ERROR_PRESENT)
        marks = ACCESSED | DIRTY if access & ERROR_WRITE else ACCESSED
        if entry & marks != marks:
            self._memory.write(at, (entry | marks).to_bytes(size, "little"))
        inside = (1 << shift) - 1
        if size == 4 and shift != PAGE_SHIFT:
            return entry & LARGE_32 | (entry & HIGH_32) << HIGH_32_SHIFT | address & inside
        return entry & form.frame & ~inside | address & inside

    def read(self, address: int, size: int, user: bool = False) -> bytes:
        """Copy of `size` bytes.

        Args:
            address: virtual.
            size: how many; who has it from the guest limits it.
            user: with the rights of ring 3.

        Raises:
            NotMapped: see `translate`.
            OutsideMemory: a page of it is not RAM.
        """
        if size <= PAGE_SIZE - address % PAGE_SIZE:
            return self._memory.read(self.translate(address, False, user), size)
        return b"".join(
            self._memory.read(self.translate(start, False, user), length) for start, length in _pages(address, size)
        )

    def write(self, address: int, data: bytes | bytearray | memoryview, user: bool = False) -> None:
        """Store bytes; all of them or none.

        Args:
            address: virtual.
            data: the bytes.
            user: with the rights of ring 3.

        Raises:
            NotMapped: see `translate`; or a page is read-only.
            OutsideMemory: a page of it is not RAM.
        """
        memory, size = self._memory, len(data)
        if size <= PAGE_SIZE - address % PAGE_SIZE:
            memory.write(self.translate(address, True, user), data)
            return
        pieces = [
            (self.translate(start, True, user), start - address, length) for start, length in _pages(address, size)
        ]
        for physical, _, length in pieces:
            memory.read(physical, length)
        for physical, offset, length in pieces:
            memory.write(physical, data[offset : offset + length])


def _pages(address: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the part in each page."""
    while size > 0:
        length = min(size, PAGE_SIZE - address % PAGE_SIZE)
        yield address, length
        address, size = address + length, size - length
