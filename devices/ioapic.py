"""Intel 82093AA I/O APIC (datasheet, order number 290566), with the EOI register of later ones (version 0x20).

A pin's level is "asserted or not": devices drive it high when they want service, and the polarity bit, which tells
hardware how to sense that, is kept and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from devices import IrqLine
from devices.apic_message import (
    ADDRESS_DESTINATION_SHIFT,
    ADDRESS_LOGICAL,
    DELIVERY_MODE,
    LEVEL_ASSERT,
    LEVEL_TRIGGERED,
    LOWEST_PRIORITY,
    MASKED,
    MESSAGE_BASE,
    REMOTE_IRR,
    VECTOR,
)
from devices.frozen import frozen

__all__ = ["PINS", "POWER_ON", "SIZE", "IoApic", "IoApicState"]

PINS = 24
SIZE = 0x1000                               # bytes of address space

IOREGSEL, IOWIN, EOI = 0x00, 0x10, 0x40     # offsets
IOAPICID, IOAPICVER, IOAPICARB = range(3)   # what IOREGSEL selects
IOREDTBL = 0x10                             # two registers an entry, low half first

VERSION = (PINS - 1) << 16 | 0x20           # 0x20: with an EOI register
ID_SHIFT, ID_MASK = 24, 0x0F

# Redirection entries; the bits that messages have, too, are in devices.apic_message.
LOGICAL = 0x800
POLARITY_LOW = 0x2000
DESTINATION_SHIFT = 56
WRITABLE_LOW = VECTOR | DELIVERY_MODE | LOGICAL | POLARITY_LOW | LEVEL_TRIGGERED | MASKED
WRITABLE_HIGH = 0xFF00_0000
LOW_HALF = 0xFFFF_FFFF
# NMI, SMI, INIT and ExtINT, which no EOI ends, are edge triggered whatever the trigger bit says.
LEVEL_MASK = LEVEL_TRIGGERED | DELIVERY_MODE & ~LOWEST_PRIORITY


@frozen
class IoApicState:
    """What a snapshot keeps of the I/O APIC.

    `wires` are the levels of every pin's wires in the order in which `IoApic.line` gave them out. A board that is
    put together again asks for its wires in the same order, so each source finds its wire at the level it had left
    it at, and driving it to that level again makes no edge.
    """

    select: int = 0
    identity: int = 0
    entries: tuple[int, ...] = (MASKED,) * PINS
    wires: tuple[tuple[bool, ...], ...] = ((),) * PINS


POWER_ON = IoApicState()


class _Wire:
    """One source's wire to a pin (devices.IrqLine)."""

    __slots__ = ("_drive", "_pin", "level")

    def __init__(self, drive: Callable[[int, bool], None], pin: int, level: bool) -> None:
        self.level = level
        self._drive = drive
        self._pin = pin

    def set(self, level: bool) -> None:
        if level != self.level:
            self.level = level
            self._drive(self._pin, level)


