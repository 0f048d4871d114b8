"""The loop that runs a board in its caller's thread: slices of guest time, and what they leave to do."""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from emu.accounting import Accounting
from emu.board import Board
from emu.clock import GuestClock
from emu.cpu.platform import Exit
from emu.ctrl_c import HeldInterrupt
from emu.errors import EmuError, GuestStopped
from emu.poller import Poller
from emu.stats import Kind
from emu.switching import fine_switching

__all__ = ["RunLoop", "StopReason"]

SLICE_NS = 10_000_000                   # longest run without a look at files, conditions and Python's signals
SHORTEST_SLICE_NS = 50_000              # a guest asking for timers faster than this still runs
STOPPED_NS = 1_000_000_000              # without a step: the guest is told that it did not run
LONGEST_SLEEP_NS = 500_000_000          # a signal just before the sleep is not noticed by it
FOREVER_NS = 1 << 52                    # 52 days


class StopReason(enum.Enum):
    """Why a machine stopped."""

    POWER_OFF = "the guest powered off"
    EXIT = "the guest ended the machine"
    RESET = "the guest reset the machine"
    HALTED = "the guest halted with interrupts off"
    TRIPLE_FAULT = "triple fault"
    CPU_ERROR = "the CPU could not go on"
    REQUESTED = "stopped by request"

    def __str__(self) -> str:
        return self.value


class Debugger(Protocol):
    """Has a say in how a machine runs (emu.gdb)."""

    def advance(self, until: Callable[[], bool], end_ns: int) -> None:
        """Instead of `RunLoop.step`, which it may call."""

    def run(self, until_ns: int) -> Exit:
        """Instead of `Cpu.run`."""


