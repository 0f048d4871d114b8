"""A machine: a board, and the loop that runs it in its caller's thread."""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from devices.virtio.console import Console as VirtioConsole
from devices.virtio.device import VirtioDevice
from devices.virtio.rng import Rng
from devices.virtio.vsock import VsockState
from emu.board import Board
from emu.channel import PORTS as CHANNEL_PORTS
from emu.clock import GuestClock
from emu.commands import GuestCommands
from emu.console import Console
from emu.cpu.platform import Exit
from emu.ctrl_c import HeldInterrupt
from emu.errors import EmuError, GuestStopped
from emu.fittings import Fittings
from emu.loader import BootState
from emu.memory import GuestMemory
from emu.poller import Poller
from emu.stats import ExitStats
from emu.switching import fine_switching
from emu.vsock import Drive, VsockHost

SLICE_NS = 10_000_000                   # longest run without a look at files, conditions and Python's signals
SHORTEST_SLICE_NS = 50_000              # a guest asking for timers faster than this still runs
STOPPED_NS = 1_000_000_000              # without a step: the guest is told that it did not run
LONGEST_SLEEP_NS = 500_000_000          # a signal just before the sleep is not noticed by it
FOREVER_NS = 1 << 52                    # 52 days
GUEST_CID = 3                           # of vsock; 2 is the host
SYSRQ_KEY = b"\x0f"                     # Linux takes Ctrl-O on hvc0 for SysRq, and two for a Ctrl-O
NOTHING = Fittings()


class StopReason(enum.Enum):
    """Why a machine stopped."""

    POWER_OFF = "the guest powered off"
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
        memory_bytes: RAM, 64 MiB to 8 GiB.
        fittings: shared directories, disks and sockets.

    Raises:
        EmuError: no such amount of memory, or a directory, image or socket file that cannot be used.
        UnsupportedHost: the installed libunicorn is not a known one.

    Attributes:
        stop_reason: why it stopped, None while it can run.
        stop_detail: the same in one line, with what is known of the place.
        serial_sinks: called with what the guest sends on COM1.
    """

    def __init__(self, memory_bytes: int, fittings: Fittings = NOTHING) -> None:
        self.memory = GuestMemory(memory_bytes)
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
        self._load: Callable[[GuestMemory], BootState] | None = None
        self._reset_requested = False
        self._poller = Poller()
        self._vsock = _vsock_host(fittings, self._poller, self.drive)
        self._fitted: list[VirtioDevice] = [Rng(), *fittings.storage()]
        self._hvc = self._add_hvc() if fittings.hvc else None
        self._hvc_speaks = False
        ports = self._add_ports() if fittings.channel else None
        self._make_board()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.watch(self._wakeup, self._woken)
        resize = None if self._hvc is None else self._hvc.resize
        super().__init__(Console(self._console_send, self.drive, self.watch_fd, self.unwatch_fd, resize), ports)
        self.serial_sinks.append(self._console_feed)

    def _add_hvc(self) -> VirtioConsole:
        device = VirtioConsole()
        self._fitted.append(device)
        port = device.port(0, is_console=True)
        port.received, port.opened = self._hvc_output, self._hvc_opened
        return device

    def _add_ports(self) -> VirtioConsole:
        device = VirtioConsole(CHANNEL_PORTS)
        self._fitted.append(device)
        return device

    def _unplug(self) -> None:
        """Give back what the devices have of the host's."""
        for device in self._fitted:
            device.close()
        if self._socket_device:
            self._socket_device.close()
        if self._vsock:
            self._vsock.close()

    def _make_board(self) -> None:
        self.clock = GuestClock()
        self._socket_device = self._vsock and self._vsock.device(self.clock, VsockState(GUEST_CID))
        virtio = [*self._fitted, self._socket_device] if self._socket_device else self._fitted
        output, reset, power_off = self._serial_output, self._reset, self._power_off
        self.board = Board(self.memory, self.clock, output, reset, power_off, _sleep_ns, virtio)
        self.clock.sooner = self._timer_sooner

    def start(self, state: BootState) -> None:
        """Set the CPU to a loaded kernel's entry; a reset by the guest is the machine's end."""
        self.board.cpu.enter_long_mode(state)

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
        if self._vsock is None:
            raise EmuError("this machine has no vsock device; make it with vsock=True, or the path of a socket file")
        return self._vsock

    # -- serial line and files ---------------------------------------------------------------------------------

    def serial_send(self, data: bytes) -> None:
        """Send bytes to the guest's COM1; on the machine's thread."""
        self._check_open()
        self.board.com1.receive(data)

    def _console_send(self, data: bytes) -> None:
        """What is typed goes to hvc0 if the guest has made one."""
        if self._hvc is not None and self._hvc.ports[0].guest_open:
            self._check_open()
            self._hvc.ports[0].send(data.replace(SYSRQ_KEY, 2 * SYSRQ_KEY))
        else:
            self.serial_send(data)

    def _hvc_output(self, data: bytes) -> None:
        self._hvc_speaks = True
        self.console.feed(data)

    def _hvc_opened(self, _is_open: bool) -> None:
        self._hvc_speaks = False

    def _console_feed(self, data: bytes) -> None:
        """What comes over COM1; the kernel says the same on hvc0, and there first, once it has made it a console."""
        if not self._hvc_speaks:
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
        board.com1.flush_bypass()
        if self._reset_requested:
            self._restart()
            return
        clock.run_due()
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
        """The guest asks for a reset, in an exit: it comes when the CPU has come back."""
        self._reset_requested = True
        self.board.cpu.stop()

    def _power_off(self) -> None:
        self._stop(StopReason.POWER_OFF)
        self.board.cpu.stop()

    def _restart(self) -> None:
        """As after a push on the reset button: zeroed memory, a new board with the same devices in its slots."""
        self._reset_requested = False
        if self._load is None or self.panic is not None:
            self._stop(StopReason.RESET)
            return
        self.board.close()
        if self._socket_device:
            self._socket_device.close()
        self.memory.clear()
        self._make_board()
        self._forget_shell()
        self.start(self._load(self.memory))

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
            self._unplug()
            self._load = None           # it holds the kernel and the root
            self.console.close()
            wakeup, self._wakeup = self._wakeup, -1
            os.close(wakeup)
            self.memory.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _vsock_host(fittings: Fittings, poller: Poller, drive: Drive) -> VsockHost | None:
    if fittings.vsock is False:
        return None
    return VsockHost(poller, drive, None if fittings.vsock is True else Path(fittings.vsock))


def _sleep_ns(nanoseconds: int) -> None:
    time.sleep(nanoseconds / 1e9)
