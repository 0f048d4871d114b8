"""PV_WALL_CLOCK and PV_RANDOM."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import OutsideMemory
from hypercalls import GuestFault
from hypercalls.buffer import buffer_value
from hypercalls.fake import FakeCalls
from hypercalls.sources import pv_random, pv_wall_clock

RAM = 64 << 10


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_the_wall_clock_is_the_guest_s(ns: int, epoch_ns: int) -> None:
    fakes = FakeCalls(0)
    fakes.clock.ns, fakes.clock.epoch_ns = ns, epoch_ns
    assert fakes.rdmsr(pv_wall_clock) == ns + epoch_ns


def test_all_of_64_random_bits_change() -> None:
    fakes = FakeCalls(0)
    ones = zeroes = 0
    for _ in range(100):                # a bit that stays is as likely as 100 coins on one side
        value = fakes.rdmsr(pv_random)
        assert value is not None
        ones, zeroes = ones | value, zeroes | ~value
    assert ones == zeroes & 2**64 - 1 == 2**64 - 1


@pytest.mark.parametrize(("address", "size"), [(0, 16), (RAM - 16, 16), (4096, 32_767)])
def test_a_buffer_is_filled_and_nothing_else(address: int, size: int) -> None:
    fakes = FakeCalls(RAM)
    assert fakes.wrmsr(pv_random, buffer_value(address, size)) is None
    ram = fakes.memory.ram
    filled = bytes(ram[address : address + size])
    assert any(filled[: size // 2]) and any(filled[size // 2 :])
    assert not any(ram[:address]) and not any(ram[address + size :])
    fakes.wrmsr(pv_random, buffer_value(address, size))
    assert ram[address : address + size] != filled


@pytest.mark.parametrize("value", [0, 1, 0x1000, 1 << 63, 1 << 62])
def test_what_is_no_buffer_is_refused(value: int) -> None:
    fakes = FakeCalls(RAM)
    with pytest.raises(GuestFault):
        fakes.wrmsr(pv_random, value)


def test_a_buffer_outside_of_memory_is_refused() -> None:
    fakes = FakeCalls(RAM)
    with pytest.raises(OutsideMemory):
        fakes.wrmsr(pv_random, buffer_value(RAM - 8, 9))
    assert not any(fakes.memory.ram)
