"""What the user of a machine in another process holds."""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from emu import errors
from emu.errors import EmuError, GuestError, GuestTimeout, MachineDied
from emu.guest import Result
from emu.process import messages as m
from emu.process.wire import Frame, Wire, WireError
from emu.stats import ExitStats

__all__ = ["MachineProcess", "MemoryUse", "close_all"]

T = TypeVar("T")
Path_ = str | os.PathLike[str]
Sink = Callable[[bytes], object]

CLOSE_S = 2.0                           # for a process to end by itself when nobody uses it any more
GREETING_LIMIT = 64                     # bytes of a socket file's answer to CONNECT

_open: weakref.WeakSet[MachineProcess] = weakref.WeakSet()
_ended: list[int] = []                  # children of this process that may still be zombies


@dataclass(frozen=True)
class MemoryUse:
    """What a process takes of the host's memory, in bytes: for itself alone, and shared with others."""

    private_bytes: int
    shared_bytes: int


class MachineProcess:
    """A machine in a process of its own; its guest runs all the time.

    Several threads may use it: commands then run at the same time, everything else one after another. It ends when it
    is closed or garbage, and with the process that it is a child of: this one, or the one that was forked.

    Args:
        sock: to its `Server`; taken over.
        pid: of its process.
        pidfd: refers to the same; taken over.
        is_child: it is a child of this process.

    Attributes:
        pid: of its process.
    """

    def __init__(self, sock: socket.socket, pid: int, pidfd: int, is_child: bool) -> None:
        self.pid = pid
        self._wire: Wire[m.Reply] = Wire(sock, m.Reply)
        self._pidfd = pidfd
        self._is_child = is_child
        self._sending = threading.Lock()
        self._state = threading.Condition()     # of all below
        self._number = 0
        self._pending: dict[int, deque[Frame[m.Reply]]] = {}
        self._is_read = False                   # a thread waits for the socket
        self._death: str | None = None
        self._is_closed = False
        _reap()
        _open.add(self)

    def make(self, words: bytes) -> None:
        """Have a fresh process make its machine (`emu.process.spawn`)."""
        self._ask(m.Make(), words)

    # -- what it offers --------------------------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = False,
        input: bytes | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
        most_output: int | None = None,
    ) -> Result:
        """Run a command in the guest; as `Machine.run`, and:

        Args:
            most_output: bytes that it may write on stdout and stderr together; at more it is killed.

        Raises:
            OutputLimit: it wrote more.
            MachineDied: the process is gone.
        """
        words = command if isinstance(command, str) else tuple(command)
        kept: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        sinks: dict[int, Sink] = {1: stdout or kept[1].extend, 2: stderr or kept[2].extend}

        def took(frame: Frame[m.Reply]) -> None:
            if isinstance(frame.message.body, m.Output):
                sinks[frame.message.body.stream](frame.data)

        body = m.Run(words, _ms(timeout), input is not None, most_output)
        reply = self._ask(body, input or b"", took).message.body
        if not isinstance(reply, m.Ran):
            raise MachineDied(f"the machine's process {self.pid} gave another answer than was asked for")
        result = Result(reply.status, bytes(kept[1]), bytes(kept[2]))
        if check:
            text = words if isinstance(words, str) else shlex.join(words)
            result.check(text.encode("utf-8", "surrogateescape"))
        return result

    def wait_ready(self, timeout: float | None = 120.0) -> None:
        """Wait until commands can be run; as `Machine.wait_ready`."""
        self._ask(m.WaitReady(_ms(timeout)))

    def wait_stopped(self, timeout: float | None = None) -> str | None:
        """Wait until the machine has stopped by itself.

        Args:
            timeout: host seconds, None for ever.

        Returns:
            Why, in a line; None if it still runs.
        """
        return self._value(m.WaitStopped(_ms(timeout)), str) or None

    def copy_in(self, source: Path_ | bytes, target: str, *, timeout: float | None = None) -> None:
        """Copy a file or a directory into the guest; as `Machine.copy_in`."""
        if isinstance(source, bytes):
            self._ask(m.CopyIn(None, target, _ms(timeout)), source)
        else:
            self._ask(m.CopyIn(os.path.abspath(source), target, _ms(timeout)))

    def copy_out(self, source: str, target: Path_, *, timeout: float | None = None) -> None:
        """Copy a file or a directory out of the guest; as `Machine.copy_out`."""
        self._ask(m.CopyOut(source, os.path.abspath(target), _ms(timeout)))

    def snapshot(self, path: Path_, *, incremental: bool = False) -> None:
        """Save the machine to a directory; as `Machine.snapshot`."""
        self._ask(m.Save(os.path.abspath(path), incremental))

    @overload
    def fork(self, *, vsock: Path_ | None = None) -> MachineProcess: ...
    @overload
    def fork(self, count: int) -> list[MachineProcess]: ...

    def fork(self, count: int | None = None, *, vsock: Path_ | None = None) -> MachineProcess | list[MachineProcess]:
        """Fork its process, for machines that go on from here each by itself. They end with this one.

        Commands under way in this one are killed in the children.

        Args:
            count: how many; None: one, and not a list.
            vsock: a path for a socket file of the child's own.

        Raises:
            EmuError: the machine has stopped; a disk is written in place; the host has no room.
        """
        machines: list[MachineProcess] = []

        def took(frame: Frame[m.Reply]) -> None:
            if isinstance(frame.message.body, m.Forked):
                sock, pidfd = frame.fds
                machines.append(MachineProcess(socket.socket(fileno=sock), frame.message.body.pid, pidfd, False))

        body = m.Fork(1 if count is None else count, () if vsock is None else (os.path.abspath(vsock),))
        try:
            self._ask(body, b"", took)
        except BaseException:
            for machine in machines:
                machine.close()
            raise
        return machines[0] if count is None else machines

    def stats(self) -> ExitStats:
        """What made the guest leave its code; as `Machine.stats`."""
        return self._value(m.Stats(), ExitStats)

    def describe(self) -> m.Description:
        """What its process knows of it."""
        return self._value(m.Describe(), m.Description)

    def console_send(self, data: bytes) -> None:
        """Type on the guest's console."""
        self._ask(m.ConsoleSend(), data)

    def console_expect(self, pattern: str, timeout: float = 30.0) -> str:
        """Wait until the console's output matches a regular expression.

        Args:
            pattern: searched in what no call before has taken.
            timeout: host seconds.

        Returns:
            The output up to the match's end.

        Raises:
            GuestTimeout, GuestStopped: it did not; the guest stopped before.
        """
        return self._value(m.ConsoleExpect(pattern, _ms(timeout) or 0), str)

    def console_output(self) -> bytes:
        """The last MiB of what the guest wrote to its console."""
        return self._ask(m.ConsoleOutput()).data

    def vsock_connect(self, port: int, timeout: float | None = None) -> socket.socket:
        """Connect to a program of the guest, by the machine's socket file.

        Args:
            port: that the program listens on.
            timeout: host seconds, None for the device's 8 s of patience.

        Raises:
            EmuError: the machine has no socket file.
            GuestError: nobody listens there.
        """
        path = self.describe().vsock
        if path is None:
            raise EmuError("this machine has no socket file; make it with vsock=PATH")
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout)
            sock.connect(path)
            sock.sendall(b"CONNECT %d\n" % port)
            answer = b""
            while not answer.endswith(b"\n") and len(answer) < GREETING_LIMIT and (byte := sock.recv(1)):
                answer += byte
        except TimeoutError:
            sock.close()
            raise GuestTimeout(f"vsock: guest port {port}: no answer in {timeout} s") from None
        except OSError as error:
            sock.close()
            raise GuestError(f"vsock: guest port {port}: {error.strerror}") from None
        if not answer.startswith(b"OK "):
            sock.close()
            raise GuestError(f"vsock: guest port {port}: refused by the guest")
        sock.settimeout(None)
        return sock

    # -- its process -----------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        with self._state:
            return not self._is_closed and not _wait_end(self._pidfd, 0)

    def use(self) -> MemoryUse:
        """What its process takes of the host's memory.

        Raises:
            MachineDied: it is gone.
        """
        try:
            text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        except OSError:
            text = ""
        if not text or not self.alive:
            raise MachineDied(f"the machine's process {self.pid} is gone")
        rows = (line.split() for line in text.splitlines()[1:])
        size = {row[0].rstrip(":"): int(row[1]) << 10 for row in rows}
        return MemoryUse(
            size["Private_Clean"] + size["Private_Dirty"], size["Shared_Clean"] + size["Shared_Dirty"]
        )

    def kill(self) -> None:
        """End its process at once, whatever it does; does not wait. What is asked of it raises `MachineDied`."""
        with self._state:
            if not self._is_closed:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """End its process, and wait until it is gone; requests of other threads raise."""
        with self._state:
            if self._is_closed:
                return
            self._is_closed = True
            self._wire.shut_down()
            while self._is_read:
                self._state.wait()
            self._state.notify_all()
        if not _wait_end(self._pidfd, CLOSE_S):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            _wait_end(self._pidfd, None)
        self._let_go()

    def disown(self) -> None:
        """In a process that was forked: forget it; it is the parent's."""
        self._is_closed = True
        self._wire.close()
        os.close(self._pidfd)

    def _let_go(self) -> None:
        """Close what this process has of it."""
        _open.discard(self)
        self._wire.close()
        os.close(self._pidfd)
        if self._is_child:
            _ended.append(self.pid)
        _reap()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            self._is_closed = True
            self._let_go()

    # -- requests --------------------------------------------------------------------------------------------------

    def _value(self, body: Any, kind: type[T]) -> T:
        """Have something done whose answer is of that type."""
        reply = self._ask(body).message.body
        if not isinstance(reply, m.Done) or not isinstance(reply.value, kind):
            raise MachineDied(f"the machine's process {self.pid} gave another answer than was asked for")
        return reply.value

    def _ask(
        self, body: Any, data: bytes = b"", take: Callable[[Frame[m.Reply]], None] | None = None
    ) -> Frame[m.Reply]:
        """Have something done; the last reply.

        Args:
            body: of the request.
            data: beside it.
            take: called with each reply before the last.

        Raises:
            MachineDied: the process is gone.
            EmuError, ValueError, OSError: what the request raised there.
        """
        number = self._send(body, data)
        try:
            while True:
                frame = self._next(number)
                reply = frame.message.body
                if isinstance(reply, m.Failed):
                    raise _error(reply)
                if isinstance(reply, m.Done | m.Ran):
                    return frame
                if take is not None:
                    take(frame)
        except Exception:
            raise
        except BaseException:                   # Ctrl-C: nobody waits for the request any more
            self._cancel(number)
            raise
        finally:
            self._forget(number)

    def _send(self, body: Any, data: bytes) -> int:
        with self._state:
            self._check()
            self._number += 1
            number = self._number
            self._pending[number] = deque()
        with self._sending, suppress(OSError):      # that it is gone shows when the reply is read
            self._wire.send(m.Request(number, body), data)
        return number

    def _cancel(self, number: int) -> None:
        with self._sending, suppress(OSError):
            self._wire.send(m.Request(0, m.Cancel(number)))

    def _check(self) -> None:
        if self._is_closed:
            raise MachineDied("the machine is closed")
        if self._death is not None:
            raise MachineDied(self._death)

    def _next(self, number: int) -> Frame[m.Reply]:
        """The next reply to a request. Of the threads that wait, one reads for all."""
        with self._state:
            frames = self._pending[number]
            while not frames:
                self._check()
                if self._is_read:
                    self._state.wait()
                else:
                    self._read()
            return frames.popleft()

    def _read(self) -> None:
        """Wait for the socket, without holding the lock, and hand out what comes."""
        self._is_read = True
        self._state.release()
        come: list[Frame[m.Reply]] = []
        death = None
        try:
            _wait_readable(self._wire.fileno(), None)
            for frame in self._wire.receive():
                come.append(self._with_fds(frame))
        except EOFError:
            death = f"the machine's process {self.pid} is gone"
        except WireError as error:
            death = str(error)
        finally:
            self._state.acquire()
            self._is_read = False
            self._state.notify_all()
        for frame in come:
            if frame.message.number == 0 and isinstance(frame.message.body, m.Failed):
                death = frame.message.body.message      # its last words
            elif (frames := self._pending.get(frame.message.number)) is not None:
                frames.append(frame)
            else:
                _drop(frame)
        self._death = self._death or death

    def _with_fds(self, frame: Frame[m.Reply]) -> Frame[m.Reply]:
        if not isinstance(frame.message.body, m.Forked):
            return frame
        return replace(frame, fds=tuple(self._wire.take_fds(2)))

    def _forget(self, number: int) -> None:
        with self._state:
            for frame in self._pending.pop(number, ()):
                _drop(frame)


def _drop(frame: Frame[m.Reply]) -> None:
    """Nobody wants it; a child of whom nobody knows ends."""
    for fd in frame.fds:
        os.close(fd)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else max(round(seconds * 1000), 1)


def _error(failure: m.Failed) -> Exception:
    """What was raised there."""
    kind = getattr(errors, failure.kind, EmuError)
    if failure.kind == "ValueError":
        return ValueError(failure.message)
    if not (isinstance(kind, type) and issubclass(kind, EmuError)):
        kind = EmuError
    return kind(failure.message)


def _wait_readable(fd: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def _wait_end(pidfd: int, timeout: float | None) -> bool:
    """Whether a process has ended; waits for it so many seconds, None for ever."""
    return _wait_readable(pidfd, timeout)


def _reap() -> None:
    """Let children that have ended go."""
    for pid in list(_ended):
        try:
            gone = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            gone = True
        if gone:
            with suppress(ValueError):          # another thread was here
                _ended.remove(pid)


def close_all() -> None:
    """In a process that was forked: close what the parent had of its machines, which live on."""
    for machine in list(_open):
        machine.disown()
    _ended.clear()
