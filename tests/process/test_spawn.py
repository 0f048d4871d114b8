"""Machines in fresh processes, with a guest of a few instructions: what goes there, and what comes back."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import emu
from emu.errors import BadImage, BadSnapshot, EmuError, GuestStopped, MachineDied
from emu.memory import MIB
from emu.process import spawn as spawn_module
from emu.process.client import MachineProcess
from hypercalls.builtin import BUILT_IN
from tests.process.small_guest import SPINNING, small_kernel
from tests.support.descriptors import open_files
from tests.support.remedies import run_alone

TIMEOUT_S = 60.0


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineProcess]:
    with emu.spawn(kernel=small_kernel(tmp_path), memory=64 * MIB) as machine:
        yield machine


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def is_there(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def files_of(pid: int) -> dict[int, str]:
    """A process' descriptors."""
    directory = Path(f"/proc/{pid}/fd")
    return {int(path.name): os.readlink(path) for path in directory.iterdir()}


def count(machine: MachineProcess, expected: int) -> None:
    """Type a byte; the guest has had so many, then."""
    machine.console_send(b"x")
    assert machine.console_expect(chr(0x30 + expected), TIMEOUT_S)


# -- what goes there ---------------------------------------------------------------------------------------------------


def test_the_guest_runs_without_being_asked_to(machine: MachineProcess) -> None:
    assert eventually(lambda: machine.console_output() == b">")
    count(machine, 1)
    count(machine, 2)
    assert machine.stats().driven_ns > 0
    machine.console_send(b"\0")
    assert "halted with interrupts off" in str(machine.wait_stopped(TIMEOUT_S))
    with pytest.raises(GuestStopped, match="halted"):
        machine.console_expect("more", TIMEOUT_S)


def test_modules_are_found_where_they_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "with 'quotes' and {braces}"
    place.mkdir()
    handler = "import hypercalls\n\n@hypercalls.hypercall(0x4B564D20, 'PV_OURS')\ndef ours(call):\n    '''Ours.'''\n"
    (place / "ours_of_test_spawn.py").write_text(handler)
    options = {"kernel": small_kernel(tmp_path), "memory": 64 * MIB, "hypercalls": ["ours_of_test_spawn"]}
    with pytest.raises(EmuError, match="ours_of_test_spawn"):
        emu.spawn(**options)
    monkeypatch.setattr(sys, "path", [*sys.path, str(place), Path("/nowhere")])
    with emu.spawn(**options) as machine:
        assert eventually(lambda: machine.console_output() == b">")


