"""A fleet whose machines are no machines."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.errors import GuestError, GuestTimeout, MachineDied
from emu.fittings import VsockNetwork
from emu.fleet.origin import Origin
from emu.guest import Result
from emu.process.messages import Diagnosis

__all__ = ["FakeProcess", "FakeTemplates", "result"]

STRICT = "set -euo pipefail; "


def result(status: int = 0, stdout: str = "", stderr: str = "") -> Result:
    """What a command did."""
    return Result(status, stdout.encode(), stderr.encode())


@dataclass(eq=False)
class FakeProcess:
    """Stands for an `emu.MachineProcess`.

    Attributes:
        answers: by command, what `run` does: each in turn, the last one for ever; others succeed and say nothing.
        asked: what was done with it, in order.
        console: what its guest has written.
        unseen: what of that `console_expect` has still to come to.
        stops: it stops when it is told to power off.
        gate: when set, `run` waits for it.
        ends: how it was ended.
    """

    network: VsockNetwork
    answers: dict[str, list[Result | Exception]] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    console: bytes = b""
    unseen: str = ""
    ports: dict[int, int] = field(default_factory=dict)
    stops: bool = True
    gate: threading.Event | None = None
    diagnosis: Diagnosis = field(default_factory=lambda: Diagnosis("", "", "", "", ()))
    ends: list[str] = field(default_factory=list)
    pid: int = 4711
    alive: bool = True

    def run(self, command: str | list[str], *, timeout: float | None = None, check: bool = False) -> Result:
        self._check()
        text = command.removeprefix(STRICT) if isinstance(command, str) else " ".join(command)
        assert isinstance(command, list) or command.startswith(STRICT) or command == "poweroff"
        assert timeout is not None and timeout > 0
        self.asked.append((text, timeout))
        if self.gate is not None:
            self.gate.wait(30)
            self._check()
        answers = self.answers.get(text, [result()])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        if check and answer.status:
            raise GuestError(f"{text!r} ended with status {answer.status}")
        return answer

    def wait_ready(self, timeout: float) -> None:
        self._check()

    def wait_stopped(self, timeout: float) -> str | None:
        return "the guest powered off" if self.stops else None

    def console_send(self, data: bytes) -> None:
        self.asked.append(("typed", data))

    def console_expect(self, pattern: str, timeout: float) -> str:
        if pattern not in self.unseen:
            raise GuestTimeout(f"the console has not shown {pattern!r} in {timeout:g} s")
        before, _, self.unseen = self.unseen.partition(pattern)
        return before + pattern

    def console_output(self) -> bytes:
        self._check()
        return self.console

    def vsock_connect(self, port: int, timeout: float) -> socket.socket:
        self._check()
        self.ports[port] = self.ports.get(port, 1) - 1
        if self.ports[port] > 0:
            raise GuestError(f"vsock: guest port {port}: refused by the guest")
        return socket.socket()

    def copy_in(self, source: Any, target: str, *, timeout: float) -> None:
        self.asked.append((f"copy in {source}", target))

    def copy_out(self, source: str, target: Any, *, timeout: float) -> None:
        self.asked.append((f"copy out {source}", target))

    def isolate(self, isolated: bool) -> None:
        self.asked.append(("isolate", isolated))

    def diagnose(self) -> Diagnosis:
        self._check()
        return self.diagnosis

    def kill(self) -> None:
        self.ends.append("kill")
        self.alive = False
        if self.gate is not None:
            self.gate.set()

    def close(self) -> None:
        self.ends.append("close")
        self.alive = False

    def _check(self) -> None:
        if not self.alive:
            raise MachineDied(f"the machine's process {self.pid} is gone")


class FakeTemplates:
    """Stands for `emu.fleet.origin.Templates`.

    Attributes:
        made: what it has made, in order.
        prepare_process: does something to each that it makes.
        fails: raised instead of the next.
    """

    def __init__(self, shared: Path, say: Callable[[str], None]) -> None:
        self.shared = shared
        self.say = say
        self.made: list[FakeProcess] = []
        self.prepared: list[Origin] = []
        self.prepare_process: Callable[[FakeProcess], None] = lambda _process: None
        self.fails: list[Exception] = []
        self.is_closed = False

    def prepare(self, origin: Origin) -> None:
        self.prepared.append(origin)

    def make(self, origin: Origin, network: VsockNetwork) -> FakeProcess:
        if self.fails:
            raise self.fails.pop(0)
        process = FakeProcess(network)
        self.prepare_process(process)
        self.made.append(process)
        return process

    def close(self) -> None:
        self.is_closed = True
