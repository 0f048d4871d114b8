"""MSI-X: interrupts as memory writes (PCI Local Bus specification 3.0, section 6.8.2)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from devices.frozen import frozen

__all__ = ["CONTROL_WRITABLE", "Msix", "MsixState"]

ENTRY = struct.Struct("<QII")           # message address, message data, vector control
ENTRY_SIZE = ENTRY.size
VECTOR_CONTROL = 12                     # offset in an entry
ENTRY_MASKED = 1                        # vector control
ENABLE, FUNCTION_MASK = 1 << 15, 1 << 14        # message control
CONTROL_WRITABLE = ENABLE | FUNCTION_MASK
MOST_VECTORS = 128                      # more do not fit beside each other into a page with room to spare


@frozen
class MsixState:
    """What a snapshot keeps: message control's writable bits, the table, and a bit for each pending vector."""

    control: int
    table: bytes
    pending: int


class Msix:
    """The vectors of one function.

    Args:
        count: vectors, 1 to 128.
        send: performs the write: address, data.
        state: what to start with; None: disabled, every vector masked.

    Raises:
        ValueError: so many cannot be, or the state is not of so many.

    Attributes:
        table: the vector table, a page of a BAR.
        pending: the pending bit array, a page of a BAR.
        enabled: whether the function interrupts by messages, not by its line.
    """

    def __init__(self, count: int, send: Callable[[int, int], None], state: MsixState | None = None) -> None:
        if not 1 <= count <= MOST_VECTORS:
            raise ValueError(f"{count} MSI-X vectors: there can be 1 to {MOST_VECTORS}")
        if state and (len(state.table) != count * ENTRY_SIZE or not 0 <= state.pending < 1 << count):
            raise ValueError(f"an MSI-X table of {len(state.table)} bytes for {count} vectors")
        self.count = count
        self._send = send
        self._control = state.control if state else 0
        self._table = bytearray(state.table if state else ENTRY.pack(0, 0, ENTRY_MASKED) * count)
        self._pending = state.pending if state else 0
        self.enabled = bool(self._control & ENABLE)
        self.table = _Table(self._table, self._deliver_pending)
        self.pending = _PendingBits(self)

    def set_control(self, control: int) -> None:
        """The driver wrote the capability's message control."""
        self._control = control & CONTROL_WRITABLE
        self.enabled = bool(control & ENABLE)
        self._deliver_pending()

    def trigger(self, vector: int) -> None:
        """Interrupt, or remember it while the vector or the function is masked; `vector` exists."""
        address, data, control = ENTRY.unpack_from(self._table, ENTRY_SIZE * vector)
        if control & ENTRY_MASKED or self._control != ENABLE:
            self._pending |= 1 << vector
        else:
            self._send(address, data)

    def pending_bits(self) -> int:
        """The pending bit array, vector 0 in bit 0."""
        return self._pending

    def forget(self) -> None:
        """Nothing is pending any more."""
        self._pending = 0

    def save(self) -> MsixState:
        """The state to go on from."""
        return MsixState(self._control, bytes(self._table), self._pending)

    def _deliver_pending(self) -> None:
        if not self._pending or self._control != ENABLE:
            return
        pending, self._pending = self._pending, 0
        for vector in range(self.count):
            if pending >> vector & 1:
                self.trigger(vector)


class _Table:
    """The vector table in memory; accesses other than of 4 or 8 aligned bytes are undefined and do nothing."""

    def __init__(self, table: bytearray, changed: Callable[[], None]) -> None:
        self._table = table
        self._changed = changed

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._table[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return
        if offset % ENTRY_SIZE + size > VECTOR_CONTROL:         # the reserved bits stay 0
            value &= ENTRY_MASKED if size == 4 else ENTRY_MASKED << 32 | 0xFFFF_FFFF
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        self._changed()


class _PendingBits:
    """The pending bit array in memory, read only."""

    def __init__(self, msix: Msix) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        return self._msix.pending_bits() >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing: software has no business here."""
