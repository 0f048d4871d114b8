"""The bzImage container (Linux, Documentation/arch/x86/boot.rst): setup header and compressed kernel."""

from __future__ import annotations

import struct
from typing import NamedTuple

from emu.errors import BadImage
from emu.loader.decompress import decompress, identify
from emu.loader.elf import ELF_MAGIC

__all__ = ["HEADER_START", "BzImage", "is_bzimage", "parse_bzimage", "synthetic_header", "unpack_payload"]

# Offsets into the file, and into the zero page, where the header is copied to the same place.
HEADER_START = 0x1F1
SETUP_SECTS = 0x1F1
BOOT_FLAG = 0x1FE
HEADER_END_BYTE = 0x201  # the displacement of the jump at 0x200: the header ends at 0x202 + this
MAGIC = 0x202
VERSION = 0x206
KERNEL_VERSION = 0x20E  # where the version string is, less 0x200
LOADFLAGS = 0x211
INITRD_ADDR_MAX = 0x22C
KERNEL_ALIGNMENT = 0x230
RELOCATABLE_KERNEL = 0x234
XLOADFLAGS = 0x236
CMDLINE_SIZE = 0x238
PAYLOAD_OFFSET = 0x248
PREF_ADDRESS = 0x258
HEADER_LEAST_END = 0x268

ZERO_PAGE_HEADER_END = 0x290  # struct boot_params: what follows the setup header
SECTOR = 512
HEADER_MAGIC = b"HdrS"
BOOT_FLAG_VALUE = 0xAA55
VERSION_LEAST = 0x20C  # xloadflags, which says whether there is a 64-bit entry
LOADED_HIGH = 1
XLF_KERNEL_64 = 1
EXPANDED_MAX = 1 << 30
DEFAULT_INITRD_ADDR_MAX = 0x7FFFFFFF
DEFAULT_CMDLINE_SIZE = 2047
LARGE_PAGE = 2 << 20


class BzImage(NamedTuple):
    """A bzImage taken apart: `header` is what belongs at 0x1F1 of the zero page."""

    header: bytes
    version: str
    payload: memoryview


def is_bzimage(image: bytes | memoryview) -> bool:
    """Whether the file says of itself that it is a Linux kernel for x86 (of any age and width)."""
    return bytes(image[MAGIC : MAGIC + 4]) == HEADER_MAGIC


def parse_bzimage(image: memoryview, what: str) -> BzImage:
    """Take a bzImage apart.

    Args:
        image: the whole file.
        what: names it in error messages.

    Raises:
        BadImage: truncated, too old, or without a 64-bit entry.
    """
    if len(image) < HEADER_LEAST_END:
        raise BadImage(f"{what} is a truncated bzImage")
    (boot_flag,) = struct.unpack_from("<H", image, BOOT_FLAG)
    (version,) = struct.unpack_from("<H", image, VERSION)
    (xloadflags,) = struct.unpack_from("<H", image, XLOADFLAGS)
    if boot_flag != BOOT_FLAG_VALUE or not image[LOADFLAGS] & LOADED_HIGH:
        raise BadImage(f"{what} is no bzImage: its boot header is damaged or of the old zImage kind")
    if version < VERSION_LEAST:
        major, minor = version >> 8, version & 0xFF
        raise BadImage(f"{what} speaks boot protocol {major}.{minor:02d}; 2.12 (Linux 3.8) or later is needed")
    if not xloadflags & XLF_KERNEL_64:
        raise BadImage(f"{what} is a 32-bit kernel; this machine starts 64-bit ones")
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    offset += ((image[SETUP_SECTS] or 4) + 1) * SECTOR
    if offset + length > len(image):
        raise BadImage(f"{what} is a truncated bzImage: {offset + length} bytes expected, {len(image)} there")
    end = min(HEADER_END_BYTE + 1 + image[HEADER_END_BYTE], ZERO_PAGE_HEADER_END)
    header = bytes(image[HEADER_START : max(end, HEADER_LEAST_END)])
    return BzImage(header, _version_string(image), image[offset : offset + length])


def unpack_payload(payload: memoryview, what: str) -> bytes:
    """Decompress the ELF kernel inside a bzImage.

    Every compression has the expanded size as a 32-bit word behind it (for gzip that is the format's own), which
    tells most damage that the format itself has no checksum for.

    Raises:
        BadImage: damaged, or compressed in a way that is not supported.
    """
    if bytes(payload[:4]) == ELF_MAGIC:
        return bytes(payload)
    name = identify(payload)
    if name is None or len(payload) < 8:
        raise BadImage(f"the kernel inside {what} is damaged, or compressed in an unknown way")
    (expected,) = struct.unpack_from("<I", payload, len(payload) - 4)
    stream = payload if name == "gzip" else payload[:-4]
    expanded = decompress(stream, EXPANDED_MAX, what).data
    if len(expanded) != expected:
        raise BadImage(f"the {name} data of {what} is damaged ({len(expanded)} bytes expanded, {expected} expected)")
    if expanded[:4] != ELF_MAGIC:
        raise BadImage(f"the kernel inside {what} is not an ELF file")
    return expanded


def synthetic_header(lowest: int, size: int) -> bytes:
    """The setup header a vmlinux would have had in its bzImage, as far as the kernel and this loader read it.

    Args:
        lowest, size: the kernel's place in guest-physical memory, in bytes.
    """
    page = bytearray(HEADER_LEAST_END)
    struct.pack_into("<H", page, BOOT_FLAG, BOOT_FLAG_VALUE)
    page[0x200:0x202] = bytes((0xEB, HEADER_LEAST_END - 0x202))
    page[MAGIC : MAGIC + 4] = HEADER_MAGIC
    struct.pack_into("<H", page, VERSION, VERSION_LEAST)
    page[LOADFLAGS] = LOADED_HIGH
    struct.pack_into("<II", page, INITRD_ADDR_MAX, DEFAULT_INITRD_ADDR_MAX, LARGE_PAGE)
    page[RELOCATABLE_KERNEL : RELOCATABLE_KERNEL + 2] = bytes((1, LARGE_PAGE.bit_length() - 1))
    struct.pack_into("<H", page, XLOADFLAGS, XLF_KERNEL_64)
    struct.pack_into("<I", page, CMDLINE_SIZE, DEFAULT_CMDLINE_SIZE)
    struct.pack_into("<QI", page, PREF_ADDRESS, lowest, size)
    return bytes(page[HEADER_START:])


def _version_string(image: memoryview) -> str:
    (pointer,) = struct.unpack_from("<H", image, KERNEL_VERSION)
    if not pointer:
        return ""
    text = bytes(image[pointer + 0x200 : pointer + 0x200 + 256]).split(b"\0")[0]
    return text.decode("ascii", "replace")
