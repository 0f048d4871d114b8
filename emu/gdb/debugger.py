"""Runs a machine as a debugger wants it: stops, steps, goes on; time stands while the guest does.

Part of the machine's loop (`emu.run_loop.Debugger`), on its thread. All that is asked of it is asked between two runs
of the CPU.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from devices.frozen import frozen
from emu.cpu.constants import EFER_LMA
from emu.cpu.debug import DebugAccess, Parts, Stop
from emu.cpu.platform import Exit
from emu.cpu.state import CpuState
from emu.gdb.memory import DebugMemory
from emu.machine import Machine

__all__ = ["Cause", "Debugger", "Watch"]


class Cause(enum.Enum):
    """Why the guest stands."""

    ASKED = enum.auto()
    STEP = enum.auto()
    BREAKPOINT = enum.auto()
    WATCH = enum.auto()


CAUSES = {Stop.STEPPED: Cause.STEP, Stop.BREAKPOINT: Cause.BREAKPOINT, Stop.WATCH: Cause.WATCH}
PAGE_SHIFT = 12
HARDWARE = frozenset((1,))              # kinds of a breakpoint that gdb calls hardware only
MOST_KNOWN = 64                         # watches whose places are remembered


@frozen
class Watch:
    """A range of virtual memory whose changes stop the guest."""

    address: int
    size: int


class Debugger:
    """Debugs one machine.

    Args:
        machine: not debugged by another one.
        stopped: called when the guest has come to stand by itself.
        ended: called when it has stopped for good.

    Attributes:
        stands: the guest does not run.
        cause: why.
        watch: which of the watches it was.
        time: guest time in nanoseconds and the guest's TSC, while it stands.
        breakpoints: linear addresses of instructions to stop before, and of which kinds gdb calls them.
        watches: what is watched, and where that is in RAM.
    """

    def __init__(
        self, machine: Machine, stopped: Callable[[], None], ended: Callable[[], None]
    ) -> None:
        self._machine = machine
        self._loop = machine.run_loop
        self._stopped, self._ended = stopped, ended
        self.stands = False
        self.cause = Cause.ASKED
        self.watch: Watch | None = None
        self.breakpoints: dict[int, frozenset[int]] = {}
        self.watches: dict[Watch, Parts] = {}
        self._known: dict[Watch, tuple[int, Parts]] = {}
        self._is_stepping = False
        self._stop: Stop | None = None
        self.time = 0, 0
        self._board = machine.board
        self._access = DebugAccess(self._board.cpu)
        self.memory = DebugMemory(machine.memory, self._board.cpu.registers)

    # -- what the stub asks for --------------------------------------------------------------------------------

    @property
    def state(self) -> CpuState:
        """All of the CPU."""
        return self._board.cpu.save()

    @state.setter
    def state(self, state: CpuState) -> None:
        self._board.cpu.restore(state)

    @property
    def is_long(self) -> bool:
        """The CPU is in long mode, also in 32-bit code there."""
        return bool(self._board.cpu.registers.efer & EFER_LMA)

    def add_watch(self, watch: Watch) -> None:
        """Watch a range of memory from the next time the guest runs.

        gdb takes its watches away whenever the guest stands, and puts them back before it runs. A program's memory is
        then looked up by other page tables if another program runs: it stays where it was found at first.

        Raises:
            OutsideMemory: not all of it is RAM.
        """
        tables = self._board.cpu.registers.cr(3) >> PAGE_SHIFT
        known = self._known.get(watch)
        if known is None or known[0] == tables or watch.address >> 63:
            known = tables, self.memory.parts(watch.address, watch.size)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[watch] = known
        self.watches[watch] = known[1]

    def pause(self) -> None:
        """Have the guest stand; `stopped` is not called."""
        if not self.stands:
            self._stand(Cause.ASKED)

    def go_on(self, is_step: bool) -> None:
        """Let it run, or do one instruction."""
        self._prepare()
        now_ns, tsc = self.time
        self._machine.clock.set_now(now_ns)
        self._board.cpu.set_tsc(tsc)
        self._loop.stood()
        self._is_stepping, self.stands = is_step, False

    @property
    def is_hardware_breakpoint(self) -> bool:
        """The breakpoint that the guest stands at is one that gdb calls a hardware breakpoint, and no other."""
        return self.breakpoints.get(self._board.cpu.registers.rip) == HARDWARE

    def forget(self) -> None:
        """Stop nowhere any more."""
        self.breakpoints.clear()
        self.watches.clear()

    def end(self) -> None:
        """Debug no more; the guest goes on."""
        self.forget()
        if not self._loop.is_open:
            return                      # there is no CPU any more
        if self.stands:
            self.go_on(False)
        else:
            self._prepare()

    def _renew(self) -> None:
        """After a reset the CPU is another one."""
        if self._board is not self._machine.board:
            self._board = self._machine.board
            self._access = DebugAccess(self._board.cpu)
            self.memory = DebugMemory(self._machine.memory, self._board.cpu.registers)

    def _prepare(self) -> None:
        """Make the CPU stop where it is to."""
        self._renew()
        self._access.set_breakpoints(self.breakpoints)
        self._access.set_watches(list(self.watches.values()))

    def _stand(self, cause: Cause) -> None:
        self._renew()
        self.cause, self.stands, self._is_stepping = cause, True, False
        self.time = self._machine.clock.now_ns(), self._board.cpu.tsc()

    # -- for the loop ------------------------------------------------------------------------------------------

    def advance(self, until: Callable[[], bool], end_ns: int) -> None:
        """A slice of guest time, or none."""
        if self.stands:
            self._machine.clock.set_now(self.time[0])
            self._loop.stand(lambda: not self.stands or until(), end_ns)
            if self._loop.stop_reason is not None:
                self._ended()
            return
        if self._board is not self._machine.board:
            self._prepare()
        board = self._board
        if board.cpu.halted and board.cpu.interrupts_enabled and not board.intr.level:
            self._loop.idle(lambda: self.stands or until(), end_ns)
            if self.stands or not board.intr.level:
                return
        self._stop = None
        self._loop.step(lambda: self.stands or self._is_stepping or until(), end_ns)
        if self._loop.stop_reason is not None:
            self._ended()
        elif self._stop is not None and not self.stands:
            self._stand(CAUSES[self._stop])
            self._stopped()

    def run(self, until_ns: int) -> Exit:
        """The CPU's part of a slice."""
        access, cpu = self._access, self._board.cpu
        if self._is_stepping:
            exit_, self._stop = access.deliver() if cpu.halted else access.step()
            cpu.set_interrupt_line(self._board.intr.level)
        else:
            exit_, self._stop = access.run(until_ns)
        if self.watches and (changed := access.changed()):
            self._stop, self.watch = Stop.WATCH, list(self.watches)[changed[0]]
        return exit_
