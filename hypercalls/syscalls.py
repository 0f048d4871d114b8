"""Interception of system calls: the guest's 64-bit programs ask, the host answers, the guest's kernel never knows.

    from hypercalls.syscalls import PASS, SyscallCall, SyscallResult, syscall

    @syscall(309, "getcpu")
    def getcpu(call: SyscallCall) -> SyscallResult:
        \"\"\"CPU 0 of node 0: there is no other.\"\"\"
        for address in call.arguments[:2]:
            if address:
                call.memory.write(address, bytes(4))
        return 0

A handler answers with the call's result, or with `PASS`: the guest's kernel then does the call as if nobody had looked.
So it does when the handler raises: whatever is not simple can be left to it (docs/syscalls.md).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol, TypeAlias

from devices import Clock
from devices.frozen import frozen
from hypercalls.call import ACCESS_BUDGET, ACCESS_LEAST, Endless

__all__ = [
    "NUMBERS", "PASS", "Handler", "Pass", "Syscall", "SyscallCall", "SyscallResult", "SyscallTable", "UserMemory",
    "UserSpace", "syscall",
]

NUMBERS = 512                           # of x86-64; from 512 on they are x32's


class Pass(enum.Enum):
    """What a handler returns in place of a result."""

    PASS = "the guest's kernel does it"


PASS: Final = Pass.PASS

SyscallResult: TypeAlias = int | Pass
"""RAX: at least 0, or a negative errno of Linux; or PASS."""


class UserSpace(Protocol):
    """Guest memory by virtual address, as `emu.paging.AddressSpace` has it.

    `devices.OutsideMemory` for what is not mapped, not RAM, or not allowed.
    """

    def read(self, address: int, size: int, user: bool, /) -> bytes: ...

    def write(self, address: int, data: bytes | bytearray | memoryview, user: bool, /) -> None: ...


class UserMemory:
    """The calling program's memory, by its addresses and with its rights.

    What a program has not touched yet is not there (pages of files, of its heap, of a parent since fork): the access
    raises, the handler lets it pass, and the guest's kernel does the call.

    Args:
        space: the guest's virtual memory.
    """

    __slots__ = ("_space", "left")

    def __init__(self, space: UserSpace) -> None:
        self._space = space
        self.left = ACCESS_BUDGET

    def _account(self, size: int) -> None:
        self.left -= size if size > ACCESS_LEAST else ACCESS_LEAST
        if self.left < 0:
            raise Endless("it went through guest memory without end")

    def read(self, address: int, size: int) -> bytes:
        """Copy of `size` bytes.

        Raises:
            OutsideMemory: the program cannot read all of them, or not yet.
            Endless: this call has read and written more than any should.
        """
        self._account(size)
        return self._space.read(address, size, True)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes, all of them or none; errors as `read`.

        The kernel does a call that is passed on from its beginning. So a handler reads all it needs before it writes.
        """
        self._account(len(data))
        self._space.write(address, data, True)


class SyscallCall:
    """One system call; its handler's only argument, and only good until it returns.

    Attributes:
        number: what was in RAX.
        arguments: RDI, RSI, RDX, R10, R8 and R9, each 0 to 2**64 - 1; what the call does not take is anything.
        memory: of the calling program.
        clock: guest time.
        root: guest-physical address of the caller's page tables. It tells processes apart: all threads of one have the
            same, and nobody else has it until the process has ended or executed another program.
    """

    __slots__ = ("arguments", "clock", "memory", "number", "root")

    def __init__(
        self, number: int, arguments: tuple[int, int, int, int, int, int], memory: UserMemory, clock: Clock, root: int
    ) -> None:
        self.number = number
        self.arguments = arguments
        self.memory = memory
        self.clock = clock
        self.root = root


Handler: TypeAlias = Callable[[SyscallCall], SyscallResult]


@frozen
class Syscall:
    """A handler and the system call it answers.

    Attributes:
        number: of the call on x86-64.
        name: for tables and logs.
        handler: the function.
    """

    number: int
    name: str
    handler: Handler

    def __call__(self, call: SyscallCall) -> SyscallResult:
        """Call the handler itself, as its unit tests do."""
        return self.handler(call)


def syscall(number: int, name: str) -> Callable[[Handler], Syscall]:
    """Make a function the handler of a system call of 64-bit programs.

    Args:
        number: 0 to 511 (Linux, arch/x86/entry/syscalls/syscall_64.tbl).
        name: what tables and logs call it.

    Raises:
        ValueError: there is no such number.
    """
    if not 0 <= number < NUMBERS:
        raise ValueError(f"{name}: system calls are 0 to {NUMBERS - 1}, not {number}")
    return lambda handler: Syscall(number, name, handler)


class SyscallTable:
    """Which system calls are intercepted, each by one handler.

    Args:
        syscalls: those; the same one twice is the same as once.

    Raises:
        ValueError: two have one number.
    """

    def __init__(self, syscalls: Iterable[Syscall] = ()) -> None:
        self._by_number: dict[int, Syscall] = {}
        for new in syscalls:
            owner = self._by_number.setdefault(new.number, new)
            if owner is not new:
                raise ValueError(f"{new.name}: system call {new.number} belongs to {owner.name}")

    def __iter__(self) -> Iterator[Syscall]:
        return iter(self._by_number.values())