class RunLoop:
    """Runs one board after another: a reset makes a new one.

    Args:
        poller: waits for files.
        accounting: of the machine.
        restart: the guest has asked for a reset: put another board here by `attach`, or `stop`.

    Attributes:
        stop_reason: why the machine stopped, None while it can run.
        stop_detail: the same in one line, with what is known of the place.
        run_ns: host time in the CPU.
        is_idle: the guest waits for an interrupt, and this for what might bring one.
        debugger: who debugs the guest, None as a rule.
        in_copies: called in a copy of the process.
    """

    def __init__(self, poller: Poller, accounting: Accounting, restart: Callable[[], None]) -> None:
        self.stop_reason: StopReason | None = None
        self.stop_detail = ""
        self.run_ns = 0
        self.is_idle = False
        self.debugger: Debugger | None = None
        self.in_copies: list[Callable[[], None]] = []
        self._poller = poller
        self._accounting = accounting
        self._restart = restart
        self._stop_requested = False
        self._driver: int | None = None     # the thread inside `drive`
        self._interrupt = HeldInterrupt(self._hurry)
        self._seen_ns = time.monotonic_ns()
        self._halts = accounting.tally(Kind.RUN_END, "hlt")
        self._kicks = accounting.tally(Kind.RUN_END, "kick")
        self._driven_ns = 0
        self._driven_since = 0              # while something is being driven
        self._reset_requested = False
        self._idle_requested = False
        self._wakeup = -1

    def attach(self, board: Board, clock: GuestClock) -> None:
        """Run this board from now on."""
        self._board, self._clock = board, clock
        self._reset_requested = False
        clock.sooner = self._timer_sooner
        clock.expire = self._accounting.between("timers", clock.expire)
        self._flush_bypass = self._accounting.between("serial output", board.com1.flush_bypass)

    def open(self) -> None:
        """Let the machine be driven."""
        self._wakeup = _new_wakeup()
        self._poller.watch(self._wakeup, self._woken)

    def forked(self, *kept: int) -> None:
        """This process is a copy: what it watches is the original's, but for some files."""
        fd = _new_wakeup()
        os.dup2(fd, self._wakeup, inheritable=False)
        os.close(fd)
        self._poller.forget_others((self._wakeup, *kept))
        for forked in tuple(self.in_copies):
            forked()

    def close(self) -> None:
        """Never drive again."""
        wakeup, self._wakeup = self._wakeup, -1
        os.close(wakeup)

    @property
    def is_open(self) -> bool:
        """Between `open` and `close`."""
        return self._wakeup >= 0

    @property
    def is_driven(self) -> bool:
        """Whether a call of `drive` is under way."""
        return self._driver is not None

    @property
    def driven_ns(self) -> int:
        """Host time inside `drive`."""
        return self._driven_ns + (time.monotonic_ns() - self._driven_since if self.is_driven else 0)

    def check_open(self) -> None:
        """Raise `EmuError` unless it is open."""
        if self._wakeup < 0:
            raise EmuError("the machine is closed")

    # -- for the machine's user ------------------------------------------------------------------------------------

    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        """`Machine.drive`."""
        self.check_open()
        end_ns = time.monotonic_ns() + (FOREVER_NS if timeout is None else int(min(timeout, FOREVER_NS / 1e9) * 1e9))
        with self._driven_here(), fine_switching(), self._interrupt.held():
            while not until():
                self._interrupt.deliver()
                if self.stop_reason is not None:
                    raise GuestStopped(self.stop_detail)
                if time.monotonic_ns() >= end_ns:
                    return False
                (self.step if self.debugger is None else self.debugger.advance)(until, end_ns)
        return True

    @contextmanager
    def _driven_here(self) -> Iterator[None]:
        """This thread drives the machine; it may again below, in a callback between two slices."""
        here, outer = threading.get_ident(), self._driver
        if outer not in (None, here):
            raise EmuError("the machine is running already, in another thread")
        self._driver = here
        before_ns, started = self._accounting.elsewhere_ns, time.monotonic_ns()
        if outer is None:
            self._driven_since = started
        try:
            yield
        finally:
            self._driver = outer
            if outer is None:
                self._driven_ns += time.monotonic_ns() - started
            else:
                self._accounting.elsewhere_ns = before_ns + time.monotonic_ns() - started

    def wait_fds(self) -> None:
        """`Machine.wait_fds`."""
        self.check_open()
        self._poller.wait_uncounted(LONGEST_SLEEP_NS)

    def request_stop(self) -> None:
        """`Machine.request_stop`."""
        self._stop_requested = True
        self._hurry()

    def _hurry(self) -> None:
        """Have the step that is under way end soon."""
        if self._wakeup >= 0:
            os.eventfd_write(self._wakeup, 1)
            self._board.cpu.stop()

    def look(self) -> None:
        """What is waited for may have come, in an exit: the condition is looked at before the guest does more."""
        self._board.cpu.stop()

    def _woken(self) -> None:
        os.eventfd_read(self._wakeup)

    # -- for the board's devices, in an exit -----------------------------------------------------------------------

    def stop(self, reason: StopReason, detail: str = "") -> None:
        """The machine has stopped, for good."""
        self.stop_reason = reason
        self.stop_detail = f"{reason} ({detail}at {self._board.cpu.registers.rip:#x})"
        self._board.cpu.stop()

    def ask_reset(self) -> None:
        """The guest asks for a reset: it comes when the CPU has come back."""
        self._reset_requested = True
        self._board.cpu.stop()

    def ask_idle(self) -> None:
        """The guest asks to sleep (PV_IDLE): that comes when the CPU has come back."""
        if not self._board.intr.level:
            self._idle_requested = True
            self._board.cpu.stop()

    def _timer_sooner(self) -> None:
        """A device wants to be called sooner than the run under way would end."""
        soonest = time.monotonic_ns() + SHORTEST_SLICE_NS
        self._board.cpu.bring_forward(max(self._clock.next_ns + self._clock.host_origin_ns, soonest))

    # -- a step ----------------------------------------------------------------------------------------------------

    def step(self, until: Callable[[], bool], end_ns: int) -> None:
        """One slice of guest time, and what it left to do."""
        board, clock = self._board, self._clock
        if self._stop_requested:
            self.stop(StopReason.REQUESTED)
            return
        started = time.monotonic_ns()
        stood_ns, self._seen_ns = started - self._seen_ns, started
        if stood_ns > STOPPED_NS:
            board.kvmclock.guest_was_stopped()
        timer_ns = clock.next_ns + clock.host_origin_ns
        try:
            run = board.cpu.run if self.debugger is None else self.debugger.run
            exit_ = run(max(min(timer_ns, started + SLICE_NS), started + SHORTEST_SLICE_NS))
        finally:
            self.run_ns += time.monotonic_ns() - started
        if not board.bypass.is_empty:
            self._flush_bypass()
        if self._reset_requested:
            self._restart()
            return
        clock.run_due()
        if exit_ is Exit.KICK:
            self._kicks.count += 1
            self._poller.wait(0)
            if self._idle_requested:
                self._idle_requested = False
                self.idle(until, end_ns)
        elif exit_ is Exit.HALT:
            self._halts.count += 1
            self._poller.wait(0)
            if board.cpu.interrupts_enabled:
                self.idle(until, end_ns)
            elif self.stop_reason is None:
                self.stop(StopReason.HALTED)
        elif self.stop_reason is None:
            reason = StopReason.TRIPLE_FAULT if exit_ is Exit.SHUTDOWN else StopReason.CPU_ERROR
            self.stop(reason, f"{board.cpu.error} " if exit_ is Exit.ERROR else "")

    def idle(self, until: Callable[[], bool], end_ns: int) -> None:
        """The guest waits for an interrupt: sleep until the next timer, file or request."""
        board, clock = self._board, self._clock
        self.is_idle = True
        try:
            while not (board.intr.level or self._hurried or self.stop_reason is not None or until()):
                now = time.monotonic_ns()
                if now >= end_ns:
                    break
                self._poller.wait(min(clock.next_ns + clock.host_origin_ns, end_ns, now + LONGEST_SLEEP_NS) - now)
                clock.run_due()
        finally:
            self.is_idle = False
        self._seen_ns = time.monotonic_ns()

    def stand(self, until: Callable[[], bool], end_ns: int) -> None:
        """The guest stands still: wait for files and requests."""
        if self._stop_requested:
            self.stop(StopReason.REQUESTED)
        while not (self._hurried or self.stop_reason is not None or until()):
            now = time.monotonic_ns()
            if now >= end_ns:
                break
            self._poller.wait(min(end_ns - now, LONGEST_SLEEP_NS))

    def stood(self) -> None:
        """The guest goes on, and its clock has stood as long as it did."""
        self._seen_ns = time.monotonic_ns()

    @property
    def _hurried(self) -> bool:
        return self._stop_requested or self._interrupt.pending


def _new_wakeup() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
