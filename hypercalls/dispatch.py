"""From an MSR access to a hypercall's handler, and from whatever it does back to the guest."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping

from devices import Clock, OutsideMemory
from hypercalls.call import ACCESS_BUDGET, Call, CallMemory, Endless, GuestFault, Services
from hypercalls.registry import Hypercall

__all__ = ["Dispatcher", "format_registers"]

VALUE_MASK = (1 << 64) - 1
NAME_LENGTH = 6                         # of the longest register's, for a table
MOST_LOGGED = 20                        # complaints about one hypercall: a guest can cause a million a second

Read = Callable[[], int]
Write = Callable[[int], None]

logger = logging.getLogger("hypercalls")


def format_registers(registers: Mapping[str, int]) -> str:
    """Registers as text, four a line."""
    items = [f"{name:>{NAME_LENGTH}} {value:016x}" for name, value in registers.items()]
    return "\n".join(" ".join(items[i : i + 4]) for i in range(0, len(items), 4))


class Dispatcher:
    """Calls handlers so that nothing they do harms the machine.

    What a handler raises is #GP in the guest: quietly for `GuestFault` (which may name another exception) and for
    addresses outside of memory, with the handler's traceback and the guest's registers in the log for all else.

    Args:
        memory: guest memory, for all handlers.
        clock: guest time.
        services: what handlers may ask of the machine.
        registers: the guest's, for the log.
    """

    def __init__(
        self, memory: CallMemory, clock: Clock, services: Services, registers: Callable[[], Mapping[str, int]]
    ) -> None:
        self._memory = memory
        self._clock = clock
        self._services = services
        self._registers = registers
        self._mailbox = bytearray()
        self._complaints: Counter[int] = Counter()

    def bind(self, hypercall: Hypercall) -> tuple[Read | None, Write | None]:
        """The two sides of a hypercall's MSR, as `emu.bus.MsrBus` wants them."""
        memory, handler = self._memory, hypercall.handler
        call = Call(hypercall.number, memory, self._clock, self._services, self._mailbox)
        refuse = self._refused
        result: int | None = None

        def write(value: int) -> None:
            nonlocal result
            call.value, call.is_write, memory.left = value, True, ACCESS_BUDGET
            try:
                result = handler(call)
            except Exception as error:
                raise refuse(hypercall, error) from None

        def read() -> int:
            call.value, call.is_write, memory.left = 0, False, ACCESS_BUDGET
            try:
                return _checked(handler(call))
            except Exception as error:
                raise refuse(hypercall, error) from None

        def read_result() -> int:
            try:
                return _checked(result)
            except Exception as error:
                raise refuse(hypercall, error) from None

        if hypercall.access == "w":
            return read_result, write
        return read, write if hypercall.access == "rw" else None

    def _refused(self, hypercall: Hypercall, error: Exception) -> GuestFault:
        """What the guest is to see of an error."""
        if isinstance(error, GuestFault):
            return error
        if not isinstance(error, _NoResult):
            self._log(hypercall, error)
        return GuestFault()

    def _log(self, hypercall: Hypercall, error: Exception) -> None:
        self._complaints[hypercall.number] += 1
        count = self._complaints[hypercall.number]
        if count > MOST_LOGGED:
            return
        what = f"{hypercall.name} ({hypercall.number:#x})"
        if isinstance(error, OutsideMemory | Endless):
            logger.warning("%s: %s; the guest gets #GP", what, error)
        else:
            registers = format_registers(self._registers())
            logger.error("%s raised; the guest gets #GP. Its registers:\n%s", what, registers, exc_info=error)
        if count == MOST_LOGGED:
            logger.warning("%s: what goes wrong from here on is not logged", what)


class _NoResult(Exception):
    """No write so far had a result that could be read."""


def _checked(value: int | None) -> int:
    """A handler's result as the guest's 64 bits."""
    if value is None:
        raise _NoResult
    if not 0 <= value <= VALUE_MASK:
        raise TypeError(f"the handler returned {value}, which is no 64-bit value")
    return value
