"""The RAM file of a snapshot: written sparse, mapped back privately.

A byte of RAM stands at its own offset, long runs of zeros are holes, and what is restored is mapped straight from the
file. The file of an incremental snapshot holds only what differs from its base, and is laid over it. A trailer page
at its end ties a file to its header.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from devices.frozen import frozen
from emu.errors import BadSnapshot
from emu.memory import MIB, GuestMemory, Ranges, new_ram
from emu.snapshot.libc import address_of, map_at
from emu.snapshot.pages import PAGE, SAME, contents, differences, runs

__all__ = [
    "Layer", "Part", "Progress", "RamFile", "map_files", "plan_delta", "plan_whole", "ram_digest", "trailer",
    "write_ram",
]

CHUNK = MIB
MAPPED_PAGES = 16                       # shorter parts are read: it costs the same, and a process has few mappings
MOST_MAPPED = 8192                      # parts; the host allows a process 65,530 mappings
MOST_AT_ONCE = 1024                     # parts: IOV_MAX
GAP_PAGES = 16                          # zeros between data that are mapped along with it
TRAILER = struct.Struct("16s16s32s")    # magic, id, digest of the header
TRAILER_MAGIC = b"pvemu snapshot\0\0"

Progress = Callable[[int, int], object]
"""Called with bytes done and bytes in all."""


class Part(NamedTuple):
    """A part of RAM that a file holds: its offsets in RAM, and where in the file it stands."""

    start: int
    end: int
    at: int


@frozen
class Layer:
    """What a RAM file holds.

    Attributes:
        parts: in order.
        zero: long parts that are zero where the file below has something.
        size: bytes of the file before its trailer.
    """

    parts: tuple[Part, ...]
    zero: Ranges
    size: int

    @classmethod
    def whole(cls, size: int, held: Ranges) -> Layer:
        """All of RAM, of that many bytes, at its own offsets."""
        return cls(tuple(Part(start, end, start) for start, end in held), (), size)

    @classmethod
    def delta(cls, held: Ranges, zero: Ranges) -> Layer:
        """What differs from the file below, one part behind the other: holes would make thousands of extents."""
        parts, at = [], 0
        for start, end in held:
            parts.append(Part(start, end, at))
            at += end - start
        return cls(tuple(parts), zero, at)

    @property
    def held(self) -> Ranges:
        """The parts as ranges."""
        return tuple((part.start, part.end) for part in self.parts)


@frozen
class RamFile:
    """One RAM file of a chain: the snapshot's name, for messages; the file, open for reading; what it holds."""

    name: str
    fd: int
    layer: Layer


def plan_whole(memory: GuestMemory) -> Layer:
    """All of a memory; short runs of zeros are taken for data, so that there are not too many parts."""
    states = contents(memory)
    gap = GAP_PAGES
    while len(held := runs(states, b"[\x02]+(?:[\x00]{1,%d}[\x02]+)*" % gap)) > MOST_MAPPED:
        gap *= 2
    return Layer.whole(memory.size, held)


