"""Handlers of system calls: how they are made, which are refused, and their way to the guest and back; no CPU."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

import pytest

from devices import OutsideMemory
from hypercalls.call import ACCESS_BUDGET, Endless
from hypercalls.dispatch import MOST_LOGGED
from hypercalls.fake import FakeCalls, FakeClock
from hypercalls.loading import LoadError, load_objects
from hypercalls.syscall_dispatch import SyscallDispatcher
from hypercalls.syscalls import (
    NUMBERS,
    PASS,
    Handler,
    Syscall,
    SyscallCall,
    SyscallResult,
    SyscallTable,
    UserMemory,
    syscall,
)


@syscall(228, "double")
def double(call: SyscallCall) -> int:
    return 2 * call.arguments[0]


@syscall(229, "other")
def other(_call: SyscallCall) -> SyscallResult:
    return PASS


class FakeCaller:
    """A CPU in the middle of a system call."""

    syscall_arguments = (1, 2, 3, 4, 5, 6)
    cr3 = 0x8000_0000_0012_3018

    def cr(self, number: int) -> int:
        assert number == 3
        return self.cr3

    def dump(self) -> Mapping[str, int]:
        return {"rip": 0x40_1000, "rax": 228}


class FakeSpace:
    """A page of memory at 0x1000; and what rights were asked for."""

    def __init__(self) -> None:
        self.page = bytearray(4096)
        self.users: set[bool] = set()

    def read(self, address: int, size: int, user: bool) -> bytes:
        self.users.add(user)
        if not 0x1000 <= address <= address + size <= 0x2000:
            raise OutsideMemory
        return bytes(self.page[address - 0x1000 : address - 0x1000 + size])

    def write(self, address: int, data: bytes | bytearray | memoryview, user: bool) -> None:
        self.read(address, len(data), user)
        self.page[address - 0x1000 : address - 0x1000 + len(data)] = data


def answered(handler: Handler) -> int | None:
    """What the guest gets of a handler; None: its kernel does the call."""
    return SyscallDispatcher(FakeSpace(), FakeClock(), FakeCaller()).bind(Syscall(228, "test", handler))()


# -- making them ---------------------------------------------------------------------------------------------------


def test_the_decorator_makes_an_object_that_can_be_called() -> None:
    assert (double.number, double.name) == (228, "double")
    assert FakeCalls().syscall(double, 21) == 42
    assert FakeCalls().syscall(other) is PASS
    with pytest.raises(dataclasses.FrozenInstanceError):
        double.number = 1  # type: ignore[misc]


@pytest.mark.parametrize("number", [-1, NUMBERS, 1 << 32])
def test_numbers_that_are_none_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"mine: system calls are 0 to 511, not {number}"):
        syscall(number, "mine")


def test_a_table_has_one_handler_for_a_number() -> None:
    assert list(SyscallTable([double, other, double])) == [double, other]
    with pytest.raises(ValueError, match="mine: system call 228 belongs to double"):
        SyscallTable([double, other, Syscall(228, "mine", other.handler)])


def test_they_are_found_at_the_top_level_of_a_module() -> None:
    assert load_objects(__name__, Syscall) == [double, other]
    with pytest.raises(LoadError, match="has no syscall at its top level"):
        load_objects("hypercalls.builtin", Syscall)


# -- calling them --------------------------------------------------------------------------------------------------


def test_a_handler_is_told_who_calls_and_what() -> None:
    seen = []
    assert answered(lambda call: seen.append((call.number, call.arguments, call.root, call.clock.now_ns())) or 9) == 9
    assert seen == [(228, (1, 2, 3, 4, 5, 6), 0x8000_0000_0012_3000, 0)]


def test_each_call_has_its_own_arguments_and_memory_budget() -> None:
    caller, seen = FakeCaller(), []

    def handler(call: SyscallCall) -> int:
        seen.append((call.arguments[0], call.root, call.memory.left))
        return call.memory.read(0x1000, 1)[0]

    answer = SyscallDispatcher(FakeSpace(), FakeClock(), caller).bind(Syscall(228, "test", handler))
    answer()
    caller.syscall_arguments, caller.cr3 = (7, 0, 0, 0, 0, 0), 0x5000
    answer()
    assert seen == [(1, 0x8000_0000_0012_3000, ACCESS_BUDGET), (7, 0x5000, ACCESS_BUDGET)]


def test_memory_is_accessed_with_the_rights_of_a_program() -> None:
    space = FakeSpace()
    memory = UserMemory(space)
    memory.write(0x1ffe, b"ab")
    assert memory.read(0x1fff, 1) == b"b"
    assert space.users == {True}


def test_a_handler_that_goes_through_memory_without_end_is_ended() -> None:
    memory = UserMemory(FakeSpace())
    with pytest.raises(Endless):
        while memory.read(0x1000, 8):
            pass
    with pytest.raises(Endless):
        UserMemory(FakeSpace()).read(0x1000, ACCESS_BUDGET + 1)


@pytest.mark.parametrize("result", [0, 1, -22, 2**64 - 1, -(2**63)])
def test_a_result_is_the_guest_s(result: int) -> None:
    assert answered(lambda call: result) == result


def test_pass_is_no_result(caplog: pytest.LogCaptureFixture) -> None:
    assert answered(lambda call: PASS) is None
    assert not caplog.records


def test_memory_that_is_not_there_is_no_result_and_nobody_s_mistake(caplog: pytest.LogCaptureFixture) -> None:
    assert answered(lambda call: call.memory.read(0x5000, 1)[0]) is None
    assert not caplog.records


def test_whatever_else_a_handler_raises_is_no_result_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert answered(lambda call: [][0]) is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.exc_info is not None
    assert "test (system call 228) raised" in record.getMessage() and "rip 0000000000401000" in record.getMessage()


@pytest.mark.parametrize("result", [None, "0", 2**64, -(2**63) - 1])
def test_a_result_that_no_register_holds_is_none(caplog: pytest.LogCaptureFixture, result: object) -> None:
    assert answered(lambda call: result) is None  # type: ignore[arg-type,return-value]
    assert caplog.records[0].levelno == logging.ERROR


def test_a_guest_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    answer = SyscallDispatcher(FakeSpace(), FakeClock(), FakeCaller()).bind(Syscall(228, "test", lambda call: 1 // 0))
    for _ in range(500):
        assert answer() is None
    assert len(caplog.records) == MOST_LOGGED + 1
    assert caplog.messages[-1].endswith("is not logged")
