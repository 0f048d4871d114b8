"""Entropy: what is put into the driver's buffers, how much, and what is no request."""

from __future__ import annotations

import errno
import logging

import pytest

from devices.virtio.rng import MOST_BYTES, Rng
from tests.devices.virtio.driver import Driver


class Counter:
    """An entropy source whose bytes tell how many came before."""

    def __init__(self) -> None:
        self.given = 0

    def __call__(self, size: int) -> bytes:
        data = bytes((self.given + i) % 251 for i in range(size))
        self.given += size
        return data


def test_a_buffer_is_filled() -> None:
    driver = Driver(Rng(Counter()))
    assert driver.request(0, writable=[64]) == bytes(range(64))
    assert driver.interrupts == [1]


def test_no_byte_is_given_twice() -> None:
    driver = Driver(Rng(Counter()))
    assert driver.request(0, writable=[10]) + driver.request(0, writable=[3, 7]) == bytes(range(20))


def test_the_default_source_is_random() -> None:
    driver = Driver(Rng())
    assert len({driver.request(0, writable=[16]) for _ in range(8)}) == 8


def test_a_large_buffer_is_filled_in_part() -> None:
    source = Counter()
    driver = Driver(Rng(source))
    assert len(driver.request(0, writable=[1 << 20])) == MOST_BYTES
    assert source.given == MOST_BYTES


def test_a_source_may_give_less_but_never_more() -> None:
    assert Driver(Rng(lambda size: b"abc")).request(0, writable=[64]) == b"abc"
    assert Driver(Rng(lambda size: b"abc" * size)).request(0, writable=[4]) == b"abca"


def test_several_buffers_make_one_interrupt() -> None:
    driver = Driver(Rng(Counter()))
    for _ in range(3):
        driver.rings[0].send([], [8])
    driver.notify(0)
    assert [used.written for used in driver.used(0)] == [8, 8, 8]
    assert driver.interrupts == [1]


def test_a_failing_source_is_logged_once_and_gives_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def source(size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    driver = Driver(Rng(source))
    assert driver.request(0, writable=[64]) == driver.request(0, writable=[64]) == b""
    assert [record.name for record in caplog.records if record.levelno == logging.WARNING] == ["devices.virtio.rng"]


@pytest.mark.parametrize(("readable", "writable"), [([b"x"], []), ([b"x"], [8])])
def test_a_buffer_to_read_stops_the_device(readable: list[bytes], writable: list[int]) -> None:
    source = Counter()
    driver = Driver(Rng(source))
    driver.send(0, readable, writable)
    assert driver.failure is not None
    assert source.given == 0


def test_buffers_that_make_more_buffers_available_come_to_an_end() -> None:
    """The source stands for bytes that are stored over the ring."""

    def source(size: int) -> bytes:
        calls.append(size)
        driver.rings[0].offer(head)
        return bytes(size)

    calls: list[int] = []
    driver = Driver(Rng(source), size=8)
    head = driver.rings[0].send([], [1])
    driver.notify(0)
    assert driver.failure is not None
    assert calls == [1]


def test_a_full_queue_is_emptied_in_one_go() -> None:
    driver = Driver(Rng(Counter()), size=8)
    for _ in range(8):
        driver.rings[0].send([], [1])
    driver.notify(0)
    assert driver.failure is None
    assert len(driver.used(0)) == 8
    assert len(driver.request(0, writable=[5])) == 5


def test_after_a_reset_nothing_is_touched_until_the_driver_is_back() -> None:
    rng = Rng(Counter())
    driver = Driver(rng)
    rng.reset()
    driver.send(0, writable=[8])
    assert driver.used(0) == []


def test_a_restored_device_goes_on_with_the_queue() -> None:
    rng = Rng(Counter())
    before = Driver(rng)
    before.request(0, writable=[8])
    restored = Rng(Counter(), rng.save())
    assert restored.save() == rng.save()
    assert len(Driver(restored, continues=before).request(0, writable=[8])) == 8
