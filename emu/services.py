"""What hypercalls may ask of the machine (`hypercalls.Services`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from devices import Clock
from devices.frozen import frozen
from hypercalls import Files

__all__ = ["MARKS_KEPT", "MachineServices", "Mark"]

MARKS_KEPT = 1 << 16


@frozen
class Mark:
    """A point that the guest has come to (PV_MARK).

    Attributes:
        time_ns: guest time, from the machine's start.
        value: what the guest gave with it.
    """

    time_ns: int
    value: int


class MachineServices:
    """The services, as calls back to a machine.

    Args:
        clock: guest time.
        console_write: shows bytes on the console.
        idle: has the guest sleep once the exit under way is over.
        exit: ends the machine with a status.
        files: for PV_READ and PV_WRITE, None for none.
        marks: where marks go.
    """

    def __init__(
        self,
        clock: Clock,
        console_write: Callable[[bytes], None],
        idle: Callable[[], None],
        exit: Callable[[int], None],
        files: Files | None,
        marks: deque[Mark],
    ) -> None:
        self.files = files
        self.console_write = console_write
        self.idle = idle
        self.exit = exit
        self._clock = clock
        self._marks = marks

    def mark(self, value: int) -> None:
        """Keep a mark; only the last `MARKS_KEPT`."""
        self._marks.append(Mark(self._clock.now_ns(), value))
