"""Kernels of the Multiboot specification, version 0.6.96: told, checked, and laid out in guest memory.

The section numbers are the specification's. ELF64 files, which it does not know, are started like ELF32 ones: in 32-bit
protected mode, at the physical address of their entry point.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from emu.errors import BadImage
from emu.loader import BootState
from emu.loader.bzimage import is_bzimage
from emu.loader.elf import ELF_MAGIC, Segment, parse_elf
from emu.loader.kernel import map_file
from emu.loader.memory_map import EBDA, HIGH_MEMORY, Memory, memory_map

__all__ = [
    "Module", "MultibootKernel", "is_multiboot", "load_multiboot", "parse_multiboot", "read_modules", "read_multiboot",
]

# The header in the kernel's file, section 3.1
HEADER_MAGIC = 0x1BADB002
SEARCHED = 8192
HEADER_ALIGNMENT = 4
HEADER = struct.Struct("<3I")           # magic, flags, checksum; their sum is zero
ADDRESSES = struct.Struct("<5I")        # header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr
ALIGN_MODULES, MEMORY_INFORMATION, VIDEO_MODE = 1 << 0, 1 << 1, 1 << 2
REQUIREMENTS = 0xFFFF                   # of the flags: what is to be refused if it cannot be had
HAS_ADDRESSES = 1 << 16

# The boot information structure, section 3.3
LOADER_MAGIC = 0x2BADB002               # in EAX when the kernel starts
HAS_MEMORY, HAS_COMMAND_LINE, HAS_MODULES, HAS_MEMORY_MAP, HAS_LOADER_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
PROVIDED = HAS_MEMORY | HAS_COMMAND_LINE | HAS_MODULES | HAS_MEMORY_MAP | HAS_LOADER_NAME
INFORMATION = struct.Struct("<3I 4x 3I 16x 2I 12x I 48x")
MODULE = struct.Struct("<3I 4x")        # mod_start, mod_end, string
REGION = struct.Struct("<I2QI")         # size of what follows, base_addr, length, type
LOADER_NAME = b"pvemu\0"

# Selectors 0x10 and 0x18: flat 32-bit code, flat data; accessed already.
GDT = struct.pack("<4Q", 0, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)

ELF_HEADER_PAGE = 0xFF000               # where ld puts the ELF header of a kernel that is linked to 1 MiB
INFORMATION_START = 0x10000             # where it goes if the kernel leaves room; what is lower is real mode's
PAGE = 4096
KIB, MIB = 1 << 10, 1 << 20
LARGEST_LOW_MEMORY = 3 << 30            # what a larger machine has below 4 GiB


class MultibootKernel(NamedTuple):
    """A kernel ready to load: segments in order of guest-physical address, none empty."""

    name: str
    segments: tuple[Segment, ...]
    entry: int

    @property
    def end(self) -> int:
        """The first address behind the kernel, its bss included."""
        return self.segments[-1].address + self.segments[-1].size


class Module(NamedTuple):
    """A file loaded for the kernel, and the text that goes with it."""

    data: memoryview
    text: str


def is_multiboot(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the magic number where a multiboot header would, and is no bzImage.

    A file that cannot be read has not: those who read all of it say why.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(SEARCHED)
    except OSError:
        return False
    return any(True for _ in _candidates(head)) and not is_bzimage(head)


def read_multiboot(path: str | os.PathLike[str]) -> MultibootKernel:
    """Read a kernel: ELF32, ELF64, or any file whose header says what goes where.

    Raises:
        BadImage: the file cannot be read, is damaged, or asks for what this machine does not have.
    """
    return parse_multiboot(map_file(os.fspath(path)), Path(path).name)


def parse_multiboot(image: memoryview, name: str) -> MultibootKernel:
    """Take a kernel apart; `name` is for messages. Errors as `read_multiboot`."""
    offset, flags = _find_header(image, name)
    if flags & VIDEO_MODE:
        raise BadImage(f"{name} asks for a video mode (bit 2 of its multiboot flags); this machine has no graphics")
    if unknown := flags & REQUIREMENTS & ~(ALIGN_MODULES | MEMORY_INFORMATION):
        raise BadImage(f"{name} asks by its multiboot flags for what version 0.6.96 does not know (bits {unknown:#x})")
    if flags & HAS_ADDRESSES:
        return _placed_by_header(image, offset, name)
    if bytes(image[: len(ELF_MAGIC)]) != ELF_MAGIC:
        raise BadImage(f"{name} is no ELF file, and its multiboot header does not say where it is to lie (bit 16)")
    elf = parse_elf(image, name, (32, 64))
    return MultibootKernel(name, tuple(elf.segments), elf.entry)


def read_modules(text: str) -> list[Module]:
    """Read the modules of a list as QEMU's -initrd takes it: `FILE [WORDS]`, separated by commas.

    The text of each, file name and words, is what the kernel gets as its string.

    Raises:
        BadImage: one of the files cannot be read.
    """
    return [Module(map_file(part.partition(" ")[0]), part) for part in text.split(",")]


def load_multiboot(
    memory: Memory, kernel: MultibootKernel, modules: Sequence[Module], command_line: str
) -> BootState:
    """Lay kernel, modules and boot information out in guest memory.

    Args:
        memory: zeroed guest memory; RAM from 0 to `low_size`, and `high_size` bytes of it from 4 GiB on.
        kernel: goes where its segments say.
        modules: go behind it, each at the start of a page.
        command_line: text for the kernel.

    Raises:
        BadImage: something of it does not fit.
    """
    _load_kernel(memory, kernel)
    places, end = _load_modules(memory, kernel, modules)
    texts = [_terminated(text) for text in (command_line, *(module.text for module in modules))]
    size = len(_information(0, memory, places, texts))
    taken = [(segment.address, segment.address + segment.size) for segment in kernel.segments]
    base = _gap(size, taken, INFORMATION_START, EBDA)
    if base is None:
        base = _gap(size, taken, _pages(end), memory.low_size)
    if base is None:
        raise BadImage(f"the command line of {len(texts[0])} bytes and the like do not fit beside {kernel.name}")
    memory.write(base, _information(base, memory, places, texts))
    return BootState(
        rip=kernel.entry,
        rsi=0,
        rsp=0,
        cr3=None,
        gdt_base=base,
        gdt_limit=len(GDT) - 1,
        rax=LOADER_MAGIC,
        rbx=base + len(GDT),
    )


def _candidates(image: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """Offset, flags and checksum wherever the magic number stands in a header's place."""
    for offset in range(0, min(SEARCHED, len(image)) - HEADER.size + 1, HEADER_ALIGNMENT):
        magic, flags, checksum = HEADER.unpack_from(image, offset)
        if magic == HEADER_MAGIC:
            yield offset, flags, checksum


