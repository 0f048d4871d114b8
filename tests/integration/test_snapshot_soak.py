"""Many restores of one guest that works all the while: hashes, leaks, sockets, and a long time switched off."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.clock import GuestClock
from emu.machine import Machine
from emu.memory import MIB
from tests.integration.programs import VSOCK_SERVE

pytestmark = pytest.mark.integration

TIMEOUT_S = 60.0
ECHO, HELD = 100, 101               # ports
LONGEST_S = 0.05                    # between two moments: several rounds of the loop
AGAIN = 10                          # every so many is a snapshot of a restored machine
AWAY_NS = 75 * 3600 * 10**9
SLEEP_S = 1
MOST_RSS, MOST_MAPPINGS = 32 * MIB, 32      # more than before: less than two restored machines that leak

full_size = (pytest.mark.soak, pytest.mark.timeout(3600))
moments = pytest.mark.parametrize("count", [5, pytest.param(200, marks=full_size)])
restores = pytest.mark.parametrize("count", [20, pytest.param(1000, marks=full_size)])
connections = pytest.mark.parametrize("count", [10, pytest.param(1000, marks=full_size)])

KNOWN = "".join(f"{number}\n" for number in range(5000)).encode()

# Files, those of a share too, hashes, forks and sleeps; what is read is whole, since a rename puts it there
LOOP = f"""
n=0
while :; do
    n=$((n + 1)); file=/tmp/work.$((n % 4))
    cat /tmp/known >$file
    (
        [ "$(sha256sum <$file)" = "{hashlib.sha256(KNOWN).hexdigest()}  -" ] || echo "sha256 $n" >>/tmp/wrong
    ) &
    [ "$(md5sum <$file)" = "{hashlib.md5(KNOWN).hexdigest()}  -" ] || echo "md5 $n" >>/tmp/wrong
    [ "$(md5sum </mnt/data/known)" = "{hashlib.md5(KNOWN).hexdigest()}  -" ] || echo "9p $n" >>/tmp/wrong
    wait
    echo $n >/tmp/count.new; mv /tmp/count.new /tmp/count
    sleep 0.01
done
"""
HOLD = "echo here; cat >/dev/null 2>&1; echo $? >/tmp/held.new; mv /tmp/held.new /tmp/held\n"
SLEEP = f"cat /proc/uptime >/tmp/from; sleep {SLEEP_S}; cat /proc/uptime >/tmp/to.new; mv /tmp/to.new /tmp/to\n"


@dataclass(frozen=True)
class Base:
    """A snapshot, and the guest's uptime in seconds just before it."""

    path: Path
    uptime: float


def put(machine: Machine, name: str, content: bytes) -> None:
    machine.copy_in(content, f"/tmp/{name}", timeout=TIMEOUT_S)


def say(machine: Machine, command: str) -> str:
    """What a command says; it has to succeed."""
    return machine.run(command, timeout=TIMEOUT_S, check=True).stdout


def detach(machine: Machine, script: str) -> None:
    """Run a script on: a restore kills the commands that somebody waited for."""
    say(machine, f"(setsid sh /tmp/{script} </dev/null >/dev/null 2>&1 &)")


def appears(machine: Machine, name: str) -> str:
    """What is in a file of the guest's, once it is there."""
    wait = f"n=0; until [ -s /tmp/{name} ] || [ $n = 500 ]; do n=$((n + 1)); sleep 0.02; done"
    return say(machine, f"{wait}; cat /tmp/{name}")


def uptime(machine: Machine) -> float:
    return float(say(machine, "cat /proc/uptime").split()[0])


