"""Machines in processes of their own, with Linux in them: commands, files, forks, disks, shares, sockets and ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.errors import GuestError, GuestStopped, GuestTimeout, MachineDied, OutputLimit
from emu.fittings import DiskImage
from emu.memory import MIB
from emu.process.client import MachineProcess
from emu.snapshot.ready import DEFAULT_MEMORY, ready_snapshot
from tests.integration.programs import VSOCK_SERVE

pytestmark = pytest.mark.integration

TIMEOUT_S = 60.0
AT_ONCE = 6
PORT = 100


@pytest.fixture(scope="module")
def ready() -> Path:
    """The default guest's snapshot, of which there is one in the cache."""
    return ready_snapshot(DEFAULT_MEMORY, lambda _name: nullcontext(), lambda _text: None)


@pytest.fixture(scope="module")
def machine(ready: Path) -> Iterator[MachineProcess]:
    with emu.spawn(ready) as machine:
        yield machine


@pytest.fixture
def clone(machine: MachineProcess) -> Iterator[MachineProcess]:
    """One for what a test does to a machine."""
    with machine.fork() as clone:
        yield clone


def told(machine: MachineProcess, command: str) -> str:
    return machine.run(command, check=True, timeout=TIMEOUT_S).stdout


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


# -- commands ----------------------------------------------------------------------------------------------------------


def test_commands_with_outputs_input_and_limits(machine: MachineProcess) -> None:
    result = machine.run("cat; echo err >&2; exit 3", input=b"in", timeout=TIMEOUT_S)
    assert (result.status, result.stdout, result.stderr) == (3, "in", "err\n")
    assert machine.run(["printf", "%s|", "a b", "$HOME"], timeout=TIMEOUT_S).stdout == "a b|$HOME|"
    chunks: list[bytes] = []
    result = machine.run("echo out; echo err >&2", stdout=chunks.append, timeout=TIMEOUT_S)
    assert (b"".join(chunks), result.stdout, result.stderr) == (b"out\n", "", "err\n")
    with pytest.raises(GuestError, match="'false' ended with status 1"):
        machine.run("false", check=True, timeout=TIMEOUT_S)
    with pytest.raises(GuestTimeout, match=r"did not end within 0\.5 s$"):
        machine.run("trap '' TERM INT; sleep 1000", timeout=0.5)
    with pytest.raises(OutputLimit, match="wrote more than 100000 bytes"):
        machine.run("yes", most_output=100_000, timeout=TIMEOUT_S)
    assert len(machine.run("head -c 100000 /dev/zero", most_output=100_000).stdout_bytes) == 100_000
    assert told(machine, "ps -o args | grep -c -E '^(sleep 1000|yes)' || :") == "0\n"


def test_many_commands_at_once_from_threads(machine: MachineProcess) -> None:
    """None ends before all have begun; each has its own input and output."""
    told(machine, "mkdir /tmp/begun; mkfifo /tmp/gate")
    script = "touch /tmp/begun/$1; cat /tmp/gate; cat; exit $1"
    data = {number: os.urandom(50_000) for number in range(AT_ONCE)}

    def run(number: int) -> tuple[int, bytes]:
        words = ["sh", "-c", script, "sh", str(number)]
        result = machine.run(words, input=data[number], timeout=TIMEOUT_S)
        return result.status, result.stdout_bytes

    with ThreadPoolExecutor(AT_ONCE) as threads:
        running = [threads.submit(run, number) for number in range(AT_ONCE)]
        assert eventually(lambda: told(machine, "ls /tmp/begun | wc -l") == f"{AT_ONCE}\n")
        assert not any(each.done() for each in running)
        told(machine, "sleep 0.3 >/tmp/gate")
        assert [each.result(TIMEOUT_S) for each in running] == [(number, data[number]) for number in range(AT_ONCE)]


