"""A child that is forked before anybody asks for it.

While the guest waits for an interrupt, a fork made now is the same as one made later, until it runs again: time comes
from the host. So a process that was forked, and may be soon again, forks when its guest has nothing to do, and has the
child wait. When it is asked then, and its guest has not run, the child only has to be told.
"""

from __future__ import annotations

import os
from time import monotonic_ns
from typing import TYPE_CHECKING

from emu.errors import EmuError
from emu.process.forking import Child, fork_process, plain_fork

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["GO", "Ahead"]

TRIES = 3                               # after each fork: a guest that is never quiet makes all of them useless
WANTED_NS = 1_000_000_000               # after each fork
GO = b"\n"


class Ahead:
    """At most one child.

    Args:
        machine: that is forked.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._child: Child | None = None
        self._moment = 0                # of the guest's time in the CPU, when it was forked
        self._tries = 0
        self._until_ns = 0

    def expect(self) -> None:
        """There was a fork; another one may come soon."""
        self._tries = TRIES
        self._until_ns = monotonic_ns() + WANTED_NS

    def look(self) -> int | None:
        """Fork, if that is of use; called whenever the guest has nothing to do.

        Returns:
            In the child the descriptor of the socket to its user, which says GO first.
        """
        if monotonic_ns() > self._until_ns:
            self._tries = 0
            self.drop()
        elif self._moment != self._machine.run_ns:
            self.drop()
        if self._child is not None or not self._tries:
            return None
        self._tries -= 1
        try:
            self._machine.prepare_fork()
            child = fork_process(plain_fork)
        except EmuError:
            self._tries = 0             # who asks for one is told
            return None
        if isinstance(child, int):
            return child
        self._child, self._moment = child, self._machine.run_ns
        return None

    def take(self) -> Child | None:
        """The child, told to go on; None if there is none, or the guest has run or has something to do."""
        child = self._child
        if child is None or self._moment != self._machine.run_ns or self._machine.is_interrupted:
            self.drop()
            return None
        try:
            os.write(child.sock, GO)
        except OSError:                 # somebody has killed it
            self.drop()
            return None
        self._child = None
        return child

    def forget(self) -> None:
        """In a child: what was expected was of its parent."""
        self._tries = 0

    def drop(self) -> None:
        """End the child: it finds the end of its socket."""
        if self._child is not None:
            child, self._child = self._child, None
            os.close(child.sock)
            os.close(child.pidfd)
