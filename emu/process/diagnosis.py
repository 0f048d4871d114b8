"""What a machine's process can tell of it when something is wrong: where it stands, and what its parts have logged."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from emu.errors import EmuError
from emu.process import messages as m

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["RECENT", "diagnose"]

KEPT = 50                               # lines


class RecentLog(logging.Handler):
    """Keeps the last lines of the log; warnings are also shown, as if it were not there."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[tuple[float, str]] = deque(maxlen=KEPT)

    def begin(self) -> None:
        """Keep what comes from now on."""
        self.clear()
        logging.getLogger("emu").setLevel(logging.INFO)
        if self not in logging.root.handlers:
            logging.root.addHandler(self)

    def clear(self) -> None:
        """Forget what has come."""
        if self._lines:
            self._lines.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._lines.append((time.monotonic(), record.getMessage()))
        if record.levelno >= logging.WARNING and logging.root.handlers == [self] and logging.lastResort:
            logging.lastResort.handle(record)

    def lines(self) -> tuple[m.LogLine, ...]:
        """The lines, oldest first."""
        now = time.monotonic()
        return tuple(m.LogLine(round((now - then) * 1000), text) for then, text in self._lines)


RECENT = RecentLog()
"""That of this process."""


def diagnose(machine: Machine) -> m.Diagnosis:
    """What can be seen of a machine from outside of its guest."""
    if machine.channel is None:
        agent = "the machine was made without a channel"
    else:
        agent = "" if machine.channel.alive else machine.channel.missing()
    try:
        sockets = machine.vsock.missing()
    except EmuError as error:
        sockets = str(error)
    return m.Diagnosis(machine.stop_detail, machine.panic or "", agent, sockets, RECENT.lines())
