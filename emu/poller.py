"""Waits for files and for a time, to the nanosecond: Python's own poll knows whole milliseconds only."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from typing import Any

from emu.cpu.abi import ffi, libc

POLLIN, POLLOUT, POLLERR, POLLHUP = 0x1, 0x4, 0x8, 0x10
SECOND_NS = 1_000_000_000

Callback = Callable[[], None]


class Poller:
    """Calls back for files that can be read or written (devices.Files).

    Attributes:
        slept_ns: host time spent sleeping.
        call_back: does the calls for the files that `wait` found ready, given the array polled and its length.
    """

    def __init__(self) -> None:
        self._watched: dict[int, tuple[Callback | None, Callback | None]] = {}
        self._timeout = ffi.new("int64_t[2]")
        self._files = ffi.new("struct pollfd_[]", 1)
        self._is_stale = False          # the array is made anew once a wait, however much has changed
        self.slept_ns = 0
        self.call_back: Callable[[Any, int], None] = self._call_back

    def _array(self) -> Any:
        if self._is_stale:
            rows = [
                (fd, (POLLIN if readable else 0) | (POLLOUT if writable else 0), 0)
                for fd, (readable, writable) in self._watched.items()
            ]
            self._files = ffi.new("struct pollfd_[]", rows or 1)
            self._is_stale = False
        return self._files

    def watch(self, fd: int, readable: Callback | None = None, writable: Callback | None = None) -> None:
        """Call back while `fd` can be read, or written, or its other end is gone; replaces what was asked before."""
        if self._watched.get(fd) == (readable, writable):
            return
        self._watched[fd] = readable, writable
        self._is_stale = True

    def forget(self, fd: int) -> None:
        """End that; nothing happens if it was not watched."""
        if self._watched.pop(fd, None) is not None:
            self._is_stale = True

    def forget_others(self, kept: Container[int]) -> None:
        """End all watches but those of some files."""
        for fd in [fd for fd in self._watched if fd not in kept]:
            self.forget(fd)

    def wait(self, timeout_ns: int) -> None:
        """Sleep until something can be done with a file or the time is over, or a signal came; then call back."""
        self._timeout[0], self._timeout[1] = divmod(max(timeout_ns, 0), SECOND_NS)
        files, count = self._array(), len(self._watched)
        if timeout_ns > 0:
            started = time.monotonic_ns()
            ready = libc.ppoll(files, count, self._timeout, ffi.NULL)
            self.slept_ns += time.monotonic_ns() - started
        else:
            ready = libc.ppoll(files, count, self._timeout, ffi.NULL)
        if ready > 0:
            self.call_back(files, count)

    def wait_uncounted(self, timeout_ns: int) -> None:
        """The same while nothing drives the guest: such sleep is not in `slept_ns`."""
        self._timeout[0], self._timeout[1] = divmod(timeout_ns, SECOND_NS)
        files, count = self._array(), len(self._watched)
        if libc.ppoll(files, count, self._timeout, ffi.NULL) > 0:
            self.call_back(files, count)

    def _call_back(self, files: Any, count: int) -> None:
        for file in files[0:count]:
            events = file.revents
            if not events:
                continue
            broken = events & (POLLERR | POLLHUP)
            # Looked up anew each time: a callback before may have ended the watch
            if (events & POLLIN or broken) and (callback := self._watched.get(file.fd, (None, None))[0]):
                callback()
            if (events & POLLOUT or broken) and (callback := self._watched.get(file.fd, (None, None))[1]):
                callback()
