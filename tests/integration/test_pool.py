"""A pool of real machines: whatever a job does, the next one finds a machine that nobody has used."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import emu
from emu.errors import EmuError, GuestError, GuestTimeout, MachineDied, MemoryLimit, OutputLimit
from tests.integration.processes import PATIENCE_S, descendants, seconds_until_gone

pytestmark = pytest.mark.integration

MIB = 1 << 20
JOB_S = 60.0                            # for what takes milliseconds
BOMB_S = 3.0                            # for what would never end

# Files, programs, mounts and settings of a fresh machine; not what has to differ, such as its identity, or may: where
# the agent is with the shell for the next command
LOOK = """
find / -xdev | sort | md5sum
md5sum /etc/passwd /bin/busybox
find /tmp /dev/shm /root /home /var/tmp -type f
all=$(ps -o comm,args)
echo "$all" | grep -v '\\[' | cut -d' ' -f1 | sort -u | grep -v -x -e setsid -e dd
cut -d' ' -f2-4 /proc/mounts | md5sum
cat /proc/sys/kernel/hostname /proc/sys/kernel/pid_max
"""
# What is typed, thousands of times, in files and in a process that goes on
DOUBLE = """
cat >/tmp/one
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do cat /tmp/one /tmp/one >/tmp/two; mv /tmp/two /tmp/one; done
(setsid sh -c 'x=$(cat /tmp/one); sleep 1000' &) </dev/null >/dev/null 2>&1
"""
BOMB = "a fork bomb"
VANDALS: dict[str, tuple[str, tuple[type[EmuError], ...]]] = {
    "files": ("rm -rf /etc /root /home /var; echo evil >/etc; mv /bin /nib; touch /tmp/left", ()),
    "settings": ("hostname evil; echo 400 >/proc/sys/kernel/pid_max; mount -t tmpfs x /mnt; umount -l /sys", ()),
    "processes": ("(setsid sleep 1000 &) >/dev/null 2>&1; setsid sleep 1000 </dev/null >/dev/null 2>&1 &", ()),
    "the agent": ("kill -9 -1; kill -9 1; sleep 1000", (GuestError,)),
    "a panic": ("sync; echo c >/proc/sysrq-trigger; sleep 1000", (GuestError,)),
    "power off": ("echo o >/proc/sysrq-trigger; sleep 1000", (GuestError,)),
    BOMB: ("bomb() { bomb | bomb & bomb; }; bomb", (GuestError, MachineDied)),
    "all of the disk": ("cat /dev/zero >/fill; cat /dev/zero >/tmp/fill; sleep 1000", (GuestError,)),
    "output": ("yes", (OutputLimit,)),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[emu.Pool]:
    with emu.Pool("alpine", size=1, timeout=JOB_S, output_limit=MIB) as pool:
        yield pool


@pytest.fixture(scope="module")
def fresh(pool: emu.Pool) -> str:
    """What a machine looks like that nobody has used."""
    return pool.run(LOOK, check=True).stdout


@pytest.mark.parametrize("name", VANDALS)
def test_a_vandal_leaves_no_trace(pool: emu.Pool, fresh: str, name: str) -> None:
    command, errors = VANDALS[name]
    endless = GuestError in errors or MachineDied in errors
    try:
        pool.run(command, timeout=BOMB_S if endless else None)
        assert not errors or name == BOMB, "it should have failed"      # a bomb's shell may find that it cannot fork
    except errors as error:
        assert "\n" not in str(error)
    assert pool.run(LOOK, check=True).stdout == fresh


def test_a_secret_in_memory_is_not_in_the_next_machine(pool: emu.Pool, tmp_path: Path) -> None:
    secret = secrets.token_hex(16)

    def remains(machine: emu.MachineProcess, name: str) -> bool:
        machine.snapshot(tmp_path / name)
        return secret.encode() in (tmp_path / name / "ram").read_bytes()

    def spread(machine: emu.MachineProcess) -> bool:
        machine.run(DOUBLE, input=50 * secret.encode(), check=True)
        return remains(machine, "spread")

    assert pool.submit(spread).result()
    assert not pool.submit(remains, "next").result()


def test_a_changed_clock_is_not_the_next_ones(pool: emu.Pool) -> None:
    assert pool.run("date -s @1000000000 >/dev/null; date +%s", check=True).stdout.startswith("10000000")
    before = time.time()
    assert before - 2 < int(pool.run("date +%s", check=True).stdout) < time.time() + 2


def test_each_machine_has_other_random_numbers(pool: emu.Pool) -> None:
    read = "cat /proc/sys/kernel/random/uuid /etc/machine-id; head -c 16 /dev/urandom | md5sum"
    rows = [result.stdout.split("\n") for result in pool.map([read] * 5)]
    for column in zip(*(row[:3] for row in rows), strict=True):
        assert len(set(column)) == 5


def test_limits(pool: emu.Pool) -> None:
    with pytest.raises(GuestTimeout):
        pool.run("sleep 1000", timeout=0.2)
    with emu.Pool("alpine", size=1, memory_limit=32 * MIB, timeout=JOB_S) as limited:
        with pytest.raises(MemoryLimit):
            limited.run("head -c 45000000 /dev/zero >/tmp/x; sleep 1000")
        assert limited.run("true").status == 0


def test_a_clone_that_is_killed(pool: emu.Pool) -> None:
    with pytest.raises(MachineDied):
        with pool.machine() as machine:
            os.kill(machine.pid, signal.SIGKILL)
            machine.run("true")
    assert pool.run("true").status == 0


def test_a_zygote_that_is_killed_takes_its_clones_along_and_is_replaced(pool: emu.Pool) -> None:
    with pytest.raises(MachineDied):
        with pool.machine() as machine:
            zygote = pool._stock._zygote
            assert zygote is not None
            family = descendants(zygote.pid)
            assert machine.pid in family
            os.kill(zygote.pid, signal.SIGKILL)
            seconds_until_gone({zygote.pid, *family})
            machine.run("true")
    deadline = time.monotonic() + PATIENCE_S
    while not pool.metrics().restarts:      # until then a clone that has just been made may be dying
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pool.run("echo again").stdout == "again\n"
    assert pool.metrics().restarts == 1


def test_asyncio(pool: emu.Pool) -> None:
    async def use() -> list[str]:
        results = await asyncio.gather(*(pool.arun(f"echo {n}") for n in range(4)))
        return [result.stdout for result in results]

    assert asyncio.run(use()) == ["0\n", "1\n", "2\n", "3\n"]


def emu_map(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "emu", "map", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_map_on_the_command_line(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.txt"
    jobs.write_bytes(b"echo hello\n\nexit 3\nprintf \xff\nyes\n")
    with emu_map("-j2", "--ordered", "--output-limit", "100K", str(jobs)) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    first, second, third, fourth = map(json.loads, output.splitlines())
    assert first == {"job": 0, "command": "echo hello", "status": 0, "stdout": "hello\n", "stderr": ""}
    assert (second["status"], third["stdout_base64"], fourth["error"]) == (3, "/w==", "OutputLimit")
    assert (process.returncode, errors) == (1, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_map_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with emu_map("-j2", "--inputs", "-", "--", "sleep", "{}") as process:
        assert process.stdin and process.stderr
        process.stdin.write("1000\n1000\n")
        process.stdin.flush()               # and it may have more to come
        deadline = time.monotonic() + PATIENCE_S
        while len(family := descendants(process.pid)) < 3:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        # Ctrl-C goes to all that a terminal has in the foreground
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        process.wait(PATIENCE_S)
        seconds_until_gone(family)
        errors = process.stderr.read()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert errors == "" and os.listdir(tmp_path) == []
