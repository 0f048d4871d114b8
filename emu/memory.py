"""Guest RAM: one private mapping of the host, with a hole below 4 GiB in the guest's view."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import add, itemgetter

from devices import OutsideMemory
from emu.errors import EmuError

__all__ = [
    "GIB", "HIGH_START", "HOLE_START", "KIB", "LARGEST", "MIB", "SMALLEST", "GuestMemory", "OutsideMemory", "Ranges",
    "new_ram",
]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HOLE_START = 0xC000_0000                # guest-physical: devices, from here to 4 GiB
HIGH_START = 1 << 32
PAGE_SHIFT = mmap.PAGESIZE.bit_length() - 1
SMALLEST, LARGEST = 64 * MIB, 8 * GIB

Ranges = tuple[tuple[int, int], ...]
"""Parts of RAM: (start, end) of each as offsets into the mapping, in order."""


class GuestMemory:
    """The guest's RAM, and the only way in which the host writes to it.

    An offset into the mapping is at the same time the ram address that libunicorn knows the byte by: low RAM first,
    then what lies above 4 GiB.

    Args:
        size: bytes, a multiple of 4 KiB from 64 MiB to 8 GiB.
        ram: a private mapping of that size to use, and to close in the end; None: a new one of zeros.
        backed: parts of `ram` that show what a file holds until they are written to.
        origin: id of the snapshot that `ram` begins as.

    Attributes:
        size, low_size, high_size: bytes, in all and of either block.
        ram: all of it.
        backed, origin: as given; the origin is None once the memory was cleared.

    Raises:
        EmuError: the size is out of range, or the host has no room.
    """

    def __init__(self, size: int, ram: mmap.mmap | None = None, backed: Ranges = (), origin: str | None = None) -> None:
        if not SMALLEST <= size <= LARGEST or size % mmap.PAGESIZE:
            raise EmuError(f"memory of {size / MIB:g} MiB: this machine takes 64 MiB to 8 GiB")
        self.size = size
        self.low_size = min(size, HOLE_START)
        self.high_size = size - self.low_size
        self.ram = ram if ram is not None else new_ram(size)
        with suppress(OSError):                 # a kernel without huge pages
            self.ram.madvise(mmap.MADV_HUGEPAGE)
        self.backed = backed
        self.origin = origin
        self._view = memoryview(self.ram)
        self.drop_code: Callable[[int, int], None] = lambda start, end: None
        """Called after each write with the ram addresses written: code translated from them is stale."""
        self.code_pages: mmap.mmap | None = None
        """A byte for each page of RAM, 0 if no code was translated from it; None: not known."""

    def offset(self, address: int, size: int) -> int:
        """Where in `ram` bytes at a guest-physical address are.

        Raises:
            OutsideMemory: not all of them are RAM.
        """
        if 0 <= address and address + size <= self.low_size:
            return address
        if HIGH_START <= address and address + size <= HIGH_START + self.high_size:
            return address - HIGH_START + self.low_size
        raise OutsideMemory(f"{size} bytes at guest-physical {address:#x} are not RAM")

    def read(self, address: int, size: int) -> bytes:
        """Copy of `size` bytes at a guest-physical address.

        Raises:
            OutsideMemory: not all of them are RAM.
        """
        offset = self.offset(address, size)
        return self.ram[offset : offset + size]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes at a guest-physical address; the CPU runs what stands there now, not what stood there before.

        Raises:
            OutsideMemory: not all of them are RAM; nothing is written.
        """
        size = len(data)
        offset = self.offset(address, size)
        self._view[offset : offset + size] = data
        self.drop_code(offset, offset + size)

    def view(self, address: int, size: int) -> memoryview:
        """Writable view of RAM, for loaders and vectored I/O; once the CPU has run, `written` has to follow.

        Raises:
            OutsideMemory: not all of it is RAM of one block.
        """
        offset = self.offset(address, size)
        return self._view[offset : offset + size]

    def written(self, address: int, size: int) -> None:
        """Bytes were stored through a view; the CPU runs what stands there now.

        Raises:
            OutsideMemory: not all of them are RAM.
        """
        offset = self.offset(address, size)
        self.drop_code(offset, offset + size)

    def views(self, addresses: Sequence[int], sizes: Sequence[int]) -> list[memoryview]:
        """`view` of many ranges, none of them empty; errors as there."""
        ends = list(map(add, addresses, sizes))
        if max(ends, default=0) > self.low_size:
            return list(map(self.view, addresses, sizes))
        view = self._view
        return [view[address:end] for address, end in zip(addresses, ends, strict=True)]

    def written_all(self, addresses: Sequence[int], sizes: Sequence[int]) -> None:
        """`written` of many ranges; errors as there."""
        if not sizes:
            return
        pages, largest = self.code_pages, max(sizes)
        if pages is not None and largest <= mmap.PAGESIZE and max(addresses) + largest <= self.low_size:
            first = [address >> PAGE_SHIFT for address in addresses]
            if not any(_items(pages, first)):
                # Pages as a rule, behind a header: then only that may end in another page than it begins in
                if sum(addresses) - (sum(first) << PAGE_SHIFT) == addresses[0] % mmap.PAGESIZE:
                    last = [addresses[0] + sizes[0] - 1 >> PAGE_SHIFT]
                else:
                    last = [address + size - 1 >> PAGE_SHIFT for address, size in zip(addresses, sizes, strict=True)]
                if not any(_items(pages, last)):
                    return
        for address, size in zip(addresses, sizes, strict=True):
            self.written(address, size)

    def blocks(self) -> list[tuple[int, memoryview]]:
        """(guest-physical start, memory) of each block, in the order of their ram addresses."""
        blocks = [(0, self._view[: self.low_size])]
        if self.high_size:
            blocks.append((HIGH_START, self._view[self.low_size :]))
        return blocks

    def clear(self) -> None:
        """Zero all of it; to be called while no CPU has it mapped."""
        self.ram.madvise(mmap.MADV_DONTNEED)
        zeros = bytes(MIB)
        for start, end in self.backed:          # where this has brought the file's content back
            for offset in range(start, end, MIB):
                size = min(MIB, end - offset)
                self._view[offset : offset + size] = zeros[:size]
        self.origin = None

    def close(self) -> None:
        """Give the memory back to the host; to be called once no CPU has it mapped and nobody holds a view of it."""
        self._view.release()
        self.ram.close()


def _items(pages: mmap.mmap, numbers: Sequence[int]) -> tuple[int, ...]:
    """Some of them, at the speed of C."""
    return itemgetter(*numbers)(pages) if len(numbers) > 1 else tuple(pages[number] for number in numbers)


def new_ram(size: int) -> mmap.mmap:
    """Zeros.

    Raises:
        EmuError: the host has no room.
    """
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise EmuError(f"the host has no room for {size // MIB} MiB of guest memory: {error.strerror}") from None
