"""Guest time and its timers."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from emu.clock import NEVER, GuestClock


class HandClock(GuestClock):
    """A guest clock whose time the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.time_ns = 0

    def now_ns(self) -> int:
        return self.time_ns


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def test_timers_expire_in_the_order_of_their_deadlines(clock: HandClock) -> None:
    order: list[str] = []
    for name, deadline in (("c", 30), ("a", 10), ("b", 20), ("late", 31)):
        clock.timer(lambda name=name: order.append(name)).arm(deadline)     # type: ignore[misc]
    clock.time_ns = 30
    clock.run_due()
    assert order == ["a", "b", "c"]
    assert clock.next_ns == 31


def test_a_timer_expires_once(clock: HandClock) -> None:
    count: list[int] = []
    clock.timer(lambda: count.append(1)).arm(5)
    clock.time_ns = 100
    clock.run_due()
    clock.run_due()
    assert len(count) == 1
    assert clock.next_ns == NEVER


def test_nothing_expires_before_its_time(clock: HandClock) -> None:
    alarm = clock.timer(pytest.fail)
    alarm.arm(1000)
    clock.time_ns = 999
    clock.run_due()
    assert alarm.deadline_ns == 1000


@pytest.mark.timeout(10)
@pytest.mark.parametrize("deadline", [0, 50, 100])
def test_a_timer_armed_anew_by_its_expiry_waits_for_the_next_call(clock: HandClock, deadline: int) -> None:
    """A guest that asks for time in the past, for ever, must not keep the host."""
    count: list[int] = []

    def expired() -> None:
        count.append(1)
        alarm.arm(deadline)

    alarm = clock.timer(expired)
    alarm.arm(100)
    clock.time_ns = 100
    for calls in (1, 2, 3):
        clock.run_due()
        assert len(count) == calls


def test_an_expiry_may_disarm_another_timer(clock: HandClock) -> None:
    second = clock.timer(pytest.fail)
    clock.timer(second.disarm).arm(10)
    second.arm(20)
    clock.time_ns = 20
    clock.run_due()
    assert clock.next_ns == NEVER


def test_an_expiry_may_put_another_timer_off(clock: HandClock) -> None:
    second = clock.timer(pytest.fail)
    clock.timer(lambda: second.arm(500)).arm(10)
    second.arm(20)
    clock.time_ns = 20
    clock.run_due()
    assert clock.next_ns == 500


def test_a_timer_keeps_its_last_deadline(clock: HandClock) -> None:
    alarm = clock.timer(lambda: None)
    alarm.arm(10)
    alarm.arm(40)
    assert clock.next_ns == 40
    alarm.disarm()
    alarm.disarm()
    assert clock.next_ns == NEVER


def test_what_stands_in_for_expire_is_called_only_when_something_is_due() -> None:
    clock, expired, times = GuestClock(), [], []
    expire = clock.expire
    clock.expire = lambda now: (times.append(now), expire(now))     # type: ignore[assignment, return-value]
    alarm = clock.timer(lambda: expired.append(True))
    clock.run_due()
    alarm.arm(1 << 60)
    clock.run_due()
    assert (times, expired) == ([], [])
    alarm.arm(1)
    clock.run_due()
    assert len(times) == len(expired) == 1 and times[0] >= 1


@pytest.mark.parametrize("now", [GuestClock.now_ns, lambda clock: clock.wall_ns()])
def test_time_goes_on(now: Callable[[GuestClock], int]) -> None:
    clock = GuestClock()
    first = now(clock)
    while now(clock) == first:
        pass
    assert now(clock) > first


def test_guest_time_starts_at_zero_and_wall_time_is_the_hosts() -> None:
    clock = GuestClock()
    assert 0 <= clock.now_ns() < 1_000_000_000
    assert abs(clock.wall_ns() - time.time_ns()) < 1_000_000_000
