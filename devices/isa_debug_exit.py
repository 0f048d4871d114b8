"""A port by which a guest ends the machine with a status, as QEMU's `isa-debug-exit` (hw/misc/debugexit.c of 7.2)."""

from __future__ import annotations

from collections.abc import Callable

from devices import PortRanges
from devices.frozen import frozen

__all__ = ["POWER_ON", "IsaDebugExit", "IsaDebugExitState"]


@frozen
class IsaDebugExitState:
    """What a snapshot keeps of the device: the status that was asked for, None if none was."""

    status: int | None = None


POWER_ON = IsaDebugExitState()


class IsaDebugExit:
    """The first write of a value ends the machine; its status says the value's low seven bits, and is never 0.

    Args:
        end: called with the status that the process is to end with: value << 1 | 1, eight bits of it. A wide access
            comes as bytes, the low one first: the others do not count, as they would not in the status.
        port, size: where it is, and how many ports it has.
        state: to start with.
    """

    def __init__(
        self, end: Callable[[int], None], port: int = 0xF4, size: int = 4, state: IsaDebugExitState = POWER_ON
    ) -> None:
        self.ports: PortRanges = ((port, size),)
        self._end = end
        self._status = state.status

    def read(self, offset: int) -> int:
        """Nothing can be read here: 0."""
        return 0

    def write(self, offset: int, value: int) -> None:
        """End the machine, unless that was asked for before."""
        if self._status is None:
            self._status = (value << 1 | 1) & 0xFF
            self._end(self._status)

    def save(self) -> IsaDebugExitState:
        """The status."""
        return IsaDebugExitState(self._status)
