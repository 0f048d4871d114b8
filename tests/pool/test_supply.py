"""Who waits longest gets what comes first, thread or task."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import EmuError
from emu.pool.supply import Supply
from tests.pool.waiting import until


def test_things_come_out_in_the_order_they_were_put_in() -> None:
    supply = Supply([1, 2])
    supply.put(3)
    assert [supply.take() for _ in range(3)] == [1, 2, 3]
    assert supply.take_now() is None


def test_nobody_overtakes() -> None:
    supply: Supply[int] = Supply()
    with ThreadPoolExecutor(3) as threads:
        takers = []
        for number in range(3):
            takers.append(threads.submit(supply.take))
            until(lambda number=number: supply.waiting == number + 1)
        for number in range(3):
            supply.put(number)
        assert [taker.result() for taker in takers] == [0, 1, 2]


def test_the_end_reaches_who_waits_and_who_comes() -> None:
    supply = Supply([1])
    supply.take()
    with ThreadPoolExecutor(1) as threads:
        taker = threads.submit(supply.take)
        until(lambda: supply.waiting)
        assert supply.end(EmuError("closed")) == []
        with pytest.raises(EmuError, match="closed"):
            taker.result()
    for take in supply.take, supply.take_now:
        with pytest.raises(EmuError, match="closed"):
            take()


def test_the_end_gives_back_what_was_left() -> None:
    assert Supply([1, 2]).end(EmuError("closed")) == [1, 2]


def test_picked_things_are_out() -> None:
    supply = Supply(range(6))
    assert supply.pick(lambda thing: thing % 2 == 0) == [0, 2, 4]
    assert [supply.take_now() for _ in range(4)] == [1, 3, 5, None]


def test_a_task_waits_without_stopping_the_loop() -> None:
    async def take() -> tuple[int, int]:
        supply: Supply[int] = Supply()
        first, second = asyncio.create_task(supply.take_async()), asyncio.create_task(supply.take_async())
        await asyncio.sleep(0)
        threading.Thread(target=lambda: [supply.put(1), supply.put(2)]).start()
        return await first, await second

    assert asyncio.run(take()) == (1, 2)


def test_what_a_cancelled_task_was_given_is_for_the_next_one() -> None:
    async def cancel(given_first: bool) -> None:
        supply: Supply[int] = Supply()
        task = asyncio.create_task(supply.take_async())
        await asyncio.sleep(0)
        if given_first:
            supply.put(1)               # the task is not told before the loop runs
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if not given_first:
            assert supply.waiting == 0
            supply.put(1)
        assert supply.take_now() == 1

    for given_first in True, False:
        asyncio.run(cancel(given_first))


@given(st.integers(1, 4), st.integers(0, 40))
def test_each_thing_is_given_to_one_of_many_takers(takers: int, things: int) -> None:
    supply: Supply[int] = Supply()
    taken: list[int] = []

    def take() -> None:
        try:
            while True:
                taken.append(supply.take())
        except EmuError:
            pass

    threads = [threading.Thread(target=take) for _ in range(takers)]
    for thread in threads:
        thread.start()
    for thing in range(things):
        supply.put(thing)
    until(lambda: len(taken) == things)
    supply.end(EmuError("closed"))
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(things))
