"""Forks of processes with a machine, whose guest is a few instructions: what a child has, and what it has not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import emu
from emu.errors import EmuError, MachineDied
from emu.memory import MIB
from emu.process.client import MachineProcess
from tests.process.small_guest import small_kernel
from tests.support.descriptors import open_files
from tests.support.remedies import run_alone

TIMEOUT_S = 60.0
GENERATIONS = 150                       # each some eight calls deeper than the one before; Python allows 1000

ALONE = """
import os, signal, sys, threading, time
import emu
kernel, directory = {kernel!r}, {directory!r}
machine = emu.boot(kernel=kernel, memory=64 << 20)
machine.console.expect(">", 60)
def count(clone):
    clone.console_send(b"x")
    return clone.console_expect("[1-9]", 60)[-1]
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[MachineProcess]:
    with emu.spawn(kernel=small_kernel(tmp_path), memory=64 * MIB) as machine:
        assert machine.console_expect(">", TIMEOUT_S)
        yield machine


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def count(machine: MachineProcess) -> str:
    """Type a byte; how many the guest has had then."""
    machine.console_send(b"x")
    return machine.console_expect("[1-9]", TIMEOUT_S)[-1]


def is_there(pid: str) -> bool:
    """Whether a process runs; a zombie does not, which may be nobody's to let go of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def files_of(machine: MachineProcess) -> list[str]:
    directory = Path(f"/proc/{machine.pid}/fd")
    return sorted(os.readlink(path).partition("[")[0] for path in directory.iterdir())


def alone(tmp_path: Path, script: str) -> list[str]:
    """What a script prints that has a machine in its own process."""
    done = run_alone(ALONE.format(kernel=str(small_kernel(tmp_path)), directory=str(tmp_path)) + script)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


# -- of a machine in a process of its own ------------------------------------------------------------------------------


def test_each_goes_on_by_itself_from_the_same_instruction(parent: MachineProcess) -> None:
    assert count(parent) == "1"
    with parent.fork() as first, parent.fork() as second:
        assert [count(first), count(first), count(second), count(parent)] == ["2", "3", "2", "2"]
        with first.fork() as grandchild:
            assert [count(grandchild), count(first), count(second)] == ["4", "4", "3"]
            assert first.console_output() == b">1234" and parent.console_output() == b">12"


def test_many_at_once(parent: MachineProcess) -> None:
    before = open_files()
    clones = parent.fork(8)
    assert len({clone.pid for clone in clones} | {parent.pid}) == 9
    assert [count(clone) for clone in clones] == ["1"] * 8
    for clone in clones:
        clone.close()
    assert parent.fork(0) == []
    assert open_files() == before


def test_a_long_line_of_descendants(parent: MachineProcess) -> None:
    """The guests compute all the time: each but the youngest is halted."""
    line = [parent]
    try:
        files = None
        for _ in range(GENERATIONS):
            line.append(line[-1].fork())
            os.kill(line[-2].pid, signal.SIGSTOP)
            if files is None:
                line[-1].console_output()           # it answers when it has let go of what is its parent's
                files = files_of(line[-1])
        assert count(line[-1]) == "1"
        assert files_of(line[-1]) == files
    finally:
        for machine in line:
            machine.kill()
        for machine in line[1:]:
            machine.close()


def test_a_child_shares_no_memory_that_either_can_write(parent: MachineProcess) -> None:
    with parent.fork() as clone:
        assert count(clone) == "1"
        rows = [row.split(maxsplit=5) for row in Path(f"/proc/{clone.pid}/maps").read_text().splitlines()]
        assert len(rows) > 50
        assert [row for row in rows if "w" in row[1] and row[1].endswith("s")] == []


def test_a_child_has_no_descriptor_of_its_parent_and_siblings(parent: MachineProcess) -> None:
    clones = parent.fork(3)
    grandchild = clones[0].fork()
    for machine in (*clones, grandchild):
        count(machine)
        kinds = files_of(machine)
        assert (kinds.count("socket:"), kinds.count("anon_inode:")) == (2, 1)   # user, who asks what it does; wake-ups
    for machine in (grandchild, *clones):
        machine.close()


def test_a_machine_that_has_stopped_is_not_forked(parent: MachineProcess) -> None:
    parent.console_send(b"\0")
    assert parent.wait_stopped(TIMEOUT_S)
    with pytest.raises(EmuError, match=r"^the machine has stopped: the guest halted"):
        parent.fork(2)
    assert parent.console_output() == b">"


def test_a_disk_that_is_written_in_place_is_not_forked(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with emu.spawn(kernel=small_kernel(tmp_path), memory=64 * MIB, disks=[image]) as machine:
        with pytest.raises(EmuError, match="written in place cannot be forked"):
            machine.fork()
        assert count(machine) == "1"


def test_a_child_has_a_socket_file_of_its_own_or_none(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("parent.sock", "child.sock")]
    with emu.spawn(kernel=small_kernel(tmp_path), memory=64 * MIB, vsock=paths[0]) as machine:
        with machine.fork(vsock=paths[1]) as clone, machine.fork() as other:
            assert clone.describe().vsock == str(paths[1])
            assert other.describe().vsock is None
            assert all(path.is_socket() for path in paths)
        assert [path.exists() for path in paths] == [True, False]
        assert machine.describe().vsock == str(paths[0])


def test_a_child_that_cannot_be_says_why(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with emu.spawn(kernel=small_kernel(tmp_path), memory=64 * MIB, vsock=path) as machine:
        with machine.fork(vsock=path) as clone:
            for _ in range(2):
                with pytest.raises(MachineDied, match=r"another program listens there$"):
                    clone.stats()
        assert path.is_socket()
        assert count(machine) == "1"


# -- of a machine in the user's own process ----------------------------------------------------------------------------


def test_a_process_without_other_threads_is_forked(tmp_path: Path) -> None:
    assert alone(tmp_path, """
