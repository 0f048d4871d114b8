"""Who sees a machine's console while it runs, from another process; and how large it is for them.

A view never has the guest wait. What its user does not take in time is left out, and the user can tell by the position
of what comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emu.process import messages as m

if TYPE_CHECKING:
    from emu.job import Job
    from emu.machine import Machine

__all__ = ["Size", "View", "Views"]

REPLAY = 256 << 10              # bytes of what was on the console before, for a view that begins, or has missed some
LARGEST = 1000                  # columns or rows
SET_SIZE = "stty -F /dev/ttyS0 cols {} rows {} 2>/dev/null"

Reply = Callable[[int, Any, bytes], None]


class View:
    """One of them.

    Args:
        machine: whose console it shows.
    """

    def __init__(self, machine: Machine) -> None:
        self._console = machine.console
        self._pending = bytearray(self._console.recent(REPLAY))
        self._end = len(self._pending)          # of all there was
        self._ahead = 0
        self._console.show_to(self._take)

    def _take(self, data: bytes) -> None:
        self._end += len(data)
        self._pending += data
        if len(self._pending) > m.AHEAD:
            del self._pending[:-REPLAY]

    @property
    def is_due(self) -> bool:
        """Whether there is something to send."""
        return bool(self._pending) and self._ahead < m.AHEAD

    @property
    def is_empty(self) -> bool:
        """Whether all is sent."""
        return not self._pending

    def took(self, size: int) -> None:
        """The user has dealt with so much of it."""
        self._ahead -= size

    def next(self) -> tuple[int, bytes]:
        """What to send, and the position of that."""
        data = bytes(self._pending)
        self._pending.clear()
        self._ahead += len(data)
        return self._end - len(data), data

    def close(self) -> None:
        """End it."""
        self._console.hide_from(self._take)


class Size:
    """How large the console is.

    A virtio console says so itself. Over a serial line nothing does: there the guest's agent is asked to, as soon as
    there is one.

    Args:
        machine: that has the console.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._wanted: tuple[int, int] | None = None
        self._is_told = False
        self._job: Job | None = None

    def set(self, columns: int, rows: int) -> None:
        """It has so many characters.

        Raises:
            ValueError: none has.
        """
        if not (0 < columns <= LARGEST and 0 < rows <= LARGEST):
            raise ValueError(f"no console is {columns} x {rows} characters large")
        if self._machine.console.can_resize:
            self._machine.console.resize(columns, rows)
        elif self._wanted != (columns, rows):
            self._wanted, self._is_told = (columns, rows), False

    @property
    def is_due(self) -> bool:
        """Whether the agent is to be told."""
        if self._wanted is None:
            return False
        channel = self._machine.channel
        if channel is None or not channel.alive:
            self._is_told = False               # it may come with another boot, whose console has no size
            return False
        return not self._is_told and (self._job is None or self._job.is_over)

    def tell(self) -> None:
        """Have the agent set it."""
        channel = self._machine.channel
        if self.is_due and channel is not None and self._wanted is not None:
            self._is_told = True
            self._job = channel.start(SET_SIZE.format(*self._wanted))

    def forget(self) -> None:
        """Nobody sees it."""
        self._wanted = self._job = None


class Views:
    """All of a machine.

    Args:
        machine: that is seen.
        reply: sends a reply: number, body, bytes.
    """

    def __init__(self, machine: Machine, reply: Reply) -> None:
        self._machine = machine
        self._reply = reply
        self._views: dict[int, View] = {}
        self.size = Size(machine)

    def add(self, number: int) -> None:
        """Begin one."""
        self._views[number] = View(self._machine)

    def took(self, number: int, size: int) -> None:
        """The user of one has dealt with so many bytes, if there is such a view."""
        if view := self._views.get(number):
            view.took(size)

    def cancel(self, number: int) -> None:
        """End one, if it is there."""
        if view := self._views.pop(number, None):
            view.close()

    @property
    def is_due(self) -> bool:
        """Whether to send; asked again and again."""
        if not self._views:
            return False
        return any(view.is_due for view in self._views.values()) or self._is_over or self.size.is_due

    @property
    def _is_over(self) -> bool:
        """Whether a view has shown all that there will ever be."""
        return self._machine.stop_reason is not None and any(view.is_empty for view in self._views.values())

    def send(self) -> None:
        """Send what can be."""
        for number, view in list(self._views.items()):
            if view.is_due:
                position, data = view.next()
                self._reply(number, m.Shown(position), data)
            if view.is_empty and self._machine.stop_reason is not None:
                self.cancel(number)
                self._reply(number, m.Done(self._machine.stop_detail), b"")
        self.size.tell()

    def clear(self) -> None:
        """This process is a copy: what is seen is the original."""
        if self._views:
            self._views.clear()                 # the console has forgotten them, too
        self.size.forget()
