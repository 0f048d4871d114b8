"""Children that are forked before they are asked for."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import emu
from emu.errors import EmuError
from emu.memory import MIB
from emu.process import ahead as ahead_module
from emu.process.ahead import GO, TRIES, WANTED_NS, Ahead
from emu.process.client import MachineProcess
from emu.process.forking import Child
from tests.process.small_guest import WAITING, small_kernel
from tests.process.test_forking import TIMEOUT_S, count, eventually, is_there


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[MachineProcess]:
    """Its guest does nothing but wait."""
    with emu.spawn(kernel=small_kernel(tmp_path, WAITING), memory=64 * MIB) as machine:
        assert machine.console_expect(">", TIMEOUT_S)
        yield machine


def children(machine: MachineProcess) -> set[int]:
    text = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text()
    return {int(pid) for pid in text.split() if is_there(pid)}


def the_one_ahead(machine: MachineProcess, *others: MachineProcess) -> int:
    """The only child that nobody has. It is there for a second: where a busy host let that pass, it is forked again."""
    known = {other.pid for other in others}
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        until = time.monotonic() + 2 * WANTED_NS / 1e9
        while time.monotonic() < until:
            if len(found := children(machine) - known) == 1:
                return found.pop()
            time.sleep(0.01)
        machine.fork().close()
    raise AssertionError(f"none of {children(machine)} is ahead")


# -- of a machine ------------------------------------------------------------------------------------------------------


def test_a_machine_that_was_never_forked_has_none(quiet: MachineProcess) -> None:
    assert count(quiet) == "1"
    assert children(quiet) == set()


def test_after_a_fork_the_next_child_is_there_and_is_the_one(quiet: MachineProcess) -> None:
    assert count(quiet) == "1"
    with quiet.fork() as first:
        pid = the_one_ahead(quiet, first)
        with quiet.fork() as second:
            assert second.pid == pid
            assert the_one_ahead(quiet, first, second) != pid
            assert [count(first), count(second), count(second), count(quiet)] == ["2", "2", "3", "2"]


def test_one_of_several_was_there(quiet: MachineProcess) -> None:
    quiet.fork().close()
    pid = the_one_ahead(quiet)
    clones = quiet.fork(3)
    assert [clone.pid == pid for clone in clones] == [True, False, False]
    assert [count(clone) for clone in clones] == ["1"] * 3
    for clone in clones:
        clone.close()


def test_a_guest_that_has_run_is_forked_anew(quiet: MachineProcess) -> None:
    with quiet.fork() as first:
        pid = the_one_ahead(quiet, first)
        assert count(quiet) == "1"
        with quiet.fork() as second:
            assert second.pid != pid
            assert count(second) == "2"
            assert eventually(lambda: not is_there(str(pid)))


def test_a_child_expects_nothing(quiet: MachineProcess) -> None:
    quiet.fork().close()
    the_one_ahead(quiet)
    with quiet.fork() as clone:                         # the one ahead
        assert count(quiet) == "1"
        with quiet.fork() as other:                     # a fresh one
            assert [count(clone), count(other)] == ["1", "2"]
            assert children(clone) == children(other) == set()


def test_it_goes_when_nobody_asks_any_more(quiet: MachineProcess) -> None:
    quiet.fork().close()
    the_one_ahead(quiet)
    assert eventually(lambda: not children(quiet))


def test_it_ends_with_its_parent_however_that_ends(quiet: MachineProcess) -> None:
    quiet.fork().close()
    pid = the_one_ahead(quiet)
    os.kill(quiet.pid, signal.SIGKILL)
    assert eventually(lambda: not is_there(str(pid)))


def test_one_that_was_killed_is_not_given_to_anybody(quiet: MachineProcess) -> None:
    quiet.fork().close()
    os.kill(pid := the_one_ahead(quiet), signal.SIGKILL)
    assert eventually(lambda: not is_there(str(pid)))
    with quiet.fork() as clone:
        assert clone.pid != pid
        assert count(clone) == "1"


def test_a_guest_that_always_runs_is_forked_when_it_is_asked(tmp_path: Path) -> None:
    with emu.spawn(kernel=small_kernel(tmp_path), memory=64 * MIB) as busy:
        assert busy.console_expect(">", TIMEOUT_S)
        with busy.fork() as clone:
            assert count(clone) == count(busy) == "1"
            assert children(busy) == {clone.pid}


# -- by itself ---------------------------------------------------------------------------------------------------------


class Forks:
    """Stands for the fork: children are the ends of sockets."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.failure: EmuError | None = None

    def __call__(self, _fork: Any) -> Child:
        if self.failure:
            raise self.failure
        ours, theirs = socket.socketpair()
        self.sockets.append(theirs)
        return Child(len(self.sockets), ours.detach(), os.open(os.devnull, os.O_RDONLY))

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Forks]:
    forks = Forks()
    monkeypatch.setattr(ahead_module, "fork_process", forks)
    yield forks
    forks.close()