def test_files_go_in_and_out(clone: MachineProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_bytes(os.urandom(300_000))
    monkeypatch.chdir(tmp_path)             # the other process has another one
    clone.copy_in("tree", "/root/tree", timeout=TIMEOUT_S)
    clone.copy_in(b"of bytes", "/root/bytes", timeout=TIMEOUT_S)
    assert told(clone, "cat /root/bytes; ls /root/tree/sub") == "of bytesfile\n"
    clone.copy_out("/root/tree", "back", timeout=TIMEOUT_S)
    assert (tmp_path / "back/sub/file").read_bytes() == (tmp_path / "tree/sub/file").read_bytes()
    with pytest.raises(GuestError, match="No such file"):
        clone.copy_out("/root/none", "none", timeout=TIMEOUT_S)


def test_the_console_beside_commands(clone: MachineProcess) -> None:
    clone.console_send(b"echo $((40 + 2))-typed\n")
    assert clone.console_expect(r"\d+-typed\r\n", TIMEOUT_S).endswith("42-typed\r\n")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(clone.console_expect, "from a command", TIMEOUT_S)
        told(clone, "echo from a command >/dev/console")
        assert waiting.result(TIMEOUT_S).endswith("from a command")
    assert b"42-typed" in clone.console_output()


def test_stats_grow(machine: MachineProcess) -> None:
    def count() -> int:
        return sum(row.count for row in machine.stats().exits)

    before = count()
    told(machine, "true")
    assert count() > before
    use = machine.use()
    assert 10 * MIB < use.private_bytes + use.shared_bytes < DEFAULT_MEMORY + 400 * MIB


# -- snapshots and forks -----------------------------------------------------------------------------------------------


def test_a_snapshot_of_a_clone_is_restored(machine: MachineProcess, tmp_path: Path) -> None:
    with machine.fork() as clone:
        told(clone, "echo kept >/root/kept")
        clone.snapshot(tmp_path / "full.snap")
        told(clone, "echo more >>/root/kept")
        clone.snapshot(tmp_path / "part.snap", incremental=True)
        assert told(clone, "echo it goes on") == "it goes on\n"
    for name, content in ("full.snap", "kept\n"), ("part.snap", "kept\nmore\n"):
        with emu.spawn(tmp_path / name) as restored:
            assert told(restored, "cat /root/kept") == content
    assert (tmp_path / "part.snap/ram").stat().st_blocks < (tmp_path / "full.snap/ram").stat().st_blocks


def test_forks_of_forks_go_their_own_ways(machine: MachineProcess) -> None:
    told(machine, "echo parent >/tmp/who")
    with machine.fork() as child:
        told(child, "echo child >>/tmp/who")
        with child.fork() as grandchild:
            told(grandchild, "echo grandchild >>/tmp/who")
            told(machine, "echo alone >>/tmp/who")
            assert [told(each, "cat /tmp/who").split() for each in (machine, child, grandchild)] == [
                ["parent", "alone"], ["parent", "child"], ["parent", "child", "grandchild"],
            ]
            assert complaints(told(grandchild, "dmesg")) == []


def test_a_command_under_way_is_killed_in_the_child_and_goes_on_in_the_parent(machine: MachineProcess) -> None:
    loop = "echo begun; echo $$ >/tmp/process; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo through"
    is_there = "[ -e /proc/$(cat /tmp/process) ]"
    told(machine, "rm -f /tmp/go /tmp/process")
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(machine.run, loop, timeout=TIMEOUT_S)
        assert eventually(lambda: machine.run("[ -s /tmp/process ]").status == 0)
        with machine.fork() as clone:
            assert eventually(lambda: clone.run(is_there, timeout=TIMEOUT_S).status == 1)
            assert machine.run(is_there, timeout=TIMEOUT_S).status == 0
            told(machine, "touch /tmp/go")
            result = running.result(TIMEOUT_S)
            assert (result.status, result.stdout) == (0, "begun\nthrough\n")


def test_clones_end_with_the_machine_that_they_were_forked_from(ready: Path) -> None:
    with emu.spawn(ready) as parent:
        clones = parent.fork(2)
        assert told(clones[0], "echo here") == "here\n"
    assert eventually(lambda: not any(clone.alive for clone in clones))
    for clone in clones:
        with pytest.raises(MachineDied, match="is gone"):
            clone.run("true")
        clone.close()


# -- what is plugged in ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A machine with a disk, a shared directory and a socket file."""

    machine: MachineProcess
    image: Path
    share: Path
    directory: Path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fitted]:
    directory = tmp_path_factory.mktemp("p")
    image, share = directory / "disk.img", directory / "share"
    image.write_bytes(b"image".ljust(4 * MIB, b"\0"))
    share.mkdir()
    with emu.spawn(
        kernel="generic", memory=128 * MIB, append=LOUD_SETTINGS, disks=[DiskImage(image, overlay=True)],
        shares={"data": share}, vsock=directory / "v",
    ) as machine:
        machine.wait_ready()
        machine.copy_in(VSOCK_SERVE.elf, "/tmp/serve", timeout=TIMEOUT_S)
        told(machine, f"chmod +x /tmp/serve; /tmp/serve {PORT} /bin/cat /tmp/who </dev/null >/dev/null 2>&1")
        yield Fitted(machine, image, share, directory)
        assert complaints(told(machine, "dmesg")) == []


