"""What a user may wait for beside everything else that is asked of a machine's process."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from emu.errors import EmuError, GuestStopped, GuestTimeout

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["Expectation", "Stop", "Wait", "Waits"]


class Wait(Protocol):
    """Something that the guest has to do first."""

    @property
    def is_due(self) -> bool:
        """Whether to look; asked again and again, so it costs nothing."""

    def look(self, is_late: bool, /) -> str | None:
        """The answer, None if there is none yet.

        Args:
            is_late: the time for it is over.

        Raises:
            EmuError: there will be none.
        """


class Stop:
    """The machine's end; the answer is why, or nothing if it still runs."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @property
    def is_due(self) -> bool:
        """It has stopped."""
        return self._machine.stop_reason is not None

    def look(self, is_late: bool) -> str | None:
        """Why."""
        return self._machine.stop_detail if is_late or self.is_due else None


class Expectation:
    """Output on the console; the answer is the text up to the match's end.

    Args:
        machine: it is searched what no `expect` of its console has taken.
        pattern: a regular expression.
        seconds: that there are, for messages.
    """

    def __init__(self, machine: Machine, pattern: str, seconds: float) -> None:
        self._machine = machine
        self._pattern = pattern
        self._seconds = seconds

    @property
    def is_due(self) -> bool:
        """There is more of it, or there will never be."""
        return self._machine.console.has_news or self._machine.stop_reason is not None

    def look(self, is_late: bool) -> str | None:
        """The text."""
        console = self._machine.console
        try:
            console.expect(self._pattern, 0)
            return console.before + console.after
        except GuestTimeout:
            if self._machine.stop_reason is not None:
                raise GuestStopped(self._machine.stop_detail) from None
            if is_late:
                what = f"{self._pattern!r} did not appear in {self._seconds:g} s"
                raise GuestTimeout(f"{what}; the console ends in {console.tail()}") from None
        return None


class Waits:
    """All that is waited for.

    Args:
        answer: told of each what it is that has come.
        fail: told of each why it will not come.
    """

    def __init__(self, answer: Callable[[int, str], None], fail: Callable[[int, Exception], None]) -> None:
        self._answer = answer
        self._fail = fail
        self._waits: dict[int, tuple[Wait, float | None]] = {}      # with their deadlines

    def add(self, number: int, wait: Wait, timeout: float | None) -> None:
        """Wait for that as well, so many host seconds, None for ever."""
        self._waits[number] = wait, None if timeout is None else monotonic() + timeout
        self._look(number)

    def look(self) -> None:
        """Answer who waits, where that can be."""
        for number in list(self._waits):
            self._look(number)

    def _look(self, number: int) -> None:
        wait, deadline = self._waits[number]
        try:
            answer = wait.look(deadline is not None and monotonic() >= deadline)
        except EmuError as error:
            del self._waits[number]
            self._fail(number, error)
        else:
            if answer is not None:
                del self._waits[number]
                self._answer(number, answer)

    @property
    def is_due(self) -> bool:
        """Whether to look; asked again and again."""
        return any(wait.is_due for wait, _ in self._waits.values())

    def __len__(self) -> int:
        return len(self._waits)

    @property
    def deadlines(self) -> list[float]:
        """Host monotonic seconds at which to look."""
        return [deadline for _, deadline in self._waits.values() if deadline is not None]

    def cancel(self, number: int) -> None:
        """Nobody waits for that any more."""
        self._waits.pop(number, None)

    def clear(self) -> None:
        """Nobody waits."""
        if self._waits:
            self._waits.clear()
