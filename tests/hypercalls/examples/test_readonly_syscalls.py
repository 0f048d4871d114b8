"""The example's handlers, each by itself; tests/integration/test_syscalls.py compares them with a guest's kernel."""

from __future__ import annotations

import pytest

from devices import OutsideMemory
from hypercalls.examples.readonly_syscalls import (
    LARGEST,
    clock_getres,
    getcpu,
    getrandom,
    sched_get_priority_max,
    sched_get_priority_min,
)
from hypercalls.fake import FakeCalls
from hypercalls.syscalls import PASS

JUNK = 0xDEAD_BEEF << 32                # in the upper half of a register that holds an int


@pytest.fixture
def calls() -> FakeCalls:
    """With memory that is all ones."""
    fakes = FakeCalls()
    fakes.memory.write(0, b"\xff" * len(fakes.memory.ram))
    return fakes


@pytest.mark.parametrize(
    ("policy", "lowest", "highest"), [(0, 0, 0), (1, 1, 99), (JUNK | 2, 1, 99), (3, 0, 0), (5, 0, 0)]
)
def test_priorities(calls: FakeCalls, policy: int, lowest: int, highest: int) -> None:
    assert calls.syscall(sched_get_priority_min, policy) == lowest
    assert calls.syscall(sched_get_priority_max, policy) == highest


@pytest.mark.parametrize("policy", [4, 6, 7, 2**32 - 1])
def test_priorities_of_other_policies_are_the_kernel_s(calls: FakeCalls, policy: int) -> None:
    assert calls.syscall(sched_get_priority_min, policy) is PASS
    assert calls.syscall(sched_get_priority_max, policy) is PASS


@pytest.mark.parametrize("clock", [2, 3, JUNK | 2])
def test_cpu_time_is_counted_in_nanoseconds(calls: FakeCalls, clock: int) -> None:
    assert calls.syscall(clock_getres, clock, 0x1000) == 0
    assert calls.memory.read(0x1000, 17) == bytes(8) + b"\x01" + bytes(7) + b"\xff"
    assert calls.syscall(clock_getres, clock, 0) == 0


@pytest.mark.parametrize("clock", [0, 1, 4, 5, 6, 7, 10, 11, 12, 2**32 - 6])
def test_other_clocks_are_the_kernel_s(calls: FakeCalls, clock: int) -> None:
    assert calls.syscall(clock_getres, clock, 0x1000) is PASS
    assert calls.memory.read(0x1000, 16) == b"\xff" * 16


@pytest.mark.parametrize(("cpu", "node"), [(0x1000, 0x2000), (0, 0x2000), (0x1000, 0), (0, 0)])
def test_there_is_one_cpu(calls: FakeCalls, cpu: int, node: int) -> None:
    assert calls.syscall(getcpu, cpu, node, 0x3000) == 0
    for address in (0x1000, 0x2000):
        assert calls.memory.read(address, 5) == (bytes(4) if address in (cpu, node) else b"\xff" * 4) + b"\xff"
    assert calls.memory.read(0, 4) == calls.memory.read(0x3000, 4) == b"\xff" * 4


@pytest.mark.parametrize("size", [0, 1, 256, 100_000])
@pytest.mark.parametrize("flags", [0, 1, JUNK])
def test_random_bytes_fill_the_buffer(calls: FakeCalls, size: int, flags: int) -> None:
    drawn = set()
    for _ in range(2):
        assert calls.syscall(getrandom, 0x1000, size, flags) == size
        assert calls.memory.read(0x1000 + size, 1) == b"\xff"
        drawn.add(calls.memory.read(0x1000, size))
    assert len(drawn) == 2 or size <= 1


@pytest.mark.parametrize(("size", "flags"), [(LARGEST + 1, 0), (2**64 - 1, 0), (16, 2), (16, 4), (16, 8)])
def test_what_is_out_of_the_ordinary_is_the_kernel_s(calls: FakeCalls, size: int, flags: int) -> None:
    assert calls.syscall(getrandom, 0x1000, size, flags) is PASS
    assert calls.memory.read(0x1000, 16) == b"\xff" * 16


def test_memory_that_is_not_there_is_for_the_kernel_to_judge(calls: FakeCalls) -> None:
    end = len(calls.memory.ram)
    for handler, arguments in (getrandom, (end - 8, 16)), (getcpu, (end, 0)), (clock_getres, (2, end - 8)):
        with pytest.raises(OutsideMemory):
            calls.syscall(handler, *arguments)
