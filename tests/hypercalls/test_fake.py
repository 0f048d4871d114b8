"""Calls without a machine do what the guest's instructions would."""

from __future__ import annotations

import pytest

from devices import OutsideMemory
from hypercalls import Call, Endless, GuestFault, Hypercall, hypercall
from hypercalls.fake import FakeCalls
from hypercalls.numbers import FIRST_USER


@hypercall(FIRST_USER, "PV_DOUBLE")
def pv_double(call: Call) -> int | None:
    return 2 * call.value or None


@hypercall(FIRST_USER + 1, "PV_SEVEN", access="r")
def pv_seven(_call: Call) -> int:
    return 7


def test_the_result_of_a_write_can_be_read(fake_calls: FakeCalls) -> None:
    assert fake_calls.wrmsr(pv_double, 21) == 42
    assert fake_calls.rdmsr(pv_double) == fake_calls.rdmsr(pv_double) == 42
    fake_calls.wrmsr(pv_double, 0)
    with pytest.raises(GuestFault):
        fake_calls.rdmsr(pv_double)


def test_nothing_can_be_read_before_a_write() -> None:
    with pytest.raises(GuestFault):
        FakeCalls().rdmsr(pv_double)


def test_what_can_only_be_read_cannot_be_written() -> None:
    fakes = FakeCalls()
    assert fakes.rdmsr(pv_seven) == 7
    with pytest.raises(GuestFault):
        fakes.wrmsr(pv_seven, 7)


def test_memory_is_shared_by_calls_and_ends() -> None:
    fakes = FakeCalls(memory_size=4096)

    @hypercall(FIRST_USER, "PV_COPY")
    def pv_copy(call: Call) -> None:
        call.memory.write(call.value, call.memory.read_virtual(0, 4))

    fakes.memory.write(0, b"abcd")
    fakes.wrmsr(pv_copy, 4092)
    assert fakes.memory.read(4092, 4) == b"abcd"
    with pytest.raises(OutsideMemory):
        fakes.wrmsr(pv_copy, 4093)


def test_a_handler_without_end_ends() -> None:
    def handler(call: Call) -> None:
        while True:
            call.memory.read(0, 8)

    with pytest.raises(Endless):
        FakeCalls().wrmsr(Hypercall(FIRST_USER, "PV_LOOP", "w", handler), 0)


def test_the_machine_remembers_what_was_asked_of_it() -> None:
    @hypercall(FIRST_USER, "PV_ALL")
    def pv_all(call: Call) -> None:
        machine = call.machine
        machine.console_write(b"x")
        machine.mark(call.clock.now_ns())
        machine.idle()
        machine.exit(3)

    fakes = FakeCalls()
    fakes.clock.ns = 5
    fakes.wrmsr(pv_all, 0)
    machine = fakes.machine
    assert (machine.console, machine.marks, machine.idles, machine.exit_status) == (b"x", [5], 1, 3)