@pytest.fixture
def machine() -> SimpleNamespace:
    return SimpleNamespace(run_ns=7, is_interrupted=False, prepare_fork=lambda: None)


@pytest.fixture
def ahead(machine: Any, forks: Forks) -> Iterator[Ahead]:
    ahead = Ahead(machine)
    yield ahead
    ahead.drop()


def closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(10) == b""
    except BlockingIOError:
        return False


def test_nothing_is_forked_unless_a_fork_was_asked_for(ahead: Ahead, forks: Forks) -> None:
    assert ahead.look() is None and ahead.take() is None and not forks.sockets


def test_there_is_one_at_most(ahead: Ahead, forks: Forks) -> None:
    ahead.expect()
    for _ in range(3):
        assert ahead.look() is None
    assert len(forks.sockets) == 1
    child = ahead.take()
    assert child is not None and child.pid == 1 and forks.sockets[0].recv(10) == GO
    assert ahead.take() is None
    os.close(child.sock)
    os.close(child.pidfd)


def test_a_guest_that_is_never_quiet_is_forked_so_many_times(ahead: Ahead, forks: Forks, machine: Any) -> None:
    ahead.expect()
    for _ in range(2 * TRIES):
        ahead.look()
        machine.run_ns += 1
    assert len(forks.sockets) == TRIES and all(map(closed, forks.sockets))


def test_a_guest_that_ran_since_the_last_look_is_another_one(ahead: Ahead, forks: Forks, machine: Any) -> None:
    ahead.expect()
    ahead.look()
    machine.run_ns += 1
    assert ahead.take() is None and closed(forks.sockets[0])


def test_a_guest_with_an_interrupt_is_another_one(ahead: Ahead, forks: Forks, machine: Any) -> None:
    ahead.expect()
    ahead.look()
    machine.is_interrupted = True
    assert ahead.take() is None and closed(forks.sockets[0])


def test_after_a_while_nothing_is_expected(
    ahead: Ahead, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0
    monkeypatch.setattr(ahead_module, "monotonic_ns", lambda: now)
    ahead.expect()
    ahead.look()
    now = ahead_module.WANTED_NS + 1
    ahead.look()
    assert closed(forks.sockets[0]) and len(forks.sockets) == 1
    now = 0
    assert ahead.look() is None and len(forks.sockets) == 1


def test_a_host_without_room_is_not_asked_again(ahead: Ahead, forks: Forks) -> None:
    forks.failure = EmuError("cannot fork: Resource temporarily unavailable")
    ahead.expect()
    assert ahead.look() is None
    forks.failure = None
    assert ahead.look() is None and not forks.sockets
    ahead.expect()
    ahead.look()
    assert len(forks.sockets) == 1


def test_a_child_that_was_killed_is_dropped(ahead: Ahead, forks: Forks) -> None:
    ahead.expect()
    ahead.look()
    forks.sockets[0].close()
    assert ahead.take() is None
