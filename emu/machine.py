"""A machine: a board, and the loop that runs it in its caller's thread."""

from __future__ import annotations

import enum
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, overload

from devices.disk import Disk
from devices.isa_debug_exit import IsaDebugExit
from emu.accounting import Accounting
from emu.board import Board
from emu.board_state import BoardState
from emu.clock import GuestClock
from emu.commands import GuestCommands
from emu.console import Console
from emu.cpu.entry import enter
from emu.cpu.platform import Exit
from emu.ctrl_c import HeldInterrupt
from emu.errors import EmuError, GuestStopped
from emu.fittings import Fittings
from emu.loader import BootState
from emu.machine_state import MachineState, fittings_state
from emu.memory import GuestMemory
from emu.plugged import Plugged
from emu.poller import Poller
from emu.services import MARKS_KEPT, MachineServices, Mark
from emu.stats import ExitRow, ExitStats, Kind
from emu.switching import fine_switching
from hypercalls.builtin import BUILT_IN
from hypercalls.registry import Registry
from hypercalls.syscalls import SyscallTable

if TYPE_CHECKING:
    from emu.process.client import MachineProcess
    from emu.vsock import VsockHost

SLICE_NS = 10_000_000                   # longest run without a look at files, conditions and Python's signals
SHORTEST_SLICE_NS = 50_000              # a guest asking for timers faster than this still runs
STOPPED_NS = 1_000_000_000              # without a step: the guest is told that it did not run
LONGEST_SLEEP_NS = 500_000_000          # a signal just before the sleep is not noticed by it
FOREVER_NS = 1 << 52                    # 52 days
NOTHING = Fittings()


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


