"""The local APIC's timer (Intel SDM volume 3, section 10.5.4, "APIC Timer")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from devices import Clock
from devices.frozen import frozen

__all__ = ["TIMER_HZ", "TIMER_RESET", "LapicTimer", "LapicTimerState", "TscClock"]

ONE_SHOT, PERIODIC, TSC_DEADLINE = range(3)     # LVT timer bits 18-17; 3 is reserved and taken as 2

TIMER_HZ = 1_000_000_000                        # before the divider: a nanosecond a count
# As KVM's min_timer_period_us: each expiry costs the host a wake-up, and no kernel ticks at 5 kHz.
SHORTEST_PERIOD_NS = 200_000
HORIZON_NS = 1 << 62                            # 146 years: later deadlines never come


class TscClock(Protocol):
    """The time-stamp counter as the guest sees it."""

    def now(self) -> int:
        """What RDTSC gives now."""

    def ns_at(self, tsc: int, /) -> int:
        """Guest time (of the device's clock) at which RDTSC gives `tsc`, past or future."""


@frozen
class LapicTimerState:
    """What a snapshot keeps of the timer."""

    mode: int = ONE_SHOT
    divide: int = 0                     # the divide configuration register
    initial_count: int = 0
    deadline_ns: int | None = None      # guest time at which the count is 0; None while it does not run
    tsc_deadline: int = 0


TIMER_RESET = LapicTimerState()


class LapicTimer:
    """Counts down once or again and again, or waits for a value of the TSC.

    Args:
        expired: called when it expires.
        clock: guest time and one-shot timers.
        tsc: the guest's time-stamp counter.
        state: registers to start with.
    """

    def __init__(self, expired: Callable[[], None], clock: Clock, tsc: TscClock, state: LapicTimerState) -> None:
        self._expired = expired
        self._clock = clock
        self._tsc = tsc
        self._mode = state.mode
        self._divide = state.divide
        self._shift = _divider_shift(state.divide)
        self._initial_count = state.initial_count
        self._deadline_ns = state.deadline_ns
        self._tsc_deadline = state.tsc_deadline
        self._alarm = clock.timer(self._fire)
        if self._deadline_ns is not None:
            self._alarm.arm(self._deadline_ns)
        elif self._tsc_deadline:
            self._wait_for_tsc(self._tsc_deadline)

    def save(self) -> LapicTimerState:
        """Its registers and deadline."""
        return LapicTimerState(self._mode, self._divide, self._initial_count, self._deadline_ns, self._tsc_deadline)

    def reset(self) -> None:
        """As after power-on: one-shot, stopped."""
        self._stop()
        self._mode = ONE_SHOT
        self.write_divide(0)

    def set_mode(self, mode: int) -> None:
        """Take LVT timer bits 18-17; entering or leaving TSC-deadline mode disarms the timer."""
        if (mode ^ self._mode) & TSC_DEADLINE:
            self._stop()
        self._mode = mode

    def _stop(self) -> None:
        self._initial_count = self._tsc_deadline = 0
        self._deadline_ns = None
        self._alarm.disarm()

    # -- counting ----------------------------------------------------------------------------------------------

    @property
    def initial_count(self) -> int:
        """The initial count register."""
        return self._initial_count

    @property
    def divide(self) -> int:
        """The divide configuration register."""
        return self._divide

    @property
    def current_count(self) -> int:
        """The current count register."""
        if self._deadline_ns is None:
            return 0
        left_ns = self._deadline_ns - self._clock.now_ns()
        if self._mode == PERIODIC:
            left_ns = (left_ns - 1) % self._period_ns() + 1
        counts = left_ns + (1 << self._shift) - 1 >> self._shift
        return min(max(counts, 0), self._initial_count)

    def write_initial_count(self, count: int) -> None:
        """Start counting from `count`, 32 bits; 0 stops. Ignored in TSC-deadline mode."""
        if self._mode & TSC_DEADLINE:
            return
        if count == 0:
            self._stop()
            return
        self._initial_count = count
        period_ns = self._period_ns() if self._mode == PERIODIC else count << self._shift
        self._count_until(self._clock.now_ns() + period_ns)

    def write_divide(self, value: int) -> None:
        """Set the divide configuration register; a running count goes on at the new rate."""
        count = self.current_count
        self._divide = value
        self._shift = _divider_shift(value)
        if self._deadline_ns is not None:
            self._count_until(self._clock.now_ns() + (count << self._shift))

    def _period_ns(self) -> int:
        return max(self._initial_count << self._shift, SHORTEST_PERIOD_NS)

    def _count_until(self, deadline_ns: int) -> None:
        self._deadline_ns = deadline_ns
        self._alarm.arm(deadline_ns)

    # -- TSC deadline ------------------------------------------------------------------------------------------

    @property
    def tsc_deadline(self) -> int:
        """IA32_TSC_DEADLINE: 0 while it is not armed, and in the other modes."""
        return self._tsc_deadline

    def write_tsc_deadline(self, tsc: int) -> None:
        """Expire when the TSC reaches `tsc`, at once if it has; 0 disarms. Ignored in the other modes."""
        if not self._mode & TSC_DEADLINE:
            return
        if tsc and tsc <= self._tsc.now():
            self._tsc_deadline = 0
            self._alarm.disarm()
            self._expired()
            return
        self._tsc_deadline = tsc
        self._wait_for_tsc(tsc)

    def _wait_for_tsc(self, tsc: int) -> None:
        deadline_ns = self._tsc.ns_at(tsc) if tsc else HORIZON_NS
        if deadline_ns < HORIZON_NS:
            self._alarm.arm(deadline_ns)
        else:
            self._alarm.disarm()

    def _fire(self) -> None:
        self._tsc_deadline = 0
        if self._deadline_ns is not None:
            if self._mode == PERIODIC:
                # Periods missed by a late host are lost; the phase stays.
                period_ns = self._period_ns()
                missed = max(self._clock.now_ns() - self._deadline_ns, 0) // period_ns
                self._count_until(self._deadline_ns + (missed + 1) * period_ns)
            else:
                self._deadline_ns = None
        self._expired()


def _divider_shift(register: int) -> int:
    """Binary logarithm of the divider: bits 3, 1 and 0 are 0 for 2 up to 6 for 128, and 7 for 1."""
    return (register >> 1 & 4 | register & 3) + 1 & 7
