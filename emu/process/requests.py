"""Requests to a machine's process, from any number of threads at a time."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from devices.frozen import replace
from emu import errors
from emu.ctrl_c import HeldInterrupt
from emu.errors import EmuError, MachineDied
from emu.process import messages as m
from emu.process.wire import LONGEST_SLEEP_S, Frame, Wire, WireError, wait_readable

__all__ = ["Requests", "Take"]

T = TypeVar("T")
Take = Callable[[Frame[m.Reply]], None]


class Requests:
    """The user's end. Nothing is read but by who waits for a reply: of the threads that do, one reads for all.

    Ctrl-C raises where a thread waits and where the user's functions run, and nowhere else: half of a frame, or a lock
    that nobody gives back, would be of no use to the other threads. (`threading.Condition` is no help: an interrupt in
    the midst of its methods leaves it locked.)

    Args:
        sock: to a `Server`; taken over.
        who: is there, for messages.
    """

    def __init__(self, sock: socket.socket, who: str) -> None:
        self._who = who
        self._wire: Wire[m.Reply] = Wire(sock, m.Reply)
        self._sending = threading.RLock()
        self._lock = threading.RLock()          # of all below
        self._number = 0
        self._pending: dict[int, deque[Frame[m.Reply]]] = {}
        self._reader: int | None = None         # the thread that waits for the socket
        self._waiters: list[threading.Lock] = []
        self._death: str | None = None
        self._interrupt = HeldInterrupt(self._interrupted)
        self._main_waits = False

    def ask(self, body: Any, data: bytes = b"", take: Take = Frame.drop) -> Frame[m.Reply]:
        """Have something done; the last reply.

        Args:
            body: of the request.
            data: beside it.
            take: called with each reply before the last; an error ends the request.

        Raises:
            MachineDied: the process is gone.
            EmuError, ValueError: what the request raised there.
        """
        number, frame, is_over = self._begin(), None, False
        try:
            with self._interrupt.held():
                self._tell(m.Request(number, body), data)
            while True:
                with self._interrupt.held():
                    frame = self._next(number)
                reply = frame.message.body
                is_over = isinstance(reply, m.Failed | m.Done | m.Ran)
                if isinstance(reply, m.Failed):
                    raise _error(reply)
                if is_over:
                    return frame
                taken, frame = frame, None
                take(taken)
        finally:
            with self._interrupt.held():
                self._forget(number, frame)
                if not is_over and self._death is None:     # an error of who takes it, or Ctrl-C: nobody waits for it
                    self._tell(m.Request(0, m.Cancel(number)))

    def value(self, body: Any, kind: type[T]) -> T:
        """Have something done whose answer is of that type; errors as `ask`."""
        reply = self.ask(body).message.body
        if not isinstance(reply, m.Done) or not isinstance(reply.value, kind):
            raise self.strange()
        return reply.value

    def took(self, number: int, size: int) -> None:
        """So many bytes of a command's output are dealt with."""
        with self._interrupt.held():
            self._tell(m.Request(0, m.Took(number, size)))

    def strange(self) -> MachineDied:
        """The error for an answer that was not asked for."""
        return MachineDied(f"{self._who} gave another answer than was asked for")

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """Ask nothing more: requests under way raise `MachineDied`, and the process finds the end."""
        with self._interrupt.held(), self._lock:
            self._die(reason)
            while self._reader not in (None, threading.get_ident()):
                self._wait_for_others()
            self._wake_others()

    def close(self) -> None:
        """Close the socket; after `end`, unless no thread can be here."""
        with self._sending:
            self._wire.close()

    def _die(self, reason: str) -> None:
        self._death = reason
        self._wire.shut_down()

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _interrupted(self) -> None:
        """Ctrl-C has come; this is in its handler, in the main thread."""
        if self._main_waits:
            self._interrupt.deliver()

    def _wait(self, wait: Callable[[], object]) -> None:
        """Wait such that Ctrl-C ends it."""
        is_main = threading.current_thread() is threading.main_thread()
        try:
            if is_main:
                self._main_waits = True
                self._interrupt.deliver()
            wait()
        finally:
            if is_main:
                self._main_waits = False

    def _wait_unlocked(self, wait: Callable[[], object]) -> None:
        """The same, without the lock."""
        self._lock.release()
        try:
            self._wait(wait)
        finally:
            self._lock.acquire()

    def _wait_for_others(self) -> None:
        """Wait until the thread that has read is done with that."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        self._wait_unlocked(lambda: _acquire(waiter))

    def _wake_others(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.release()

    # -- out -------------------------------------------------------------------------------------------------------

    def _tell(self, request: m.Request, data: bytes = b"") -> None:
        """Send; that the process is gone shows when the reply is read."""
        with self._sending, suppress(OSError):
            is_sent = self._wire.post(request, data)
            while not is_sent:
                self._wait(self._wire.wait_writable)
                is_sent = self._wire.flush()

    # -- in --------------------------------------------------------------------------------------------------------

    def _begin(self) -> int:
        with self._lock:
            self._check()
            self._number += 1
            self._pending[self._number] = deque()
            return self._number

    def _next(self, number: int) -> Frame[m.Reply]:
        """The next reply to a request."""
        with self._lock:
            frames = self._pending[number]
            while not frames:
                self._check()
                if self._reader is not None:
                    self._wait_for_others()
                else:
                    self._read()
            return frames.popleft()

    def _check(self) -> None:
        if self._death is not None:
            raise MachineDied(self._death)

    def _read(self) -> None:
        """Wait for the socket; hand out what has come."""
        self._reader = threading.get_ident()
        try:
            self._wait_unlocked(lambda: wait_readable(self._wire.fileno(), None))
        finally:
            self._reader = None
            self._wake_others()
        if self._death is None:
            self._hand_out()

    def _hand_out(self) -> None:
        try:
            for frame in self._wire.receive():
                body, fds = frame.message.body, frame.fds
                if fds and not isinstance(body, m.Forked):
                    frame.drop()
                    frame = replace(frame, fds=())
                if frame.message.number == 0 and isinstance(body, m.Failed):
                    self._death = body.message              # its last words
                elif (frames := self._pending.get(frame.message.number)) is not None:
                    frames.append(frame)
                else:
                    frame.drop()                # a child of whom nobody knows ends by that
        except EOFError:
            self._death = f"{self._who} is gone"
        except WireError as error:
            self._die(str(error))
        except BaseException:                   # of another signal's handler
            self._die(f"reading from {self._who} was interrupted")
            raise

    def _forget(self, number: int, frame: Frame[m.Reply] | None) -> None:
        """Nobody waits for a request, nor takes that frame."""
        with self._lock:
            for each in (*self._pending.pop(number, ()), *([frame] if frame else [])):
                each.drop()


def _acquire(lock: threading.Lock) -> None:
    while not lock.acquire(timeout=LONGEST_SLEEP_S):
        pass


def _error(failure: m.Failed) -> Exception:
    """What was raised there."""
    if failure.kind == "ValueError":
        return ValueError(failure.message)
    kind = getattr(errors, failure.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, EmuError)):
        kind = EmuError
    return kind(failure.message)
