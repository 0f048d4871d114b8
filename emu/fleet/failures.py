"""What fails in a test of several machines."""

from __future__ import annotations

from emu.errors import GuestError, GuestTimeout
from emu.guest import Result

__all__ = ["MachineFailure", "MachineTimeout", "OutOfTime"]


class MachineFailure(GuestError):
    """What had to happen on a machine did not.

    Args:
        message: one line, without the machine's name.
        machine: its name.
        command: the command in question, if it was one.
        result: how that ended, the last time it did.

    Attributes:
        machine, command, result: as handed in.
    """

    def __init__(
        self, message: str, machine: str = "", command: str | None = None, result: Result | None = None
    ) -> None:
        super().__init__(f"{machine}: {message}" if machine else message)
        self.machine = machine
        self.command = command
        self.result = result


class MachineTimeout(MachineFailure, GuestTimeout):
    """It did not in time."""


class OutOfTime(MachineTimeout):
    """The time for the whole test is over."""
