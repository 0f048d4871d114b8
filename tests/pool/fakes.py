"""Machines in other processes, without either: what pools use of `MachineProcess`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from emu.errors import EmuError, MachineDied, OutputLimit
from emu.guest import Result
from emu.process.client import MemoryUse

PATIENCE_S = 60.0                       # for what has to happen at once: only a fault takes that long


class FakeMachine:
    """Runs a few words of its own: true, status N, echo TEXT, hang (until it is killed), die, eat BYTES.

    Attributes:
        used: commands that were run.
        closed: whoever had it has let go of it.
        answers: False makes it hang at every command.
    """

    def __init__(self, host: FakeHost, parent: FakeMachine | None = None) -> None:
        self.host = host
        self.parent = parent
        self.used: list[Any] = []
        self.private = 1 << 20
        self.closed = False
        self.answers = True
        self.pid = len(host.machines) + 1
        self._children: list[FakeMachine] = []
        self._dead = threading.Event()

    @property
    def alive(self) -> bool:
        return not self._dead.is_set()

    def run(
        self,
        command: Any,
        *,
        timeout: float | None = None,
        check: bool = False,
        input: bytes | None = None,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
        most_output: int | None = None,
    ) -> Result:
        self._check()
        self.used.append(command)
        word, _, rest = (command if isinstance(command, str) else " ".join(command)).partition(" ")
        output = rest.encode("utf-8", "surrogateescape") + b"\n" if word == "echo" else input or b""
        if word == "die":
            self.kill()
        elif word == "eat":
            self.private += int(rest)
        if word in ("hang", "eat") or not self.answers:
            assert self._dead.wait(PATIENCE_S), "nobody has killed it"
        self._check()
        if most_output is not None and len(output) > most_output:
            raise OutputLimit("too much")
        if stdout is not None:
            stdout(output)
            output = b""
        result = Result(int(rest) if word == "status" else 0, output, b"")
        if check:
            result.check(word.encode())
        return result

    def fork(self) -> FakeMachine:
        self._check()
        if self.host.refuse_forks:
            self.host.refuse_forks -= 1
            raise EmuError("cannot fork: no room")
        if self.host.forks_hang:
            assert self._dead.wait(PATIENCE_S), "nobody has killed it"
        self._check()
        child = self.host.make(self)
        self._children.append(child)
        return child

    def use(self) -> MemoryUse:
        self._check()
        return MemoryUse(self.private, 0)

    def kill(self) -> None:
        self._dead.set()
        for child in self._children:
            child.kill()

    def close(self) -> None:
        self.kill()
        self.closed = True

    def _check(self) -> None:
        if not self.alive:
            raise MachineDied(f"machine {self.pid} is gone")


class FakeHost:
    """Where the machines are.

    Attributes:
        machines: all that there ever were.
        refuse_forks: so many of the next ones.
        refuse_spawns: so many of the next ones.
        forks_hang: until the machine is killed.
    """

    def __init__(self) -> None:
        self.machines: list[FakeMachine] = []
        self.refuse_forks = 0
        self.refuse_spawns = 0
        self.forks_hang = False
        self.asked: list[tuple[Any, dict[str, Any]]] = []

    def spawn(self, snapshot: Any = None, **options: Any) -> Any:
        self.asked.append((snapshot, options))
        if self.refuse_spawns:
            self.refuse_spawns -= 1
            raise EmuError("no such snapshot")
        return self.make(None)

    def make(self, parent: FakeMachine | None) -> FakeMachine:
        machine = FakeMachine(self, parent)
        self.machines.append(machine)
        return machine

    @property
    def zygote(self) -> FakeMachine:
        """The one that was spawned last."""
        return [machine for machine in self.machines if machine.parent is None][-1]

    @property
    def all_gone(self) -> bool:
        return all(machine.closed for machine in self.machines)
