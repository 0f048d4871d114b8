"""Small kernels and guest memory for the loaders' tests."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable, Sequence

import lz4.block
import zstandard

PAYLOAD_AT = 0x400  # behind the header: the boot sector and one sector of setup
LOAD_ADDRESS = 0x1000000
CODE = bytes(range(256)) * 8

Load = tuple[int, int, bytes, int]
"""p_paddr, p_vaddr, data, p_memsz."""


class FakeMemory:
    """RAM that notes what was written outside of it."""

    def __init__(self, low_size: int, high_size: int = 0) -> None:
        self.low_size, self.high_size = low_size, high_size
        self.ram = bytearray(low_size)

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        self.view(gpa, len(data))[:] = data

    def view(self, gpa: int, size: int) -> memoryview:
        assert gpa >= 0 and gpa + size <= self.low_size
        return memoryview(self.ram)[gpa : gpa + size]


def elf(
    loads: Sequence[Load] = ((LOAD_ADDRESS, 0xFFFFFFFF81000000, CODE, len(CODE) + 4096),),
    entry: int = LOAD_ADDRESS,
    machine: int = 62,
    kind: int = 2,
) -> bytes:
    """An ELF-64 executable; machine 62 is x86-64, kind 2 an executable."""
    head = struct.pack("<4s5B7xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, kind, machine, 1, entry, 64, 0, 0, 64, 56,
                       len(loads), 64, 0, 0)  # fmt: skip
    offset = len(head) + 56 * len(loads)
    table = body = b""
    for paddr, vaddr, data, memsz in loads:
        table += struct.pack("<IIQQQQQQ", 1, 7, offset + len(body), vaddr, paddr, len(data), memsz, 4096)
        body += data
    return head + table + body


def elf32() -> bytes:
    """A 32-bit x86 executable's header."""
    fields = (b"\x7fELF", 1, 1, 1, 2, 3, 1, 0x100000, 0, 0, 0, 52, 32, 0, 40, 0, 0)
    return struct.pack("<4s3B9xHHIIIIIHHHHHH", *fields).ljust(128, b"\0")


def with_size(data: bytes, compressed: bytes) -> bytes:
    return compressed + struct.pack("<I", len(data))


def lz4_legacy(data: bytes) -> bytes:
    block: bytes = lz4.block.compress(data, store_size=False)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": lambda data: with_size(data, lzma.compress(data, check=lzma.CHECK_CRC32)),
    "xz with the x86 filter": lambda data: with_size(
        data, lzma.compress(data, filters=[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2}])
    ),
    "lzma": lambda data: with_size(data, lzma.compress(data, lzma.FORMAT_ALONE)),
    "bzip2": lambda data: with_size(data, bz2.compress(data)),
    "zstd": lambda data: with_size(data, zstandard.compress(data)),
    "lz4": lambda data: with_size(data, lz4_legacy(data)),
    "none": lambda data: data,
}


def bzimage(
    vmlinux: bytes | None = None,
    compression: str = "gzip",
    version: int = 0x20F,
    xloadflags: int = 1,
    command_line_max: int = 2047,
) -> bytes:
    """A bzImage with one sector of setup and `vmlinux` as its payload."""
    payload = COMPRESSIONS[compression](elf() if vmlinux is None else vmlinux)
    image = bytearray(PAYLOAD_AT)
    image[0x1F1] = 1
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x200:0x206] = b"\xeb\x6aHdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<H", image, 0x20E, 0x100)
    image[0x300:0x30A] = b"9.9.9-test"
    image[0x211] = 1
    struct.pack_into("<I", image, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<HI", image, 0x236, xloadflags, command_line_max)
    struct.pack_into("<II", image, 0x248, 0, len(payload))
    return bytes(image) + payload
