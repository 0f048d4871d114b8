"""From an intercepted system call to its handler, and from whatever that does back to the guest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from devices import Clock, OutsideMemory
from devices.log import Log
from hypercalls.call import ACCESS_BUDGET, Endless
from hypercalls.dispatch import MOST_LOGGED, format_registers
from hypercalls.syscalls import PASS, Syscall, SyscallCall, SyscallResult, UserMemory, UserSpace

__all__ = ["Caller", "SyscallDispatcher"]

RESULT_MIN, RESULT_MAX = -1 << 63, (1 << 64) - 1
ROOT_MASK = ~0xFFF                      # CR3 without its flags, or the process-context identifier

logger = Log("hypercalls.syscalls")


class Caller(Protocol):
    """The registers of the CPU (`emu.cpu.registers.Registers`)."""

    @property
    def syscall_arguments(self) -> tuple[int, int, int, int, int, int]:
        """RDI, RSI, RDX, R10, R8 and R9."""

    def cr(self, number: int, /) -> int:
        """A control register."""

    def dump(self) -> Mapping[str, int]:
        """All registers by name."""


class SyscallDispatcher:
    """Calls handlers so that nothing they do harms the machine.

    When a handler raises, the guest's kernel does the call. For memory that is not there that is all; anything else
    is in the log, with the guest's registers.

    Args:
        space: guest memory by virtual address.
        clock: guest time.
        caller: the guest's registers.
    """

    def __init__(self, space: UserSpace, clock: Clock, caller: Caller) -> None:
        self._space = space
        self._clock = clock
        self._caller = caller
        self._complaints: Counter[int] = Counter()

    def bind(self, syscall: Syscall) -> Callable[[], int | None]:
        """What answers a call with the registers as they are: the result, or None for the guest's kernel to do it."""
        memory, caller, handler = UserMemory(self._space), self._caller, syscall.handler
        call = SyscallCall(syscall.number, (0, 0, 0, 0, 0, 0), memory, self._clock, 0)

        def answer() -> int | None:
            call.arguments, call.root = caller.syscall_arguments, caller.cr(3) & ROOT_MASK
            memory.left = ACCESS_BUDGET
            try:
                return _checked(handler(call))
            except OutsideMemory:
                return None
            except Exception as error:
                self._log(syscall, error)
                return None

        return answer

    def _log(self, syscall: Syscall, error: Exception) -> None:
        self._complaints[syscall.number] += 1
        count = self._complaints[syscall.number]
        if count > MOST_LOGGED:
            return
        what = f"{syscall.name} (system call {syscall.number})"
        if isinstance(error, Endless):
            logger.warning("%s: %s; the guest's kernel does it", what, error)
        else:
            registers = format_registers(self._caller.dump())
            text = "%s raised; the guest's kernel does it. The caller's registers:\n%s"
            logger.error(text, what, registers, exc_info=error)
        if count == MOST_LOGGED:
            logger.warning("%s: what goes wrong from here on is not logged", what)


def _checked(result: SyscallResult) -> int | None:
    """A handler's result, None for PASS."""
    if result is PASS:
        return None
    if not (isinstance(result, int) and RESULT_MIN <= result <= RESULT_MAX):
        raise TypeError(f"the handler returned {result!r}, which is neither a 64-bit value nor PASS")
    return result
