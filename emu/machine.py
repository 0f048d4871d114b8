"""A machine: a board, and the loop that runs it in its caller's thread."""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from emu.board import Board
from emu.clock import GuestClock
from emu.console import Console
from emu.cpu.platform import Exit
from emu.ctrl_c import HeldInterrupt
from emu.errors import EmuError, GuestStopped
from emu.guest import Result, SerialShell
from emu.loader import BootState
from emu.memory import GuestMemory
from emu.poller import Poller
from emu.stats import ExitStats
from emu.switching import fine_switching

SLICE_NS = 10_000_000                   # longest run without a look at files, conditions and Python's signals
SHORTEST_SLICE_NS = 50_000              # a guest asking for timers faster than this still runs
STOPPED_NS = 1_000_000_000              # without a step: the guest is told that it did not run
LONGEST_SLEEP_NS = 250_000_000          # a signal just before the sleep is not noticed by it
FOREVER_NS = 1 << 52                    # 52 days


class StopReason(enum.Enum):
    """Why a machine stopped."""

    RESET = "the guest reset the machine"
    HALTED = "the guest halted with interrupts off"
    TRIPLE_FAULT = "triple fault"
    CPU_ERROR = "the CPU could not go on"
    REQUESTED = "stopped by request"

    def __str__(self) -> str:
        return self.value


