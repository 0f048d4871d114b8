"""How a running machine can be found by other processes of its user, and asked what it does: `emu top`.

It listens on a socket whose abstract name (unix(7)) says whose it is; /proc/net/unix lists those, and nothing is left
of them when their process has ended, however it has. Who connects is sent one report and is not listened to. Until
somebody does, all it costs is a file that the machine watches.
"""

from __future__ import annotations

import errno
import os
from itertools import count
from typing import TYPE_CHECKING

from emu.cpu.abi import ffi, libc

if TYPE_CHECKING:
    from emu.machine import Machine
    from emu.poller import Poller

__all__ = ["NAME", "Presence"]

NAME = "pvemu/{uid}/{pid}/{number}"     # behind a NUL, which is what makes it abstract
AF_UNIX, SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC = 1, 1, 0o4000, 0o2000000     # socket(2); `socket` would take 5 ms
BACKLOG = 4
TRIES = 3

_numbers = count(1)                     # of this process' machines


class Presence:
    """Of one machine.

    Args:
        machine: it reports of.
        poller: of the machine.
    """

    def __init__(self, machine: Machine, poller: Poller) -> None:
        self._machine = machine
        self._poller = poller
        self._fd: int | None = None
        self._is_over = False

    def show(self) -> None:
        """Be there, from the first time on; who cannot, is not seen."""
        if self._fd is None:
            self._fd = -1 if self._is_over else _listen()
            if self._fd >= 0:
                self._poller.watch(self._fd, self._asked)

    def _asked(self) -> None:
        from emu.top.report import answer

        assert self._fd is not None
        answer(self._fd, self._machine)

    def forked(self) -> None:
        """This process is a copy: it is seen as another one, when its machine runs."""
        self._close()

    def close(self) -> None:
        """Be there no more."""
        self._is_over = True
        if self._fd is not None and self._fd >= 0:
            self._poller.forget(self._fd)
        self._close()

    def _close(self) -> None:
        if self._fd is not None and self._fd >= 0:
            os.close(self._fd)
        self._fd = None


def _listen() -> int:
    """A socket that listens under a name of this process; -1 if the host has none to give."""
    fd = int(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0))
    if fd < 0:
        return -1
    for _ in range(TRIES):              # a name that a process of another user has taken is left to it
        name = NAME.format(uid=os.geteuid(), pid=os.getpid(), number=next(_numbers)).encode()
        address = AF_UNIX.to_bytes(2, "little") + b"\0" + name
        if libc.bind(fd, address, len(address)) == 0 and libc.listen(fd, BACKLOG) == 0:
            return fd
        if ffi.errno != errno.EADDRINUSE:
            break
    os.close(fd)
    return -1