def plan_delta(memory: GuestMemory, base: mmap.mmap) -> Layer:
    """What differs from the base that the memory began as."""
    states = differences(memory, base)
    zero = runs(states, b"[\x01]{%d,}" % MAPPED_PAGES)
    for start, end in zero:
        states[start // PAGE : end // PAGE] = bytes((SAME,)) * ((end - start) // PAGE)
    return Layer.delta(runs(states, b"[\x01\x02]+"), zero)


def write_ram(fd: int, memory: GuestMemory, layer: Layer, progress: Progress) -> str:
    """Write a file without its trailer.

    Returns:
        SHA-256 of what is held, as hexadecimal.

    Raises:
        OSError: the host refused.
    """
    from hashlib import sha256

    digest = sha256()
    done, total = 0, sum(part.end - part.start for part in layer.parts)
    with memoryview(memory.ram) as ram:
        progress(0, total)
        for part in layer.parts:
            for start in range(part.start, part.end, CHUNK):
                end = min(start + CHUNK, part.end)
                with ram[start:end] as view:
                    digest.update(view)
                _write(fd, ram, start, end, part.at + start - part.start)
                done += end - start
                progress(done, total)
    return digest.hexdigest()


# An exception's traceback keeps what its frames hold, and memory of which there is a view cannot be closed: so every
# view is released, however it ends.


def _write(fd: int, ram: memoryview, start: int, end: int, offset: int) -> None:
    while start < end:
        with ram[start:end] as view:
            size = os.pwrite(fd, view, offset)
        start, offset = start + size, offset + size


def ram_digest(file: RamFile, progress: Progress) -> str:
    """SHA-256 of what a file holds, as `write_ram` has found it.

    Raises:
        OSError: the host refused.
    """
    from hashlib import sha256

    digest = sha256()
    done, total = 0, sum(part.end - part.start for part in file.layer.parts)
    for part in file.layer.parts:
        for offset in range(part.at, part.at + part.end - part.start, CHUNK):
            content = os.pread(file.fd, min(CHUNK, part.at + part.end - part.start - offset), offset)
            digest.update(content)
            done += len(content)
            progress(done, total)
    return digest.hexdigest()


def trailer(identity: str, header_digest: str) -> bytes:
    """The page behind RAM; other than exactly this, it is another snapshot's.

    Args:
        identity: the snapshot's id, as hexadecimal.
        header_digest: SHA-256 of its header, as hexadecimal.
    """
    return TRAILER.pack(TRAILER_MAGIC, bytes.fromhex(identity), bytes.fromhex(header_digest)).ljust(PAGE, b"\0")


def map_files(files: Sequence[RamFile], size: int, origin: str, copy: bool) -> GuestMemory:
    """RAM as the last of the files has it, each laid over those before it.

    Args:
        files: what is to be mapped.
        size: bytes of RAM.
        origin: id of the last snapshot.
        copy: read all of it now, and map nothing.

    Raises:
        EmuError: the host has no room.
        BadSnapshot: a file cannot be mapped or read.
    """
    least = size + 1 if copy else MAPPED_PAGES * PAGE
    while sum(part.end - part.start >= least for file in files for part in file.layer.parts) > MOST_MAPPED:
        least *= 2
    ram = new_ram(size)
    if copy:
        with suppress(OSError):
            ram.madvise(mmap.MADV_HUGEPAGE)         # before the pages are there
    backed = bytearray(size // PAGE)
    for file in files:
        try:
            _lay(file, ram, least, backed)
        except OSError as error:
            raise BadSnapshot(f"{file.name}: its RAM cannot be read: {error.strerror}") from None
    return GuestMemory(size, ram, runs(backed, b"[\x01]+"), origin)


def _lay(file: RamFile, ram: mmap.mmap, least: int, backed: bytearray) -> None:
    """Lay a file over those before it; parts shorter than `least` are read. `backed` has 1 for each page mapped."""
    address = address_of(ram)
    for start, end in file.layer.zero:
        map_at(address + start, end - start)
        backed[start // PAGE : end // PAGE] = bytes((end - start) // PAGE)
    short: list[Part] = []
    for part in file.layer.parts:
        size = part.end - part.start
        if size >= least:
            map_at(address + part.start, size, file.fd, part.at)
            backed[part.start // PAGE : part.end // PAGE] = b"\x01" * (size // PAGE)
        else:
            short.append(part)
    with memoryview(ram) as view:
        while short:
            _read_some(file.fd, view, short)


def _read_some(fd: int, ram: memoryview, parts: list[Part]) -> None:
    """Read the first parts as far as they follow each other in the file, and take them off the list."""
    count, at = 0, parts[0].at
    while count < min(len(parts), MOST_AT_ONCE) and parts[count].at == at:
        at += parts[count].end - parts[count].start
        count += 1
    views = [ram[part.start : part.end] for part in parts[:count]]
    try:
        size = os.preadv(fd, views, parts[0].at)
    finally:
        for view in views:
            view.release()
    if not size:
        raise OSError(0, "it is too short")
    for done, part in enumerate(parts[:count]):
        if size < part.end - part.start:                # the host reads at most 2 GiB at once
            parts[: done + 1] = [Part(part.start + size, part.end, part.at + size)]
            return
        size -= part.end - part.start
    del parts[:count]
