"""Accesses to guest memory, many in a row: by the host, by a hypercall's handler, by the guest itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import repeat
from typing import Protocol

from emu.cpu.platform import Exit
from emu.errors import EmuError
from emu.memory import MIB, GuestMemory
from emu.micro import ALIAS, DATA, MicroGuest
from emu.paging import AddressSpace
from hypercalls.call import ACCESS_BUDGET, CallMemory

__all__ = [
    "GUEST", "PLACES", "READ", "SIDES", "SIZES", "VIRTUAL", "WRITE", "Access", "GuestAccess", "HostAccess", "access",
    "places_of",
]

SIZES = 1, 2, 4, 8
READ, WRITE = "read", "write"
HOST, HANDLER, VIRTUAL, GUEST = "host", "handler", "virtual", "guest"
SIDES = HOST, HANDLER, VIRTUAL, GUEST
"""Who: a device; a handler, whose accesses are limited; the same by virtual address; instructions of the guest."""

PAGE, LINE = 0x1000, 64
PLACES: dict[str, Callable[[int], int]] = {
    "aligned": lambda size: 0,
    "unaligned": lambda size: 1,
    "across lines": lambda size: LINE - size // 2,
    "across pages": lambda size: PAGE - size // 2,
}
"""Offset into a page, by a name and the size of an access."""

UNROLLED = 16                           # accesses in a turn of the guest's loop
TIMEOUT_S = 60.0
MOVES = {                               # register A and [rdi]
    (READ, 1): "8a07", (READ, 2): "668b07", (READ, 4): "8b07", (READ, 8): "488b07",
    (WRITE, 1): "8807", (WRITE, 2): "668907", (WRITE, 4): "8907", (WRITE, 8): "488907",
}  # fmt: skip
CLOSE = "ffc90f85{back}f4"              # dec ecx; jnz to the first move; hlt


def places_of(size: int) -> list[str]:
    """Where an access of a size can be; a byte is always aligned."""
    return [*PLACES] if size > 1 else ["aligned"]


class Access(Protocol):
    """One kind of access, over and over."""

    def __call__(self, count: int) -> None:
        """Do it so many times, or a few more."""

    def close(self) -> None:
        """Free what it needs."""


class HostAccess:
    """From Python.

    Args:
        side: `HOST`, `HANDLER` or `VIRTUAL`.
        kind: `READ` or `WRITE`.
        size: bytes.
        place: of `PLACES`.
    """

    def __init__(self, side: str, kind: str, size: int, place: str) -> None:
        self._guest = MicroGuest(memory=GuestMemory(64 * MIB))
        memory, address = self._guest.memory, DATA + PLACES[place](size)
        self._calls = CallMemory(memory, AddressSpace(memory, self._guest.registers))
        reads: dict[str, Callable[[int, int], bytes]] = {
            HOST: memory.read, HANDLER: self._calls.read, VIRTUAL: self._calls.read_virtual,
        }  # fmt: skip
        writes: dict[str, Callable[[int, bytes], None]] = {
            HOST: memory.write, HANDLER: self._calls.write, VIRTUAL: self._calls.write_virtual,
        }  # fmt: skip
        self._do = partial(reads[side], address, size) if kind == READ else partial(writes[side], address, bytes(size))

    def __call__(self, count: int) -> None:
        """The calls, and a loop of Python around them."""
        self._calls.left = ACCESS_BUDGET
        do = self._do
        for _ in repeat(None, count):
            do()

    def close(self) -> None:
        """Free the CPU, whose page tables it was."""
        self._guest.close()


class GuestAccess:
    """By instructions of the guest, `UNROLLED` of them in a loop, on pages that no code is on.

    Args:
        kind: `READ` or `WRITE`.
        size: bytes.
        place: of `PLACES`.
    """

    def __init__(self, kind: str, size: int, place: str) -> None:
        self._guest = MicroGuest()
        moves = bytes.fromhex(MOVES[kind, size]) * UNROLLED
        back = (-len(moves) - 8).to_bytes(4, "little", signed=True)
        self._program = moves + bytes.fromhex(CLOSE.format(back=back.hex()))
        self._address = ALIAS + DATA + PLACES[place](size)

    def __call__(self, count: int) -> None:
        """The instructions, and the way into the guest and back."""
        self._guest.put(self._program, rcx=-(-count // UNROLLED), rdi=self._address)
        if self._guest.go(TIMEOUT_S) is not Exit.HALT:
            raise EmuError("the guest does not halt")

    def close(self) -> None:
        """Free the CPU."""
        self._guest.close()


def access(side: str, kind: str, size: int, place: str) -> closing[Access]:
    """The access, for `with`."""
    made: Access = GuestAccess(kind, size, place) if side == GUEST else HostAccess(side, kind, size, place)
    return closing(made)
