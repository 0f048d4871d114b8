"""The hot set: the pages that a guest was seen to need soon after a restore, brought in before it runs.

It is no part of a snapshot, which is never written to, but a file of the user's cache under the snapshot's id. The
host does the work, many pages a call; faults it would serve one by one are saved, and on a cold file the waits.
"""

from __future__ import annotations

import errno
import mmap
import os
from array import array
from collections.abc import Mapping
from contextlib import suppress

from devices.frozen import frozen
from emu.cache import Cache
from emu.errors import EmuError
from emu.memory import MIB, GuestMemory, Ranges
from emu.snapshot.pages import PAGE, touched

__all__ = ["ENVIRONMENT", "HotSet", "eager_bytes", "find", "populate", "record"]

ENVIRONMENT = "EMU_EAGER_MIB"
DEFAULT_MIB = 16
KIND = "hot"                            # folder of the cache
NUMBER = "I"                            # 32 bits; how many ranges were written, then first and last page of every one
READ_GAP = 16 * PAGE                    # to have a few more pages mapped is cheaper than another call

MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23        # Linux 5.14


@frozen
class HotSet:
    """Parts of RAM that were written, and others that were only read."""

    written: Ranges
    read: Ranges


def eager_bytes(environment: Mapping[str, str] = os.environ) -> int:
    """How much to populate if nobody says: $EMU_EAGER_MIB, else 16 MiB.

    Raises:
        EmuError: the variable holds no number.
    """
    text = environment.get(ENVIRONMENT, str(DEFAULT_MIB))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise EmuError(f"{ENVIRONMENT}={text}: it takes a number of MiB, 0 for none")
    return int(text) * MIB


def record(identity: str, memory: GuestMemory, cache: Cache | None = None) -> None:
    """Keep what the guest has needed of a snapshot until now; nothing is kept if that is known already.

    Args:
        identity: the snapshot's id.
        memory: mapped from it, and nothing of it populated.
        cache: None: the user's.
    """
    cache = cache or Cache()
    if cache.find(KIND, identity) is None:
        read, written = touched(memory)
        parts = *written, *_closed(read, READ_GAP)
        numbers = array(NUMBER, [len(written), *(offset // PAGE for part in parts for offset in part)])
        cache.store(KIND, identity, lambda file: file.write(numbers.tobytes()))


def _closed(ranges: Ranges, gap: int) -> Ranges:
    """Ranges without the gaps up to a size."""
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and start - joined[-1][1] <= gap:
            start = joined.pop()[0]
        joined.append((start, end))
    return tuple(joined)


def find(identity: str, size: int, cache: Cache | None = None) -> HotSet | None:
    """The hot set of a snapshot with `size` bytes of RAM, None if none is known."""
    path = (cache or Cache()).find(KIND, identity)
    if path is None:
        return None
    numbers = array(NUMBER)
    with suppress(OSError, ValueError):
        numbers.frombytes(path.read_bytes())
    if len(numbers) % 2 == 0:               # nothing at all, too
        return None
    parts = tuple((first * PAGE, last * PAGE) for first, last in zip(numbers[1::2], numbers[2::2], strict=True))
    if numbers[0] > len(parts) or any(start >= end or end > size for start, end in parts):
        return None
    return HotSet(parts[: numbers[0]], parts[numbers[0] :])


def populate(memory: GuestMemory, hot: HotSet, budget: int) -> int:
    """Bring pages in, those to be written first, as copies.

    Args:
        memory: mapped from the snapshot.
        hot: its hot set.
        budget: the most bytes.

    Returns:
        Bytes brought in.

    Raises:
        OSError: the file cannot be read, or the host has no room.
    """
    left = budget
    for ranges, advice in ((hot.written, MADV_POPULATE_WRITE), (hot.read, MADV_POPULATE_READ)):
        for start, end in ranges:
            size = min(end - start, left // PAGE * PAGE)
            if size:
                _bring_in(memory.ram, advice, start, size)
                left -= size
    return budget - left


def _bring_in(ram: mmap.mmap, advice: int, start: int, size: int) -> None:
    try:
        ram.madvise(advice, start, size)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        a_byte_a_page = slice(start, start + size, PAGE)        # a kernel that does not know the advice
        content = ram[a_byte_a_page]
        if advice == MADV_POPULATE_WRITE:
            ram[a_byte_a_page] = content
