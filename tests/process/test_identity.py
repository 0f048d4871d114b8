"""Clones of one machine: each another machine from its first command on, and all of them in the present."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.memory import MIB
from tests.integration.programs import GETRANDOM

pytestmark = pytest.mark.integration

TIMEOUT_S = 60.0
AT_ONCE = 4                     # threads that ask clones
MOST_OFF_S = 0.05
ATTEMPTS = 20                   # at the clock, of which the best counts: a busy host delays any of them

counts = pytest.mark.parametrize(
    "count", [5, pytest.param(100, marks=(pytest.mark.soak, pytest.mark.timeout(900)))]
)

# Drawn in the first command; the kernel's own generator first, before any program has had a word with it
IDENTITY = "cat /proc/sys/kernel/random/uuid; cat /etc/machine-id; /root/getrandom | od -An -tx1; adjtimex | grep tv_"


@dataclass(frozen=True)
class Identity:
    """What a clone says of itself, and by how many seconds its clock was wrong at least."""

    uuid: str
    machine_id: str
    random: str
    off_s: float


@pytest.fixture(scope="module")
def template() -> Iterator[emu.MachineProcess]:
    with emu.spawn(kernel="generic", memory=128 * MIB, append=LOUD_SETTINGS) as machine:
        machine.wait_ready()
        machine.copy_in(GETRANDOM.elf, "/root/getrandom", timeout=TIMEOUT_S)
        machine.run("chmod 755 /root/getrandom", check=True, timeout=TIMEOUT_S)
        yield machine
        assert complaints(machine.run("dmesg", timeout=TIMEOUT_S).stdout) == []


def identity(machine: emu.MachineProcess) -> Identity:
    before = time.time()
    uuid, machine_id, random, *clock = machine.run(IDENTITY, check=True, timeout=TIMEOUT_S).stdout.splitlines()
    return Identity(uuid, machine_id, random, _off_s(clock, before))


def _off_s(clock: list[str], before: float) -> float:
    """How far outside of what the host's clock showed meanwhile; 0 is inside."""
    after = time.time()
    seconds, micros = (int(line.split(":")[1]) for line in clock)
    return max(before - (seconds + micros / 1e6), seconds + micros / 1e6 - after, 0.0)


def least_off_s(machine: emu.MachineProcess, first: float) -> float:
    for _ in range(ATTEMPTS):
        if first < MOST_OFF_S:
            break
        before = time.time()
        clock = machine.run("adjtimex | grep tv_", check=True, timeout=TIMEOUT_S).stdout.splitlines()
        first = min(first, _off_s(clock, before))
    return first


@counts
def test_clones_have_identities_of_their_own_and_the_right_time(template: emu.MachineProcess, count: int) -> None:
    clones = template.fork(count)
    try:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            own = list(threads.map(identity, clones))
        own.append(identity(template))
        for kind in "uuid", "machine_id", "random":
            assert len({getattr(one, kind) for one in own}) == count + 1, kind
        assert all(len(one.machine_id) == 32 and len(one.random.split()) == 16 for one in own)
        off = [least_off_s(clone, one.off_s) for clone, one in zip(clones, own, strict=False)]
        assert max(off) < MOST_OFF_S
    finally:
        for clone in clones:
            clone.close()


def test_a_clone_s_clone_is_another_one_again(template: emu.MachineProcess) -> None:
    with template.fork() as clone:
        clone.run("true", check=True, timeout=TIMEOUT_S)
        with clone.fork() as first, clone.fork() as second:
            own = [identity(machine) for machine in (clone, first, second)]
    assert len({one.uuid for one in own}) == len({one.machine_id for one in own}) == 3
    assert len({one.random for one in own}) == 3


def test_a_clone_s_time_is_right_though_its_parent_was_forked_long_after_it_was_idle(
    template: emu.MachineProcess,
) -> None:
    """Guest time has gone on between two forks, and goes on in both clones from where it was."""
    up = [float(template.run("cat /proc/uptime", check=True, timeout=TIMEOUT_S).stdout.split()[0])]
    for _ in range(2):
        with template.fork() as clone:
            up.append(float(clone.run("cat /proc/uptime", check=True, timeout=TIMEOUT_S).stdout.split()[0]))
            assert complaints(clone.run("dmesg", timeout=TIMEOUT_S).stdout) == []
    assert up == sorted(up)


def test_what_one_clone_does_no_other_one_sees(template: emu.MachineProcess) -> None:
    with template.fork() as first, template.fork() as second:
        first.run("echo secret >/root/file; echo other >/proc/sys/kernel/hostname", check=True, timeout=TIMEOUT_S)
        for machine in second, template:
            assert machine.run("cat /root/file", timeout=TIMEOUT_S).status != 0
            assert machine.run("cat /proc/sys/kernel/hostname", timeout=TIMEOUT_S).stdout != "other\n"
