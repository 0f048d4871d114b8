"""The guest channel on real guests: many jobs, streams, limits, files, and what is there when the agent is not."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

import emu
from bench.trouble import complaints
from emu.cache import Cache
from emu.commands import AGENT_S
from emu.errors import EmuError, GuestError, GuestTimeout
from emu.fetch import fetch_guest
from emu.images.cpio import Entry, write_archive
from emu.images.modules import load_modules
from emu.images.root import load_root
from emu.job import Job
from emu.machine import Machine
from emu.memory import KIB, MIB

pytestmark = pytest.mark.integration

RUN_S = 90.0
BOOT_S = 60.0
JOBS = 20
OUTPUT_BYTES = 10 * MIB
AGENT = "usr/lib/emu/agent"
REVIVE = f"setsid setsid sh /{AGENT} </dev/null >/dev/null 2>&1"


def told(machine: Machine, command: str) -> str:
    return machine.run(command, timeout=RUN_S, check=True).stdout


@contextmanager
def all_killed(jobs: list[Job]) -> Iterator[None]:
    """Kill jobs in the end, so that they do not stay in the way of other tests whatever happens."""
    try:
        yield
    finally:
        for job in jobs:
            job.kill()


@pytest.fixture(scope="module")
def other_machine() -> Iterator[Machine]:
    """A machine whose agent a test may end, if it starts another one."""
    with emu.boot(kernel="cloud") as machine:
        machine.wait_ready(BOOT_S)
        yield machine


# Many at once


def test_twenty_jobs_at_once_each_with_ten_mebibytes_on_both_outputs() -> None:
    """The same two files behind beginnings of different lengths, so that no two chunks are alike."""
    with emu.boot(kernel="cloud") as machine:
        files = {name: random.Random(name).randbytes(OUTPUT_BYTES) for name in ("out", "err")}
        for name, data in files.items():
            machine.copy_in(data, f"/tmp/{name}", timeout=RUN_S)
        sums = told(machine, "cd /tmp; sha256sum out err").split()[::2]
        assert sums == [hashlib.sha256(data).hexdigest() for data in files.values()]
        command = "cd /tmp; {{ head -c {0} err; cat err; }} >&2 & head -c {0} out; cat out; wait; exit {0}"
        jobs = [machine.start_job(command.format(more), timeout=4 * BOOT_S) for more in range(JOBS)]
        for more, job in enumerate(jobs):
            assert job.wait() == more
            for output, data in zip((job.stdout, job.stderr), files.values(), strict=True):
                assert output.read() == data[:more] + data
        assert complaints(told(machine, "dmesg")) == []


def test_jobs_run_at_the_same_time(machine: Machine) -> None:
    """None ends before all have begun."""
    script = "echo here; until [ -e /tmp/gate ]; do sleep 0.3; done; echo through"
    jobs = [machine.start_job(script, timeout=RUN_S) for _ in range(JOBS)]
    with all_killed(jobs):
        here = [next(iter(job.stdout)) for job in jobs]
        assert here == [b"here\n"] * JOBS and not any(job.is_over for job in jobs)
        told(machine, "touch /tmp/gate")
        assert [(job.wait(), job.stdout.read()) for job in jobs] == [(0, b"through\n")] * JOBS


def test_run_works_while_jobs_run_and_more_jobs_than_there_is_room_for(machine: Machine) -> None:
    first = [machine.start_job("sleep 999") for _ in range(JOBS)]
    with all_killed(first):
        more = [machine.start_job(f"exit {number}", timeout=RUN_S) for number in range(2 * JOBS)]
        assert told(machine, "echo between") == "between\n"
        assert [job.wait() for job in more] == list(range(2 * JOBS))
    assert [job.wait(RUN_S) for job in first] == [137] * JOBS


# Time limits


@pytest.mark.parametrize("command", [
    "trap '' HUP INT QUIT TERM USR1 USR2 ALRM PIPE; while :; do sleep 999; done",
    "setsid sh -c 'trap \"\" HUP TERM; sleep 999; :' & setsid setsid sleep 999 & sleep 999",
    "(sleep 999 &) & nohup sleep 999 >/dev/null 2>&1 & cat /dev/zero",
    # Twenty processes that each keep starting another one
    "bomb() { while :; do (sleep 0.02; exec sleep 999) & sleep 0.1; done; }; for i in $(seq 20); do bomb & done; wait",
], ids=["ignores signals", "other sessions", "orphans", "forks"])  # fmt: skip
def test_a_job_past_its_time_is_gone_with_all_it_started(machine: Machine, command: str) -> None:
    started = monotonic()
    with pytest.raises(GuestTimeout, match=r"did not end within 1 s$"):
        machine.run(command, timeout=1)
    assert 1 <= monotonic() - started < BOOT_S
    assert told(machine, "ps -o args | grep -c -E '[s]leep (999|0[.]02)|[/]dev/zero' || :") == "0\n"


def test_a_killed_job_does_not_take_others_with_it(machine: Machine) -> None:
    script = "echo here; until [ -e /tmp/killed ]; do sleep 0.05; done; echo done"
    first, second = (machine.start_job(script, timeout=RUN_S) for _ in range(2))
    assert [next(iter(job.stdout)) for job in (first, second)] == [b"here\n"] * 2
    first.kill()
    assert (first.wait(), first.stdout.read()) == (137, b"")
    told(machine, "touch /tmp/killed")
    assert (second.wait(), second.stdout.read()) == (0, b"done\n")


# Streams


def test_output_arrives_before_the_end(machine: Machine) -> None:
    job = machine.start_job("echo first; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo last", timeout=RUN_S)
    chunks = iter(job.stdout)
    assert next(chunks) == b"first\n"
    assert not job.is_over
    told(machine, "touch /tmp/go")
    assert b"".join(chunks) == b"last\n"
    assert job.wait() == 0


def test_outputs_go_to_functions_as_they_come(machine: Machine) -> None:
    """The command goes on when the host has told the guest, on its console, what it has seen."""
    seen: list[tuple[str, bytes]] = []

    def see(name: str, data: bytes) -> None:
        seen.append((name, data))
        machine.console.sendline(f">/tmp/seen.{len(seen)}")

    wait = "until [ -e /tmp/seen.{} ]; do sleep 0.02; done"
    result = machine.run(
        f"echo 1; {wait.format(1)}; echo 2 >&2; {wait.format(2)}; echo 3; exit 4",
        stdout=lambda data: see("out", data),
        stderr=lambda data: see("err", data),
        timeout=RUN_S,
    )
    assert (result.status, result.stdout, result.stderr) == (4, "", "")
    assert seen == [("out", b"1\n"), ("err", b"2\n"), ("out", b"3\n")]


def test_a_slow_reader_holds_the_guest_s_writer_back(machine: Machine) -> None:
    """While nobody reads, what the guest has written stays below the window and the buffers on the way."""
    count, chunk, window = 60, 128 * KIB, 3 * MIB
    told(machine, ">/tmp/written")
    write = f"for i in $(seq {count}); do head -c {chunk} /dev/zero; echo >>/tmp/written; done"
    job = machine.start_job(write, timeout=2 * RUN_S)
    chunks = iter(job.stdout)
    taken = len(next(chunks))
    for _ in range(2):
        machine.drive(lambda: False, 0.7)
        assert int(told(machine, "wc -l </tmp/written")) * chunk <= taken + window
        taken += len(next(chunks))
    assert taken + sum(map(len, chunks)) == count * chunk
    assert job.wait() == 0


def test_input_is_taken_as_it_is_written(machine: Machine) -> None:
    job = machine.start_job("while read -r line; do echo \"<$line>\"; done; echo end", writes=True, timeout=RUN_S)
    chunks = iter(job.stdout)
    for line in (b"one", b"two"):
        job.write(line + b"\n")
        assert next(chunks) == b"<%b>\n" % line
    job.end_input()
    assert b"".join(chunks) == b"end\n"


def test_large_input_streams_in_and_out(machine: Machine) -> None:
    pieces = [random.Random(number).randbytes(300_000) for number in range(20)]
    job = machine.start_job("tee /dev/stderr | sha256sum", writes=True, timeout=2 * RUN_S)
    for piece in pieces:
        job.write(piece)
    job.end_input()
    assert job.wait() == 0
    assert job.stderr.read() == b"".join(pieces)
    assert job.stdout.read().split()[0].decode() == hashlib.sha256(b"".join(pieces)).hexdigest()


# Files


def make_tree(root: Path) -> None:
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "private").mkdir(mode=0o700)
    (root / "sub" / "empty").touch()
    (root / "sub" / "tool").write_text("#!/bin/sh\nexit 5\n")
    (root / "sub" / "tool").chmod(0o755)
    (root / "private" / "key").write_bytes(bytes(range(256)))
    (root / "private" / "key").chmod(0o600)
    (root / "odd \udcff\n na'me").write_text("odd")
    (root / ("long " * 40)).write_text("long")
    (root / "sub" / "up").symlink_to("../big")
    (root / "big").write_bytes(random.Random(1).randbytes(20 * MIB + 1))
    os.link(root / "big", root / "sub" / "same")
    for number, path in enumerate(sorted(root.rglob("*")), start=1):
        if not path.is_symlink():
            os.utime(path, (number * 10_000_000, number * 10_000_000))


def described(root: Path) -> dict[str, tuple[str, int, str]]:
    """Type and mode, time and content of what is below a directory."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        link = os.readlink(path) if path.is_symlink() else ""
        content = link or (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        found[str(path.relative_to(root))] = stat.filemode(status.st_mode), 0 if link else int(status.st_mtime), content
    return found


def test_a_tree_goes_in_and_comes_back(machine: Machine, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_tree(tree)
    machine.copy_in(tree, "/tmp/", timeout=2 * RUN_S)
    assert told(machine, "cd /tmp/tree; stat -c '%A %u:%g %Y' private/key sub/tool; ./sub/tool; echo $?") == (
        f"-rw------- 0:0 {int((tree / 'private' / 'key').stat().st_mtime)}\n"
        f"-rwxr-xr-x 0:0 {int((tree / 'sub' / 'tool').stat().st_mtime)}\n"
        "5\n"
    )
    digest = hashlib.sha256((tree / "big").read_bytes()).hexdigest()
    assert told(machine, "cd /tmp/tree/sub; readlink up; sha256sum same; [ ../big -ef same ] && echo one file") == (
        f"../big\n{digest}  same\none file\n"
    )
    machine.copy_out("/tmp/tree", tmp_path / "back", timeout=2 * RUN_S)
    assert described(tmp_path / "back") == described(tree)
    assert (tmp_path / "back" / "big").samefile(tmp_path / "back" / "sub" / "same")
    told(machine, "rm -r /tmp/tree")


def test_files_that_cannot_be_copied_are_errors_of_one_line(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(EmuError, match="missing"):
        machine.copy_in(tmp_path / "missing", "/tmp/", timeout=RUN_S)
    with pytest.raises(GuestError, match="no-such-directory"):
        machine.copy_in(b"", "/no-such-directory/file", timeout=RUN_S)
    with pytest.raises(GuestError, match="/no/such/file"):
        machine.copy_out("/no/such/file", tmp_path / "copy", timeout=RUN_S)
    with pytest.raises(GuestError, match="neither file, directory nor link"):
        machine.copy_out("/dev/null", tmp_path / "copy", timeout=RUN_S)
    told(machine, "mkdir /tmp/links; ln -s /etc/passwd /tmp/links/out")
    with pytest.raises(GuestError, match="a link that may lead out"):
        machine.copy_out("/tmp/links", tmp_path / "copy", timeout=RUN_S)
    assert list(tmp_path.iterdir()) == []


# Without the agent


def test_without_its_agent_a_guest_is_asked_over_the_console(
    other_machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine = other_machine
    told(machine, "true")
    with caplog.at_level("INFO"):
        machine.console.sendline(f"kill -9 $(pgrep -f -o {AGENT})")
        assert machine.channel is not None
        assert machine.drive(lambda: machine.channel is not None and not machine.channel.alive, RUN_S)
    assert "the guest's agent has gone" in caplog.text
    assert told(machine, "echo by the console") == "by the console\n"
    assert machine.run("exit 3", timeout=RUN_S).status == 3
    with pytest.raises(GuestError, match=r"agent is not there: no program has the port emu\.agent open"):
        machine.start_job("true")
    with pytest.raises(GuestError, match="agent is not there"):
        machine.copy_in(b"", "/tmp/file")
    told(machine, REVIVE)
    assert machine.channel.wait(RUN_S)
    assert machine.start_job("exit 4", timeout=RUN_S).wait() == 4


def test_a_reboot_brings_the_agent_back(other_machine: Machine) -> None:
    machine, board = other_machine, other_machine.board
    lost = machine.start_job("sleep 999")
    with pytest.raises(GuestError, match="was lost"):
        machine.run("reboot -f; sleep 999", timeout=RUN_S)
    assert machine.board is not board
    with pytest.raises(GuestError, match="was lost"):
        lost.wait(RUN_S)
    assert machine.run("cat /proc/uptime; exit 6", timeout=BOOT_S).status == 6
    assert machine.channel is not None and machine.channel.alive
    jobs = [machine.start_job(f"exit {number}", timeout=RUN_S) for number in range(5)]
    assert [job.wait() for job in jobs] == list(range(5))


def no_agent(directory: Path, has_driver: bool) -> Path:
    """An initramfs of the default guest in which the agent does nothing; with the kernel's modules or without."""
    guest, archive = fetch_guest(Cache(), "cloud"), directory / "initramfs"
    assert guest.package_path is not None
    with open(archive, "wb") as output:
        output.write(load_root(guest.root_path, Cache()))
        if has_driver:
            output.write(load_modules(guest.package_path, Cache()))
        write_archive([Entry(AGENT, stat.S_IFREG | 0o755, b"exit 0\n")], output)
    return archive


@pytest.mark.parametrize(("has_driver", "reason", "waited_s"), [
    (False, "its kernel has not started the virtio console's driver", 0),
    (True, "no program has the port emu.agent open", AGENT_S),
])  # fmt: skip
def test_a_guest_that_has_no_agent_is_asked_over_the_console(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, has_driver: bool, reason: str, waited_s: float
) -> None:
    with emu.boot(kernel="cloud", initrd=no_agent(tmp_path, has_driver)) as machine, caplog.at_level("INFO"):
        machine.wait_prompt(BOOT_S)
        machine.wait_ready(BOOT_S)
        said = f"no agent in the guest after {waited_s:g} s: {reason}"
        assert [text for text in caplog.messages if text.startswith(said)]
        result = machine.run("echo out; echo err >&2; exit 7", timeout=RUN_S)
        assert (result.status, result.stdout, result.stderr) == (7, "out\n", "err\n")
        with pytest.raises(GuestError, match=reason):
            machine.start_job("true")


def test_a_machine_made_without_a_channel_says_so() -> None:
    with emu.boot(kernel="cloud", channel=False) as machine:
        assert machine.run("exit 5", timeout=BOOT_S).status == 5
        with pytest.raises(GuestError, match="the machine was made without a channel"):
            machine.start_job("true")
        assert told(machine, "ls /sys/bus/virtio/drivers/virtio_console 2>/dev/null | grep -c virtio || :") == "0\n"
