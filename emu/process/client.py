"""What the user of a machine in another process holds."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Self, TypeVar, overload

from emu.errors import EmuError, GuestError, GuestTimeout, MachineDied
from emu.guest import Result
from emu.process import messages as m
from emu.process.memory import MemoryUse, memory_of
from emu.process.outputs import Outputs, Sink
from emu.process.requests import Requests
from emu.process.wire import Frame, wait_readable
from emu.stats import ExitStats

if TYPE_CHECKING:
    from emu.fittings import VsockNetwork

__all__ = ["MachineProcess", "MemoryUse", "close_all"]

T = TypeVar("T")
Path_ = str | os.PathLike[str]

CLOSE_S = 2.0                           # for a process to end by itself when nobody uses it any more
LONGEST_S = 1e9                         # of any time limit
GREETING_LIMIT = 64                     # bytes of a socket file's answer to CONNECT

_open: weakref.WeakSet[MachineProcess] = weakref.WeakSet()
_ended: list[int] = []                  # children of this process that may still be zombies


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
        self._requests = Requests(sock, f"the machine's process {pid}")
        self._pidfd = pidfd
        self._is_child = is_child
        self._ending = threading.RLock()        # of what follows
        self._is_closed = False
        _reap()
        _open.add(self)

    def make(self, words: bytes) -> None:
        """Have a fresh process make its machine (`emu.process.spawn`)."""
        self._requests.ask(m.Make(), words)

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
        text = (words if isinstance(words, str) else shlex.join(words)).encode("utf-8", "surrogateescape")
        outputs = Outputs(self._requests, text, stdout, stderr)
        body = m.Run(words, _ms(timeout), input is not None, most_output)
        reply = self._requests.ask(body, input or b"", outputs.take).message.body
        if not isinstance(reply, m.Ran):
            raise self._requests.strange()
        result = Result(reply.status, *outputs.kept())
        if check:
            result.check(text)
        return result

    def wait_ready(self, timeout: float | None = 120.0) -> None:
        """Wait until commands can be run; as `Machine.wait_ready`."""
        self._requests.ask(m.WaitReady(_ms(timeout)))

    def wait_stopped(self, timeout: float | None = None) -> str | None:
        """Wait until the machine has stopped by itself.

        Args:
            timeout: host seconds, None for ever.

        Returns:
            Why, in a line; None if it still runs.
        """
        return self._requests.value(m.WaitStopped(_ms(timeout)), str) or None

    def copy_in(self, source: Path_ | bytes, target: str, *, timeout: float | None = None) -> None:
        """Copy a file or a directory into the guest; as `Machine.copy_in`."""
        if isinstance(source, bytes):
            self._requests.ask(m.CopyIn(None, target, _ms(timeout)), source)
        else:
            self._requests.ask(m.CopyIn(os.path.abspath(source), target, _ms(timeout)))

    def copy_out(self, source: str, target: Path_, *, timeout: float | None = None) -> None:
        """Copy a file or a directory out of the guest; as `Machine.copy_out`."""
        self._requests.ask(m.CopyOut(source, os.path.abspath(target), _ms(timeout)))

    def snapshot(self, path: Path_, *, incremental: bool = False) -> None:
        """Save the machine to a directory; as `Machine.snapshot`."""
        self._requests.ask(m.Save(os.path.abspath(path), incremental))

    @overload
    def fork(self, *, vsock: Path_ | VsockNetwork | None = None) -> MachineProcess: ...
    @overload
    def fork(self, count: int) -> list[MachineProcess]: ...

    def fork(
        self, count: int | None = None, *, vsock: Path_ | VsockNetwork | None = None
    ) -> MachineProcess | list[MachineProcess]:
        """Fork its process, for machines that go on from here each by itself. They end with this one.

        Commands under way in this one are killed in the children.

        Args:
            count: how many; None: one, and not a list.
            vsock: a path for a socket file of the child's own, or a network, in which it has an address of its own.

        Raises:
            EmuError: the machine has stopped; a disk is written in place; the host has no room.
        """
        machines: list[MachineProcess] = []

        body = m.Fork(1 if count is None else count, () if vsock is None else (_place(vsock),))
        try:
            self._requests.ask(body, b"", lambda frame: machines.append(_child(frame)))
        except BaseException:
            for machine in machines:
                machine.close()
            raise
        return machines[0] if count is None else machines

    def stats(self) -> ExitStats:
        """What made the guest leave its code; as `Machine.stats`."""
        return self._requests.value(m.Stats(), ExitStats)

    def describe(self) -> m.Description:
        """What its process knows of it."""
        return self._requests.value(m.Describe(), m.Description)

    def diagnose(self) -> m.Diagnosis:
        """Where it stands, and what its parts have logged: for whoever looks for a fault."""
        return self._requests.value(m.Diagnose(), m.Diagnosis)

    def isolate(self, isolated: bool) -> None:
        """Take it out of its vsock network, where its connections end at once, or put it back."""
        self._requests.ask(m.Isolate(isolated))

    def console_send(self, data: bytes) -> None:
        """Type on the guest's console."""
        self._requests.ask(m.ConsoleSend(), data)

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
        re.compile(pattern)             # what is wrong with it is raised here
        return self._requests.value(m.ConsoleExpect(pattern, _ms(timeout) or 0), str)

    def console_output(self) -> bytes:
        """The last MiB of what the guest wrote to its console."""
        return self._requests.ask(m.ConsoleOutput()).data

    def console_view(self, show: Callable[[int, bytes], object]) -> str:
        """Show the console as it comes, until the machine has stopped; what was on it lately comes first.

        The guest does not wait for who looks: who is too slow misses some of it.

        Args:
            show: called with bytes, and with how many there were before these, shown or not.

        Returns:
            Why the machine has stopped, in a line.
        """

        def take(frame: Frame[m.Reply]) -> None:
            body = frame.message.body
            if isinstance(body, m.Shown):
                show(body.position, frame.data)
                self._requests.took(frame.message.number, len(frame.data))

        body = self._requests.ask(m.View(), b"", take).message.body
        return body.value if isinstance(body, m.Done) and isinstance(body.value, str) else ""

    def console_resize(self, columns: int, rows: int) -> None:
        """Tell the guest how large its console is, in characters; over a serial line, by its agent.

        Raises:
            ValueError: none is so large.
        """
        self._requests.ask(m.Resize(columns, rows))

    def pause(self) -> None:
        """Let the guest stand; what needs it raises `EmuError` until `resume`."""
        self._requests.ask(m.Pause(True))

    def resume(self) -> None:
        """Let it go on. Its clocks go right; it is told that it stood."""
        self._requests.ask(m.Pause(False))

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
        with self._ending:
            return not self._is_closed and not wait_readable(self._pidfd, 0)

    def use(self) -> MemoryUse:
        """What its process takes of the host's memory.

        Raises:
            MachineDied: it is gone.
        """
        use = memory_of(self.pid)
        if use is None or not self.alive:
            raise MachineDied(f"the machine's process {self.pid} is gone")
        return use

    def kill(self) -> None:
        """End its process at once, whatever it does; does not wait. What is asked of it raises `MachineDied`."""
        with self._ending:
            if not self._is_closed:
                self._signal_end()

    def close(self) -> None:
        """End its process, and wait until it is gone; requests of other threads raise."""
        with self._ending:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            self._requests.end("the machine is closed")
            if not wait_readable(self._pidfd, CLOSE_S):
                self._signal_end()
                wait_readable(self._pidfd, None)
        except BaseException:           # Ctrl-C
            self._signal_end()
            raise
        finally:
            self._let_go()

    def _signal_end(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def disown(self) -> None:
        """In a process that was forked: forget it; it is the parent's."""
        if not self._is_closed:
            self._is_closed = True
            self._requests.close()
            os.close(self._pidfd)

    def _let_go(self) -> None:
        """Close what this process has of it."""
        _open.discard(self)
        self._requests.close()
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


def _child(frame: Frame[m.Reply]) -> MachineProcess:
    """A machine that was forked, from the reply that brings it."""
    body = frame.message.body
    try:
        if not isinstance(body, m.Forked) or len(frame.fds) != 2:
            raise EmuError("no descriptor is left here for another machine")
        sock, pidfd = frame.fds
        return MachineProcess(socket.socket(fileno=sock), body.pid, pidfd, is_child=False)
    except (EmuError, OSError) as error:
        frame.drop()
        raise EmuError(f"cannot fork: {error}") from None


def _place(vsock: Path_ | VsockNetwork) -> str | m.Network:
    if isinstance(vsock, str | os.PathLike):
        return os.path.abspath(vsock)
    return m.Network(os.path.abspath(vsock.directory), vsock.cid)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else int(max(min(seconds, LONGEST_S), 0.001) * 1000)


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
