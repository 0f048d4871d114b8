"""Guest kernels, whatever they are packed in, as pieces ready to be copied into guest memory.

The first time a kernel is seen it is decompressed and its ELF file read. What is left of that, the bytes of its
segments without the pages of zeroes and a few lines of description, is kept in the cache: later loads map it.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

from devices.frozen import frozen
from emu.cache import Cache, content_key
from emu.errors import BadImage
from emu.loader.bzimage import (
    CMDLINE_SIZE,
    HEADER_START,
    INITRD_ADDR_MAX,
    MAGIC,
    is_bzimage,
    parse_bzimage,
    synthetic_header,
    unpack_payload,
)
from emu.loader.elf import ELF_MAGIC, Segment, parse_elf

__all__ = ["Kernel", "load_kernel", "map_file"]

KIND = "kernel"
FLAT_VERSION = b"flat kernel 1"
FLAT_ALIGN = 4096
# Zeroes shorter than this are cheaper to copy than to leave out.
ZERO_RUN = 64 << 10

ARM64_MAGIC_OFFSET = 0x38
ARM64_MAGIC = b"ARM\x64"


@frozen
class Kernel:
    """A kernel ready to load.

    `segments` are in order of guest-physical address and may leave out zeroes; `entry` is the physical address of
    its 64-bit entry; `setup_header` belongs at 0x1F1 of the zero page; `end` is the first address behind the kernel,
    its bss included; `version` is what it calls itself, "" if it does not say.
    """

    name: str
    version: str
    entry: int
    end: int
    segments: tuple[Segment, ...]
    setup_header: bytes

    @property
    def start(self) -> int:
        """The kernel's lowest guest-physical address."""
        return self.segments[0].address

    @property
    def command_line_max(self) -> int:
        """Most bytes of command line that it takes, without the final NUL."""
        return self._header_word(CMDLINE_SIZE)

    @property
    def initrd_address_max(self) -> int:
        """Highest guest-physical address an initramfs may occupy."""
        return self._header_word(INITRD_ADDR_MAX)

    def _header_word(self, offset: int) -> int:
        return int.from_bytes(self.setup_header[offset - HEADER_START :][:4], "little")


def load_kernel(path: Path | str, cache: Cache) -> Kernel:
    """Read a bzImage or an ELF vmlinux.

    Args:
        path: the file; it is only read.
        cache: keeps the decompressed form for the next time.

    Raises:
        BadImage: the file is missing, damaged, or no x86-64 Linux kernel.
    """
    image = map_file(path)
    name = os.path.basename(path)
    key = content_key(FLAT_VERSION, image)
    flat = cache.find(KIND, key)
    if flat is None:
        flat = cache.store(KIND, key, _flattener(image, name))
    try:
        return _read_flat(map_file(flat), name)
    except (ValueError, KeyError, TypeError, struct.error):
        raise BadImage(f"the cache entry {flat} is damaged; remove it") from None


def map_file(path: Path | str) -> memoryview:
    """Map a file read-only.

    Raises:
        BadImage: it is missing, empty, a directory, or cannot be read.
    """
    try:
        if os.path.isdir(path):
            raise BadImage(f"{path} is a directory")
        with open(path, "rb") as handle:
            # Populated at once: the pages are all read soon, and one by one their faults cost more than the copying.
            flags = mmap.MAP_PRIVATE | mmap.MAP_POPULATE
            return memoryview(mmap.mmap(handle.fileno(), 0, flags, mmap.PROT_READ))
    except OSError as error:
        raise BadImage(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise BadImage(f"{path} is empty") from None


def _flattener(image: memoryview, name: str) -> Any:
    """Take the image apart now, so that errors come before anything is stored; return the writer for the cache."""
    version, header = "", b""
    if is_bzimage(image):
        parts = parse_bzimage(image, name)
        version, header = parts.version, parts.header
        vmlinux: bytes | memoryview = unpack_payload(parts.payload, name)
    else:
        _refuse_strangers(image, name)
        vmlinux = image
    segments, entry = parse_elf(vmlinux, name)
    start, end = segments[0].address, segments[-1].address + segments[-1].size
    description = {
        "version": version or _find_version(segments),
        "entry": entry,
        "end": end,
        "header": (header or synthetic_header(start, end - start)).hex(),
    }
    return lambda handle: _write_flat(handle, description, _without_zeroes(segments))


def _refuse_strangers(image: memoryview, name: str) -> None:
    if bytes(image[ARM64_MAGIC_OFFSET : ARM64_MAGIC_OFFSET + 4]) == ARM64_MAGIC:
        raise BadImage(f"{name} is a kernel for another processor (arm64); this machine is x86-64")
    if bytes(image[: len(ELF_MAGIC)]) == ELF_MAGIC:
        return
    if len(image) <= MAGIC and bytes(image[:2]) == b"MZ":
        raise BadImage(f"{name} is a truncated bzImage")
    raise BadImage(f"{name} is no kernel: neither a bzImage, an ELF vmlinux, nor a multiboot kernel")


def _find_version(segments: list[Segment]) -> str:
    """Linux' banner, "Linux version 6.1.0 (builder) ...", without its first two words."""
    for segment in segments:
        if match := re.search(rb"Linux version ([0-9][\x20-\x7e]{1,250})", segment.data):
            return match[1].decode("ascii")
    return ""


def _without_zeroes(segments: list[Segment]) -> list[Segment]:
    """Cut long runs of zero pages out of the segments: fresh guest memory is zero, copying them would only touch it."""
    pieces: list[Segment] = []
    for segment in segments:
        start = 0
        data = segment.data
        while start < len(data):
            stop = start
            while stop < len(data) and any(data[stop : stop + ZERO_RUN]):
                stop += ZERO_RUN
            stop = min(stop, len(data))
            if stop > start:
                pieces.append(Segment(segment.address + start, data[start:stop], stop - start))
            start = stop + ZERO_RUN
    return pieces or [Segment(segments[0].address, segments[0].data[:0], 0)]


def _write_flat(handle: BinaryIO, description: dict[str, Any], segments: list[Segment]) -> None:
    """Page-aligned: a 32-bit length, JSON of that length, then the segments' bytes, each at a multiple of a page."""
    table, offset = [], 0
    for segment in segments:
        table.append((segment.address, offset, len(segment.data)))
        offset += _pages(len(segment.data))
    text = json.dumps({**description, "segments": table}).encode()
    handle.write((struct.pack("<I", len(text)) + text).ljust(_pages(4 + len(text)), b"\0"))
    for segment in segments:
        handle.write(segment.data)
        handle.write(bytes(_pages(len(segment.data)) - len(segment.data)))


def _read_flat(flat: memoryview, name: str) -> Kernel:
    (length,) = struct.unpack_from("<I", flat)
    description = json.loads(bytes(flat[4 : 4 + length]))
    base = _pages(4 + length)
    segments = tuple(
        Segment(address, flat[base + offset : base + offset + size], size)
        for address, offset, size in description["segments"]
    )
    header = bytes.fromhex(description["header"])
    return Kernel(name, description["version"], description["entry"], description["end"], segments, header)


def _pages(size: int) -> int:
    return -(-size // FLAT_ALIGN) * FLAT_ALIGN