clones = machine.fork(2)
one = machine.fork()
print(*[count(clone) for clone in (*clones, one, one)])
machine.console.send("x"); machine.console.expect("[1-9]", 60); print(machine.console.after)
grandchild = one.fork()
print(count(grandchild))
for clone in (grandchild, one, *clones):
    clone.close()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no zombie")
""") == ["1 1 1 2", "1", "3", "no zombie"]


def test_a_process_with_other_threads_is_not_forked(tmp_path: Path) -> None:
    assert alone(tmp_path, """
event = threading.Event()
thread = threading.Thread(target=event.wait)
thread.start()
try:
    machine.fork()
except emu.EmuError as error:
    print(error)
event.set()
thread.join()
with machine.fork() as clone:
    print(count(clone))
""") == ["a process with other threads cannot be forked safely; use emu.spawn(), and fork that machine", "1"]


def test_a_closed_or_running_machine_is_not_forked(tmp_path: Path) -> None:
    assert alone(tmp_path, """
def fork():
    try:
        machine.fork()
    except emu.EmuError as error:
        print(error)
    return True
machine.drive(fork)
machine.drive(lambda: False, 0) or machine.drive(lambda: machine.stop_reason or fork())
machine.close()
fork()
""") == [
        "the machine is running; it can be forked between two calls that drive it",
        "the machine is running; it can be forked between two calls that drive it",
        "the machine is closed",
    ]


def test_a_child_has_nothing_of_the_users_other_machines_output_and_handlers(tmp_path: Path) -> None:
    lines = alone(tmp_path, """
other = emu.spawn(kernel=kernel, memory=64 << 20)
signal.signal(signal.SIGTERM, lambda *_: print("the user's handler", flush=True))
signal.set_wakeup_fd(os.eventfd(0, os.EFD_NONBLOCK), warn_on_full_buffer=False)
machine.serial_sinks.append(lambda data: print("the user's sink", flush=True))
sys.stdout.write("buffered once\\n")
clone = machine.fork()
count(clone)
links = [os.readlink(f"/proc/{clone.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{clone.pid}/fd")]
print(sum(link.startswith("socket:") for link in links), other.alive, count(other))
os.kill(clone.pid, signal.SIGINT)
print(count(clone))
os.kill(clone.pid, signal.SIGTERM)
try:
    clone.wait_stopped()
except emu.MachineDied:
    print("gone")
""")
    assert lines == ["buffered once", "2 True 1", "2", "gone"]


def test_children_end_with_their_process_however_that_ends(tmp_path: Path) -> None:
    for end in ("sys.exit()", "os._exit(0)", "clones = None; machine.close()"):
        pids = alone(tmp_path, f"""
clones = machine.fork(2)
print(*[clone.pid for clone in clones], flush=True)
{end}
""")[0].split()
        assert eventually(lambda pids=pids: not any(map(is_there, pids)))       # type: ignore[misc]
