"""The debug exit device: what QEMU makes of a value."""

from __future__ import annotations

import pytest

from devices.isa_debug_exit import IsaDebugExit
from emu.bus import PortBus


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (0x10, 33), (0x7F, 255), (0x80, 1), (0xFF, 255)])
def test_status_is_twice_the_value_and_one(value: int, status: int) -> None:
    ends: list[int] = []
    IsaDebugExit(ends.append).write(0, value)
    assert ends == [status]


@pytest.mark.parametrize(("size", "value"), [(1, 0x21), (2, 0x8021), (4, 0xFFFF_FF21)])
@pytest.mark.parametrize("port", [0xF4, 0xF7])
def test_of_a_wide_access_the_low_bits_count(port: int, size: int, value: int) -> None:
    ends: list[int] = []
    bus = PortBus()
    bus.add("debug exit", IsaDebugExit(ends.append))
    bus.write(port, size, value)
    assert ends == [0x43]


def test_only_the_first_write_counts() -> None:
    ends: list[int] = []
    device = IsaDebugExit(ends.append)
    device.write(0, 1)
    device.write(3, 2)
    assert ends == [3]


def test_it_lies_where_it_is_told_and_reads_as_zero() -> None:
    bus = PortBus()
    bus.add("debug exit", IsaDebugExit(lambda status: None, 0x501, 2))
    assert [bus.read(port, 1) for port in (0x500, 0x501, 0x502, 0x503)] == [0xFF, 0, 0, 0xFF]
