"""What a check of the self-test is: a function that runs a few instructions, and says what it saw if that is wrong."""

from __future__ import annotations

from collections.abc import Callable

from devices.frozen import frozen
from emu.cpu.platform import Exit
from emu.cpu.thunks import assemble
from emu.micro import Event, MicroGuest

__all__ = ["PATIENCE_S", "Check", "Failure", "Group", "Listing", "Skipped", "expect", "fault", "halt", "run"]

PATIENCE_S = 3.0                        # a guest that needs more for a few instructions hangs

Run = Callable[[], None]


class Failure(Exception):
    """What a check saw is not what it should have seen; the message is one line."""


class Skipped(Exception):
    """A check cannot be made here; the message says why."""


@frozen
class Check:
    """One thing that has to be so.

    Attributes:
        name: what the report calls it.
        otherwise: what would go wrong in a guest if it were not so.
        run: raises `Failure` if it is not so.
        vital: nothing that comes after it can be tried if it fails.
    """

    name: str
    otherwise: str
    run: Run
    vital: bool = False


class Group:
    """Checks that belong together, in order.

    Args:
        title: what the report calls them.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.checks: list[Check] = []

    def check(self, name: str, otherwise: str, vital: bool = False) -> Callable[[Run], Run]:
        """Make the function below it one of these checks; see `Check`."""

        def add(run: Run) -> Run:
            self.checks.append(Check(name, otherwise, run, vital))
            return run

        return add


class Listing:
    """Machine code written as in emu/cpu/thunks.lst: a line an instruction, its offset, bytes, text, and why.

    Args:
        text: the lines; <name:n> stands for the n bytes of a value.
        bits: 64, or 32 for what runs as 32-bit code: how it is to be disassembled.
        values: what the names stand for.
    """

    def __init__(self, text: str, bits: int = 64, **values: int) -> None:
        self.lines = [line for line in text.splitlines() if line]
        self.bits = bits
        self.names = tuple(values)
        self.code = assemble(self.lines, values)


def _shown(value: object) -> str:
    match value:
        case bool() | None:
            return str(value).lower()
        case int():
            return hex(value) if abs(value) > 9 else str(value)
        case Exit():
            return value.value
        case bytes():
            return value.hex(" ") if value else "no bytes"
        case tuple() | list():
            return f"({', '.join(map(_shown, value))})"
    return str(value)


def expect(what: str, seen: object, wanted: object) -> None:
    """Raise `Failure` unless what was seen is what was wanted.

    Args:
        what: a name for it in the message.
        seen, wanted: numbers, bytes, `Exit`s, or tuples and lists of these.
    """
    if seen != wanted:
        raise Failure(f"{what}: {_shown(seen)}, not {_shown(wanted)}")


def halt(guest: MicroGuest) -> None:
    """Run the guest on to its HLT."""
    end = guest.go(PATIENCE_S)
    if end is Exit.KICK:
        raise Failure(f"the guest still runs after {PATIENCE_S:g} s, at {guest.registers.rip:#x}")
    if end is not Exit.HALT:
        raise Failure(f"the guest ended by {end.value}, at {guest.registers.rip:#x} {guest.cpu.error}".rstrip())


def run(guest: MicroGuest, program: Listing, *place: int, **registers: int) -> None:
    """Run a program to its HLT; it is to raise no exception. Arguments as `MicroGuest.put`."""
    guest.put(program.code, *place, **registers)
    halt(guest)
    if guest.events:
        raise Failure(f"exception {guest.events[0].vector} at {guest.events[0].rip:#x}")


def fault(guest: MicroGuest, program: Listing, *place: int, **registers: int) -> Event:
    """Run a program to the exception or interrupt that it ends with; arguments as `MicroGuest.put`."""
    guest.events.clear()
    guest.put(program.code, *place, **registers)
    halt(guest)
    vectors = [event.vector for event in guest.events]
    if len(vectors) != 1:
        raise Failure(f"exceptions {_shown(vectors)}, not one" if vectors else "no exception was delivered")
    return guest.events.pop()