class Unloadable:
    """Can be sent, but not made again."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


def recursive() -> list[object]:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize("option", [
    lambda call: None, threading.Lock(), (_ for _ in ()), recursive(), BUILT_IN[0], Unloadable(),
], ids=["function", "lock", "generator", "nested", "handler", "unloadable"])  # fmt: skip
def test_what_cannot_go_to_another_process_is_refused_in_a_line(option: object) -> None:
    before = open_files()
    with pytest.raises(EmuError, match=r"^an option cannot be handed to another process: [^\n]+$"):
        emu.spawn(hypercalls=[option])
    assert open_files() == before


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_what_boot_or_restore_raises_is_raised_here(tmp_path: Path) -> None:
    before = open_files()
    (tmp_path / "none.elf").write_text("no kernel")
    with pytest.raises(BadSnapshot, match=r"^cannot open the snapshot "):
        emu.spawn(tmp_path / "none.snap")
    with pytest.raises(BadImage, match=r"none\.elf"):
        emu.spawn(kernel=tmp_path / "none.elf")
    with pytest.raises(EmuError, match="this machine takes 64 MiB to 8 GiB"):
        emu.spawn(kernel=small_kernel(tmp_path), memory=1)
    with pytest.raises(EmuError, match="unexpected keyword argument 'kernal'"):
        emu.spawn(kernal="x")
    with pytest.raises(EmuError, match=r"^AttributeError: .*'number'"):
        emu.spawn(kernel=small_kernel(tmp_path), memory=64 * MIB, hypercalls=[7])
    assert open_files() == before
    with pytest.raises(ChildProcessError):          # not even a zombie
        os.waitpid(-1, os.WNOHANG)


def test_no_process_is_an_error_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EmuError, match=r"^cannot start a process: No such file or directory$"):
        emu.spawn()
    assert open_files() == before


def test_commands_are_refused_where_there_is_no_shell(machine: MachineProcess) -> None:
    with pytest.raises(EmuError, match="has no shell to run commands in"):
        machine.run("true", timeout=TIMEOUT_S)
    with pytest.raises(EmuError, match="no socket file"):
        machine.vsock_connect(1)


# -- what the process has ----------------------------------------------------------------------------------------------


def test_it_has_nothing_of_this_process_but_its_socket(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMAX, signal.SIGTERM])
    try:
        with emu.spawn(kernel=small_kernel(tmp_path, SPINNING), memory=64 * MIB) as machine:
            status = Path(f"/proc/{machine.pid}/status").read_text()
            assert "SigBlk:\t0000000000000000\n" in status
            assert "Threads:\t1\n" in status
            files = files_of(machine.pid)
            assert (files.pop(0), files.pop(1)) == ("/dev/null", "/dev/null")
            kinds = [name.partition(":")[0] for number, name in files.items() if number != 2]
            assert (kinds.count("pipe"), kinds.count("socket")) == (0, 1)
            # A timer's signal ends each slice of a guest that never halts
            assert eventually(lambda: machine.console_output() == b">")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 1, 3), (3,)])
def test_it_starts_whatever_numbers_its_sockets_get(tmp_path: Path, closed: tuple[int, ...]) -> None:
    done = run_alone(
        "import os, sys, emu\n"
        f"kernel = {str(small_kernel(tmp_path))!r}\n"
        f"for fd in {closed}:\n"
        "    try: os.close(fd)\n"
        "    except OSError: pass\n"
        "with emu.spawn(kernel=kernel, memory=64 << 20) as machine:\n"
        "    sys.stderr.write(machine.console_expect('>', 60))\n"
    )
    assert (done.returncode, done.stderr) == (0, ">")


def test_ctrl_c_and_a_late_interrupt_do_not_end_it(machine: MachineProcess) -> None:
    for _ in range(3):
        os.kill(machine.pid, signal.SIGINT)
    count(machine, 1)


def test_ctrl_c_while_it_is_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_machine: MachineProcess, _words: bytes) -> None:
        raise KeyboardInterrupt

    before = open_files()
    monkeypatch.setattr(MachineProcess, "make", interrupt)
    with pytest.raises(KeyboardInterrupt):
        emu.spawn(kernel=small_kernel(tmp_path), memory=64 * MIB)
    assert open_files() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_it_ends_with_this_process_even_if_a_copy_of_that_has_its_socket(tmp_path: Path) -> None:
    done = run_alone(
        "import os, signal, sys, time, emu\n"
        f"machine = emu.spawn(kernel={str(small_kernel(tmp_path, SPINNING))!r}, memory=64 << 20)\n"
        "copy = os.fork()\n"
        "if not copy:\n"
        "    os.close(1); os.close(2)\n"
        "    time.sleep(120)\n"
        "    os._exit(0)\n"
        "print(machine.pid, copy, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pid, copy = map(int, done.stdout.split())
    try:
        assert eventually(lambda: not is_there(pid))
        assert is_there(copy)
    finally:
        os.kill(copy, signal.SIGKILL)


def test_what_starts_without_its_parent_ends_at_once() -> None:
    """The user's process may have gone by then, and another one have its number."""
    ours, theirs = socket.socketpair()
    assert theirs.fileno() != spawn_module.CHILD_FD
    program = f"from emu.process.spawn import main; main({os.getppid()})"
    actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), spawn_module.CHILD_FD)]
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ, file_actions=actions)
    theirs.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert ours.recv(1) == b""
    ours.close()


def test_a_machine_whose_user_asks_for_none_ends() -> None:
    ours, theirs = socket.socketpair()
    pid = spawn_module._start(theirs)
    theirs.close()
    ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_machine_that_is_killed_is_noticed(machine: MachineProcess) -> None:
    os.kill(machine.pid, signal.SIGKILL)
    with pytest.raises(MachineDied, match=f"^the machine's process {machine.pid} is gone$"):
        machine.console_expect("x", TIMEOUT_S)
    assert eventually(lambda: not machine.alive)
