"""A buffer in one value: how PV_CONSOLE and PV_RANDOM are told where it is."""

from __future__ import annotations

from hypercalls.call import GuestFault

__all__ = ["IS_BUFFER", "buffer_at", "buffer_value"]

IS_BUFFER = 1 << 63
SIZE_SHIFT = 48
SIZE_MAX = (1 << 63 - SIZE_SHIFT) - 1
ADDRESS_MASK = (1 << SIZE_SHIFT) - 1


def buffer_at(value: int) -> tuple[int, int]:
    """Guest-physical address (bits 47-0) and size in bytes (bits 62-48, at least 1) of a value with bit 63 set.

    Raises:
        GuestFault: bit 63 is clear, or the size is 0.
    """
    address, size = value & ADDRESS_MASK, value >> SIZE_SHIFT & SIZE_MAX
    if not (value & IS_BUFFER and size):
        raise GuestFault
    return address, size


def buffer_value(address: int, size: int) -> int:
    """The value for a buffer.

    Raises:
        ValueError: it is empty or larger than 32,767 bytes, or lies beyond 2**48.
    """
    if not (0 < size <= SIZE_MAX and 0 <= address <= ADDRESS_MASK):
        raise ValueError(f"{size} bytes at {address:#x} do not fit into one value")
    return IS_BUFFER | size << SIZE_SHIFT | address
