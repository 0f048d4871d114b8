"""The RAM file of a snapshot: written sparse, mapped back privately.

A byte of RAM stands at its own offset, so zeros are holes, and what is restored is mapped straight from the file. A
trailer page behind it ties the file to its header. The file of an incremental snapshot is of the same size, but holds
only what differs from its base, and is laid over it.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from emu.errors import BadSnapshot
from emu.memory import MIB, GuestMemory, Ranges, new_ram
from emu.snapshot.libc import address_of, map_at
from emu.snapshot.pages import PAGE, SAME, contents, differences, runs

__all__ = ["Layer", "Plan", "Progress", "map_layers", "plan_delta", "plan_whole", "ram_digest", "trailer", "write_ram"]

CHUNK = MIB
MAPPED_PAGES = 16                       # shorter runs are read into place: a mapping costs as much as some pages
MOST_MAPPED = 8192                      # runs; the host allows a process 65,530 mappings
GAP_PAGES = 16                          # zeros between data that are mapped along with it
TRAILER = struct.Struct("16s16s32s")    # magic, id, digest of the header
TRAILER_MAGIC = b"pvemu snapshot\0\0"
ALL_DATA = re.compile(b"[\x02]+")

Progress = Callable[[int, int], object]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Plan:
    """What a RAM file is to hold.

    Attributes:
        states: SAME, ZERO or DATA for each page.
        held: parts that are read from the file, holes in them as zeros.
        zero: long parts that are zero where the base has something.
    """

    states: bytes | bytearray
    held: Ranges
    zero: Ranges


def plan_whole(memory: GuestMemory) -> Plan:
    """All of a memory; short runs of zeros are taken for data, so that there are not too many parts."""
    states = contents(memory)
    gap = GAP_PAGES
    while len(held := runs(states, b"[\x02]+(?:[\x00]{1,%d}[\x02]+)*" % gap)) > MOST_MAPPED:
        gap *= 2
    return Plan(states, held, ())


def plan_delta(memory: GuestMemory, base: mmap.mmap) -> Plan:
    """What differs from the base that the memory began as."""
    states = differences(memory, base)
    zero = runs(states, b"[\x01]{%d,}" % MAPPED_PAGES)
    shown = bytearray(states)
    for start, end in zero:
        shown[start // PAGE : end // PAGE] = bytes((SAME,)) * ((end - start) // PAGE)
    return Plan(states, runs(shown, b"[\x01\x02]+"), zero)


def write_ram(fd: int, memory: GuestMemory, plan: Plan, progress: Progress) -> str:
    """Write the file without its trailer.

    Returns:
        SHA-256 of what is held, as hexadecimal.

    Raises:
        OSError: the host refused.
    """
    from hashlib import sha256

    digest = sha256()
    done, total = 0, sum(end - start for start, end in plan.held)
    os.ftruncate(fd, memory.size)
    with memoryview(memory.ram) as ram:
        progress(0, total)
        for start, end in plan.held:
            for at in range(start, end, CHUNK):
                upto = min(at + CHUNK, end)
                with ram[at:upto] as part:
                    digest.update(part)
                for data in ALL_DATA.finditer(plan.states, at // PAGE, upto // PAGE):
                    _write(fd, ram, data.start() * PAGE, data.end() * PAGE)
                done += upto - at
                progress(done, total)
    return digest.hexdigest()


# An exception's traceback keeps what its frames hold, and memory of which there is a view cannot be closed: so every
# view is released, however it ends.


def _write(fd: int, ram: memoryview, start: int, end: int) -> None:
    while start < end:
        with ram[start:end] as part:
            start += os.pwrite(fd, part, start)


def ram_digest(fd: int, held: Ranges, progress: Progress) -> str:
    """SHA-256 of what a file holds, as `write_ram` has found it.

    Raises:
        OSError: the host refused.
    """
    from hashlib import sha256

    digest = sha256()
    done, total = 0, sum(end - start for start, end in held)
    for start, end in held:
        for at in range(start, end, CHUNK):
            digest.update(os.pread(fd, min(CHUNK, end - at), at))
            done += min(CHUNK, end - at)
            progress(done, total)
    return digest.hexdigest()


def trailer(identity: str, header_digest: str) -> bytes:
    """The page behind RAM; other than exactly this, it is another snapshot's.

    Args:
        identity: the snapshot's id, as hexadecimal.
        header_digest: SHA-256 of its header, as hexadecimal.
    """
    return TRAILER.pack(TRAILER_MAGIC, bytes.fromhex(identity), bytes.fromhex(header_digest)).ljust(PAGE, b"\0")


@dataclass(frozen=True)
class Layer:
    """One RAM file of a chain.

    Attributes:
        name: the snapshot, for messages.
        fd: the file, open for reading.
        held, zero: as in `Plan`.
    """

    name: str
    fd: int
    held: Ranges
    zero: Ranges


def map_layers(layers: Sequence[Layer], size: int, origin: str, copy: bool) -> GuestMemory:
    """RAM as the last of the layers has it, those before it being what it builds on.

    Args:
        layers: at most 255.
        size: bytes of RAM.
        origin: id of the last one.
        copy: read all of it now, and map nothing.

    Raises:
        EmuError: the host has no room.
        BadSnapshot: a file cannot be mapped or read.
    """
    least = size + 1 if copy else MAPPED_PAGES * PAGE
    while sum(end - start >= least for layer in layers for start, end in layer.held) > MOST_MAPPED:
        least *= 2
    ram = new_ram(size)
    if copy:
        with suppress(OSError):
            ram.madvise(mmap.MADV_HUGEPAGE)         # before the pages are there
    backed = bytearray(size // PAGE)
    for layer in layers:
        try:
            _lay(layer, ram, least, backed)
        except OSError as error:
            raise BadSnapshot(f"{layer.name}: its RAM cannot be read: {error.strerror}") from None
    return GuestMemory(size, ram, runs(backed, b"[\x01]+"), origin)


def _lay(layer: Layer, ram: mmap.mmap, least: int, backed: bytearray) -> None:
    """Lay a file over those before it; runs shorter than `least` are read. `backed` has 1 for each page mapped."""
    address = address_of(ram)
    for start, end in layer.zero:
        map_at(address + start, end - start)
        backed[start // PAGE : end // PAGE] = bytes((end - start) // PAGE)
    with memoryview(ram) as view:
        for start, end in layer.held:
            if end - start >= least:
                map_at(address + start, end - start, layer.fd, start)
                backed[start // PAGE : end // PAGE] = b"\x01" * ((end - start) // PAGE)
            else:
                _read(layer.fd, view, start, end)


def _read(fd: int, ram: memoryview, start: int, end: int) -> None:
    while start < end:
        with ram[start:end] as part:
            size = os.preadv(fd, [part], start)
        if not size:
            raise OSError(0, "it is too short")
        start += size
