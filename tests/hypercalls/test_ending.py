"""PV_EXIT, PV_MARK and PV_IDLE: what they ask of the machine, and what the machine keeps."""

from __future__ import annotations

from collections import deque

import pytest

from emu.services import MARKS_KEPT, MachineServices, Mark
from hypercalls.ending import pv_exit, pv_mark
from hypercalls.fake import FakeCalls, FakeClock
from hypercalls.idle import pv_idle


@pytest.mark.parametrize(("value", "status"), [(0, 0), (7, 7), (255, 255), (256, 0), (2**64 - 1, 255)])
def test_the_low_byte_is_the_exit_status(value: int, status: int) -> None:
    fakes = FakeCalls(0)
    assert fakes.wrmsr(pv_exit, value) is None
    assert fakes.machine.exit_status == status


def test_marks_have_the_whole_value() -> None:
    fakes = FakeCalls(0)
    for value in (0, 2**64 - 1, 5, 5):
        assert fakes.wrmsr(pv_mark, value) is None
    assert fakes.machine.marks == [0, 2**64 - 1, 5, 5]


def test_each_idle_asks_for_one_sleep() -> None:
    fakes = FakeCalls(0)
    for value in (0, 2**64 - 1):
        assert fakes.wrmsr(pv_idle, value) is None
    assert fakes.machine.idles == 2


def test_a_machine_keeps_the_last_marks_with_their_times() -> None:
    clock = FakeClock()
    marks: deque[Mark] = deque(maxlen=MARKS_KEPT)
    services = MachineServices(clock, lambda data: None, lambda: None, lambda status: None, None, marks)
    for value in range(MARKS_KEPT + 2):
        clock.ns = 10 * value
        services.mark(value)
    assert len(marks) == MARKS_KEPT
    assert (marks[0], marks[-1]) == (Mark(20, 2), Mark(10 * (MARKS_KEPT + 1), MARKS_KEPT + 1))
