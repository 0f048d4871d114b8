"""The 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst and zero-page.rst): memory laid out for a kernel."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from emu.errors import BadImage
from emu.loader import BootState
from emu.loader.bzimage import HEADER_START
from emu.loader.kernel import Kernel
from emu.loader.memory_map import EBDA, HIGH_MEMORY, Memory, memory_map

__all__ = ["BOARD_SETTINGS", "THROW_AWAY_SETTINGS", "command_line", "load_linux"]

# The board's console; and a panic ends the machine at once, where real hardware would wait for somebody to read the
# screen.
BOARD_SETTINGS = "console=ttyS0 panic=-1"

# The default guest is thrown away after use and the emulator is its wall: what defends a guest against its own
# programs is off. norandmaps matters most: programs at the same addresses each time reuse translated code.
THROW_AWAY_SETTINGS = (
    "norandmaps mitigations=off init_on_alloc=0 apparmor=0 audit=0 randomize_kstack_offset=off nowatchdog quiet "
    "tsc=reliable no_timer_check cryptomgr.notests"
)

# Where things go below 1 MiB; a kernel never lies there.
GDT = 0x500
ZERO_PAGE = 0x7000
STACK_TOP = 0x8FF0
PML4 = 0x9000
PDPT = 0xA000
PAGE_DIRECTORIES = 0xB000
COMMAND_LINE = 0x20000

# Zero page (struct boot_params)
ACPI_RSDP_ADDR = 0x070
ALT_MEM_K = 0x1E0
E820_ENTRIES = 0x1E8
TYPE_OF_LOADER = 0x210
RAMDISK_IMAGE = 0x218
CMD_LINE_PTR = 0x228
E820_TABLE = 0x2D0
VID_MODE = 0x1FA
LOADER_UNKNOWN = 0xFF
VIDEO_NORMAL = 0xFFFF

PAGE = 4096
ARCHIVE_ALIGNMENT = 4           # Linux skips zeroes between archives
LARGE_PAGE = 2 << 20
MAPPED_GIB = 4
PRESENT_WRITABLE = 0x3
LARGE = 0x80

# Selectors 0x10 and 0x18, as the protocol asks: flat 64-bit code, flat data; accessed already.
GDT_ENTRIES = (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)


def command_line(extra: str | None = None, replace: str | None = None, as_shipped: bool = False) -> str:
    """Put a guest's command line together; of a setting given twice Linux takes the later one.

    Args:
        extra: settings put behind all others.
        replace: settings taken instead of this module's, the board's included.
        as_shipped: leave out the throw-away settings, so that the distribution's own apply.
    """
    if replace is not None:
        parts = [replace]
    else:
        parts = [BOARD_SETTINGS] if as_shipped else [BOARD_SETTINGS, THROW_AWAY_SETTINGS]
    return " ".join(part.strip() for part in [*parts, extra or ""] if part.strip())


def load_linux(
    memory: Memory, kernel: Kernel, archives: Sequence[bytes | memoryview], cmdline: str, rsdp: int = 0
) -> BootState:
    """Lay kernel, initramfs, command line and tables out in guest memory.

    Args:
        memory: zeroed guest memory; RAM from 0 to `low_size`, and `high_size` bytes of it from 4 GiB on.
        kernel: goes where its segments say.
        archives: the parts of the initramfs, expanded; put one behind the other, as high as the kernel allows.
        cmdline: the kernel's command line.
        rsdp: guest-physical address of the ACPI tables' root pointer, 0 if there are none.

    Raises:
        BadImage: the memory is too small for the kernel or the initramfs, or the command line is too long.
    """
    _load_kernel(memory, kernel)
    page = bytearray(PAGE)
    page[HEADER_START : HEADER_START + len(kernel.setup_header)] = kernel.setup_header
    page[TYPE_OF_LOADER] = LOADER_UNKNOWN
    struct.pack_into("<H", page, VID_MODE, VIDEO_NORMAL)
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, rsdp)
    struct.pack_into("<I", page, ALT_MEM_K, (memory.low_size - HIGH_MEMORY) >> 10)
    _put_command_line(memory, kernel, cmdline, page)
    _put_initrd(memory, kernel, archives, page)
    _put_memory_map(memory, page)
    memory.write(ZERO_PAGE, bytes(page))
    memory.write(PML4, _page_tables())
    memory.write(GDT, struct.pack("<4Q", *GDT_ENTRIES))
    return BootState(
        rip=kernel.entry,
        rsi=ZERO_PAGE,
        rsp=STACK_TOP,
        cr3=PML4,
        gdt_base=GDT,
        gdt_limit=8 * len(GDT_ENTRIES) - 1,
    )


def _load_kernel(memory: Memory, kernel: Kernel) -> None:
    if kernel.start < HIGH_MEMORY:
        raise BadImage(f"{kernel.name} wants to lie at {kernel.start:#x}, below 1 MiB; that is the loader's")
    if kernel.end > memory.low_size:
        need = -(-kernel.end // (1 << 20))
        raise BadImage(f"{memory.low_size >> 20} MiB of memory is too small for {kernel.name}: it needs {need} MiB")
    for segment in kernel.segments:
        memory.view(segment.address, len(segment.data))[:] = segment.data


def _put_command_line(memory: Memory, kernel: Kernel, cmdline: str, page: bytearray) -> None:
    text = cmdline.encode("utf-8", "surrogateescape")
    room = min(kernel.command_line_max, EBDA - COMMAND_LINE - 1)
    if len(text) > room:
        raise BadImage(f"the command line has {len(text)} bytes; {kernel.name} takes {room}")
    if b"\0" in text:
        raise BadImage("the command line has a NUL byte in it")
    memory.write(COMMAND_LINE, text + b"\0")
    struct.pack_into("<I", page, CMD_LINE_PTR, COMMAND_LINE)


def _put_initrd(memory: Memory, kernel: Kernel, archives: Sequence[bytes | memoryview], page: bytearray) -> None:
    size = sum(_aligned(len(archive), ARCHIVE_ALIGNMENT) for archive in archives)
    if not size:
        struct.pack_into("<II", page, RAMDISK_IMAGE, 0, 0)
        return
    top = min(memory.low_size, kernel.initrd_address_max + 1)
    address = (top - size) // PAGE * PAGE
    if address < kernel.end:
        have = max(0, top - kernel.end)
        raise BadImage(
            f"the initramfs of {size / (1 << 20):.1f} MiB does not fit: "
            f"{memory.low_size >> 20} MiB of memory leave {have >> 20} MiB beside {kernel.name}"
        )
    place = address
    for archive in archives:
        memory.view(place, len(archive))[:] = archive
        place += _aligned(len(archive), ARCHIVE_ALIGNMENT)
    # Both below 4 GiB, so the upper halves in ext_ramdisk_image and ext_ramdisk_size stay zero.
    struct.pack_into("<II", page, RAMDISK_IMAGE, address, size)


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _put_memory_map(memory: Memory, page: bytearray) -> None:
    regions = memory_map(memory)
    for number, region in enumerate(regions):
        struct.pack_into("<QQI", page, E820_TABLE + 20 * number, *region)
    page[E820_ENTRIES] = len(regions)


def _page_tables() -> bytes:
    """PML4, PDPT and four page directories, one behind the other: the first 4 GiB mapped one to one."""
    pml4 = struct.pack("<Q", PDPT | PRESENT_WRITABLE).ljust(PAGE, b"\0")
    directories = (PAGE_DIRECTORIES + number * PAGE | PRESENT_WRITABLE for number in range(MAPPED_GIB))
    pdpt = struct.pack(f"<{MAPPED_GIB}Q", *directories).ljust(PAGE, b"\0")
    flags = LARGE | PRESENT_WRITABLE
    entries = range(flags, (MAPPED_GIB << 30) + flags, LARGE_PAGE)
    return pml4 + pdpt + struct.pack(f"<{len(entries)}Q", *entries)
