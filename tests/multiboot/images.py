"""Files of multiboot kernels: ELF32, ELF64 and flat ones, right or wrong in any field."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.multiboot.listing import START, assemble

__all__ = ["BASE", "ENTRY", "Load", "elf", "flat", "header", "kernel"]

MAGIC = 0x1BAD_B002
ALIGNED, MEMORY, VIDEO, ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
BASE = 0x10_0000
ENTRY = START
EM_386, EM_X86_64 = 3, 62

Load = tuple[int, int, bytes, int]
"""p_paddr, p_vaddr, data, p_memsz."""


def header(flags: int = ALIGNED | MEMORY, addresses: Sequence[int] = (), checksum: int | None = None) -> bytes:
    """A multiboot header, with a right checksum unless another is given."""
    if checksum is None:
        checksum = -(MAGIC + flags)
    words = MAGIC, flags, checksum & 0xFFFF_FFFF, *addresses
    return struct.pack(f"<{len(words)}I", *words)


def kernel(name: str, top: bytes | None = None) -> bytes:
    """A kernel of the listings as it lies in memory from BASE on, its header before it."""
    return (header() if top is None else top).ljust(ENTRY - BASE, b"\0") + assemble(name)


def elf(
    loads: Sequence[Load], bits: int = 32, entry: int = ENTRY, machine: int | None = None, kind: int = 2
) -> bytes:
    """An ELF executable with these segments."""
    word = "I" if bits == 32 else "Q"
    head = struct.Struct(f"<4s5B7xHHI3{word}I6H")
    segment = struct.Struct("<8I" if bits == 32 else "<2I6Q")
    if machine is None:
        machine = EM_386 if bits == 32 else EM_X86_64
    offset = head.size + segment.size * len(loads)
    table = body = b""
    for paddr, vaddr, data, memsz in loads:
        at = offset + len(body)
        if bits == 32:
            table += segment.pack(1, at, vaddr, paddr, len(data), memsz, 7, 4096)
        else:
            table += segment.pack(1, 7, at, vaddr, paddr, len(data), memsz, 4096)
        body += data
    fields = (b"\x7fELF", bits // 32, 1, 1, 0, 0, kind, machine, 1, entry, head.size, 0, 0)
    return head.pack(*fields, head.size, segment.size, len(loads), 0, 0, 0) + table + body


def flat(
    name: str, load: int = BASE, load_end: int = 0, bss_end: int = 0, entry: int = ENTRY, place: int | None = None
) -> bytes:
    """A file without a format, whose header says where it goes; `place` is where the header says that it is itself."""
    addresses = BASE if place is None else place, load, load_end, bss_end, entry
    return kernel(name, header(ALIGNED | MEMORY | ADDRESSES, addresses))
