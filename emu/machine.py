"""A machine: a board, and the loop that runs it in its caller's thread."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
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
from emu.errors import EmuError
from emu.fittings import Fittings, VsockNetwork
from emu.handlers import registry, syscall_table
from emu.loader import BootState
from emu.machine_state import MachineState, fittings_state
from emu.memory import GuestMemory
from emu.plugged import Plugged
from emu.poller import Poller
from emu.presence import Presence
from emu.run_loop import RunLoop, StopReason
from emu.services import MARKS_KEPT, MachineServices, Mark
from emu.stats import ExitRow, ExitStats, Kind

if TYPE_CHECKING:
    from emu.process.client import MachineProcess
    from emu.vsock import VsockHost

NOTHING = Fittings()


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
        self.exit_status: int | None = None
        self._accounting = Accounting(accounting)
        self._native_before: Counter[str] = Counter()       # of boards that a reset has put away
        self._load: Callable[[GuestMemory], BootState] | None = None
        self.marks: deque[Mark] = deque(maxlen=MARKS_KEPT)
        self._hypercalls, self._syscalls = registry(fittings.hypercalls), syscall_table(fittings.syscalls)
        self._poller = Poller()
        self._poller.call_back = self._accounting.between("files", self._poller.call_back)
        self._loop = RunLoop(self._poller, self._accounting, self._restart)
        self._presence = Presence(self, self._poller)
        self._plugged = Plugged(
            fittings, self._poller, self.drive, lambda data: self.console.feed(data), state.plugged if state else None
        )
        with ExitStack() as undo:
            undo.callback(self._plugged.close)
            self._make_board(state.board if state else None)
            undo.callback(self.board.close)
            self._loop.open()
            undo.callback(self._loop.close)
            self._connect(fittings, state)
            undo.pop_all()

    def _connect(self, fittings: Fittings, state: MachineState | None) -> None:
        """Make the console and the channel, and go on with what the state says."""
        hvc = self._plugged.hvc
        console = Console(self._console_send, self.drive, self.watch_fd, self.unwatch_fd, hvc.resize if hvc else None)
        if state is None:
            super().__init__(console, self._plugged.ports, shell=fittings.shell, look=self._loop.look)
        else:
            ports, shares, look = self._plugged.ports, bool(fittings.shares), self._loop.look
            super().__init__(console, ports, state.channel, state.ready, fittings.shell, shares, look)
        self.serial_sinks.append(self._console_feed)
        if state is not None:
            self.board.resumed(self._is_renewed)
            self._plugged.resumed()

    def _make_board(self, state: BoardState | None = None) -> None:
        self.clock = GuestClock(state.now_ns if state else 0)
        virtio = self._plugged.devices(self.clock)
        output, reset, power_off = self._serial_output, self._loop.ask_reset, self._power_off
        accounting = self._accounting
        self.board = Board(self.memory, self.clock, output, reset, power_off, _sleep_ns, virtio, accounting, state)
        self._loop.attach(self.board, self.clock)
        services = MachineServices(
            self.clock, self._console_write, self._loop.ask_idle, self._exit, self._plugged.files, self.marks
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

    @property
    def stop_reason(self) -> StopReason | None:
        """Why it stopped, None while it can run."""
        return self._loop.stop_reason

    @property
    def stop_detail(self) -> str:
        """The same in one line, with what is known of the place; empty while it can run."""
        return self._loop.stop_detail

    # -- serial line and files ---------------------------------------------------------------------------------

    def serial_send(self, data: bytes) -> None:
        """Send bytes to the guest's COM1; on the machine's thread."""
        self._loop.check_open()
        self.board.com1.receive(data)

    def _console_send(self, data: bytes) -> None:
        """What is typed goes to hvc0 if the guest has made one."""
        self._loop.check_open()
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

    def watch_fd(self, fd: int, readable: Callable[[], None], writable: Callable[[], None] | None = None) -> None:
        """Call back, on the machine's thread and at most some 10 ms late, whenever `fd` can be read, or written."""
        self._poller.watch(fd, readable, writable)

    def unwatch_fd(self, fd: int) -> None:
        """End that."""
        self._poller.forget(fd)

    def wait_fds(self) -> None:
        """Sleep until a file that is watched can be read, half a second at most: for a machine that has stopped."""
        self._loop.wait_fds()

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
        self._presence.show()
        return self._loop.drive(until, timeout)

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
        self._loop.request_stop()

    @property
    def run_loop(self) -> RunLoop:
        """What runs it, for a debugger."""
        return self._loop

    def _power_off(self) -> None:
        self._loop.stop(StopReason.POWER_OFF)

    def _exit(self, status: int) -> None:
        """The guest ends the machine with a status, in an exit."""
        self.exit_status = status
        self._loop.stop(StopReason.EXIT, f"with status {status} ")

    def _restart(self) -> None:
        """As after a push on the reset button: zeroed memory, a new board with the same devices in its slots."""
        if self._load is None or self.panic is not None:
            self._loop.stop(StopReason.RESET)
            return
        self._native_before += self._native()
        self.board.close()
        self.memory.clear()
        self._make_board()
        self._forget_shell()
        self.start(self._load(self.memory))

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
        from emu.process.here import fork_here

        self._check_still("forked")
        machines = fork_here(self, 1 if count is None else count)
        return machines[0] if count is None else machines

    def prepare_fork(self) -> None:
        """Be such that copies of this process can go on with the machine.

        Raises:
            EmuError: the machine is closed or has stopped; a disk is written in place.
        """
        self._check_alive()
        self.board.com1.flush_bypass()
        self._plugged.prepare_fork()

    def forked(self, vsock: Path | VsockNetwork | None = None, *kept: int) -> None:
        """This process is a copy of the one that had the machine: become another one.

        Args:
            vsock: path of a socket file of its own, or its network, if it has sockets; else there is none.
            kept: files that go on being watched; they have been made others under the same number.

        Raises:
            EmuError: the host has no room for what is needed.
        """
        self._loop.forked(*kept)
        self._presence.forked()
        self.serial_sinks[:] = [self._console_feed]
        self.console.forked()
        self._plugged.forked(vsock)
        if self.channel is not None:
            self.channel.forked()
        self.board.new_generation(self._is_renewed)

    @property
    def is_idle(self) -> bool:
        """The guest waits for an interrupt, within a call of `drive`."""
        return self._loop.is_idle

    @property
    def is_interrupted(self) -> bool:
        """An interrupt waits for the guest."""
        return self.board.intr.level

    @property
    def run_ns(self) -> int:
        """Host time that the guest has run in."""
        return self._loop.run_ns

    @property
    def _is_renewed(self) -> bool:
        """Whether a program in the guest sees to it that a copy of it differs."""
        return self.channel is not None and self.channel.renews

    def _check_still(self, what: str) -> None:
        """Raise `EmuError` unless the machine stands between two calls that drive it."""
        self._loop.check_open()
        if self._loop.is_driven:
            raise EmuError(f"the machine is running; it can be {what} between two calls that drive it")
        self._check_alive()

    def _check_alive(self) -> None:
        """Raise `EmuError` if the machine is closed, or has stopped."""
        self._loop.check_open()
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
        return ExitStats(rows, self._loop.driven_ns, self._loop.run_ns, self._poller.slept_ns, self._accounting.timing)

    def _native(self) -> Counter[str]:
        """Events that machine code dealt with, of this board."""
        context, bypass = self.board.cpu.context, self.board.bypass
        counts = {
            "exception": context.exceptions, "undefined": context.undefined, "syscall": context.syscalls,
            "syscall intercepted": context.intercepted,
            "cpuid": context.cpuids, "serial byte": bypass.bytes_taken, "serial status": context.lsr_reads,
        }
        return Counter({name: int(count) for name, count in counts.items()})

    def leave(self) -> None:
        """Give back what would outlive this process, which is about to end, and with it CPU and memory."""
        if self.channel is not None:
            self.channel.close()
        self._plugged.close()
        self._presence.close()
        self.console.close()

    def close(self) -> None:
        """Free the CPU and the guest's memory.

        Raises:
            EmuError: it is running.
        """
        if self._loop.is_open:
            if self.channel is not None:
                self.channel.close()
            self.board.close()
            self.leave()
            self._load = None           # it holds the kernel and the root
            self._loop.close()
            self.memory.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _sleep_ns(nanoseconds: int) -> None:
    time.sleep(nanoseconds / 1e9)
