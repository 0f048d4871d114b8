"""The guest's memory as a debugger sees it: by virtual address, whatever the page's rights, and leaving no trace."""

from __future__ import annotations

from emu.memory import GuestMemory, OutsideMemory
from emu.paging import AddressSpace, PagingRegisters

__all__ = ["DebugMemory"]

PAGE = 4096


class _Unmarked:
    """RAM whose page tables are read and not marked."""

    def __init__(self, memory: GuestMemory) -> None:
        self.read = memory.read

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """What would mark an entry accessed."""


class DebugMemory:
    """Memory by the page tables that the CPU uses now.

    Args:
        memory: guest RAM.
        registers: of the CPU.
    """

    def __init__(self, memory: GuestMemory, registers: PagingRegisters) -> None:
        self._memory = memory
        self._space = AddressSpace(_Unmarked(memory), registers)
        self._marking = AddressSpace(memory, registers)

    def translate(self, address: int) -> int:
        """Guest-physical address of a byte.

        Raises:
            OutsideMemory: it is not mapped.
        """
        return self._space.translate(address)

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes: what there is of them before the first that is not RAM.

        Raises:
            OutsideMemory: the first is not.
        """
        found = b""
        while len(found) < size:
            at = address + len(found)
            length = min(size - len(found), PAGE - at % PAGE)
            try:
                found += self._memory.read(self._space.translate(at), length)
            except OutsideMemory:
                if not found:
                    raise
                break
        return found

    def write(self, address: int, data: bytes) -> None:
        """Store bytes, all of them or none; also where the guest itself may not write.

        Raises:
            OutsideMemory: not all of them are RAM.
        """
        pieces, at = [], 0
        while at < len(data):
            length = min(len(data) - at, PAGE - (address + at) % PAGE)
            physical = self._space.translate(address + at)
            self._memory.read(physical, length)
            pieces.append((physical, at, length))
            at += length
        for physical, at, length in pieces:
            try:
                self._marking.translate(address + at, write=True)   # dirty: else the guest may drop the page
            except OutsideMemory:
                pass                                                # read-only: it does not expect a change
            self._memory.write(physical, data[at : at + length])

    def parts(self, address: int, size: int) -> list[tuple[int, int]]:
        """Where in RAM bytes are: (offset, size) of each part.

        Raises:
            OutsideMemory: not all of them are RAM.
        """
        found, at = [], address
        while at < address + size:
            length = min(address + size - at, PAGE - at % PAGE)
            found.append((self._memory.offset(self._space.translate(at), length), length))
            at += length
        return found
