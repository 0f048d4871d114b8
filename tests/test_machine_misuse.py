"""A machine used in ways that cannot work says so, and the host process lives."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from emu import machine as machine_module
from emu import micro
from emu import run_loop as run_loop_module
from emu.errors import EmuError
from emu.machine import Machine
from emu.memory import MIB
from tests.support.descriptors import open_files
from tests.test_machine import END_S, SPIN, out

SERIAL = 0x3F8


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine whose guest sends one byte, then spins."""
    with Machine(64 * MIB) as made:
        made.start(micro.install(made.memory, out(SERIAL, ord("x")) + SPIN))
        yield made


def test_driving_from_below_a_run_is_refused(machine: Machine) -> None:
    machine.board.com1.read(0)          # nothing bypassed: the byte comes while the CPU runs
    machine.board.bypass.arm(None)
    machine.serial_sinks.append(lambda _data: machine.drive(lambda: False, 1) and None)
    with pytest.raises(EmuError, match="running already"):
        machine.drive(lambda: False, END_S)
    machine.serial_sinks.pop()
    assert machine.drive(lambda: True)
    assert not machine.drive(lambda: False, 0.02)


def test_closing_from_below_a_run_is_refused(machine: Machine) -> None:
    machine.board.bypass.arm(None)
    machine.serial_sinks.append(lambda _data: machine.close())
    with pytest.raises(EmuError, match="cannot be closed now"):
        machine.drive(lambda: False, END_S)
    machine.serial_sinks.pop()
    assert not machine.drive(lambda: False, 0.02)


def test_second_thread_is_refused_and_the_first_goes_on(machine: Machine) -> None:
    driving, refused, done = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        machine.drive(lambda: driving.set() or refused.is_set(), END_S)
        done.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert driving.wait(END_S)
    try:
        with pytest.raises(EmuError, match="running already"):
            machine.drive(lambda: False, 0.001)
    finally:
        refused.set()
        thread.join(END_S)
    assert done.is_set()


def test_closed_machine_refuses_everything(machine: Machine) -> None:
    machine.close()
    for use in (
        lambda: machine.drive(lambda: False, 1),
        lambda: machine.serial_send(b"x"),
        lambda: machine.board.cpu.run(0),
    ):
        with pytest.raises(EmuError, match="closed"):
            use()
    machine.request_stop()
    machine.close()


def test_machine_that_cannot_be_made_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise EmuError("no board today")

    monkeypatch.setattr(machine_module, "Board", broken)
    before = open_files()
    for _ in range(5):
        with pytest.raises(EmuError, match="no board"):
            Machine(64 * MIB)
    assert open_files() == before


def test_endless_timeout_is_a_timeout(machine: Machine) -> None:
    assert machine.drive(lambda: True, float("inf"))


def test_timer_armed_inside_a_slice_does_not_wait_for_its_end(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_loop_module, "SLICE_NS", 20_000_000_000)
    late: list[int] = []
    timer = machine.clock.timer(lambda: late.append(machine.clock.now_ns() - due))
    due = 0

    def arm(_data: bytes) -> None:
        nonlocal due
        due = machine.clock.now_ns() + 2_000_000
        timer.arm(due)

    machine.board.bypass.arm(None)
    machine.serial_sinks.append(arm)
    assert machine.drive(lambda: bool(late), END_S)
    assert late[0] < 10_000_000_000


def test_forked_child_can_drive_on(machine: Machine) -> None:
    machine.drive(lambda: False, 0.01)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = int(machine.drive(lambda: False, 0.05))
        finally:
            os._exit(status)
    deadline = time.monotonic() + END_S
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        machine.drive(lambda: False, 0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended[0] == child and os.waitstatus_to_exitcode(ended[1]) == 0
