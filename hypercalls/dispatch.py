"""From an MSR access to a hypercall's handler, and from whatever it does back to the guest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from devices import Clock, OutsideMemory
from devices.frozen import frozen
from devices.log import Log
from hypercalls.call import ACCESS_BUDGET, Call, CallMemory, Endless, GuestFault, Services
from hypercalls.mailbox import CAPACITY
from hypercalls.registry import Hypercall

__all__ = ["POWER_ON", "Dispatcher", "DispatcherState", "format_registers"]

VALUE_MASK = (1 << 64) - 1
NAME_LENGTH = 6                         # of the longest register's, for a table
MOST_LOGGED = 20                        # complaints about one hypercall: a guest can cause a million a second

Read = Callable[[], int]
Write = Callable[[int], None]

logger = Log("hypercalls")


def format_registers(registers: Mapping[str, int]) -> str:
    """Registers as text, four a line."""
    items = [f"{name:>{NAME_LENGTH}} {value:016x}" for name, value in registers.items()]
    return "\n".join(" ".join(items[i : i + 4]) for i in range(0, len(items), 4))


@frozen
class DispatcherState:
    """What a snapshot keeps of hypercalls.

    Attributes:
        mailbox: the bytes of PV_MAILBOX.
        results: number and result of each whose last WRMSR left one for RDMSR.

    Raises:
        ValueError: the mailbox holds more than it can, or no register holds a result.
    """

    mailbox: bytes
    results: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(self.mailbox) > CAPACITY:
            raise ValueError(f"a mailbox with {len(self.mailbox)} bytes")
        if not all(_is_word(result) for _, result in self.results):
            raise ValueError("a hypercall's result that no register holds")


POWER_ON = DispatcherState(b"", ())


class Dispatcher:
    """Calls handlers so that nothing they do harms the machine.

    What a handler raises is #GP in the guest: quietly for `GuestFault` (which may name another exception) and for
    addresses outside of memory, with the handler's traceback and the guest's registers in the log for all else.

    Args:
        memory: guest memory, for all handlers.
        clock: guest time.
        services: what handlers may ask of the machine.
        registers: the guest's, for the log.
        state: what to go on with.
    """

    def __init__(
        self,
        memory: CallMemory,
        clock: Clock,
        services: Services,
        registers: Callable[[], Mapping[str, int]],
        state: DispatcherState = POWER_ON,
    ) -> None:
        self._memory = memory
        self._clock = clock
        self._services = services
        self._registers = registers
        self._mailbox = bytearray(state.mailbox)
        self._restored = dict(state.results)
        self._results: dict[int, Callable[[], int | None]] = {}
        self._complaints: Counter[int] = Counter()

    def bind(self, hypercall: Hypercall) -> tuple[Read | None, Write | None]:
        """The two sides of a hypercall's MSR, as `emu.bus.MsrBus` wants them."""
        memory, handler = self._memory, hypercall.handler
        call = Call(hypercall.number, memory, self._clock, self._services, self._mailbox)
        refuse = self._refused
        result = self._restored.get(hypercall.number)
        self._results[hypercall.number] = lambda: result

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

    def save(self) -> DispatcherState:
        """The state to go on with; handlers' mistakes, which no RDMSR gets either, are left out."""
        results = ((number, result()) for number, result in sorted(self._results.items()))
        kept = ((number, int(result)) for number, result in results if isinstance(result, int) and _is_word(result))
        return DispatcherState(bytes(self._mailbox[-CAPACITY:]), tuple(kept))

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


def _is_word(value: int) -> bool:
    return 0 <= value <= VALUE_MASK


class _NoResult(Exception):
    """No write so far had a result that could be read."""


def _checked(value: int | None) -> int:
    """A handler's result as the guest's 64 bits."""
    if value is None:
        raise _NoResult
    if not _is_word(value):
        raise TypeError(f"the handler returned {value}, which is no 64-bit value")
    return value