class Machine:
    """An x86-64 PC. Nothing of it runs but inside `drive` and `run_to_end`.

    Args:
        memory_bytes: RAM, 64 MiB to 8 GiB.

    Raises:
        EmuError: no such amount of memory.
        UnsupportedHost: the installed libunicorn is not a known one.

    Attributes:
        stop_reason: why it stopped, None while it can run.
        stop_detail: the same in one line, with what is known of the place.
        serial_sinks: called with what the guest sends on COM1.
        console: the guest's serial console, in pexpect's words.
    """

    def __init__(self, memory_bytes: int) -> None:
        self.memory = GuestMemory(memory_bytes)
        self.clock = GuestClock()
        self.serial_sinks: list[Callable[[bytes], None]] = []
        self.stop_reason: StopReason | None = None
        self.stop_detail = ""
        self._stop_requested = False
        self._driver: int | None = None     # the thread inside `drive`
        self._interrupt = HeldInterrupt(self._hurry)
        self._seen_ns = time.monotonic_ns()
        self._idle_ns = 0
        self._run_ns = 0
        self._halts = 0
        self._kicks = 0
        self._wakeup = -1
        self.board = Board(self.memory, self.clock, self._serial_output, self._reset, _sleep_ns)
        self.clock.sooner = self._timer_sooner
        self._poller = Poller()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.add(self._wakeup, self._woken)
        self.console = Console(self.serial_send, self.drive, self.watch_fd, self.unwatch_fd)
        self.serial_sinks.append(self.console.feed)
        self._shell = SerialShell(self.console)

    def start(self, state: BootState) -> None:
        """Set the CPU to a loaded kernel's entry."""
        self.board.cpu.enter_long_mode(state)

    # -- the guest's shell ---------------------------------------------------------------------------------------

    def wait_prompt(self, timeout: float | None = 120.0) -> None:
        """Run the guest until a shell answers on its console.

        Args:
            timeout: host seconds, None for ever.

        Raises:
            GuestTimeout, GuestStopped, GuestError: none in time; the guest stopped; its kernel panicked.
        """
        self._shell.wait_prompt(timeout)

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = False,
        input: bytes | None = None,
    ) -> Result:
        """Run a command in the guest's shell; arguments, result and errors as `emu.guest.SerialShell.run`."""
        return self._shell.run(command, timeout=timeout, check=check, input=input)

    @property
    def panic(self) -> str | None:
        """The line with which the guest's kernel panicked, None if it has not."""
        return self.console.panics.line

    # -- serial line and files ---------------------------------------------------------------------------------

    def serial_send(self, data: bytes) -> None:
        """Send bytes to the guest's COM1; on the machine's thread."""
        self._check_open()
        self.board.com1.receive(data)

    def _serial_output(self, data: bytes) -> None:
        for sink in self.serial_sinks:
            sink(data)

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back, on the machine's thread and at most some 10 ms late, whenever `fd` can be read."""
        self._poller.add(fd, callback)

    def unwatch_fd(self, fd: int) -> None:
        """End that."""
        self._poller.remove(fd)

    # -- running -----------------------------------------------------------------------------------------------

    def drive(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        """Run the guest in this thread until a condition holds.

        Args:
            until: looked at whenever something happened, and at least every 10 ms.
            timeout: host seconds, None for ever.

        Returns:
            True when the condition holds, False when the time is over.

        Raises:
            EmuError: the machine is closed, or is running already: in another thread, or below this call.
            GuestStopped: the guest has stopped and the condition does not hold.
            KeyboardInterrupt: the process got SIGINT; the machine can be driven on.
        """
        self._check_open()
        end_ns = time.monotonic_ns() + (FOREVER_NS if timeout is None else int(min(timeout, FOREVER_NS / 1e9) * 1e9))
        with self._driven_here(), fine_switching(), self._interrupt.held():
            while not until():
                self._interrupt.deliver()
                if self.stop_reason is not None:
                    raise GuestStopped(self.stop_detail)
                if time.monotonic_ns() >= end_ns:
                    return False
                self._step(until, end_ns)
        return True

    @contextmanager
    def _driven_here(self) -> Iterator[None]:
        """This thread drives the machine; it may again below, in a callback between two slices."""
        here, outer = threading.get_ident(), self._driver
        if outer not in (None, here):
            raise EmuError("the machine is running already, in another thread")
        self._driver = here
        try:
            yield
        finally:
            self._driver = outer

    def run_to_end(self, timeout: float | None = None) -> StopReason | None:
        """Run until the guest stops.

        Args:
            timeout: host seconds, None for ever.

        Returns:
            Why it stopped, None if it still runs after the time.
        """
        self.drive(lambda: self.stop_reason is not None, timeout)
        return self.stop_reason

    def request_stop(self) -> None:
        """Stop for good; from any thread, and from signal handlers."""
        self._stop_requested = True
        self._hurry()

    def _hurry(self) -> None:
        """Have the step that is under way end soon."""
        if self._wakeup >= 0:
            os.eventfd_write(self._wakeup, 1)
            self.board.cpu.stop()

    def _timer_sooner(self) -> None:
        """A device wants to be called sooner than the run under way would end."""
        soonest = time.monotonic_ns() + SHORTEST_SLICE_NS
        self.board.cpu.bring_forward(max(self.clock.next_ns + self.clock.host_origin_ns, soonest))

    def _check_open(self) -> None:
        if self._wakeup < 0:
            raise EmuError("the machine is closed")

    def _woken(self) -> None:
        os.eventfd_read(self._wakeup)

    def _step(self, until: Callable[[], bool], end_ns: int) -> None:
        """One slice of guest time, and what it left to do."""
        board, clock = self.board, self.clock
        if self._stop_requested:
            self._stop(StopReason.REQUESTED)
            return
        started = time.monotonic_ns()
        stood_ns, self._seen_ns = started - self._seen_ns, started
        if stood_ns > STOPPED_NS:
            board.kvmclock.guest_was_stopped()
        timer_ns = clock.next_ns + clock.host_origin_ns
        exit_ = board.cpu.run(max(min(timer_ns, started + SLICE_NS), started + SHORTEST_SLICE_NS))
        self._run_ns += time.monotonic_ns() - started
        clock.run_due()
        board.com1.flush_bypass()
        if exit_ is Exit.KICK:
            self._kicks += 1
            self._poller.wait(0)
        elif exit_ is Exit.HALT:
            self._halts += 1
            self._poller.wait(0)
            self._idle(until, end_ns)
        elif self.stop_reason is None:
            reason = StopReason.TRIPLE_FAULT if exit_ is Exit.SHUTDOWN else StopReason.CPU_ERROR
            self._stop(reason, f"{board.cpu.error} " if exit_ is Exit.ERROR else "")

    def _idle(self, until: Callable[[], bool], end_ns: int) -> None:
        """The guest waits for an interrupt: sleep until the next timer, file or request."""
        board, clock = self.board, self.clock
        if not board.cpu.interrupts_enabled:
            if self.stop_reason is None:
                self._stop(StopReason.HALTED)
            return
        started = time.monotonic_ns()
        while not (board.intr.level or self._hurried or self.stop_reason is not None or until()):
            now = time.monotonic_ns()
            if now >= end_ns:
                break
            self._poller.wait(min(clock.next_ns + clock.host_origin_ns, end_ns, now + LONGEST_SLEEP_NS) - now)
            clock.run_due()
        self._seen_ns = time.monotonic_ns()
        self._idle_ns += self._seen_ns - started

    @property
    def _hurried(self) -> bool:
        return self._stop_requested or self._interrupt.pending

    def _reset(self) -> None:
        self._stop(StopReason.RESET)
        self.board.cpu.stop()

    def _stop(self, reason: StopReason, detail: str = "") -> None:
        self.stop_reason = reason
        self.stop_detail = f"{reason} ({detail}at {self.board.cpu.registers.rip:#x})"

    # -- the rest ----------------------------------------------------------------------------------------------

    def stats(self) -> ExitStats:
        """Counts of exits since the machine was made."""
        cpu, context = self.board.cpu, self.board.cpu.context
        python = {f"port {name}": t.reads + t.writes for name, t in self.board.ports.traffic.items()}
        python |= {"msr": cpu.msr_exits, "interrupt": cpu.interrupts, "hlt": self._halts, "kick": self._kicks}
        native = {"exception": context.exceptions, "undefined": context.undefined, "syscall": context.syscalls}
        native |= {"cpuid": context.cpuids, "serial byte, bypassed": self.board.bypass.bytes_taken}
        native |= {"serial status, bypassed": context.lsr_reads}
        return ExitStats(python, {kind: int(count) for kind, count in native.items()}, self._idle_ns, self._run_ns)

    def close(self) -> None:
        """Free the CPU and the guest's memory.

        Raises:
            EmuError: it is running.
        """
        if self._wakeup >= 0:
            self.board.close()
            self.console.close()
            wakeup, self._wakeup = self._wakeup, -1
            os.close(wakeup)
            self.memory.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _sleep_ns(nanoseconds: int) -> None:
    time.sleep(nanoseconds / 1e9)