def test_what_clones_write_on_a_disk_is_their_own(fitted: Fitted) -> None:
    def write(machine: MachineProcess, text: str) -> None:
        told(machine, f"printf %s {text} | dd of=/dev/vda bs=1M seek=1 conv=notrunc,fsync 2>/dev/null")

    def read(machine: MachineProcess) -> list[str]:
        told(machine, "echo 3 >/proc/sys/vm/drop_caches")
        return [told(machine, f"dd if=/dev/vda bs=1 skip={at} count=5 2>/dev/null") for at in (0, MIB)]

    parent = fitted.machine
    write(parent, "first")
    with parent.fork() as child:
        write(child, "child")
        write(parent, "again")
        with child.fork() as grandchild, parent.fork() as second:
            write(grandchild, "grand")
            seen = [read(each)[1] for each in (parent, child, grandchild, second)]
            assert seen == ["again", "child", "grand", "again"]
            assert read(grandchild)[0] == "image"
    assert fitted.image.read_bytes() == b"image".ljust(4 * MIB, b"\0")


def test_a_shared_directory_is_written_by_both(fitted: Fitted) -> None:
    parent = fitted.machine
    holder = "exec 3>>/mnt/data/log; echo before >&3; echo $$ >/tmp/holder; while :; do sleep 1; done"
    told(parent, f"(setsid sh -c '{holder}' </dev/null >/dev/null 2>&1 &)")
    assert eventually(lambda: parent.run("[ -s /tmp/holder ]").status == 0)
    with parent.fork() as child:
        told(child, "echo child >>/proc/$(cat /tmp/holder)/fd/3; echo new >/mnt/data/of-child")
        told(parent, "echo parent >>/proc/$(cat /tmp/holder)/fd/3; sync")
        assert (fitted.share / "log").read_text().split() == ["before", "child", "parent"]
        assert told(parent, "cat /mnt/data/of-child") == "new\n"
        assert told(child, "cat /mnt/data/log").split() == ["before", "child", "parent"]
        assert complaints(told(child, "dmesg")) == []


def test_a_clone_has_a_socket_file_of_its_own(fitted: Fitted) -> None:
    """What listens in the guest listens in all."""
    def ask(machine: MachineProcess) -> bytes:
        with machine.vsock_connect(PORT, TIMEOUT_S) as sock:
            sock.settimeout(TIMEOUT_S)
            return b"".join(iter(lambda: sock.recv(100), b""))

    parent = fitted.machine
    told(parent, "echo parent >/tmp/who")
    assert ask(parent) == b"parent\n"
    with parent.vsock_connect(PORT, TIMEOUT_S) as sock, parent.fork(vsock=fitted.directory / "own") as clone:
        told(clone, "echo clone >/tmp/who")
        assert ask(clone) == b"clone\n"
        sock.settimeout(TIMEOUT_S)
        assert sock.recv(100) == b"parent\n"        # a connection of the parent's goes on there
        assert ask(parent) == b"parent\n"
        with pytest.raises(GuestError, match="refused"):
            clone.vsock_connect(PORT + 1, TIMEOUT_S)


# -- ends --------------------------------------------------------------------------------------------------------------


def test_a_guest_that_powers_off(clone: MachineProcess) -> None:
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(clone.run, "sleep 1000")
        stopped = threads.submit(clone.wait_stopped)
        assert told(clone, "echo beside") == "beside\n"
        with pytest.raises(GuestStopped, match="powered off"):
            clone.run("sync; poweroff -f", timeout=TIMEOUT_S)
        assert "powered off" in str(stopped.result(TIMEOUT_S))
        with pytest.raises(GuestStopped, match="powered off"):
            running.result(TIMEOUT_S)
    assert clone.alive
    with pytest.raises(GuestStopped, match="powered off"):
        clone.run("true", timeout=TIMEOUT_S)
    assert clone.stats().exits


def test_a_guest_that_panics(clone: MachineProcess) -> None:
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(clone.run, "sleep 1000")
        assert eventually(lambda: clone.run("pgrep -x sleep").status == 0)
        with pytest.raises(GuestError, match=r"^Kernel panic - not syncing"):
            clone.run("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger", timeout=TIMEOUT_S)
        with pytest.raises(GuestError):
            running.result(TIMEOUT_S)
    assert b"Kernel panic" in clone.console_output()


# -- the console -------------------------------------------------------------------------------------------------------


def test_the_size_of_a_serial_console_reaches_the_guest(clone: MachineProcess) -> None:
    clone.console_resize(93, 31)
    assert eventually(lambda: told(clone, "stty -F /dev/ttyS0 size").split() == ["31", "93"])


def test_a_guest_that_was_paused_goes_on(clone: MachineProcess) -> None:
    before = int(told(clone, "cut -d. -f1 /proc/uptime"))
    clone.pause()
    driven_ns = clone.stats().driven_ns
    time.sleep(1.5)                                     # long enough for its clocks to show it
    assert clone.stats().driven_ns == driven_ns
    with clone.fork() as other:                         # which runs
        assert told(other, "echo it runs") == "it runs\n"
    clone.resume()
    assert int(told(clone, "cut -d. -f1 /proc/uptime")) >= before + 1
    assert complaints(told(clone, "dmesg")) == []