def _find_header(image: memoryview, name: str) -> tuple[int, int]:
    """Offset and flags of the header."""
    for offset, flags, checksum in _candidates(image):
        if (HEADER_MAGIC + flags + checksum) & 0xFFFF_FFFF == 0:
            return offset, flags
    raise BadImage(f"{name} has a multiboot header with a wrong checksum")


def _placed_by_header(image: memoryview, offset: int, name: str) -> MultibootKernel:
    """Section 3.1.3: the file is loaded as it is, from the byte on that goes to load_addr."""
    if offset + HEADER.size + ADDRESSES.size > len(image):
        raise BadImage(f"{name} is truncated: its multiboot header lies across its end")
    header, load, load_end, bss_end, entry = ADDRESSES.unpack_from(image, offset + HEADER.size)
    start = offset - (header - load)
    if not 0 <= start <= offset:
        raise BadImage(f"{name} has a multiboot header that is not at {header:#x} if {load:#x} is where it is loaded")
    available = len(image) - start
    stored = load_end - load if load_end else available
    if stored > available:
        raise BadImage(f"{name} is truncated: {stored} bytes are to be loaded, {available} are there")
    size = bss_end - load if bss_end else stored
    if not 0 < stored <= size:
        raise BadImage(f"{name} has a multiboot header with ends that lie before their beginnings")
    if not load <= entry < load + size:
        raise BadImage(f"{name} has its entry point {entry:#x} outside of what is loaded")
    return MultibootKernel(name, (Segment(load, image[start : start + stored], size),), entry)


def _load_kernel(memory: Memory, kernel: MultibootKernel) -> None:
    for address, data, size in kernel.segments:
        end = address + size
        if ELF_HEADER_PAGE <= address and memory.low_size < end <= LARGEST_LOW_MEMORY:
            have, need = memory.low_size // MIB, -(-end // MIB)
            raise BadImage(f"{have} MiB of memory is too small for {kernel.name}: it needs {need} MiB")
        if end > EBDA and not ELF_HEADER_PAGE <= address < end <= memory.low_size:
            raise BadImage(f"{kernel.name} is to lie at {address:#x} to {end - 1:#x}, which is not all RAM")
        memory.view(address, len(data))[:] = data


def _load_modules(
    memory: Memory, kernel: MultibootKernel, modules: Sequence[Module]
) -> tuple[list[tuple[int, int]], int]:
    """Where each begins and ends, and the end of all."""
    places = []
    end = max(kernel.end, HIGH_MEMORY)
    for module in modules:
        start = _pages(end)
        end = start + len(module.data)
        if end > memory.low_size:
            raise BadImage(f"{memory.low_size // MIB} MiB of memory is too small for {kernel.name} and its modules")
        memory.view(start, len(module.data))[:] = module.data
        places.append((start, end))
    return places, end


def _terminated(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise BadImage("the command line has a NUL byte in it")
    return data + b"\0"


def _information(base: int, memory: Memory, places: Sequence[tuple[int, int]], texts: Sequence[bytes]) -> bytes:
    """GDT, boot information and what that points to, for guest-physical address `base`."""
    regions = b"".join(REGION.pack(REGION.size - 4, *region) for region in memory_map(memory))
    at_modules = base + len(GDT) + INFORMATION.size
    at_regions = at_modules + MODULE.size * len(places)
    at_name = at_regions + len(regions)
    at_texts = [at_name + len(LOADER_NAME)]
    for text in texts:
        at_texts.append(at_texts[-1] + len(text))
    information = INFORMATION.pack(
        PROVIDED, EBDA // KIB, (memory.low_size - HIGH_MEMORY) // KIB, at_texts[0],
        len(places), at_modules, len(regions), at_regions, at_name,
    )  # fmt: skip
    modules = b"".join(MODULE.pack(*place, text) for place, text in zip(places, at_texts[1:], strict=False))
    return GDT + information + modules + regions + LOADER_NAME + b"".join(texts)


def _gap(size: int, taken: Sequence[tuple[int, int]], start: int, end: int) -> int | None:
    """The first page from `start` on where `size` bytes lie before `end` and beside ranges, which are in order."""
    for first, behind in taken:
        if start + size > first:
            start = max(start, _pages(behind))
    return start if start + size <= end else None


def _pages(address: int) -> int:
    return -(-address // PAGE) * PAGE
