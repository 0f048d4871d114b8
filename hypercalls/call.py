"""What a hypercall's handler is given: the value, guest memory, a clock, and services of the machine."""

from __future__ import annotations

from typing import Protocol

from devices import Clock

__all__ = ["VECTOR_GP", "Call", "CallMemory", "Endless", "Files", "GuestFault", "Memory", "Services", "VirtualMemory"]

VECTOR_GP = 13

ACCESS_LEAST = 256                      # bytes that an access counts for at least
ACCESS_BUDGET = 256 << 20               # bytes of guest memory for one call: about a second of small accesses


class GuestFault(Exception):
    """An exception that the guest is to see in place of the instruction's result.

    Args:
        vector: exception number; by default #GP.
        error_code: pushed with it.
    """

    def __init__(self, vector: int = VECTOR_GP, error_code: int = 0) -> None:
        super().__init__(f"exception {vector}, error code {error_code:#x}")
        self.vector = vector
        self.error_code = error_code


class Endless(Exception):
    """A handler that goes on and on through guest memory, as one does that follows a list with a loop in it."""


class Memory(Protocol):
    """Guest RAM by guest-physical address; `devices.OutsideMemory` for what is not all RAM."""

    def read(self, address: int, size: int, /) -> bytes: ...

    def write(self, address: int, data: bytes | bytearray | memoryview, /) -> None: ...


class VirtualMemory(Protocol):
    """Guest memory by virtual address, in the address space of the code that made the call.

    `devices.OutsideMemory` for what is not mapped, not writable, or not RAM.
    """

    def read(self, address: int, size: int, /) -> bytes: ...

    def write(self, address: int, data: bytes, /) -> None: ...


class CallMemory:
    """Guest memory for one handler: every access is checked, and their number limited.

    Either error that its methods raise becomes #GP in the guest, if the handler lets it pass.

    Args:
        physical: RAM by guest-physical address.
        virtual: memory by the virtual addresses of the calling code.
    """

    __slots__ = ("_physical", "_virtual", "left")

    def __init__(self, physical: Memory, virtual: VirtualMemory) -> None:
        self._physical = physical
        self._virtual = virtual
        self.left = ACCESS_BUDGET

    def _account(self, size: int) -> None:
        self.left -= size if size > ACCESS_LEAST else ACCESS_LEAST
        if self.left < 0:
            raise Endless("it went through guest memory without end")

    def read(self, address: int, size: int) -> bytes:
        """Copy of `size` bytes at a guest-physical address.

        Raises:
            OutsideMemory: not all of them are RAM.
            Endless: this call has read and written more than any should.
        """
        self._account(size)
        return self._physical.read(address, size)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes at a guest-physical address; errors as `read`, and nothing is written then."""
        self._account(len(data))
        self._physical.write(address, data)

    def read_virtual(self, address: int, size: int) -> bytes:
        """Copy of `size` bytes at a virtual address, with the rights of a kernel.

        Raises:
            OutsideMemory: a page of it is not mapped, or is not RAM.
            Endless: see `read`.
        """
        self._account(size)
        return self._virtual.read(address, size)

    def write_virtual(self, address: int, data: bytes) -> None:
        """Store bytes at a virtual address; errors as `read_virtual`, and for a page that is read-only."""
        self._account(len(data))
        self._virtual.write(address, data)


class Files(Protocol):
    """Whole files of a directory that the host exports, by path relative to it."""

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on. OSError with the errno the guest is told."""

    def write(self, path: bytes, offset: int, data: bytes, create: bool, truncate: bool, append: bool) -> int:
        """Store all of `data`; how many bytes. OSError as above."""


class Services(Protocol):
    """What a handler may ask of the machine."""

    files: Files | None
    """Files for PV_READ and PV_WRITE; None if no directory is exported for them."""

    def console_write(self, data: bytes) -> None:
        """Show bytes on the machine's console."""

    def idle(self) -> None:
        """Sleep, when the call has returned, until something happens: an interrupt, a timer, data for a device."""

    def exit(self, status: int) -> None:
        """End the machine when the call has returned; `status`, 0 to 255, is its exit status."""

    def mark(self, value: int) -> None:
        """Note that the guest has come to a point of its choice, with the time."""


class Call:
    """One read or write of a hypercall's MSR; its handler's only argument, and only good until it returns.

    Args:
        number: of the MSR.
        memory: guest memory.
        clock: guest time.
        machine: what can be asked of the machine.

    Attributes:
        value: what was written, 0 to 2**64 - 1; 0 for a read.
        is_write: WRMSR, not RDMSR.
        mailbox: the machine's (`hypercalls.mailbox`); bytes of requests from those who cannot pass addresses.
    """

    __slots__ = ("clock", "is_write", "machine", "mailbox", "memory", "number", "value")

    def __init__(
        self, number: int, memory: CallMemory, clock: Clock, machine: Services, mailbox: bytearray | None = None
    ) -> None:
        self.number = number
        self.memory = memory
        self.clock = clock
        self.machine = machine
        self.mailbox = bytearray() if mailbox is None else mailbox
        self.value = 0
        self.is_write = True