class IoApic:
    """Twenty-four pins, each made into messages as its redirection entry says.

    Args:
        message: takes an interrupt message: its address and its data, as MSI would write them.
        state: registers and levels to start with; see `IoApicState` for the wires.
    """

    def __init__(self, message: Callable[[int, int], None], state: IoApicState = POWER_ON) -> None:
        self._message = message
        self._select = state.select
        self._identity = state.identity
        self._entries = list(state.entries)
        self._wires = [[_Wire(self._drive, pin, level) for level in levels] for pin, levels in enumerate(state.wires)]
        self._high = [sum(levels) for levels in state.wires]        # how many of a pin's wires are high
        self._given = [0] * PINS

    def line(self, pin: int) -> IrqLine:
        """A wire of its own to a pin (0..23), for one source; the pin is high while any of its wires is.

        Raises:
            ValueError: there is no such pin.
        """
        if not 0 <= pin < PINS:
            raise ValueError(f"the I/O APIC has no pin {pin}")
        wires, given = self._wires[pin], self._given[pin]
        self._given[pin] += 1
        if given == len(wires):
            wires.append(_Wire(self._drive, pin, False))
        return wires[given]

    def read(self, offset: int, size: int, /) -> int:
        """Read IOREGSEL or the register it selects; anything but 32 bits at their offsets reads 0."""
        if size != 4:
            return 0
        if offset == IOREGSEL:
            return self._select
        return self._read_selected() if offset == IOWIN else 0

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Write IOREGSEL, the register it selects or EOI; anything but 32 bits at their offsets is ignored."""
        if size != 4:
            return
        if offset == IOREGSEL:
            self._select = value & 0xFF
        elif offset == IOWIN:
            self._write_selected(value)
        elif offset == EOI:
            self.eoi(value & VECTOR)

    def eoi(self, vector: int) -> None:
        """A local APIC has ended a level triggered interrupt; a pin that still is high interrupts again."""
        for pin, entry in enumerate(self._entries):
            if entry & REMOTE_IRR and entry & VECTOR == vector:
                self._entries[pin] = entry & ~REMOTE_IRR
                self._look(pin)

    def save(self) -> IoApicState:
        """The registers, and the levels of all wires."""
        wires = tuple(tuple(wire.level for wire in wires) for wires in self._wires)
        return IoApicState(self._select, self._identity, tuple(self._entries), wires)

    def _read_selected(self) -> int:
        select = self._select
        if IOREDTBL <= select < IOREDTBL + 2 * PINS:
            entry = self._entries[select - IOREDTBL >> 1]
            return entry >> 32 if select & 1 else entry & LOW_HALF
        if select == IOAPICVER:
            return VERSION
        # The arbitration ID is loaded with the ID, and no bus is there on which it would rotate.
        return self._identity << ID_SHIFT if select in (IOAPICID, IOAPICARB) else 0

    def _write_selected(self, value: int) -> None:
        select = self._select
        if select == IOAPICID:
            self._identity = value >> ID_SHIFT & ID_MASK
        if not IOREDTBL <= select < IOREDTBL + 2 * PINS:
            return
        pin = select - IOREDTBL >> 1
        entry = self._entries[pin]
        if select & 1:
            self._entries[pin] = (value & WRITABLE_HIGH) << 32 | entry & LOW_HALF
            return
        kept = entry & ~LOW_HALF | value & WRITABLE_LOW
        # Linux on older versions has no other way to end an interrupt than making its pin edge triggered for a moment.
        self._entries[pin] = kept | entry & REMOTE_IRR if _is_level_triggered(kept) else kept
        self._look(pin)

    def _drive(self, pin: int, level: bool) -> None:
        """One of a pin's wires has changed."""
        self._high[pin] += 1 if level else -1
        if not level or self._high[pin] > 1:
            return
        entry = self._entries[pin]
        if _is_level_triggered(entry):
            self._look(pin)
        elif not entry & MASKED:            # an edge at a masked pin is lost (datasheet, section 3.2.4)
            self._send(entry)

    def _look(self, pin: int) -> None:
        """Send a level triggered pin's interrupt if it is due."""
        entry = self._entries[pin]
        if self._high[pin] and _is_level_triggered(entry) and not entry & (MASKED | REMOTE_IRR):
            self._entries[pin] = entry | REMOTE_IRR
            self._send(entry)

    def _send(self, entry: int) -> None:
        address = MESSAGE_BASE | entry >> DESTINATION_SHIFT << ADDRESS_DESTINATION_SHIFT
        if entry & LOGICAL:
            address |= ADDRESS_LOGICAL
        data = entry & (VECTOR | DELIVERY_MODE)
        if _is_level_triggered(entry):
            data |= LEVEL_TRIGGERED | LEVEL_ASSERT
        self._message(address, data)


def _is_level_triggered(entry: int) -> bool:
    return entry & LEVEL_MASK == LEVEL_TRIGGERED