def check_work(machine: Machine) -> None:
    """The loop goes on, has found every hash right, and the kernel has nothing to complain of."""
    # Two rounds more: the one that was under way may have been past its hashes
    said = say(machine, """
        first=$(cat /tmp/count); n=0
        until [ $(cat /tmp/count) -ge $((first + 2)) ] || [ $n = 500 ]; do n=$((n + 1)); sleep 0.02; done
        [ $(cat /tmp/count) -ge $((first + 2)) ] || echo the loop stands still
        [ ! -e /tmp/wrong ] || cat /tmp/wrong
    """)
    assert said == ""
    assert complaints(say(machine, "dmesg")) == []


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose guest works, and listens."""
    shared = tmp_path_factory.mktemp("shared")
    (shared / "known").write_bytes(KNOWN)
    with emu.boot(
        kernel="generic", memory=128 * MIB, append=LOUD_SETTINGS, vsock=True, shares={"data": shared}
    ) as machine:
        machine.wait_ready()
        VSOCK_SERVE.install(machine, "/tmp/serve")
        put(machine, "known", KNOWN)
        for name, script in ("loop", LOOP), ("hold", HOLD), ("sleep", SLEEP):
            put(machine, name, script.encode())
        say(machine, f"/tmp/serve {ECHO} /bin/cat </dev/null >/dev/null 2>&1")
        say(machine, f"/tmp/serve {HELD} /bin/sh /tmp/hold </dev/null >/dev/null 2>&1")
        detach(machine, "loop")
        appears(machine, "count")
        yield machine


@pytest.fixture(scope="module")
def base(working: Machine, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A snapshot with a connection open and a sleep under way."""
    path = tmp_path_factory.mktemp("snapshots") / "base.snap"
    with working.vsock.connect(HELD, TIMEOUT_S) as stream:
        assert stream.recv(5, TIMEOUT_S) == b"here\n"
        before = uptime(working)
        detach(working, "sleep")
        appears(working, "from")
        working.snapshot(path)
    return Base(path, before)


def checksums(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()}


def held() -> tuple[int, int, int]:
    """Descriptors, mappings, and bytes of memory of this process."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(os.listdir("/proc/self/fd")), len(Path("/proc/self/maps").read_text().splitlines()), resident


@moments
def test_a_guest_at_work_goes_on_from_any_moment(working: Machine, tmp_path: Path, count: int) -> None:
    chance = random.Random(count)
    first, second = tmp_path / "first.snap", tmp_path / "second.snap"
    for number in range(count):
        working.drive(lambda: False, chance.uniform(0, LONGEST_S))
        working.snapshot(first)
        with emu.restore(first) as machine:
            if number % AGAIN != AGAIN // 2 - 1:
                check_work(machine)
                continue
            machine.drive(lambda: False, chance.uniform(0, LONGEST_S))
            machine.snapshot(second)
        with emu.restore(second) as machine:
            check_work(machine)
    check_work(working)


@restores
def test_restores_leave_nothing_behind(base: Base, count: int) -> None:
    files = checksums(base.path)
    before = held()
    for number in range(count + 3):
        if number == 3:                     # caches and arenas have their size
            before = held()
        with emu.restore(base.path) as machine:
            say(machine, "true")
    after = held()
    print(f"{count} restores: descriptors, mappings, bytes before and after: {before}, {after}")
    assert after[0] == before[0]
    assert after[1] <= before[1] + MOST_MAPPINGS
    assert after[2] <= before[2] + MOST_RSS
    assert checksums(base.path) == files


@connections
def test_the_first_connection_after_a_restore_succeeds(base: Base, count: int) -> None:
    first_s = []
    for number in range(count):
        started = time.monotonic()
        with emu.restore(base.path) as machine, machine.vsock.connect(ECHO, TIMEOUT_S) as stream:
            stream.sendall(b"restore %d\n" % number, TIMEOUT_S)
            assert stream.recv(100, TIMEOUT_S) == b"restore %d\n" % number
            first_s.append(time.monotonic() - started)
    print(f"{count} first answers: median {median(first_s) * 1e3:.0f} ms, longest {max(first_s) * 1e3:.0f} ms")


def test_a_connection_open_at_the_snapshot_is_reset(base: Base) -> None:
    with emu.restore(base.path) as machine:
        assert appears(machine, "held").strip().isdigit()


def test_75_hours_later(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuestClock, "wall_ns", lambda _clock: time.time_ns() + AWAY_NS)
    with emu.restore(base.path) as machine:
        assert base.uptime <= uptime(machine) < base.uptime + TIMEOUT_S
        off = []
        for _ in range(5):
            before = time.time()
            numbers = [int(line.split(":")[1]) for line in say(machine, "adjtimex | grep tv_").splitlines()]
            after = time.time()
            guest = numbers[0] + numbers[1] / 1e6 - AWAY_NS / 1e9
            off.append(max(before - guest, guest - after, 0.0))
        print(f"75 hours later: the clock is {min(off) * 1e3:.1f} ms off")
        assert min(off) < 0.05
        ended = float(appears(machine, "to").split()[0])
        began = float(say(machine, "cat /tmp/from").split()[0])
        assert SLEEP_S <= ended - began + 0.02 < TIMEOUT_S      # uptime has hundredths
        check_work(machine)
