"""A command that a machine's process runs for its user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emu.process import messages as m

if TYPE_CHECKING:
    from emu.job import Job

__all__ = ["Running"]


@dataclass(eq=False)
class Running:
    """A command under way.

    Attributes:
        time_limit: host monotonic seconds, None for ever.
        most_output: bytes that it may write, None for any number.
        written: bytes that it has written.
        ahead: of them, those that its user has not dealt with.
    """

    number: int
    job: Job
    timeout: float | None
    time_limit: float | None
    most_output: int | None
    written: int = 0
    ahead: int = 0

    @property
    def has_output(self) -> bool:
        """Whether some of what it has written is not sent."""
        return not (self.job.stdout.is_empty and self.job.stderr.is_empty)

    @property
    def is_due(self) -> bool:
        """Whether there is something to send."""
        return self.ahead < m.AHEAD if self.has_output else self.job.is_over

    @property
    def deadline(self) -> float | None:
        """When it has to be ended; once it has ended, only its user is waited for."""
        return None if self.job.is_over else self.time_limit
