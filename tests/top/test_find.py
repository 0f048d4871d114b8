"""Machines find each other by name, and say what they do; whoever else has such a name does no harm."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import emu
from emu.machine import Machine
from emu.memory import MIB
from emu.presence import NAME
from emu.process.client import MachineProcess
from emu.snapshot.codec import encode
from emu.stats import Kind
from emu.top import find as find_module
from emu.top.find import Found, find
from emu.top.report import LONGEST, Report, Row, answer, report
from tests.process.small_guest import WAITING, small_kernel
from tests.support.descriptors import open_files
from tests.support.remedies import run_alone

TIMEOUT_S = 60.0
HOSTILE = 10_000_000                    # of a process' machines: no number that one of ours has


def of(pid: int) -> list[Found]:
    return [found for found in find() if found.pid == pid]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[MachineProcess]:
    with emu.spawn(kernel=small_kernel(tmp_path, WAITING), memory=64 * MIB) as machine:
        assert machine.console_expect(">", TIMEOUT_S)
        yield machine


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    """A machine of this process, which has been driven."""
    with emu.boot(kernel=small_kernel(tmp_path, WAITING), memory=64 * MIB) as machine:
        machine.console.expect(">", TIMEOUT_S)
        yield machine


@contextmanager
def impostor(data: bytes, number: int = HOSTILE) -> Iterator[None]:
    """A socket that has the name of one of this process' machines, and says something to whoever connects."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + NAME.format(uid=os.geteuid(), pid=os.getpid(), number=number))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.sendall(data)
                except OSError:
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(TIMEOUT_S)


def test_a_machine_that_runs_is_found_and_its_forks_are(running: MachineProcess) -> None:
    (found,) = of(running.pid)
    assert found.report is not None and found.report.memory == 64 * MIB and found.memory is not None
    assert found.report.stats().count(Kind.PORT_OUT) > 0
    assert found.report.driven_ns >= found.report.run_ns > 0
    with running.fork() as fork:
        fork.console_send(b"x")
        fork.console_expect("1", TIMEOUT_S)
        (child,) = of(fork.pid)
        assert child.report is not None and child.command == found.command
    assert of(fork.pid) == []
    assert of(running.pid)[0].report is not None        # its name is its own


def test_what_is_done_with_it_is_the_name_of_a_process(running: MachineProcess) -> None:
    mine = Path("/proc/self/cmdline").read_text().split("\0")
    assert all(os.path.basename(word) in of(running.pid)[0].command for word in mine[1:3])


def test_a_machine_that_nobody_drives_stands(here: Machine) -> None:
    (found,) = of(os.getpid())
    assert found.report is None and found.memory is not None


def test_one_that_was_never_driven_or_is_closed_is_not_there(tmp_path: Path) -> None:
    before = open_files()
    with emu.boot(kernel=small_kernel(tmp_path), memory=64 * MIB) as machine:
        assert of(os.getpid()) == []
        machine.console.expect(">", TIMEOUT_S)
        assert len(of(os.getpid())) == 1
    assert of(os.getpid()) == []
    with pytest.raises(emu.EmuError, match="closed"):
        machine.drive(lambda: True)
    assert open_files() == before


def test_who_connects_and_says_or_hears_nothing_holds_up_nobody(running: MachineProcess) -> None:
    name = "\0" + NAME.format(uid=os.geteuid(), pid=running.pid, number=1)
    peers = []
    for _ in range(20):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(name)
        with suppress(BrokenPipeError):             # it has been answered already
            peer.send(b"?" * 1000)
        peers.append(peer)
    running.console_send(b"x")
    assert running.console_expect("1", TIMEOUT_S)
    assert of(running.pid)[0].report is not None
    for peer in peers:
        peer.close()


def test_who_is_another_user_is_told_nothing(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for uid, is_told in ((0, True), (os.geteuid(), True), (os.geteuid() + 1, False)):
        monkeypatch.setattr("emu.top.report.peer", lambda _sock, uid=uid: (1, uid))
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as peer:
            listener.bind(f"\0pvemu-test/{os.getpid()}")
            listener.listen()
            peer.connect(listener.getsockname())
            answer(listener.fileno(), here)
            assert bool(peer.recv(LONGEST)) == is_told


def test_a_name_of_another_process_is_not_believed(running: MachineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_module, "peer", lambda _sock: (running.pid + 1, os.geteuid()))
    assert of(running.pid)[0].report is None
    monkeypatch.setattr(find_module, "peer", lambda _sock: (running.pid, os.geteuid() + 1))
    assert of(running.pid)[0].report is None


@pytest.mark.parametrize("data", [
    b"", b"null", b"[" * 50_000, b'{"now_ns": "x"}', bytes(LONGEST), b"\xff\xfe", b"1" * 5000, bytes(10 * LONGEST),
])  # fmt: skip
def test_what_is_no_report_is_none(running: MachineProcess, data: bytes) -> None:
    with impostor(data):
        (found,) = of(os.getpid())
        assert found.report is None
        assert of(running.pid)[0].report is not None


def test_who_never_answers_costs_half_a_second(running: MachineProcess, here: Machine) -> None:
    began = time.monotonic()
    assert {found.report is None for found in find() if found.pid in (os.getpid(), running.pid)} == {True, False}
    assert time.monotonic() - began < TIMEOUT_S


def test_the_longest_report_fits(here: Machine) -> None:
    rows = tuple(Row(Kind.BETWEEN, "x" * 60, 1 << 62, 1 << 62) for _ in range(500))
    longest = Report(1 << 62, 1 << 33, "s" * 255, rows, 1 << 62, 1 << 62, 1 << 62, True)
    assert len(json.dumps(encode(longest), separators=(",", ":"))) < LONGEST
    assert report(here).stats().rows()


def test_nothing_is_imported_until_somebody_asks(tmp_path: Path) -> None:
    code = f"""
import sys, emu
with emu.boot(kernel={str(small_kernel(tmp_path))!r}, memory=64 << 20) as machine:
    machine.console.expect(">", 60)
    print([name for name in sys.modules if name in ("socket", "rich", "aiohttp") or name.startswith("emu.top")])
"""
    assert run_alone(code).stdout.strip() == "[]"
