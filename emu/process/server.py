"""The loop of a process that is a machine: runs the guest, and does what its user asks meanwhile.

Commands run at the same time, as many as the guest's agent takes, and who waits for the console or for the machine's
end waits beside them. Everything else is done one after another; where it has to wait, the guest runs. Nothing waits
for the user: what a command writes stays in the guest while its user does not deal with what came before.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

from emu.errors import EmuError, GuestError, GuestStopped, GuestTimeout, OutputLimit
from emu.fittings import VsockNetwork
from emu.job import shown
from emu.process import messages as m
from emu.process.ahead import GO, Ahead
from emu.process.diagnosis import RECENT, diagnose
from emu.process.forking import fork_process, plain_fork
from emu.process.running import Running
from emu.process.views import Views
from emu.process.waits import Expectation, Stop, Waits
from emu.process.wire import Wire, WireError

if TYPE_CHECKING:
    import socket

    from emu.machine import Machine

__all__ = ["Server"]

STDOUT, STDERR = 1, 2
AT_ONCE = m.Diagnose, m.ConsoleOutput   # need no guest, and are of use while something is waited for
NEEDS_GUEST = m.Run, m.WaitReady, m.CopyIn, m.CopyOut
READY_S = 120.0                         # for a fresh guest's agent or shell, when a command has no time limit


class _Cancelled(EmuError):
    """Nobody waits for what is being done."""


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
        self._running: dict[int, Running] = {}
        self._waits = Waits(lambda number, answer: self._reply(number, m.Done(answer)), self._fail)
        self._views = Views(machine, self._reply)
        self._is_paused = False
        self._current: int | None = None        # the request that is being done
        self._is_cancelled = False              # that one
        self._over = False
        self._has_forked = False
        self._ahead = Ahead(machine)
        self._since_ns = 0
        self._handlers: dict[type, Callable[[int, Any, bytes], None]] = {
            m.Run: self._run, m.WaitReady: self._wait_ready, m.WaitStopped: self._wait_stopped,
            m.CopyIn: self._copy_in, m.CopyOut: self._copy_out, m.Save: self._save, m.Fork: self._fork,
            m.Stats: self._stats, m.Describe: self._describe, m.Diagnose: self._diagnose,
            m.Isolate: self._isolate, m.ConsoleSend: self._console_send,
            m.ConsoleExpect: self._console_expect, m.ConsoleOutput: self._console_output, m.View: self._view,
            m.Resize: self._resize, m.Pause: self._pause,
        }  # fmt: skip

    def serve(self) -> None:
        """Do what is asked until nobody can ask any more."""
        RECENT.begin()
        self._machine.watch_fd(self._wire.fileno(), self._received)
        if self._watched is not None:
            self._machine.watch_fd(self._watched, self._abandoned)
        self._since_ns = monotonic_ns()
        try:
            while not self._over:
                self._drive()
                self._finish()
                while self._requests and not self._over:
                    self._handle(*self._requests.popleft())
        except Exception as error:              # a fault of ours
            self._reply(0, m.Failed("EmuError", f"the machine's process has failed: {error!r}"))
            raise
        self._machine.leave()

    # -- what comes ------------------------------------------------------------------------------------------------

    def _received(self) -> None:
        """On the machine's thread, between two slices of guest time."""
        try:
            for frame in self._wire.receive():
                body = frame.message.body
                if isinstance(body, m.Cancel):
                    self._cancel(body.request)
                elif isinstance(body, AT_ONCE):
                    self._handlers[type(body)](frame.message.number, body, b"")
                elif not isinstance(body, m.Took):
                    self._requests.append((frame.message, frame.data))
                elif one := self._running.get(body.request):
                    one.ahead -= body.size
                else:
                    self._views.took(body.request, body.size)
        except (EOFError, WireError):
            self._abandoned()
        if self._is_cancelled:
            raise _Cancelled

    def _cancel(self, number: int) -> None:
        self._is_cancelled = number == self._current or self._is_cancelled
        self._requests = deque(each for each in self._requests if each[0].number != number)
        self._waits.cancel(number)
        self._views.cancel(number)
        if one := self._running.pop(number, None):
            one.job.kill()

    def _abandoned(self) -> None:
        self._over = True
        self._machine.request_stop()            # whatever is being done for nobody

    def _drive(self) -> None:
        """Run the guest until there is something to do; or wait for that, if it has stopped."""
        machine = self._machine
        if self._is_paused:
            if not (self._over or self._requests or self._views.is_due):
                machine.wait_fds()
            return
        deadlines = *(one.deadline for one in self._running.values()), *self._waits.deadlines
        deadline = min((each for each in deadlines if each is not None), default=None)
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
        return (
            self._over
            or bool(self._requests)
            or any(one.is_due for one in self._running.values())
            or self._waits.is_due
            or self._views.is_due
            or (self._has_forked and self._machine.is_idle and not self._running and self._look_ahead())
        )

    def _handle(self, request: m.Request, data: bytes) -> None:
        self._current = request.number
        if not isinstance(request.body, m.Fork):
            self._ahead.drop()                              # what is done now, it would not know of
        try:
            if self._is_paused and isinstance(request.body, NEEDS_GUEST):
                raise EmuError("the machine is paused")
            self._handlers[type(request.body)](request.number, request.body, data)
        except _Cancelled:
            pass
        except (EmuError, ValueError, OSError) as error:
            self._fail(request.number, error)
        finally:
            self._current, self._is_cancelled = None, False

    # -- what goes -------------------------------------------------------------------------------------------------

    def _reply(self, number: int, body: Any, data: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        """Send what goes at once; the rest goes while the guest runs."""
        try:
            self._watch(self._wire.post(m.Reply(number, body), data, fds))
        except OSError:
            self._abandoned()

    def _send_on(self) -> None:
        try:
            self._watch(self._wire.flush())
        except OSError:
            self._abandoned()

    def _watch(self, is_all_sent: bool) -> None:
        self._machine.watch_fd(self._wire.fileno(), self._received, None if is_all_sent else self._send_on)

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
        job = machine.channel.start(command, input=data if body.has_input else None)
        job.stdout.stream()
        job.stderr.stream()
        self._running[number] = Running(number, job, given, deadline, body.most_output)

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

    def _finish(self) -> None:
        """Send what commands have written, and end what has ended, or has to."""
        for number, one in [] if self._is_paused else list(self._running.items()):
            if self._running.get(number) is one:        # the guest may have run for the one before
                self._pass_on(one)
                self._finish_command(one)
        self._waits.look()
        self._views.send()

    def _pass_on(self, one: Running) -> None:
        for stream, output in (STDOUT, one.job.stdout), (STDERR, one.job.stderr):
            if one.ahead < m.AHEAD and (data := output.read()):
                one.written += len(data)
                one.ahead += len(data)
                if one.most_output is None or one.written <= one.most_output:
                    self._reply(one.number, m.Output(stream), data)

    def _finish_command(self, one: Running) -> None:
        job = one.job
        if one.most_output is not None and one.written > one.most_output:
            self._end(one, OutputLimit(f"{shown(job.text)} wrote more than {one.most_output} bytes"))
        elif one.deadline is not None and monotonic() >= one.deadline:
            self._end(one, GuestTimeout(f"{shown(job.text)} did not end within {one.timeout:g} s"))
        elif not one.has_output and job.status is not None:
            del self._running[one.number]
            self._reply(one.number, m.Ran(job.status))
        elif not one.has_output and job.failure is not None:
            try:
                job.check()             # the guest may be about to end as a whole
            except EmuError as error:
                self._end(one, error)

    def _end(self, one: Running, error: EmuError) -> None:
        self._running.pop(one.number, None)
        channel = self._machine.channel
        assert channel is not None
        try:
            with channel.killing(one.job):
                raise error
        except EmuError as final:
            self._fail(one.number, final)

    # -- the rest --------------------------------------------------------------------------------------------------

    def _wait_ready(self, number: int, body: m.WaitReady, _data: bytes) -> None:
        self._machine.wait_ready(_seconds(body.timeout_ms))
        self._reply(number, m.Done())

    def _wait_stopped(self, number: int, body: m.WaitStopped, _data: bytes) -> None:
        self._waits.add(number, Stop(self._machine), _seconds(body.timeout_ms))

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
        if threading.active_count() > 1:                    # somebody's handlers have started one
            raise EmuError("the machine's process has other threads, and cannot be forked safely")
        if not self._has_forked:
            self._has_forked = True
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)   # nobody asks here how a child ended
        self._machine.prepare_fork()
        gc.freeze()                                         # looking through them would copy objects in the child
        if body.vsock:
            self._ahead.drop()                              # it has no sockets
        for index in range(body.count):
            child = self._ahead.take() or fork_process(plain_fork)
            if isinstance(child, int):
                self._become(child, _place(body.vsock[index]) if body.vsock else None)
                return
            self._reply(number, m.Forked(child.pid), fds=(child.sock, child.pidfd))
        self._reply(number, m.Done())
        if body.count == 1 and not body.vsock:
            self._ahead.expect()

    def _become(self, sock: int, vsock: Path | VsockNetwork | None = None) -> None:
        """In a child: be its server; what is the parent's is closed, and forgotten."""
        if self._watched is not None:
            os.close(self._watched)
            self._watched = None
        self._wire.exchange(sock)
        for each in self._requests, self._running:
            if each:
                each.clear()
        self._waits.clear()
        self._views.clear()
        self._is_paused = False
        RECENT.clear()
        self._ahead.forget()
        try:
            self._machine.forked(vsock, self._wire.fileno())
        except Exception as error:
            is_known = isinstance(error, EmuError | OSError)
            self._reply(0, m.Failed("EmuError", str(error) if is_known else f"the fork has failed: {error!r}"))
            os._exit(1)                     # what the machine has of the host's is still the parent's
        self._since_ns = monotonic_ns()

    def _look_ahead(self) -> bool:
        """The guest has nothing to do; whether this process is another one afterwards."""
        sock = self._ahead.look()
        if sock is None:
            return False
        self._become(sock)
        if not self._wire.wait_for(GO):
            os._exit(0)
        self._since_ns = monotonic_ns()
        return True

    def _stats(self, number: int, _body: m.Stats, _data: bytes) -> None:
        self._reply(number, m.Done(self._machine.stats()))

    def _describe(self, number: int, _body: m.Describe, _data: bytes) -> None:
        machine = self._machine
        path = None if machine.vsock_path is None else str(machine.vsock_path)
        self._reply(number, m.Done(m.Description(machine.memory.size, path, self._since_ns)))

    def _diagnose(self, number: int, _body: m.Diagnose, _data: bytes) -> None:
        self._reply(number, m.Done(diagnose(self._machine)))

    def _isolate(self, number: int, body: m.Isolate, _data: bytes) -> None:
        self._machine.vsock.isolate(body.isolated)
        self._reply(number, m.Done())

    def _console_send(self, number: int, _body: m.ConsoleSend, data: bytes) -> None:
        self._machine.console.send(data)
        self._reply(number, m.Done())

    def _console_expect(self, number: int, body: m.ConsoleExpect, _data: bytes) -> None:
        seconds = body.timeout_ms / 1000
        self._waits.add(number, Expectation(self._machine, body.pattern, seconds), seconds)

    def _console_output(self, number: int, _body: m.ConsoleOutput, _data: bytes) -> None:
        self._reply(number, m.Done(), self._machine.console.history)

    def _view(self, number: int, _body: m.View, _data: bytes) -> None:
        self._views.add(number)

    def _resize(self, number: int, body: m.Resize, _data: bytes) -> None:
        self._views.size.set(body.columns, body.rows)
        self._reply(number, m.Done())

    def _pause(self, number: int, body: m.Pause, _data: bytes) -> None:
        self._is_paused = body.is_paused
        self._reply(number, m.Done())


def _place(vsock: str | m.Network) -> Path | VsockNetwork:
    return Path(vsock) if isinstance(vsock, str) else VsockNetwork(vsock.directory, vsock.cid)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
