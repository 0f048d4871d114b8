"""Jobs: a command, or a function that gets a machine."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

from emu.guest import Result
from emu.job import shown
from emu.pool.watch import Limits
from emu.process.client import MachineProcess

__all__ = ["Command", "Work", "work"]

T = TypeVar("T")
Command = str | Sequence[str]


@dataclass(eq=False)
class Work(Generic[T]):
    """A job that is to be done.

    Attributes:
        call: does it, given a machine.
        text: it in a message.
        limits: for it.
        machine: that it has got.
        given_up: nobody waits for it any more.
    """

    call: Callable[[MachineProcess], T]
    text: str
    limits: Limits
    machine: MachineProcess | None = field(default=None, init=False)
    given_up: bool = field(default=False, init=False)

    def give_up(self) -> None:
        """End it, if it runs; have it end at once, if it does not yet."""
        self.given_up = True
        if self.machine is not None:
            self.machine.kill()

    def do(self, machine: MachineProcess) -> T:
        """Do it."""
        self.machine = machine
        if self.given_up:
            machine.kill()
        return self.call(machine)


def work(limits: Limits, job: Callable[..., Any] | Command, *args: Any, **keywords: Any) -> Work[Any]:
    """A job, as `Pool.submit` takes it.

    Raises:
        TypeError: a command was given what no command takes.
    """
    if callable(job):
        name = getattr(job, "__name__", type(job).__name__)
        return Work(partial(_call, job, args, keywords), f"the job {name}", limits)
    return _command_work(limits, job, *args, **keywords)


def _call(function: Callable[..., T], args: tuple[Any, ...], keywords: dict[str, Any], machine: MachineProcess) -> T:
    return function(machine, *args, **keywords)


def _command_work(
    limits: Limits,
    command: Command,
    *,
    timeout: float | None = None,
    check: bool = False,
    input: bytes | None = None,
    stdout: Callable[[bytes], object] | None = None,
    stderr: Callable[[bytes], object] | None = None,
) -> Work[Result]:
    text = command if isinstance(command, str) else shlex.join(command)

    def run(machine: MachineProcess) -> Result:
        return machine.run(
            command, check=check, input=input, stdout=stdout, stderr=stderr, most_output=limits.output
        )

    given = limits if timeout is None else replace(limits, seconds=timeout)
    return Work(run, shown(text.encode("utf-8", "replace")), given)
