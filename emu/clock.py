"""Guest time: the host's monotonic clock from the moment the machine was made, and timers on it."""

from __future__ import annotations

import time
from collections.abc import Callable

NEVER = 1 << 63


class Alarm:
    """A one-shot timer of a `GuestClock` (devices.Timer)."""

    def __init__(self, clock: GuestClock, expired: Callable[[], None]) -> None:
        self._clock = clock
        self.expired = expired
        self.deadline_ns: int | None = None

    def arm(self, deadline_ns: int) -> None:
        """Expire once at guest time `deadline_ns`."""
        self.deadline_ns = deadline_ns
        self._clock.changed()

    def disarm(self) -> None:
        """Do not expire."""
        if self.deadline_ns is not None:
            self.deadline_ns = None
            self._clock.changed()


class GuestClock:
    """The clock that every device is handed (devices.Clock).

    Args:
        now_ns: guest time to start with.

    Attributes:
        next_ns: guest time of the earliest timer, `NEVER` if none is armed.
        sooner: called when `next_ns` has become earlier.
        expire: expires what is due, given the time; only called when something is.
        host_origin_ns: host monotonic time at guest time 0.
    """

    def __init__(self, now_ns: int = 0) -> None:
        self.host_origin_ns = time.monotonic_ns() - now_ns
        self._alarms: list[Alarm] = []
        self.next_ns = NEVER
        self.sooner: Callable[[], None] = lambda: None
        self.expire: Callable[[int], None] = self._expire

    def now_ns(self) -> int:
        """Guest monotonic time in nanoseconds."""
        return time.monotonic_ns() - self.host_origin_ns

    def set_now(self, now_ns: int) -> None:
        """Go on from another time: the guest has stood still since then."""
        self.host_origin_ns = time.monotonic_ns() - now_ns

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        return time.time_ns()

    def timer(self, expired: Callable[[], None]) -> Alarm:
        """A disarmed timer; a machine has a handful, made when its devices are."""
        alarm = Alarm(self, expired)
        self._alarms.append(alarm)
        return alarm

    def changed(self) -> None:
        """A deadline has changed."""
        before = self.next_ns
        self.next_ns = min((a.deadline_ns for a in self._alarms if a.deadline_ns is not None), default=NEVER)
        if self.next_ns < before:
            self.sooner()

    def run_due(self) -> None:
        """Expire every timer whose deadline has come, the earliest first.

        What a timer arms anew waits for the next call: a guest that asks for ticks faster than they can be given
        must not keep the host here.
        """
        now = self.now_ns()
        if self.next_ns <= now:
            self.expire(now)

    def _expire(self, now: int) -> None:
        deadlines = [(alarm.deadline_ns, alarm) for alarm in self._alarms if alarm.deadline_ns is not None]
        for deadline_ns, alarm in sorted(deadlines, key=lambda pair: pair[0]):
            if deadline_ns <= now and alarm.deadline_ns == deadline_ns:     # no other timer's expiry has changed it
                alarm.disarm()
                alarm.expired()
