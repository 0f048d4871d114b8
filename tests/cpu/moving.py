"""A micro guest that moves: its CPU is saved, and a new one built from that over a copy of its memory."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace

from emu.cpu.platform import Exit
from emu.cpu.state import CpuState
from emu.memory import OutsideMemory
from emu.micro import Event, MicroGuest
from tests.cpu.programs import END, MARK, RAISE, VECTOR

USED_MEMORY = 0x8_0000                  # of the 64 MiB
PATIENCE_S = 10.0


@dataclass
class Movable(MicroGuest):
    """A micro guest that stops where its program says that it may move.

    Attributes:
        stays: MARKs at which it does not stop.
        marks: how many it has come to.
        is_over: whether the program has come to its end.
    """

    stays: Collection[int] = ()
    marks: int = 0
    is_over: bool = field(default=False)

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT: what MARK, RAISE and END say."""
        with suppress(OutsideMemory):           # a hostile guest's handler may have its stack anywhere
            super().port_out(port, size, value)
        if port == MARK:
            if self.marks not in self.stays:
                self.cpu.stop()
            self.marks += 1
        elif port == RAISE:
            self.vectors.append(VECTOR)
            self.cpu.set_interrupt_line(True)
        elif port == END:
            self.is_over = True
            self.cpu.stop()

    def go(self, seconds: float = PATIENCE_S) -> Exit:
        """Run to the next stop."""
        return self.cpu.run(time.monotonic_ns() + int(seconds * 1e9))

    def moved(self) -> Movable:
        """The same guest with another CPU and a copy of the memory; this one is closed."""
        other = Movable(self.resume, stays=self.stays)
        other.memory.write(0, self.memory.read(0, USED_MEMORY))
        other.events, other.outs, other.ins, other.msrs = self.events, self.outs, self.ins, self.msrs
        other.vectors, other.priorities, other.marks = self.vectors, self.priorities, self.marks
        other.cpu.restore(self.cpu.save())
        self.close()
        return other


@dataclass(frozen=True)
class Outcome:
    """What a program has done."""

    state: CpuState
    memory: bytes
    outs: list[tuple[int, int, int]]
    events: list[Event]


def outcome(guest: Movable) -> Outcome:
    """What it has done so far; time aside."""
    return Outcome(replace(guest.cpu.save(), tsc=0), guest.memory.read(0, USED_MEMORY), guest.outs, guest.events)
