"""The loop of a process that is a machine: runs the guest, and does what its user asks meanwhile.

Commands run at the same time, as many as the guest's agent takes. Everything else is done one after another; where it
has to wait, the guest runs.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

from emu.errors import EmuError, GuestError, GuestStopped, GuestTimeout, OutputLimit
from emu.job import shown
from emu.process import messages as m
from emu.process.wire import Wire, WireError

if TYPE_CHECKING:
    import socket

    from emu.job import Job
    from emu.machine import Machine

__all__ = ["Server"]

STDOUT, STDERR = 1, 2
READY_S = 120.0                         # for a fresh guest's agent or shell, when a command has no time limit


@dataclass(eq=False)
class _Running:
    """A command under way.

    Attributes:
        deadline: host monotonic seconds, None for ever.
        output_left: bytes that it may still write, None for any number.
    """

    number: int
    job: Job
    timeout: float | None
    deadline: float | None
    output_left: int | None


class Server:
    """Serves one machine.

    Args:
        machine: driven here, and closed in the end.
        sock: to the user; when its other end is closed, all is over.
        watched: a pidfd of the process that this one must not outlive.
    """

    def __init__(self, machine: Machine, sock: socket.socket, watched: int | None = None) -> None:
        self._machine = machine
        self._wire = Wire(sock, m.Request)
        self._watched = watched
        self._requests: deque[tuple[m.Request, bytes]] = deque()
        self._running: dict[int, _Running] = {}
        self._over = False
        self._since_ns = 0
        self._handlers: dict[type, Callable[[int, Any, bytes], None]] = {
            m.Run: self._run, m.WaitReady: self._wait_ready, m.WaitStopped: self._wait_stopped,
            m.CopyIn: self._copy_in, m.CopyOut: self._copy_out, m.Save: self._save, m.Fork: self._fork,
            m.Stats: self._stats, m.Describe: self._describe, m.ConsoleSend: self._console_send,
            m.ConsoleExpect: self._console_expect, m.ConsoleOutput: self._console_output,
        }  # fmt: skip

    def serve(self) -> None:
        """Do what is asked until nobody can ask any more."""
        self._machine.watch_fd(self._wire.fileno(), self._received)
        if self._watched is not None:
            self._machine.watch_fd(self._watched, self._abandoned)
        self._since_ns = monotonic_ns()
        while not self._over:
            self._drive()
            self._finish()
            while self._requests and not self._over:
                self._handle(*self._requests.popleft())
        self._machine.close()

    # -- what comes ------------------------------------------------------------------------------------------------

    def _received(self) -> None:
        """On the machine's thread, between two slices of guest time."""
        try:
            for frame in self._wire.receive():
                if isinstance(frame.message.body, m.Cancel):
                    self._cancel(frame.message.body.request)
                else:
                    self._requests.append((frame.message, frame.data))
        except (EOFError, WireError):
            self._abandoned()

    def _abandoned(self) -> None:
        self._over = True
        self._machine.request_stop()            # whatever is being done for nobody

    def _drive(self) -> None:
        """Run the guest until there is something to do; or wait for that, if it has stopped."""
        machine = self._machine
        deadline = min((one.deadline for one in self._running.values() if one.deadline is not None), default=None)
        drive = machine.channel.drive if self._running and machine.channel else machine.drive
        try:
            drive(self._has_work, None if deadline is None else max(deadline - monotonic(), 0))
        except GuestStopped as error:
            self._fail_all(error)
            if not self._has_work():
                machine.wait_fds()
        except GuestError as error:             # its kernel has panicked
            self._fail_all(error)

    def _has_work(self) -> bool:
        return self._over or bool(self._requests) or any(one.job.is_over for one in self._running.values())

    def _handle(self, request: m.Request, data: bytes) -> None:
        try:
            self._handlers[type(request.body)](request.number, request.body, data)
        except (EmuError, ValueError, OSError) as error:
            self._fail(request.number, error)

    # -- what goes -------------------------------------------------------------------------------------------------

    def _reply(self, number: int, body: Any, data: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        try:
            self._wire.send(m.Reply(number, body), data, fds)
        except OSError:
            self._abandoned()

    def _fail(self, number: int, error: Exception) -> None:
        kind = type(error).__name__ if isinstance(error, EmuError) else "OSError"
        if isinstance(error, ValueError) and not isinstance(error, EmuError):
            kind = "ValueError"
        self._reply(number, m.Failed(kind, str(error)))

    def _fail_all(self, error: Exception) -> None:
        for number in list(self._running):
            del self._running[number]
            self._fail(number, error)

    # -- commands --------------------------------------------------------------------------------------------------

    def _run(self, number: int, body: m.Run, data: bytes) -> None:
        machine, given = self._machine, _seconds(body.timeout_ms)
        deadline = None if given is None else monotonic() + given
        machine.wait_ready(READY_S if given is None else given)
        if machine.channel is None or not machine.channel.alive:
            self._run_on_console(number, body, data, deadline)
            return
        command = body.command if isinstance(body.command, str) else list(body.command)
        out, err = (partial(self._take, number, stream) for stream in (STDOUT, STDERR))
        job = machine.channel.start(command, input=data if body.has_input else None, stdout=out, stderr=err)
        self._running[number] = _Running(number, job, given, deadline, body.most_output)

    def _run_on_console(self, number: int, body: m.Run, data: bytes, deadline: float | None) -> None:
        """Without an agent nothing else happens meanwhile."""
        command = body.command if isinstance(body.command, str) else list(body.command)
        timeout = None if deadline is None else max(deadline - monotonic(), 0.001)
        result = self._machine.run(command, timeout=timeout, input=data if body.has_input else None)
        if body.most_output is not None and len(result.stdout_bytes + result.stderr_bytes) > body.most_output:
            raise OutputLimit(f"the command wrote more than {body.most_output} bytes")
        self._reply(number, m.Output(STDOUT), result.stdout_bytes)
        self._reply(number, m.Output(STDERR), result.stderr_bytes)
        self._reply(number, m.Ran(result.status))

    def _take(self, number: int, stream: int, data: bytes) -> None:
        """Output of a command, from the guest."""
        one = self._running.get(number)
        if one is None or one.job.killed:
            return
        if one.output_left is not None:
            one.output_left -= len(data)
            if one.output_left < 0:
                one.job.kill()
                return
        self._reply(number, m.Output(stream), data)

    def _finish(self) -> None:
        """End what has ended, or has to."""
        for number, one in list(self._running.items()):
            if one.output_left is not None and one.output_left < 0:
                self._end(one, OutputLimit(f"{shown(one.job.text)} wrote more than it may"))
            elif one.job.status is not None:
                del self._running[number]
                self._reply(number, m.Ran(one.job.status))
            elif one.job.failure is not None:
                self._end(one, GuestError(one.job.failure))
            elif one.deadline is not None and monotonic() >= one.deadline:
                self._end(one, GuestTimeout(f"{shown(one.job.text)} did not end within {one.timeout:g} s"))

    def _end(self, one: _Running, error: EmuError) -> None:
        del self._running[one.number]
        channel = self._machine.channel
        assert channel is not None
        try:
            with channel.killing(one.job):
                raise error
        except EmuError as final:
            self._fail(one.number, final)

    def _cancel(self, number: int) -> None:
        if one := self._running.pop(number, None):
            one.job.kill()

    # -- the rest --------------------------------------------------------------------------------------------------

    def _wait_ready(self, number: int, body: m.WaitReady, _data: bytes) -> None:
        self._machine.wait_ready(_seconds(body.timeout_ms))
        self._reply(number, m.Done())

    def _wait_stopped(self, number: int, body: m.WaitStopped, _data: bytes) -> None:
        machine = self._machine
        if machine.stop_reason is None:
            machine.drive(lambda: self._over or machine.stop_reason is not None, _seconds(body.timeout_ms))
        self._reply(number, m.Done(machine.stop_detail))

    def _copy_in(self, number: int, body: m.CopyIn, data: bytes) -> None:
        source = data if body.source is None else body.source
        self._machine.copy_in(source, body.target, timeout=_seconds(body.timeout_ms))
        self._reply(number, m.Done())

    def _copy_out(self, number: int, body: m.CopyOut, _data: bytes) -> None:
        self._machine.copy_out(body.source, body.target, timeout=_seconds(body.timeout_ms))
        self._reply(number, m.Done())

    def _save(self, number: int, body: m.Save, _data: bytes) -> None:
        self._machine.snapshot(body.path, incremental=body.incremental)
        self._reply(number, m.Done())

    def _fork(self, number: int, body: m.Fork, _data: bytes) -> None:
        from emu.process.forking import fork_machine

        signal.signal(signal.SIGCHLD, signal.SIG_IGN)       # nobody asks here how a child ended
        self._machine.prepare_fork()
        for index in range(body.count):
            vsock = Path(body.vsock[index]) if body.vsock else None
            child = fork_machine(self._machine, vsock, self._let_go)
            with child:
                self._reply(number, m.Forked(child.pid), fds=(child.sock.fileno(), child.pidfd))
        self._reply(number, m.Done())

    def _let_go(self) -> None:
        """In a child: what it has of its parent's is closed."""
        self._wire.close()

    def _stats(self, number: int, _body: m.Stats, _data: bytes) -> None:
        self._reply(number, m.Done(self._machine.stats()))

    def _describe(self, number: int, _body: m.Describe, _data: bytes) -> None:
        machine = self._machine
        path = None if machine.vsock_path is None else str(machine.vsock_path)
        self._reply(number, m.Done(m.Description(machine.memory.size, path, self._since_ns)))

    def _console_send(self, number: int, _body: m.ConsoleSend, data: bytes) -> None:
        self._machine.console.send(data)
        self._reply(number, m.Done())

    def _console_expect(self, number: int, body: m.ConsoleExpect, _data: bytes) -> None:
        console = self._machine.console
        console.expect(body.pattern, body.timeout_ms / 1000)
        self._reply(number, m.Done(console.before + console.after))

    def _console_output(self, number: int, _body: m.ConsoleOutput, _data: bytes) -> None:
        self._reply(number, m.Done(), self._machine.console.history)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
