"""The hot set: the pages that a guest was seen to need soon after a restore, brought in before it runs.

It is no part of a snapshot, which is never written to, but a file of the user's cache under the snapshot's id. The
host does the work, many pages a call; faults it would serve one by one are saved, and on a cold file the waits.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from emu.cache import Cache
from emu.errors import BadSnapshot, EmuError
from emu.memory import MIB, GuestMemory, Ranges
from emu.snapshot.codec import decode, encode
from emu.snapshot.pages import PAGE, touched

__all__ = ["ENVIRONMENT", "HotSet", "eager_bytes", "find", "populate", "record"]

ENVIRONMENT = "EMU_EAGER_MIB"
DEFAULT_MIB = 16
KIND = "hot"                            # folder of the cache

MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23        # Linux 5.14


@dataclass(frozen=True)
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
        plain = json.dumps(encode(HotSet(written, read))).encode()
        cache.store(KIND, identity, lambda file: file.write(plain))


def find(identity: str, size: int, cache: Cache | None = None) -> HotSet | None:
    """The hot set of a snapshot with `size` bytes of RAM, None if none is known."""
    path = (cache or Cache()).find(KIND, identity)
    with suppress(OSError, ValueError, RecursionError, BadSnapshot):
        hot = decode(HotSet, json.loads(path.read_bytes())) if path else None
        if hot and all(_is_part(*part, size) for part in (*hot.written, *hot.read)):
            return hot
    return None


def _is_part(start: int, end: int, size: int) -> bool:
    return 0 <= start < end <= size and not start % PAGE and not end % PAGE


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
