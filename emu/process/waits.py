"""What a user may wait for beside everything else that is asked of a machine's process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from emu.errors import GuestStopped, GuestTimeout

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["Expectation", "Stop", "Wait"]


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
