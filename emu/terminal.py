"""Terminals of the host: ours in a raw mode that is always undone, keys on their way to a guest, and PTYs."""

from __future__ import annotations

import atexit
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["HostPty", "Interaction", "raw_terminal", "restore_terminal"]

EOT = b"\x04"                   # Ctrl-D, what a shell takes for the end of its input
KILL_LINE = b"\x15"             # Ctrl-U
END_REPEAT_S = 1.0              # between signs of the end of piped input, while the guest is silent
PTY_PENDING_BYTES = 256 * 1024  # kept for a PTY whose reader is slow or absent
PIPE_CHUNK_BYTES = 1024         # typed at a time from a pipe: a guest's line discipline holds 4 KiB

_saved: list[tuple[int, list[Any]]] = []


def restore_terminal() -> None:
    """Undo raw mode now; safe at any time, also twice and in a signal handler."""
    while _saved:
        fd, modes = _saved.pop()
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, modes)
        except termios.error:
            pass    # the terminal has gone


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Raw mode on the terminal `fd` while inside; nothing if it is no terminal."""
    if not os.isatty(fd):
        yield
        return
    modes = termios.tcgetattr(fd)
    _saved.append((fd, modes))
    atexit.register(restore_terminal)
    try:
        tty.setraw(fd, termios.TCSADRAIN)   # what was typed ahead is not lost
        yield
    finally:
        if not _saved:      # a signal's handler was quicker, perhaps than raw mode itself
            _saved.append((fd, modes))
        restore_terminal()
        atexit.unregister(restore_terminal)


class Interaction:
    """Carries keys to the guest and its output to us, until the escape key.

    Args:
        send: takes keys.
        escape: the byte that ends the session; only on a terminal.
        hopeless: whether a guest without a person watching need not be waited for any more.
        resize: takes the columns and rows of our terminal.
        type_end: type the end of input that is no terminal, as Ctrl-D.
    """

    def __init__(
        self,
        send: Callable[[bytes], Any],
        escape: bytes,
        hopeless: Callable[[], bool],
        resize: Callable[[int, int], None],
        type_end: bool,
    ) -> None:
        sys.stdout.flush()
        self.input_fd = sys.stdin.fileno()
        self.failure: OSError | None = None
        self._output_fd = sys.stdout.fileno()
        self._on_terminal = os.isatty(self.input_fd)
        self._escape = escape
        self._send = send
        self._hopeless = hopeless
        self._resize = resize
        self._type_end = type_end
        self._size = 0, 0
        self._left = False
        self._shown = False
        self._line_ended = True
        self.input_ended = False

    def over(self) -> bool:
        """Whether the session has ended; looked at often, which is how a new size of the terminal is noticed too."""
        self._pass_size_on()
        return self._left or self.failure is not None or (not self._on_terminal and self._hopeless())

    def _pass_size_on(self) -> None:
        if not self._on_terminal:
            return
        try:
            columns, rows = os.get_terminal_size(self.input_fd)
        except OSError:
            return      # hung up
        if (columns, rows) != self._size:
            self._size = columns, rows
            self._resize(columns, rows)

    def patience_s(self) -> float | None:
        """How long to drive the guest before `nothing_happened` should look."""
        return END_REPEAT_S if self.input_ended and self._type_end else None

    def nothing_happened(self) -> None:
        """Type the input's end again while the guest is silent.

        Ctrl-D means the end only to who reads at that moment: a terminal that goes from its cooked to its raw mode
        with one waiting, as when a shell's command ends, turns it into a NUL in the shell's next line.
        """
        if not self._shown:
            self._send(KILL_LINE + EOT)
        self._shown = False

    def show(self, data: bytes) -> None:
        """Write to our output, all of it. Errors are kept: this runs below the guest's output instruction."""
        self._shown = True
        view = memoryview(data)
        try:
            while view and self.failure is None:
                view = view[os.write(self._output_fd, view):]
        except OSError as error:
            self.failure = error

    def typed(self) -> bool:
        """Input can be read: pass it on. False when there will be no more."""
        try:
            data = os.read(self.input_fd, PIPE_CHUNK_BYTES)
        except OSError as error:
            self.failure = error
            data = b""
        if not data:
            self.input_ended = True
            self._left = self._on_terminal      # a terminal that was hung up
            if self._type_end:
                self._send((b"" if self._line_ended else b"\n") + EOT)
        elif self._on_terminal and self._escape in data:
            self._send(data[: data.index(self._escape)])
            self._left = True
        else:
            self._line_ended = data.endswith(b"\n")
            self._send(data)
        return not self.input_ended


class HostPty:
    """One host PTY: shows what it is given, passes on what is typed; never blocks."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._master, self._slave = os.openpty()    # our own slave end: no EIO while no program has it open
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self._pending = bytearray()
        # Readable when the PTY can be read, or written while something is pending: one descriptor to watch.
        self._poll = select.epoll()
        self._poll.register(self._master, select.EPOLLIN)
        self.poll_fd = self._poll.fileno()

    def show(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) > PTY_PENDING_BYTES:
            del self._pending[:-PTY_PENDING_BYTES]
        self._flush()

    def ready(self) -> None:
        try:
            self._send(os.read(self._master, 4096))
        except BlockingIOError:
            pass
        self._flush()

    def _flush(self) -> None:
        try:
            while self._pending:
                del self._pending[: os.write(self._master, self._pending)]
        except BlockingIOError:
            pass
        self._poll.modify(self._master, select.EPOLLIN | (select.EPOLLOUT if self._pending else 0))

    def close(self) -> None:
        self._poll.close()
        os.close(self._master)
        os.close(self._slave)
