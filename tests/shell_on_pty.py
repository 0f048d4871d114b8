"""A stand-in for a machine: a real shell of the host on a PTY, driven the way a machine is."""

from __future__ import annotations

import os
import pty
import select
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from emu.console import Console
from emu.errors import GuestStopped

SLICE_S = 0.01      # between looks at conditions and Python's signals, as a machine


class ShellOnPty:
    """Runs `argv` as the guest; `mangle` may alter its output on the way to the console."""

    def __init__(self, argv: Sequence[str], home: Path, mangle: Callable[[bytes], bytes] = bytes) -> None:
        self.mangle = mangle
        self.typed = bytearray()
        self._outbox = bytearray()
        self._watched: dict[int, Callable[[], None]] = {}
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(home)
            os.execve(argv[0], list(argv), {"PATH": "/usr/bin:/bin", "PS1": "guest# ", "HOME": str(home)})
        os.set_blocking(self._fd, False)
        self.stopped = False
        self.console = Console(self._send, self.drive, self._watched.__setitem__, self._watched.pop)

    def _send(self, data: bytes) -> None:
        self.typed += data
        self._outbox += data

    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        deadline = None if timeout is None else monotonic() + timeout
        while not until():
            if self.stopped:
                raise GuestStopped("the guest powered off")
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                return False
            self._turn(left)
        return True

    def _turn(self, timeout: float | None) -> None:
        wait = SLICE_S if timeout is None else min(timeout, SLICE_S)
        writers = [self._fd] if self._outbox else []
        readable, writable, _ = select.select([self._fd, *self._watched], writers, [], wait)
        if writable:
            del self._outbox[: os.write(self._fd, self._outbox[:1024])]
        for fd in readable:
            if fd == self._fd:
                self._receive()
            elif fd in self._watched:
                self._watched[fd]()

    def _receive(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except OSError:
            data = b""
        if data:
            self.console.feed(self.mangle(data))
        else:
            self.stopped = True

    def close(self) -> None:
        self.console.close()
        os.close(self._fd)
        if self._pid:
            try:
                os.kill(self._pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.waitpid(self._pid, 0)
