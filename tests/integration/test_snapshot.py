"""Machines saved and restored, on the generic kernel: what goes on, and what has to be put right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.errors import EmuError, GuestError
from emu.machine import Machine
from emu.snapshot.files import Snapshot
from hypercalls import Call, hypercall
from hypercalls.numbers import FIRST_USER, PV_MAILBOX

pytestmark = pytest.mark.integration

TIMEOUT_S = 60.0
SETTLE_S = 0.3
UUID = "cat /proc/sys/kernel/random/uuid"
TO_MSR = "of=/dev/cpu/0/msr bs=8 oflag=seek_bytes conv=notrunc"
FROM_MSR = "if=/dev/cpu/0/msr bs=8 iflag=skip_bytes"


@hypercall(FIRST_USER, "PV_DOUBLE")
def pv_double(call: Call) -> int:
    """Twice the value, for a RDMSR."""
    return 2 * call.value


def settle(machine: Machine) -> None:
    """Let what ran last come to its end."""
    machine.drive(lambda: False, SETTLE_S)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared")
    (directory / "file").write_text("before\n")
    (directory / "removed").write_text("soon gone\n")
    (directory / "replaced").write_text("the old one\n")
    return directory


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("config")
    (directory / "hostname").write_text("first\n")
    (directory / "environment").write_text("WHEN=before\n")
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, shared: Path, config: Path) -> Path:
    """A snapshot of a guest with files open over 9p, and a loop that counts."""
    path = tmp_path_factory.mktemp("snapshots") / "base.snap"
    with emu.boot(
        kernel="generic", memory=128 << 20, append=LOUD_SETTINGS, shares={"data": shared}, config=config, vsock=True
    ) as vm:
        vm.wait_ready()
        assert vm.run("hostname; echo $WHEN", timeout=TIMEOUT_S).stdout == "first\nbefore\n"
        vm.run("cd /mnt/data; ls -l >/dev/null; cat file removed replaced >/dev/null", check=True)
        # Descriptors that stay open: one to read, one to write, one of what the host will remove
        holder = (
            "exec 3</mnt/data/file 4>>/mnt/data/log 5</mnt/data/removed; echo $$ >/tmp/holder; echo start >&4; "
            "n=0; while :; do n=$((n + 1)); echo $n >/tmp/new; mv /tmp/new /tmp/count; sleep 0.02; done"
        )
        counts = "until [ -e /tmp/count ]; do sleep 0.02; done"
        vm.run(f"(setsid sh -c '{holder}' </dev/null >/dev/null 2>&1 &); {counts}", check=True, timeout=TIMEOUT_S)
        settle(vm)
        vm.snapshot(path)
        assert vm.run("echo it goes on", timeout=TIMEOUT_S).stdout == "it goes on\n"
    return path


@pytest.fixture
def restored(base: Path) -> Iterator[Machine]:
    with emu.restore(base) as machine:
        yield machine


def test_a_restored_machine_goes_on(restored: Machine) -> None:
    first = int(restored.run("cat /tmp/count", check=True, timeout=TIMEOUT_S).stdout)
    assert first > 0
    restored.run(f"until [ $(cat /tmp/count) -gt {first} ]; do sleep 0.02; done", check=True, timeout=TIMEOUT_S)
    assert complaints(restored.run("dmesg", timeout=TIMEOUT_S).stdout) == []


def test_a_command_that_was_being_started_is_in_nobody_s_way(restored: Machine, tmp_path: Path) -> None:
    restored.run("true", check=True, timeout=TIMEOUT_S)
    restored.start_job("sleep 1000")
    restored.start_job("sleep 1000")
    assert restored.channel is not None
    assert restored.drive(lambda: restored.channel.is_starting, TIMEOUT_S)      # a second place for commands
    restored.snapshot(tmp_path / "starting.snap")
    with emu.restore(tmp_path / "starting.snap") as again:
        assert again.run("echo there", timeout=TIMEOUT_S).stdout == "there\n"


def test_the_clock_is_right_and_guest_time_has_no_gap(base: Path) -> None:
    with emu.restore(base) as machine:
        uptime = float(machine.run("cat /proc/uptime", timeout=TIMEOUT_S).stdout.split()[0])
        off = []
        for _ in range(5):
            before = time.time()
            seconds, micros = (
                int(line.split(":")[1])
                for line in machine.run("adjtimex | grep tv_", timeout=TIMEOUT_S).stdout.splitlines()
            )
            after = time.time()
            guest = seconds + micros / 1e6
            off.append(max(before - guest, guest - after, 0.0))
        assert min(off) < 0.05
    with emu.restore(base) as machine:
        again = float(machine.run("cat /proc/uptime", timeout=TIMEOUT_S).stdout.split()[0])
        assert abs(again - uptime) < 30     # not the time of the host between the two


def test_two_restores_draw_different_random_numbers_from_the_first_on(base: Path) -> None:
    seen = set()
    for _ in range(3):
        with emu.restore(base) as machine:
            seen.add(machine.run(f"{UUID}; head -c 16 /dev/urandom | od -An -tx1", timeout=TIMEOUT_S).stdout)
    assert len(seen) == 3


def test_open_files_of_a_share_are_read_and_written_on(restored: Machine, shared: Path) -> None:
    holder = restored.run("cat /tmp/holder", timeout=TIMEOUT_S).stdout.strip()
    (shared / "file").write_text("after\n")
    assert restored.run(f"cat /proc/{holder}/fd/3", timeout=TIMEOUT_S).stdout == "after\n"
    restored.run(f"echo more >>/proc/{holder}/fd/4 && sync", check=True, timeout=TIMEOUT_S)
    assert (shared / "log").read_text().endswith("more\n")
    restored.run("echo new >/mnt/data/made", check=True, timeout=TIMEOUT_S)
    assert (shared / "made").read_text() == "new\n"


def test_what_the_host_removed_and_replaced_is_told(base: Path, shared: Path) -> None:
    removed, replaced = shared / "removed", shared / "replaced"
    content = removed.read_text()
    removed.unlink()
    (shared / "other").write_text("the new one\n")
    (shared / "other").rename(replaced)
    try:
        with emu.restore(base) as machine:
            gone = machine.run("cat /mnt/data/removed", timeout=TIMEOUT_S)
            assert gone.status != 0 and "No such file" in gone.stderr
            assert machine.run("cat /mnt/data/replaced", timeout=TIMEOUT_S).stdout == "the new one\n"
    finally:
        removed.write_text(content)


def test_a_share_can_be_another_directory(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("elsewhere\n")
    with emu.restore(base, shares={"data": tmp_path}) as machine:
        assert machine.run("cat /mnt/data/file", timeout=TIMEOUT_S).stdout == "elsewhere\n"
        machine.run("echo here >/mnt/data/new", check=True, timeout=TIMEOUT_S)
    assert (tmp_path / "new").read_text() == "here\n"
    with pytest.raises(EmuError, match="has no share other: it has data"):
        emu.restore(base, shares={"other": tmp_path})


CONFIGURED = "hostname; echo $WHEN; cat /tmp/resumed; touch /run/emu/config/new"


def test_the_configuration_directory_is_read_anew(base: Path, config: Path, tmp_path: Path) -> None:
    (config / "hostname").write_text("second\n")
    (config / "environment").write_text("WHEN=after\n")
    (config / "resume").write_text("echo resumed $WHEN >/tmp/resumed\n")
    with emu.restore(base) as machine:
        told = machine.run(CONFIGURED, timeout=TIMEOUT_S)
        assert (told.stdout, told.status) == ("second\nafter\nresumed after\n", 1)
    (tmp_path / "hostname").write_text("third\n")
    (tmp_path / "environment").write_text("WHEN=elsewhere\n")
    with emu.restore(base, shares={"emu-config": tmp_path}) as machine:
        told = machine.run(CONFIGURED, timeout=TIMEOUT_S)
        assert (told.stdout, told.status) == ("third\nelsewhere\n", 1)
        assert "Read-only file system" in told.stderr       # as it was
    assert not (tmp_path / "new").exists()


def test_a_port_where_nobody_listens_refuses_the_first_connection(base: Path) -> None:
    with emu.restore(base) as machine:
        with pytest.raises(GuestError, match=r"nobody listens|refused|reset"):
            machine.vsock.connect(1234, timeout=TIMEOUT_S)


def test_a_snapshot_of_a_restored_machine_restores(base: Path, tmp_path: Path) -> None:
    for number, incremental in enumerate((False, True)):
        path = tmp_path / f"{number}.snap"
        with emu.restore(base) as machine:
            machine.run("echo kept >/tmp/kept", check=True, timeout=TIMEOUT_S)
            settle(machine)
            machine.snapshot(path, incremental=incremental)
        with emu.restore(path) as machine:
            assert machine.run("cat /tmp/kept", timeout=TIMEOUT_S).stdout == "kept\n"
            assert complaints(machine.run("dmesg", timeout=TIMEOUT_S).stdout) == []
    assert (tmp_path / "1.snap/ram").stat().st_blocks < (tmp_path / "0.snap/ram").stat().st_blocks


def test_commands_run_after_a_snapshot_in_the_middle_of_some(restored: Machine, tmp_path: Path) -> None:
    jobs = [restored.start_job("echo here; exec sleep 1000") for _ in range(3)]
    assert all(b"here" in next(iter(job.stdout)) for job in jobs)
    restored.snapshot(tmp_path / "middle.snap")
    with emu.restore(tmp_path / "middle.snap") as machine:
        # The shells that ran commands are killed, and another one is started when the mounts have been looked at
        assert machine.run("[ -s /mnt/data/file ] && echo here", timeout=TIMEOUT_S).stdout == "here\n"


def test_the_mailbox_and_the_last_result_of_a_hypercall_go_on(base: Path, tmp_path: Path) -> None:
    with emu.restore(base, hypercalls=[pv_double]) as machine:
        put = f"printf %s one.two. | dd {TO_MSR} count=2 seek={PV_MAILBOX}"
        double = f"printf '\\25\\0\\0\\0\\0\\0\\0\\0' | dd {TO_MSR} count=1 seek={FIRST_USER}"
        machine.run(f"modprobe msr; {put}; {double}", check=True, timeout=TIMEOUT_S)
        machine.snapshot(tmp_path / "called.snap")
    with pytest.raises(EmuError, match="the snapshot's guest knows the hypercall PV_DOUBLE: give its module"):
        emu.restore(tmp_path / "called.snap")
    with emu.restore(tmp_path / "called.snap", hypercalls=[pv_double]) as machine:
        take = f"dd {FROM_MSR} count=2 skip={PV_MAILBOX}; dd {FROM_MSR} count=1 skip={FIRST_USER}"
        assert machine.run(take, check=True, timeout=TIMEOUT_S).stdout == "one.two.*\0\0\0\0\0\0\0"


def test_a_snapshot_is_only_read(base: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in base.iterdir()}
    with emu.restore(base) as machine:
        machine.run("dd if=/dev/zero of=/tmp/x bs=1M count=20 2>/dev/null", check=True, timeout=TIMEOUT_S)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in base.iterdir()} == before
    with Snapshot.open(base) as snapshot:
        snapshot.verify()


def test_a_reset_after_a_restore_ends_the_machine(base: Path) -> None:
    with emu.restore(base) as machine:
        machine.start_job("reboot -f")
        assert machine.run_to_end(TIMEOUT_S) is emu.StopReason.RESET
