"""Stops a running CPU at a time: a POSIX timer whose signal handler is machine code.

No thread of Python sleeps until the deadline, so a stop costs no switch of the interpreter's lock and a process with
machines stays single-threaded, as fork wants it. The handler calls uc_emu_stop, which only sets flags; with
`no_exit_request` set the CPU looks at them where a block starts. A stop that arrives just before uc_emu_start resets
the flag is not lost: the timer repeats every millisecond until it is disarmed.
"""

from __future__ import annotations

import errno
import os
import signal
import threading

from emu.cpu.abi import address, ffi, libc
from emu.cpu.library import Library
from emu.errors import UnsupportedHost

REPEAT_NS = 1_000_000
SECOND_NS = 1_000_000_000

CLOCK_MONOTONIC = 1
TIMER_ABSTIME = 1
SIGEV_SIGNAL = 0
SA_SIGINFO, SA_RESTART = 4, 0x1000_0000


_lock = threading.Lock()
_signal: int | None = None
_slots: list[object] = []           # never freed: a queued signal may still name one


def _claim_signal(library: Library) -> int:
    """Take the first free real-time signal, counted down from the last, and install the handler."""
    global _signal
    with _lock:
        if _signal is None:
            action = ffi.new("struct sigaction_ *")
            for number in range(signal.SIGRTMAX, signal.SIGRTMIN, -1):
                if libc.sigaction(number, ffi.NULL, action) == 0 and action.handler == 0:
                    action.handler = library.thunks["KICK"]
                    action.flags = SA_SIGINFO | SA_RESTART
                    if libc.sigaction(number, action, ffi.NULL) == 0:
                        _signal = number
                        break
            else:
                raise UnsupportedHost("no real-time signal is free to stop the CPU with")
        return _signal


class Kicker:
    """One machine's timer.

    Args:
        library: the loaded libunicorn.
        uc: the engine to stop.
    """

    def __init__(self, library: Library, uc: object) -> None:
        self._signal = _claim_signal(library)
        self._slot = ffi.new("uint64_t *", address(uc))
        _slots.append(self._slot)
        self._make_timer()
        self._value = ffi.new("int64_t[4]", [0, REPEAT_NS, 0, 0])
        self._disarmed = ffi.new("int64_t[4]")

    def _make_timer(self) -> None:
        event = ffi.new("struct sigevent_ *")
        event.value, event.signal, event.notify = address(self._slot), self._signal, SIGEV_SIGNAL
        timer = ffi.new("void **")
        if libc.timer_create(CLOCK_MONOTONIC, event, timer):
            raise UnsupportedHost(f"cannot make a timer: {errno.errorcode.get(ffi.errno, ffi.errno)}")
        self._timer = timer[0]
        self._process = os.getpid()

    def arm(self, deadline_ns: int) -> None:
        """Stop the CPU when the host's monotonic clock reaches `deadline_ns`, and every millisecond after that."""
        if self._process != os.getpid():            # a forked child inherits no timers
            self._make_timer()
        value = self._value
        value[2], value[3] = divmod(deadline_ns, SECOND_NS) if deadline_ns > 0 else (0, 1)
        libc.timer_settime(self._timer, TIMER_ABSTIME, value, ffi.NULL)

    def disarm(self) -> None:
        """Send no more stops."""
        libc.timer_settime(self._timer, 0, self._disarmed, ffi.NULL)

    def close(self) -> None:
        """Give the timer back; a signal that is already queued finds an empty slot."""
        self._slot[0] = 0
        if self._process == os.getpid():
            libc.timer_delete(self._timer)
