"""Time as the guest sees it: right, and read without leaving the program."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.console import Console
from emu.machine import Machine
from emu.stats import Kind

pytestmark = pytest.mark.integration

READINGS = 20_000
TICK_S = 0.01                           # of /proc/uptime


def counts(machine: Machine) -> tuple[int, int]:
    """System calls and MSR exits so far."""
    stats = machine.stats()
    return stats.count(Kind.NATIVE, "syscall"), stats.count(Kind.RDMSR) + stats.count(Kind.WRMSR)


def cost_of_readings(machine: Machine) -> tuple[int, int]:
    """System calls and MSR exits of READINGS readings of the clock by one program."""
    script = "BEGIN {{ for (i = 0; i < {}; i++) if (systime() < 1500000000) exit 1 }}"
    difference = []
    for readings in (1, READINGS):
        before = counts(machine)
        machine.run(["awk", script.format(readings)], check=True, timeout=30)
        difference.append([after - start for start, after in zip(before, counts(machine), strict=True)])
    return tuple(many - one for one, many in zip(*difference, strict=True))     # type: ignore[return-value]


def test_programs_read_the_clock_with_neither_exit_nor_system_call(machine: Machine) -> None:
    syscalls, msrs = cost_of_readings(machine)
    assert syscalls < 100
    assert msrs < READINGS // 10            # the timer's: each sets the next


def test_without_kvmclock_each_reading_is_a_system_call() -> None:
    """That the test above can tell the difference."""
    with emu.boot(kernel="cloud", append="no-kvmclock notsc") as machine:
        machine.wait_prompt()
        question = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"
        assert machine.run(question, timeout=20).stdout == "acpi_pm\n"
        assert cost_of_readings(machine)[0] > 0.99 * READINGS


def test_wall_clock_is_the_host_s(machine: Machine) -> None:
    before = time.time()
    guest = int(machine.run("date +%s", timeout=20).stdout)
    assert before - 2 <= guest <= time.time() + 2
    hardware = "cat /sys/class/rtc/rtc0/since_epoch"
    assert before - 2 <= int(machine.run(hardware, timeout=20).stdout) <= time.time() + 2


def test_sleeping_takes_as_long_as_it_should(machine: Machine) -> None:
    console = machine.console
    machine.run("true", timeout=20)
    console.sendline("stty -echo; for i in 1 2 3; do echo start; sleep 1; echo stop; done; stty echo; echo all")
    slept = []
    for _ in range(3):
        console.expect("start\r\n")
        started = time.monotonic()
        console.expect("stop\r\n")
        slept.append(time.monotonic() - started)
    console.expect("all\r\n")
    assert min(slept) > 0.98        # the host sees `start` a little late
    assert sorted(slept)[1] < 1.1


@pytest.fixture
def uptime(machine: Machine) -> Iterator[Console]:
    """The console, where each line typed is answered by the guest's uptime."""
    machine.run("true", timeout=20)
    console = machine.console
    answer = "read -r up idle </proc/uptime; echo up $up"
    console.sendline(f"stty -echo; echo ready; while read -r line && [ $line ]; do {answer}; done")
    console.expect("ready\r\n")
    yield console
    console.sendline()
    console.sendline("stty echo; echo left")
    console.expect("left\r\n")


def lead(console: Console) -> float:
    """By how many seconds the guest's clock is ahead of the host's, plus a constant: of ten samples the quickest."""
    samples = []
    for _ in range(10):
        started = time.monotonic()
        console.sendline("x")
        console.expect(r"up (\d+\.\d\d)\r\n")
        ended = time.monotonic()
        assert console.match is not None and not isinstance(console.match, type)
        samples.append((ended - started, float(console.match[1]) + TICK_S / 2 - (started + ended) / 2))
    return min(samples)[1]


def test_guest_and_host_agree_on_three_seconds(machine: Machine, uptime: Console) -> None:
    before = lead(uptime)
    assert not machine.drive(lambda: False, 3)
    assert abs(lead(uptime) - before) < 0.02


def test_clock_goes_on_while_the_machine_does_not_run(machine: Machine, uptime: Console) -> None:
    before = lead(uptime)
    time.sleep(1.5)                     # the host's program is busy elsewhere
    assert abs(lead(uptime) - before) < 0.02


def test_kernel_does_not_take_a_pause_of_the_machine_for_a_lockup() -> None:
    """Its watchdogs, set to their shortest, see a clock that has gone on without the CPU."""
    with emu.boot(kernel="cloud", append=LOUD_SETTINGS) as machine:
        machine.wait_prompt()
        machine.run("echo 1 >/proc/sys/kernel/watchdog_thresh", check=True, timeout=20)
        machine.run("echo 3 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout", check=True, timeout=20)
        machine.console.sendline("cat /dev/zero >/dev/null")
        machine.drive(lambda: False, 0.5)
        time.sleep(4)
        machine.drive(lambda: False, 0.5)
        machine.console.sendcontrol("c")
        assert complaints(machine.run("dmesg", timeout=20).stdout) == []
