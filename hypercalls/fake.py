"""A call without a machine, for unit tests of handlers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from devices import OutsideMemory
from hypercalls.call import Call, CallMemory, Files, GuestFault
from hypercalls.registry import Hypercall
from hypercalls.syscalls import Syscall, SyscallCall, SyscallResult, UserMemory

__all__ = ["FakeCalls", "FakeClock", "FakeMachine", "FakeMemory"]

ROOT = 0x1000                           # of a system call's caller


class FakeMemory:
    """RAM from address 0 on.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.ram = bytearray(size)

    def _check(self, address: int, size: int) -> None:
        if not 0 <= address <= address + size <= len(self.ram):
            raise OutsideMemory(f"{size} bytes at {address:#x} are not RAM")

    def read(self, address: int, size: int) -> bytes:
        """Copy of `size` bytes; OutsideMemory if they are not all RAM."""
        self._check(address, size)
        return bytes(self.ram[address : address + size])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes; OutsideMemory as `read`."""
        self._check(address, len(data))
        self.ram[address : address + len(data)] = data


@dataclass
class FakeTimer:
    """A timer that only remembers what it was told."""

    expired: Callable[[], None]
    deadline_ns: int | None = None

    def arm(self, deadline_ns: int) -> None:
        """Remember the deadline."""
        self.deadline_ns = deadline_ns

    def disarm(self) -> None:
        """Forget it."""
        self.deadline_ns = None


@dataclass
class FakeClock:
    """Time that stands still until a test changes it.

    Attributes:
        ns: guest time.
        epoch_ns: what is added to it for wall-clock time.
        timers: made so far; a test calls `expired` of one when it likes.
    """

    ns: int = 0
    epoch_ns: int = 1_700_000_000_000_000_000
    timers: list[FakeTimer] = field(default_factory=list)

    def now_ns(self) -> int:
        """Guest monotonic time."""
        return self.ns

    def wall_ns(self) -> int:
        """Guest wall-clock time."""
        return self.epoch_ns + self.ns

    def timer(self, expired: Callable[[], None]) -> FakeTimer:
        """One that never expires by itself."""
        timer = FakeTimer(expired)
        self.timers.append(timer)
        return timer


@dataclass
class FakeMachine:
    """Remembers what handlers asked of the machine.

    Attributes:
        files: for PV_READ and PV_WRITE.
        console: all that was shown on the console.
        idles: how often the guest wanted to sleep.
        exit_status: the last it asked to end with, None if it did not.
        marks: values, in order.
    """

    files: Files | None = None
    console: bytearray = field(default_factory=bytearray)
    idles: int = 0
    exit_status: int | None = None
    marks: list[int] = field(default_factory=list)

    def console_write(self, data: bytes) -> None:
        """Keep it."""
        self.console += data

    def idle(self) -> None:
        """Count it."""
        self.idles += 1

    def exit(self, status: int) -> None:
        """Keep it."""
        self.exit_status = status

    def mark(self, value: int) -> None:
        """Keep it."""
        self.marks.append(value)


class FakeCalls:
    """Makes calls of handlers, in order, that share memory, clock, machine and mailbox.

    Args:
        memory_size: bytes of RAM.
        files: for PV_READ and PV_WRITE.
    """

    def __init__(self, memory_size: int = 1 << 20, files: Files | None = None) -> None:
        self.memory = FakeMemory(memory_size)
        self.clock = FakeClock()
        self.machine = FakeMachine(files)
        self.mailbox = bytearray()
        self._results: dict[int, int | None] = {}

    def call(self, hypercall: Hypercall, value: int | None = None) -> Call:
        """What a handler would be given: WRMSR of a value, or RDMSR if there is none."""
        # Virtual addresses are physical ones here: there are no page tables
        memory = CallMemory(self.memory, self.memory)
        call = Call(hypercall.number, memory, self.clock, self.machine, self.mailbox)
        call.value, call.is_write = value or 0, value is not None
        return call

    def wrmsr(self, hypercall: Hypercall, value: int) -> int | None:
        """Call a handler as WRMSR does; what it returns or raises, and GuestFault if it only answers RDMSR."""
        if hypercall.access == "r":
            raise GuestFault
        result = self._results[hypercall.number] = hypercall(self.call(hypercall, value))
        return result

    def rdmsr(self, hypercall: Hypercall) -> int:
        """Call a handler as RDMSR does, or take the last WRMSR's result if it only answers that.

        Raises:
            GuestFault: there is no result.
            Whatever the handler raises.
        """
        result = self._results.get(hypercall.number) if hypercall.access == "w" else hypercall(self.call(hypercall))
        if result is None:
            raise GuestFault
        return result

    def syscall(
        self, syscall: Syscall, rdi: int = 0, rsi: int = 0, rdx: int = 0, r10: int = 0, r8: int = 0, r9: int = 0
    ) -> SyscallResult:
        """Call the handler of a system call; what it returns or raises."""
        memory = UserMemory(_UserSpace(self.memory))
        return syscall(SyscallCall(syscall.number, (rdi, rsi, rdx, r10, r8, r9), memory, self.clock, ROOT))


class _UserSpace:
    """All of a fake memory, as a program's."""

    def __init__(self, memory: FakeMemory) -> None:
        self._memory = memory

    def read(self, address: int, size: int, _user: bool) -> bytes:
        return self._memory.read(address, size)

    def write(self, address: int, data: bytes | bytearray | memoryview, _user: bool) -> None:
        self._memory.write(address, data)
