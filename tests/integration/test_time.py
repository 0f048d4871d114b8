"""Time as the guest sees it: right, and read without leaving the program."""

from __future__ import annotations

import math
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
PRECISION_S = 0.015                     # of a comparison of clocks, which a busy host may not allow


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
        machine.run(["awk", script.format(readings)], check=True, timeout=60)
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
        assert machine.run(question, timeout=60).stdout == "acpi_pm\n"
        assert cost_of_readings(machine)[0] > 0.99 * READINGS


def test_wall_clock_is_the_host_s(machine: Machine) -> None:
    before = time.time()
    guest = int(machine.run("date +%s", timeout=60).stdout)
    assert before - 2 <= guest <= time.time() + 2
    hardware = "cat /sys/class/rtc/rtc0/since_epoch"
    assert before - 2 <= int(machine.run(hardware, timeout=60).stdout) <= time.time() + 2


def test_sleeping_takes_as_long_as_it_should(machine: Machine) -> None:
    console = machine.console
    machine.run("true", timeout=60)
    console.sendline("stty -echo; echo ready; while read -r line && [ $line ]; do sleep 1; echo slept; done")
    console.expect("ready\r\n")
    took = []
    while len(took) < 3 or (min(took) > 1.1 and len(took) < 20):        # a busy host can only add to it
        started = time.monotonic()
        console.sendline("x")
        console.expect("slept\r\n")
        took.append(time.monotonic() - started)
    console.sendline()
    console.sendline("stty echo; echo all")
    console.expect("all\r\n")
    assert 1 <= min(took) < 1.1


@pytest.fixture
def uptime(machine: Machine) -> Iterator[Console]:
    """The console, where each line typed is answered by the guest's uptime."""
    machine.run("true", timeout=60)
    console = machine.console
    answer = "read -r up idle </proc/uptime; echo up $up"
    console.sendline(f"stty -echo; echo ready; while read -r line && [ $line ]; do {answer}; done")
    console.expect("ready\r\n")
    yield console
    console.sendline()
    console.sendline("stty echo; echo left")
    console.expect("left\r\n")


def lead(console: Console) -> tuple[float, float]:
    """By how many seconds the guest's clock is ahead of the host's, plus a constant: at least and at most.

    The guest has read its clock some time between question and answer; of many answers the quick ones tell most.
    """
    least, most = -math.inf, math.inf
    for number in range(200):
        if number >= 10 and most - least < PRECISION_S:
            break
        started = time.monotonic()
        console.sendline("x")
        console.expect(r"up (\d+\.\d\d)\r\n")
        ended = time.monotonic()
        assert console.match is not None and not isinstance(console.match, type)
        shown = float(console.match[1])
        least, most = max(least, shown - ended), min(most, shown + TICK_S - started)
    return least, most


def drift(before: tuple[float, float], after: tuple[float, float]) -> float:
    """The least by which a lead has changed, in seconds."""
    return max(after[0] - before[1], before[0] - after[1])


def test_guest_and_host_agree_on_three_seconds(machine: Machine, uptime: Console) -> None:
    before = lead(uptime)
    assert not machine.drive(lambda: False, 3)
    assert drift(before, lead(uptime)) < 0.01


def test_clock_goes_on_while_the_machine_does_not_run(machine: Machine, uptime: Console) -> None:
    before = lead(uptime)
    time.sleep(1.5)                     # the host's program is busy elsewhere
    assert drift(before, lead(uptime)) < 0.01


def test_kernel_does_not_take_a_pause_of_the_machine_for_a_lockup() -> None:
    """Its watchdogs, set to their shortest, see a clock that has gone on without the CPU."""
    with emu.boot(kernel="cloud", append=LOUD_SETTINGS) as machine:
        machine.wait_prompt()
        machine.run("echo 1 >/proc/sys/kernel/watchdog_thresh", check=True, timeout=60)
        machine.run("echo 3 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout", check=True, timeout=60)
        machine.console.sendline("cat /dev/zero >/dev/null")
        machine.drive(lambda: False, 0.5)
        time.sleep(4)
        machine.drive(lambda: False, 0.5)
        machine.console.sendcontrol("c")
        assert complaints(machine.run("dmesg", timeout=60).stdout) == []
