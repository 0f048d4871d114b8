"""Resource descriptors, of which `_CRS` is made (ACPI specification 6.4, section 6.4).

Ranges are fixed, and decoded as they stand: what is described here does not move.
"""

from __future__ import annotations

import struct

from emu.acpi.aml import buffer

__all__ = [
    "dword_memory", "interrupt", "io", "irq", "memory32_fixed", "qword_memory", "resource_template", "word_bus_number",
    "word_io",
]

SMALL_IRQ_NO_FLAGS, SMALL_IO, SMALL_END = 0x22, 0x47, 0x79
LARGE_MEMORY32_FIXED, LARGE_DWORD, LARGE_WORD, LARGE_INTERRUPT, LARGE_QWORD = 0x86, 0x87, 0x88, 0x89, 0x8A

IO_DECODE_16 = 0x01
MEMORY_READ_WRITE = 0x01
INTERRUPT_CONSUMER, INTERRUPT_EDGE, INTERRUPT_ACTIVE_LOW, INTERRUPT_SHARED = 0x01, 0x02, 0x04, 0x08

RANGE_MEMORY, RANGE_IO, RANGE_BUS = range(3)
RANGE_FIXED = 0x0C                  # both ends; the device produces the range for those behind it
IO_ENTIRE_RANGE = 0x03              # ISA ports as well as others

NO_CHECKSUM = 0                     # in an end tag: do not check


def resource_template(*descriptors: bytes) -> bytes:
    """ResourceTemplate() { descriptors }: a buffer."""
    return buffer(b"".join(descriptors) + bytes((SMALL_END, NO_CHECKSUM)))


def io(first: int, length: int) -> bytes:
    """Ports that the device has, 16 bits decoded.

    Args:
        first: port number.
        length: ports, at most 255.
    """
    return struct.pack("<BBHHBB", SMALL_IO, IO_DECODE_16, first, first, 1, length)


def irq(*numbers: int) -> bytes:
    """ISA interrupts 0..15: edge-triggered, active high, not shared."""
    return struct.pack("<BH", SMALL_IRQ_NO_FLAGS, sum(1 << number for number in set(numbers)))


def interrupt(*gsis: int, level: bool = True, active_low: bool = False, shared: bool = False) -> bytes:
    """Interrupts that the device consumes, by global system interrupt."""
    flags = INTERRUPT_CONSUMER
    flags |= (not level and INTERRUPT_EDGE) | (active_low and INTERRUPT_ACTIVE_LOW) | (shared and INTERRUPT_SHARED)
    return _large(LARGE_INTERRUPT, struct.pack(f"<BB{len(gsis)}I", flags, len(gsis), *gsis))


def memory32_fixed(first: int, length: int) -> bytes:
    """Memory that the device has below 4 GiB, readable and writable."""
    return _large(LARGE_MEMORY32_FIXED, struct.pack("<BII", MEMORY_READ_WRITE, first, length))


def word_bus_number(first: int, last: int) -> bytes:
    """PCI buses behind a host bridge."""
    return _range(LARGE_WORD, "H", RANGE_BUS, 0, first, last)


def word_io(first: int, last: int) -> bytes:
    """Ports that a bridge passes on."""
    return _range(LARGE_WORD, "H", RANGE_IO, IO_ENTIRE_RANGE, first, last)


def dword_memory(start: int, size: int) -> bytes:
    """Memory below 4 GiB that a bridge passes on, not cacheable."""
    return _range(LARGE_DWORD, "I", RANGE_MEMORY, MEMORY_READ_WRITE, start, start + size - 1)


def qword_memory(start: int, size: int) -> bytes:
    """Memory anywhere that a bridge passes on, not cacheable."""
    return _range(LARGE_QWORD, "Q", RANGE_MEMORY, MEMORY_READ_WRITE, start, start + size - 1)


def _range(tag: int, form: str, kind: int, flags: int, first: int, last: int) -> bytes:
    """An address space descriptor (section 6.4.3.5): granularity 0, untranslated."""
    return _large(tag, struct.pack(f"<BBB5{form}", kind, RANGE_FIXED, flags, 0, first, last, 0, last - first + 1))


def _large(tag: int, body: bytes) -> bytes:
    return struct.pack("<BH", tag, len(body)) + body
