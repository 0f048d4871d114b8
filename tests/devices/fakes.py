"""What a device is handed in its tests: a line that remembers, and a clock wound by hand."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["FakeClock", "FakeLine", "FakeTimer", "FakeTsc"]


class FakeLine:
    """An interrupt line that records its changes.

    Attributes:
        level: what the line carries now; low at the start.
        changes: every new level, in order; driving the line to the level it has adds nothing.
    """

    def __init__(self, level: bool = False) -> None:
        self.level = level
        self.changes: list[bool] = []

    def set(self, level: bool) -> None:
        """Drive the line."""
        if level != self.level:
            self.level = level
            self.changes.append(level)

    @property
    def rises(self) -> int:
        """How often the line went from low to high."""
        return sum(self.changes)


class FakeTimer:
    """A one-shot timer of a FakeClock."""

    def __init__(self, expired: Callable[[], None]) -> None:
        self.deadline_ns: int | None = None
        self.expired = expired

    def arm(self, deadline_ns: int) -> None:
        """Expire once when the clock is wound to `deadline_ns` or past it."""
        self.deadline_ns = deadline_ns

    def disarm(self) -> None:
        """Forget the deadline."""
        self.deadline_ns = None


class FakeClock:
    """Guest time that moves only when the test winds it.

    Args:
        now_ns: guest monotonic time to begin with.
        wall_epoch_ns: wall-clock time (since 1970-01-01 UTC) at guest time 0.
    """

    def __init__(self, now_ns: int = 0, wall_epoch_ns: int = 0) -> None:
        self.time_ns = now_ns
        self.wall_epoch_ns = wall_epoch_ns
        self.timers: list[FakeTimer] = []

    def now_ns(self) -> int:
        """Guest monotonic time."""
        return self.time_ns

    def wall_ns(self) -> int:
        """Guest wall-clock time."""
        return self.wall_epoch_ns + self.time_ns

    def timer(self, expired: Callable[[], None]) -> FakeTimer:
        """A disarmed timer."""
        timer = FakeTimer(expired)
        self.timers.append(timer)
        return timer

    def advance(self, delta_ns: int) -> None:
        """Wind the clock forward, stopping at each deadline on the way to let its timer expire."""
        self.advance_to(self.time_ns + delta_ns)

    def advance_to(self, target_ns: int) -> None:
        """Wind the clock forward to `target_ns`; a deadline in the past expires at once, at the present time."""
        while (timer := self._next_due(target_ns)) is not None:
            assert timer.deadline_ns is not None
            self.time_ns = max(self.time_ns, timer.deadline_ns)
            timer.deadline_ns = None
            timer.expired()
        self.time_ns = max(self.time_ns, target_ns)

    def skip(self, delta_ns: int) -> None:
        """Wind the clock forward and let what fell due expire only then, all late, earliest deadline first."""
        self.time_ns += delta_ns
        self.advance_to(self.time_ns)

    def _next_due(self, target_ns: int) -> FakeTimer | None:
        due = [timer for timer in self.timers if timer.deadline_ns is not None and timer.deadline_ns <= target_ns]
        return min(due, key=lambda timer: timer.deadline_ns or 0, default=None)


class FakeTsc:
    """A time-stamp counter that counts a FakeClock's time.

    Args:
        clock: whose time; the counter is 0 at its time 0.
        per_ns: counts in a nanosecond.
    """

    def __init__(self, clock: FakeClock, per_ns: int = 3) -> None:
        self._clock = clock
        self._per_ns = per_ns

    def now(self) -> int:
        """What RDTSC gives."""
        return self._clock.time_ns * self._per_ns

    def ns_at(self, tsc: int, /) -> int:
        """The clock's time when the counter has reached `tsc`."""
        return -(-tsc // self._per_ns)
