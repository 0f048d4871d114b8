"""PV_CONSOLE."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import OutsideMemory
from hypercalls import GuestFault
from hypercalls.buffer import IS_BUFFER, buffer_value
from hypercalls.console import pv_console
from hypercalls.fake import FakeCalls

RAM = 64 << 10


@given(st.binary(max_size=100))
def test_bytes_are_shown_one_by_one(text: bytes) -> None:
    fakes = FakeCalls(RAM)
    for byte in text:
        assert fakes.wrmsr(pv_console, byte) is None
    assert fakes.machine.console == text


@pytest.mark.parametrize("size", [1, 4096, 32_767])
@pytest.mark.parametrize("place", ["start", "end"])
def test_a_buffer_is_shown_whole(size: int, place: str) -> None:
    fakes = FakeCalls(RAM)
    address = 0 if place == "start" else RAM - size
    text = bytes(i % 251 for i in range(size))
    fakes.memory.write(address, text)
    fakes.wrmsr(pv_console, buffer_value(address, size))
    assert fakes.machine.console == text


@pytest.mark.parametrize("value", [0x100, 0x141, 1 << 62, IS_BUFFER - 1])
def test_a_byte_with_other_bits_is_refused(value: int) -> None:
    fakes = FakeCalls(RAM)
    with pytest.raises(GuestFault):
        fakes.wrmsr(pv_console, value)
    assert not fakes.machine.console


@pytest.mark.parametrize(("address", "size"), [(RAM, 1), (RAM - 1, 2), (1 << 47, 100), ((1 << 48) - 1, 32_767)])
def test_a_buffer_outside_of_memory_is_refused(address: int, size: int) -> None:
    fakes = FakeCalls(RAM)
    with pytest.raises(OutsideMemory):
        fakes.wrmsr(pv_console, buffer_value(address, size))
    assert not fakes.machine.console


@given(st.integers(0, 2**64 - 1))
def test_no_value_does_anything_else(value: int) -> None:
    fakes = FakeCalls(RAM)
    try:
        fakes.wrmsr(pv_console, value)
    except (GuestFault, OutsideMemory):
        assert not fakes.machine.console
    else:
        assert 1 <= len(fakes.machine.console) <= 32_767
