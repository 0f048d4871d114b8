"""Waits for files and for a time, to the nanosecond: Python's own poll knows whole milliseconds only."""

from __future__ import annotations

from collections.abc import Callable

from emu.cpu.abi import ffi, libc

POLLIN = 1
SECOND_NS = 1_000_000_000


class Poller:
    """Calls back for files that can be read."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timeout = ffi.new("int64_t[2]")
        self._rebuild()

    def _rebuild(self) -> None:
        self._files = ffi.new("struct pollfd_[]", [(fd, POLLIN, 0) for fd in self._callbacks] or 1)

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever `fd` can be read, or its other end is gone."""
        self._callbacks[fd] = callback
        self._rebuild()

    def remove(self, fd: int) -> None:
        """End that; nothing happens if it was not added."""
        if self._callbacks.pop(fd, None) is not None:
            self._rebuild()

    def wait(self, timeout_ns: int) -> None:
        """Sleep until a file can be read or the time is over, or a signal came; then call back."""
        self._timeout[0], self._timeout[1] = divmod(max(timeout_ns, 0), SECOND_NS)
        files = self._files
        if libc.ppoll(files, len(self._callbacks), self._timeout, ffi.NULL) > 0:
            for file in files[0 : len(self._callbacks)]:
                if file.revents and (callback := self._callbacks.get(file.fd)):
                    callback()
