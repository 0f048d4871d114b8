"""A buffer in one value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypercalls import GuestFault
from hypercalls.buffer import IS_BUFFER, buffer_at, buffer_value

ADDRESSES, SIZES = st.integers(0, (1 << 48) - 1), st.integers(1, 32_767)


@given(ADDRESSES, SIZES)
def test_what_is_packed_comes_out_again(address: int, size: int) -> None:
    assert buffer_at(buffer_value(address, size)) == (address, size)


def test_its_bits_are_those_of_the_abi() -> None:
    assert buffer_value(0x1234_5678_9ABC, 0x7FFF) == 0xFFFF_1234_5678_9ABC
    assert buffer_value(0, 1) == 0x8001_0000_0000_0000


@given(st.integers(0, IS_BUFFER - 1))
def test_a_value_without_the_bit_is_none(value: int) -> None:
    with pytest.raises(GuestFault):
        buffer_at(value)


@given(ADDRESSES)
def test_an_empty_buffer_is_none(address: int) -> None:
    with pytest.raises(GuestFault):
        buffer_at(IS_BUFFER | address)


@pytest.mark.parametrize(("address", "size"), [(0, 0), (0, 32_768), (1 << 48, 1), (-1, 1), (0, -1)])
def test_what_does_not_fit_is_refused(address: int, size: int) -> None:
    with pytest.raises(ValueError, match="do not fit into one value"):
        buffer_value(address, size)
