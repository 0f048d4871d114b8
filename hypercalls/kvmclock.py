"""kvmclock: the guest reads time from a page of its own memory, with neither an exit nor a system call.

The guest writes the page's address to an MSR once; the page holds a point in time (a TSC value and the nanoseconds
that belong to it) and the rate between the two. Linux' vDSO does the rest in user space
(Linux, Documentation/virt/kvm/x86/msr.rst; arch/x86/include/asm/pvclock-abi.h).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from devices import Clock
from devices.frozen import frozen
from hypercalls.call import GuestFault

ENABLE = 1 << 0                         # of the system time MSR
TSC_STABLE = 1 << 0                     # of the page's flags: all CPUs agree, the vDSO may use it
GUEST_STOPPED = 1 << 1                  # the guest did not run for a while; it clears this when it has seen it
FLAGS_OFFSET = 29                       # of the flags in the page

SYSTEM_TIME = struct.Struct("<IIQQIbBxx")   # version, pad, tsc, system time, multiplier, shift, flags
WALL_CLOCK = struct.Struct("<III")          # version, seconds, nanoseconds

SECOND_NS = 1_000_000_000
SHORTEST_CALIBRATION_NS = 10_000_000
REFRESH_NS = (SECOND_NS, 4 * SECOND_NS, 16 * SECOND_NS, 60 * SECOND_NS)
FIRST_LOOK_NS = 20_000_000              # after a restore: whether this host's TSC is as quick as the last one's
OTHER_TSC = 0.01                        # more than this apart are two hosts
LARGEST_SLEW = 0.0005                   # how much faster or slower than real time a guest may be led back to it


class Memory(Protocol):
    """Guest memory, as much of it as the clock needs."""

    def write(self, address: int, data: bytes) -> None: ...

    def read(self, address: int, size: int) -> bytes: ...


def multiplier_and_shift(hz: int) -> tuple[int, int]:
    """How to turn TSC ticks into nanoseconds: ticks << shift (or >> -shift), times multiplier, >> 32.

    Args:
        hz: TSC frequency.

    Returns:
        A 32-bit multiplier of full precision, and the shift.
    """
    shift = 0
    while hz > 2 * SECOND_NS:
        hz >>= 1
        shift -= 1
    while hz <= SECOND_NS:
        hz <<= 1
        shift += 1
    return (SECOND_NS << 32) // hz, shift


def scale(ticks: int, multiplier: int, shift: int) -> int:
    """Nanoseconds of a number of ticks, as the guest computes them."""
    ticks = ticks << shift if shift >= 0 else ticks >> -shift
    return ticks * multiplier >> 32


@frozen
class KvmClockState:
    """What a snapshot keeps of the clock.

    Attributes:
        page: guest-physical address, None while it is off.
        version: of what the page holds.
        tsc, ns, multiplier, shift: the point in time and the rate that it holds.
        hz: the TSC's frequency; the guest's TSC goes on where it stood.
        stop_untold: the guest may not yet have seen that it did not run.

    Raises:
        ValueError: a page cannot show this.
    """

    page: int | None
    version: int
    tsc: int
    ns: int
    multiplier: int
    shift: int
    hz: int
    stop_untold: bool

    def __post_init__(self) -> None:
        try:
            SYSTEM_TIME.pack(self.version, 0, self.tsc, self.ns, self.multiplier, self.shift, 0)
        except struct.error:
            raise ValueError("a time that kvmclock cannot show") from None
        if not 0 < self.hz < 1 << 64:
            raise ValueError(f"a TSC of {self.hz} Hz")


class KvmClock:
    """The two clocks of one CPU.

    Args:
        memory: where the guest keeps the page.
        clock: guest time.
        sample: the guest's TSC and guest time in nanoseconds, taken at one moment.
        wait: lets a number of nanoseconds pass; used only when the guest asks within 10 ms of the machine's start.
        state: what to go on with; None: off.

    Raises:
        OutsideMemory: the state's page is not in RAM.
    """

    def __init__(
        self,
        memory: Memory,
        clock: Clock,
        sample: Callable[[], tuple[int, int]],
        wait: Callable[[int], None],
        state: KvmClockState | None = None,
    ) -> None:
        self._memory = memory
        self._clock = clock
        self._sample = sample
        self._wait = wait
        self._start = sample()
        self._page: int | None = None
        self._version = 0
        self._point = (*self._start, *multiplier_and_shift(SECOND_NS))    # tsc, ns, multiplier, shift
        self._hz = 0                        # not measured yet
        self._refreshes = 0
        self._stop_untold = False
        self._timer = clock.timer(self._refresh)
        self._restored = state is not None
        if state is not None:
            self._page, self._version, self._stop_untold = state.page, state.version, state.stop_untold
            self._point = state.tsc, state.ns, state.multiplier, state.shift
            self._hz = state.hz
            if self._page is not None:
                memory.read(self._page, SYSTEM_TIME.size)       # it is there
                self._timer.arm(clock.now_ns() + FIRST_LOOK_NS)

    def save(self) -> KvmClockState:
        """The state to go on with."""
        return KvmClockState(self._page, self._version, *self._point, self.hz, self._stop_untold)

    @property
    def hz(self) -> int:
        """The TSC's frequency as measured last."""
        return self._hz or self.frequency_hz()

    def frequency_hz(self) -> int:
        """The TSC's frequency, measured since the machine was made."""
        tsc, now = self._sample()
        if (short := self._start[1] + SHORTEST_CALIBRATION_NS - now) > 0:
            self._wait(short)
            tsc, now = self._sample()
        if tsc <= self._start[0]:                   # the host's own counter was set back: measure afresh
            self._start = tsc, now
            return self._hz or SECOND_NS
        self._hz = max((tsc - self._start[0]) * SECOND_NS // (now - self._start[1]), 1)
        return self._hz

    def write_system_time(self, value: int) -> None:
        """MSR 0x4b564d01: bits 63-1 are the page's guest-physical address, bit 0 turns it on.

        Raises:
            GuestFault: the page is not in RAM.
        """
        if not value & ENABLE:
            self._page = None
            self._timer.disarm()
            return
        self._page, self._stop_untold = value & ~ENABLE, False
        hz = self.frequency_hz()
        self._publish((*self._sample(), *multiplier_and_shift(hz)))
        self._refreshes = 0
        self._arm()

    def write_wall_clock(self, value: int) -> None:
        """MSR 0x4b564d00: the guest-physical address at which to store the wall-clock time of guest time 0.

        Raises:
            GuestFault: the address is not in RAM.
        """
        seconds, nanoseconds = divmod(self._clock.wall_ns() - self._clock.now_ns(), SECOND_NS)
        self._store(value, WALL_CLOCK.pack(2, seconds & 0xFFFF_FFFF, nanoseconds))

    def guest_was_stopped(self) -> None:
        """Tell the guest that it did not run for a while: its watchdogs are not to take that for a lockup."""
        if self._page is not None:
            self._publish(self._point, GUEST_STOPPED)

    def _arm(self) -> None:
        pause = REFRESH_NS[min(self._refreshes, len(REFRESH_NS) - 1)]
        self._timer.arm(self._clock.now_ns() + pause)

    def _refresh(self) -> None:
        """Publish a better rate, without a step: the guest is led to the true time over the next interval."""
        tsc, now = self._sample()
        old_tsc, old_ns, multiplier, shift = self._point
        shown = old_ns + scale(tsc - old_tsc, multiplier, shift)
        before = self._hz
        if self._restored and abs(self.frequency_hz() - before) > before * OTHER_TSC:
            # Another host's TSC: what the page showed since the restore was wrong, and is not led back slowly
            shown = now
        self._restored = False
        self._refreshes += 1
        pause = REFRESH_NS[min(self._refreshes, len(REFRESH_NS) - 1)]
        slew = max(-LARGEST_SLEW, min(LARGEST_SLEW, (now - shown) / pause))
        hz = round(self.frequency_hz() / (1 + slew))
        self._publish((tsc, shown, *multiplier_and_shift(hz)))
        self._arm()

    def _publish(self, point: tuple[int, int, int, int], flags: int = 0) -> None:
        assert self._page is not None
        if self._stop_untold:
            flags |= self._memory.read(self._page + FLAGS_OFFSET, 1)[0] & GUEST_STOPPED
        self._stop_untold = bool(flags & GUEST_STOPPED)
        self._point = point
        self._version = self._version + 2 & 0xFFFF_FFFF      # even: the page is whole
        tsc, now, multiplier, shift = point
        page = SYSTEM_TIME.pack(self._version, 0, tsc, now, multiplier, shift, TSC_STABLE | flags)
        try:
            self._store(self._page, page)
        except GuestFault:
            self._page = None
            self._timer.disarm()
            raise

    def _store(self, address: int, data: bytes) -> None:
        try:
            self._memory.write(address, data)
        except ValueError:
            raise GuestFault from None
