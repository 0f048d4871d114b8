"""A machine for `Server` whose guest is test code: the real channel and console, and an agent that runs generators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import SimpleNamespace

from emu.channel import Channel
from emu.console import Console
from emu.errors import EmuError, GuestStopped
from emu.poller import Poller
from emu.run_loop import StopReason
from emu.stats import ExitStats

__all__ = ["FakeMachine", "Program", "Running"]

SLICE_NS = 2_000_000
PANIC = b"Kernel panic - not syncing: of the test\r\n"


class Port:
    """A port of the channel; what the host sends is `sent` until the agent takes it."""

    def __init__(self) -> None:
        self.ready = True
        self.guest_open = False
        self.pending = 0
        self.received: Callable[[bytes], None] | None = None
        self.opened: Callable[[bool], None] | None = None
        self.drained: Callable[[], None] | None = None
        self.sent = bytearray()
        self.is_paused = False

    def open(self) -> None:
        """The agent does not mind."""

    def send(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def say(self, data: bytes) -> None:
        if self.received is not None:
            self.received(data)

    def set_open(self, is_open: bool) -> None:
        self.guest_open = is_open
        if self.opened is not None:
            self.opened(is_open)


@dataclass(eq=False)
class Running:
    """A command in the guest: a generator goes on a bit with each slice of guest time.

    Attributes:
        text: the command.
        machine: it runs in.
        out, err: the ports that it writes to.
        written: bytes so far.
    """

    text: str
    machine: FakeMachine
    out: Port
    err: Port
    has_input: bool
    written: int = 0

    def write(self, data: bytes, port: Port | None = None) -> Iterator[None]:
        """Write, as soon as the host takes it."""
        port = port or self.out
        while port.is_paused:
            yield
        self.written += len(data)
        port.say(data)

    def read(self) -> Iterator[None]:
        """Wait for all of the input, which is left in `input`."""
        self.input = b""
        while self.has_input:
            line, newline, rest = bytes(self.err.sent).partition(b"\n")
            size = int(line or b"0")
            if newline and len(rest) >= size:
                self.input += rest[:size]
                del self.err.sent[: len(line) + 1 + size]
                if size == 0:
                    return
                assert self.err.drained is not None
                self.err.drained()
            yield


Program = Callable[[Running], Iterator[None]]


@dataclass(eq=False)
class Slot:
    """A place for one command at a time."""

    out: Port
    err: Port
    token: bytes
    program: Iterator[int | None] | None = None


class FakeMachine:
    """What `Server` uses of `emu.machine.Machine`.

    Args:
        programs: by the first word of a command.
        has_agent: commands can be run.

    Attributes:
        calls: what was asked of it that is no command.
        killed: how many commands were told to end.
        unkillable: commands that do not.
    """

    def __init__(self, programs: dict[str, Program], has_agent: bool = True) -> None:
        self.driver_ready = True
        self.ports: dict[int, Port] = {}
        self.calls: list[tuple[object, ...]] = []
        self.killed = 0
        self.running: list[Running] = []
        self.unkillable: set[str] = set()
        self.on_wait_ready: Callable[[], None] = lambda: None
        self.is_closed = False
        self.is_idle = False
        self.stop_reason: StopReason | None = None
        self.stop_detail = ""
        self.memory = SimpleNamespace(size=64 << 20)
        self.vsock_path: Path | None = Path("/somewhere/v.sock")
        self.typed = bytearray()
        self._stop_requested = False
        self._programs = programs
        self._slots: dict[int, Slot] = {}
        self._poller = Poller()
        self.console = Console(self.typed.extend, self.drive, self.watch_fd, self._poller.forget)
        self.channel: Channel | None = Channel(self, self.console) if has_agent else None
        if has_agent:
            self.ports[0].set_open(True)
            self.ports[0].say(b"hello 1\n")

    # -- of the machine --------------------------------------------------------------------------------------------

    def port(self, number: int, _name: str = "") -> Port:
        return self.ports.setdefault(number, Port())

    def watch_fd(self, fd: int, readable: Callable[[], None], writable: Callable[[], None] | None = None) -> None:
        self._poller.watch(fd, readable, writable)

    def wait_fds(self) -> None:
        self._poller.wait(100 * SLICE_NS)

    def request_stop(self) -> None:
        self._stop_requested = True

    def stop(self, detail: str) -> None:
        self.stop_reason, self.stop_detail = StopReason.POWER_OFF, detail

    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        deadline = None if timeout is None else monotonic() + timeout
        while not until():
            if self._stop_requested:
                self.stop("stopped by request")
            if self.stop_reason is not None:
                raise GuestStopped(self.stop_detail)
            if deadline is not None and monotonic() >= deadline:
                return False
            self._step()
            self._poller.wait(0 if self.running else SLICE_NS)
        return True

    def wait_ready(self, timeout: float | None = None) -> None:
        self.calls.append(("wait_ready", timeout))
        self.on_wait_ready()

    def run(self, command: object, *, timeout: float | None = None, input: bytes | None = None) -> object:
        self.calls.append(("run", command, timeout, input))
        return SimpleNamespace(status=3, stdout_bytes=b"on the console", stderr_bytes=b"!")

    def copy_in(self, source: object, target: str, *, timeout: float | None = None) -> None:
        self.calls.append(("copy_in", source, target, timeout))
        if target == "/for/ever":
            self.drive(lambda: False, None)

    def copy_out(self, source: str, target: str, *, timeout: float | None = None) -> None:
        self.calls.append(("copy_out", source, target, timeout))
        raise EmuError(f"cannot write {target}: no such directory")

    def snapshot(self, path: str, *, incremental: bool = False) -> None:
        self.calls.append(("snapshot", path, incremental))
        raise FileNotFoundError(2, "No such file or directory", path)

    def stats(self) -> ExitStats:
        return ExitStats((), 1, 2, 3, False)

    def leave(self) -> None:
        self.is_closed = True

    # -- of its guest ----------------------------------------------------------------------------------------------

    def panic(self) -> None:
        self.console.feed(PANIC)

    def _step(self) -> None:
        control = self.port(0)
        lines, control.sent = control.sent.splitlines(), bytearray()
        for line in lines:
            word, number, *rest = line.split()
            if word == b"slot":
                self._open(int(number), *rest)
            else:
                self._kill(int(number))
        for slot in list(self._slots.values()):
            if slot.program is None:
                self._begin(slot)
            elif (status := next(slot.program, 0)) is not None:
                self._end(slot, status)

    def _open(self, number: int, out: bytes, err: bytes, token: bytes) -> None:
        slot = self._slots[number] = Slot(self.ports[int(out)], self.ports[int(err)], token)
        for port in (slot.out, slot.err):
            port.set_open(True)
            port.say(b"\x1e" + token + b"rdy\n")

    def _begin(self, slot: Slot) -> None:
        sent = bytes(slot.out.sent)
        if not sent.startswith(b"n\nl ") or sent.count(b"\n") < 3:
            return
        head, text, rest = sent[2:].split(b"\n", 2)
        slot.out.sent[:] = rest
        running = Running(text.decode(), self, slot.out, slot.err, head.endswith(b" 1"))
        self.running.append(running)
        slot.program = self._do(running)

    def _do(self, running: Running) -> Iterator[int | None]:
        """None while it runs, then its status."""
        program = self._programs.get(running.text.split()[0])
        if program is not None:
            for _ in program(running):
                yield None
        last = running.text.split()[-1]
        yield int(last) if last.isdigit() else 0

    def _end(self, slot: Slot, status: int) -> None:
        slot.program = None
        self.running = [each for each in self.running if each.out is not slot.out]
        for port in (slot.out, slot.err):
            port.sent.clear()
            port.say(b"\x1e%b%03d\n" % (slot.token, status))
        for port in (slot.out, slot.err):
            port.say(b"\x1e%beof\n" % slot.token)

    def _kill(self, number: int) -> None:
        self.killed += 1
        slot = self._slots[number]
        if any(each.out is slot.out and each.text in self.unkillable for each in self.running):
            return
        del self._slots[number]
        self.running = [each for each in self.running if each.out is not slot.out]
        for port in (slot.out, slot.err):
            port.sent.clear()
            port.set_open(False)