class Machine(GuestCommands):
    """An x86-64 PC. Nothing of it runs but inside `drive`, `run_to_end`, and what waits for the guest by them.

    Args:
        memory: bytes of RAM, 64 MiB to 8 GiB; or with a state, the RAM as it was then.
        fittings: shared directories, disks and sockets.
        accounting: time every exit, for `stats`.
        state: of a machine that this one goes on for.

    Raises:
        EmuError: no such amount of memory, or a directory, image or socket file that cannot be used.
        UnsupportedHost: the installed libunicorn is not a known one.

    Attributes:
        stop_reason: why it stopped, None while it can run.
        stop_detail: the same in one line, with what is known of the place.
        exit_status: the status that the guest ended the machine with, None if it did not.
        serial_sinks: called with what the guest sends on COM1.
        marks: points that the guest has come to (PV_MARK), the last of them.
        snapshot_path: the snapshot that it was restored from.
    """

    snapshot_path: Path | None = None

    def __init__(
        self,
        memory: int | GuestMemory,
        fittings: Fittings = NOTHING,
        accounting: bool = False,
        state: MachineState | None = None,
    ) -> None:
        self.memory = GuestMemory(memory) if isinstance(memory, int) else memory
        self._fittings = fittings
        self.serial_sinks: list[Callable[[bytes], None]] = []
        self.stop_reason: StopReason | None = None
        self.stop_detail = ""
        self.exit_status: int | None = None
        self._stop_requested = False
        self._driver: int | None = None     # the thread inside `drive`
        self._interrupt = HeldInterrupt(self._hurry)
        self._seen_ns = time.monotonic_ns()
        self._accounting = Accounting(accounting)
        self._halts = self._accounting.tally(Kind.RUN_END, "hlt")
        self._kicks = self._accounting.tally(Kind.RUN_END, "kick")
        self._native_before: Counter[str] = Counter()       # of boards that a reset has put away
        self._driven_ns = 0
        self._driven_since = 0              # while something is being driven
        self._run_ns = 0
        self._wakeup = -1
        self._load: Callable[[GuestMemory], BootState] | None = None
        self._reset_requested = False
        self._idle_requested = False
        self.marks: deque[Mark] = deque(maxlen=MARKS_KEPT)
        self._hypercalls, self._syscalls = _registry(fittings), _syscall_table(fittings)
        self._poller = Poller()
        self._poller.call_back = self._accounting.between("files", self._poller.call_back)
        self._plugged = Plugged(
            fittings, self._poller, self.drive, lambda data: self.console.feed(data), state.plugged if state else None
        )
        self._make_board(state.board if state else None)
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.watch(self._wakeup, self._woken)
        hvc = self._plugged.hvc
        console = Console(self._console_send, self.drive, self.watch_fd, self.unwatch_fd, hvc.resize if hvc else None)
        if state is None:
            super().__init__(console, self._plugged.ports, shell=fittings.shell)
        else:
            super().__init__(console, self._plugged.ports, state.channel, state.ready, fittings.shell)
        self.serial_sinks.append(self._console_feed)
        if state is not None:
            self.board.resumed()
            self._plugged.resumed()

    def _make_board(self, state: BoardState | None = None) -> None:
        self.clock = GuestClock(state.now_ns if state else 0)
        virtio = self._plugged.devices(self.clock)
        output, reset, power_off = self._serial_output, self._reset, self._power_off
        accounting = self._accounting
        self.board = Board(self.memory, self.clock, output, reset, power_off, _sleep_ns, virtio, accounting, state)
        self.clock.sooner = self._timer_sooner
        self.clock.expire = accounting.between("timers", self.clock.expire)
        self._flush_bypass = accounting.between("serial output", self.board.com1.flush_bypass)
        services = MachineServices(
            self.clock, self._console_write, self._idle_request, self._exit, self._plugged.files, self.marks
        )
        self.board.add_hypercalls(self._hypercalls, services)
        self.board.add_syscalls(self._syscalls)
        if place := self._fittings.debug_exit:
            self.board.add_device("debug exit", IsaDebugExit(self._exit, place.port, place.size))

    def start(self, state: BootState) -> None:
        """Set the CPU to a loaded kernel's entry; a reset by the guest is the machine's end."""
        enter(self.board.cpu, state)

    def boot(self, load: Callable[[GuestMemory], BootState]) -> None:
        """Load a kernel and start there; again whenever the guest resets the machine, unless its kernel panicked.

        Args:
            load: lays a kernel out in zeroed guest memory.
        """
        self._load = load
        self.start(load(self.memory))

    @property
    def vsock(self) -> VsockHost:
        """Sockets between guest and host.

        Raises:
            EmuError: the machine was made without.
        """
        if self._plugged.vsock is None:
            raise EmuError("this machine has no vsock device; make it with vsock=True, or the path of a socket file")
        return self._plugged.vsock

    @property
    def vsock_path(self) -> Path | None:
        """The socket file for programs of the host, None if there is none."""
        return self._plugged.vsock.path if self._plugged.vsock else None

    # -- serial line and files ---------------------------------------------------------------------------------

    def serial_send(self, data: bytes) -> None:
        """Send bytes to the guest's COM1; on the machine's thread."""
        self._check_open()
        self.board.com1.receive(data)

    def _console_send(self, data: bytes) -> None:
        """What is typed goes to hvc0 if the guest has made one."""
        self._check_open()
        if not self._plugged.type_on_hvc(data):
            self.serial_send(data)

    def _console_feed(self, data: bytes) -> None:
        """What comes over COM1; the kernel says the same on hvc0, and there first, once it has made it a console."""
        if not self._plugged.hvc_speaks:
            self.console.feed(data)

    def _console_write(self, data: bytes) -> None:
        """PV_CONSOLE; behind what came over COM1 before."""
        self.board.com1.flush_bypass()
        self.console.feed(data)

    def _serial_output(self, data: bytes) -> None:
        for sink in self.serial_sinks:
            sink(data)

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back, on the machine's thread and at most some 10 ms late, whenever `fd` can be read."""
        self._poller.watch(fd, callback)

    def unwatch_fd(self, fd: int) -> None:
        """End that."""
        self._poller.forget(fd)

    def wait_fds(self) -> None:
        """Sleep until a file that is watched can be read, half a second at most: for a machine that has stopped."""
        self._check_open()
        self._poller.wait(LONGEST_SLEEP_NS)

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
        try:
            exit_ = board.cpu.run(max(min(timer_ns, started + SLICE_NS), started + SHORTEST_SLICE_NS))
        finally:
            self._run_ns += time.monotonic_ns() - started
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
                self._idle(until, end_ns)
        elif exit_ is Exit.HALT:
            self._halts.count += 1
            self._poller.wait(0)
            if board.cpu.interrupts_enabled:
                self._idle(until, end_ns)
            elif self.stop_reason is None:
                self._stop(StopReason.HALTED)
        elif self.stop_reason is None:
            reason = StopReason.TRIPLE_FAULT if exit_ is Exit.SHUTDOWN else StopReason.CPU_ERROR
            self._stop(reason, f"{board.cpu.error} " if exit_ is Exit.ERROR else "")

    def _idle(self, until: Callable[[], bool], end_ns: int) -> None:
        """The guest waits for an interrupt: sleep until the next timer, file or request."""
        board, clock = self.board, self.clock
        while not (board.intr.level or self._hurried or self.stop_reason is not None or until()):
            now = time.monotonic_ns()
            if now >= end_ns:
                break
            self._poller.wait(min(clock.next_ns + clock.host_origin_ns, end_ns, now + LONGEST_SLEEP_NS) - now)
            clock.run_due()
        self._seen_ns = time.monotonic_ns()

    @property
    def _hurried(self) -> bool:
        return self._stop_requested or self._interrupt.pending

    def _reset(self) -> None:
        """The guest asks for a reset, in an exit: it comes when the CPU has come back."""
        self._reset_requested = True
        self.board.cpu.stop()

    def _idle_request(self) -> None:
        """PV_IDLE, in an exit: the sleep comes when the CPU has come back."""
        if not self.board.intr.level:
            self._idle_requested = True
            self.board.cpu.stop()

    def _power_off(self) -> None:
        self._stop(StopReason.POWER_OFF)
        self.board.cpu.stop()

    def _exit(self, status: int) -> None:
        """The guest ends the machine with a status, in an exit."""
        self.exit_status = status
        self._stop(StopReason.EXIT, f"with status {status} ")
        self.board.cpu.stop()

    def _restart(self) -> None:
        """As after a push on the reset button: zeroed memory, a new board with the same devices in its slots."""
        self._reset_requested = False
        if self._load is None or self.panic is not None:
            self._stop(StopReason.RESET)
            return
        self._native_before += self._native()
        self.board.close()
        self.memory.clear()
        self._make_board()
        self._forget_shell()
        self.start(self._load(self.memory))

    def _stop(self, reason: StopReason, detail: str = "") -> None:
        self.stop_reason = reason
        self.stop_detail = f"{reason} ({detail}at {self.board.cpu.registers.rip:#x})"

    # -- snapshots ---------------------------------------------------------------------------------------------

    def snapshot(
        self,
        path: str | os.PathLike[str],
        *,
        incremental: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Save the machine to a directory; arguments and errors as `emu.snapshot.machine.save_machine`."""
        from emu.snapshot.machine import save_machine

        save_machine(self, path, incremental=incremental, progress=progress)

    def learn_hot_set(self) -> None:
        """Remember what of the snapshot's memory was needed until now, for the next restore, if it is not known."""
        from emu.snapshot import hot

        if self.snapshot_path is not None and self.memory.origin is not None:
            hot.record(self.memory.origin, self.memory)

    @property
    def disks(self) -> list[Disk]:
        """What is behind the guest's disks, in order."""
        return self._plugged.disks

    @overload
    def fork(self) -> MachineProcess: ...
    @overload
    def fork(self, count: int) -> list[MachineProcess]: ...

    def fork(self, count: int | None = None) -> MachineProcess | list[MachineProcess]:
        """Fork this process, for machines that go on from here each by itself; this one can be driven on.

        Args:
            count: how many; None: one, and not a list.

        Raises:
            EmuError: the machine is closed, running, or has stopped; Python runs other threads, whose locks a fork
                would leave locked (`emu.spawn` makes a process without any); a disk is written in place.
        """
        from emu.process.forking import fork_here

        machines = fork_here(self, 1 if count is None else count)
        return machines[0] if count is None else machines

    def prepare_fork(self) -> None:
        """Be such that copies of this process can go on with the machine.

        Raises:
            EmuError: the machine is closed, running, or has stopped; a disk is written in place.
        """
        self._check_still("forked")
        self.board.com1.flush_bypass()
        self._plugged.prepare_fork()

    def forked(self, vsock: Path | None = None) -> None:
        """This process is a copy of the one that had the machine: become another one.

        Args:
            vsock: path of a socket file of its own, if it has sockets; else there is none.

        Raises:
            EmuError: the host has no room for what is needed.
        """
        self._poller.forget_all()
        os.close(self._wakeup)
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.watch(self._wakeup, self._woken)
        self.serial_sinks[:] = [self._console_feed]
        self.console.forked()
        self._plugged.forked(vsock)
        if self.channel is not None:
            self.channel.forked()
        self.board.new_generation()

    def _check_still(self, what: str) -> None:
        """Raise `EmuError` unless the machine stands between two calls that drive it."""
        self._check_open()
        if self._driver is not None:
            raise EmuError(f"the machine is running; it can be {what} between two calls that drive it")
        if self.stop_reason is not None:
            raise EmuError(f"the machine has stopped: {self.stop_detail}")

    def save(self) -> MachineState:
        """All that the machine is but its memory; it can be driven on.

        Raises:
            EmuError: it is closed, is running, or has stopped.
        """
        self._check_still("saved")
        return MachineState(
            self.memory.size,
            fittings_state(self._fittings),
            self.board.save(),
            self._plugged.save(),
            self.channel.save() if self.channel else None,
            self._is_ready,
        )

    # -- the rest ----------------------------------------------------------------------------------------------

    def stats(self) -> ExitStats:
        """What made the guest leave its code since the machine was made, and where the time went."""
        native = self._native_before + self._native()
        rows = *self._accounting.rows(), *(ExitRow(Kind.NATIVE, name, count) for name, count in native.items())
        driven_ns = self._driven_ns
        if self._driver is not None:
            driven_ns += time.monotonic_ns() - self._driven_since
        return ExitStats(rows, driven_ns, self._run_ns, self._poller.slept_ns, self._accounting.timing)

    def _native(self) -> Counter[str]:
        """Events that machine code dealt with, of this board."""
        context, bypass = self.board.cpu.context, self.board.bypass
        counts = {
            "exception": context.exceptions, "undefined": context.undefined, "syscall": context.syscalls,
            "syscall intercepted": context.intercepted,
            "cpuid": context.cpuids, "serial byte": bypass.bytes_taken, "serial status": context.lsr_reads,
        }
        return Counter({name: int(count) for name, count in counts.items()})

    def close(self) -> None:
        """Free the CPU and the guest's memory.

        Raises:
            EmuError: it is running.
        """
        if self._wakeup >= 0:
            self.board.close()
            self._plugged.close()
            self._load = None           # it holds the kernel and the root
            self.console.close()
            wakeup, self._wakeup = self._wakeup, -1
            os.close(wakeup)
            self.memory.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _registry(fittings: Fittings) -> Registry:
    try:
        return Registry((*BUILT_IN, *fittings.hypercalls))
    except ValueError as error:
        raise EmuError(str(error)) from None


def _syscall_table(fittings: Fittings) -> SyscallTable:
    try:
        return SyscallTable(fittings.syscalls)
    except ValueError as error:
        raise EmuError(str(error)) from None


def _sleep_ns(nanoseconds: int) -> None:
    time.sleep(nanoseconds / 1e9)
