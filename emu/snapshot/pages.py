"""Which pages of guest memory a process has written, and which of them a snapshot has to hold.

Nothing is tracked while the guest runs. A page of a private mapping that was written to is the process' own ever
after, and /proc/self/pagemap tells (Linux, Documentation/admin-guide/mm/pagemap.rst; it needs no privilege but for
page frame numbers). One byte stands for a page here, so runs of pages are found by regular expressions.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator

from emu.memory import GuestMemory, Ranges
from emu.snapshot.libc import address_of

__all__ = ["DATA", "PAGE", "SAME", "ZERO", "contents", "differences", "dirty_ranges", "runs", "touched"]

PAGE = mmap.PAGESIZE
ENTRY_BYTES = 8                         # of pagemap, a page
READ_PAGES = 1 << 17                    # of memory at a time: 1 MiB of pagemap

# In an entry's highest byte.
PRESENT, SWAPPED, FILE = 0x80, 0x40, 0x20       # FILE: it is the file's page, not a private copy

ABSENT, SHOWN, OWN = range(3)           # not mapped; the file's page; this process' own
STATES = bytes(
    ABSENT if not entry & (PRESENT | SWAPPED) else SHOWN if entry & FILE else OWN for entry in range(256)
)

SAME, ZERO, DATA = range(3)             # as the base has it; zeros now; anything else
ZEROS = bytes(PAGE)


def runs(states: bytes | bytearray, pattern: bytes) -> Ranges:
    """Where pages whose states match a regular expression lie."""
    return tuple((match.start() * PAGE, match.end() * PAGE) for match in re.finditer(pattern, states, re.DOTALL))


def _states(ram: mmap.mmap) -> bytearray:
    """ABSENT, SHOWN or OWN for each page; all OWN where the host does not tell."""
    pages = len(ram) // PAGE
    states = bytearray()
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return bytearray((OWN,)) * pages
    try:
        first = address_of(ram) // PAGE
        while len(states) < pages:
            size = min(READ_PAGES, pages - len(states)) * ENTRY_BYTES
            entries = os.pread(fd, size, (first + len(states)) * ENTRY_BYTES)
            if len(entries) != size:
                return bytearray((OWN,)) * pages
            states += entries[ENTRY_BYTES - 1 :: ENTRY_BYTES].translate(STATES)
    finally:
        os.close(fd)
    return states


def dirty_ranges(memory: GuestMemory) -> Ranges:
    """Pages that were written since the memory was made or mapped; a few more, of which only copies were made."""
    return runs(_states(memory.ram), b"[\x02]+")


def touched(memory: GuestMemory) -> tuple[Ranges, Ranges]:
    """Pages that show a file's content and were read, and those that were written.

    The host maps some more around each that is read (16 pages usually).
    """
    states = _states(memory.ram)
    kept = bytearray(len(states))
    for start, end in memory.backed:
        pages = slice(start // PAGE, end // PAGE)
        kept[pages] = states[pages]
    return runs(kept, b"[\x01]+"), runs(kept, b"[\x02]+")


def contents(memory: GuestMemory) -> bytearray:
    """DATA for each page that is not zero, SAME for the others."""
    states = _states(memory.ram)
    for start, end in memory.backed:
        states[start // PAGE : end // PAGE] = bytes((OWN,)) * ((end - start) // PAGE)
    ram = memory.ram
    found = bytearray(len(states))
    for first, last in _page_runs(states):
        # Copying a page and comparing the copy is quicker than any comparison in place that Python has.
        pages = range(first * PAGE, last * PAGE, PAGE)
        found[first:last] = bytes([SAME if ram[at : at + PAGE] == ZEROS else DATA for at in pages])
    return found


def differences(memory: GuestMemory, base: mmap.mmap) -> bytearray:
    """SAME, ZERO or DATA for each page of memory that began as `base`."""
    ram = memory.ram
    states = _states(ram)
    found = bytearray(len(states))
    for first, last in _page_runs(states):
        for page in range(first, last):
            at = page * PAGE
            content = ram[at : at + PAGE]
            if content != base[at : at + PAGE]:     # a page may be a copy and nothing else
                found[page] = ZERO if content == ZEROS else DATA
    return found


def _page_runs(states: bytearray) -> Iterator[tuple[int, int]]:
    for start, end in runs(states, b"[\x02]+"):
        yield start // PAGE, end // PAGE
