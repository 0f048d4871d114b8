"""What the kernel does with its own code: warnings by UD2, breakpoints by INT3, calls patched in by the thousand."""

from __future__ import annotations

import re

import pytest

from bench.trouble import complaints
from emu.machine import Machine
from tests.integration.programs import CONTROL_BYTES, WARNER

pytestmark = pytest.mark.integration

ENOBUFS = 105


@pytest.fixture
def tracing(machine: Machine) -> Machine:
    """The machine with /sys/kernel/tracing."""
    mount = "[ -e /sys/kernel/tracing/trace ] || mount -t tracefs tracefs /sys/kernel/tracing"
    machine.run(mount, check=True, timeout=60)
    return machine


def test_warning_has_its_place_and_the_kernel_goes_on_behind_it(machine: Machine) -> None:
    assert complaints(machine.run("dmesg -c", timeout=60).stdout) == []
    WARNER.install(machine, "/tmp/warner")
    script = f"echo {2 * CONTROL_BYTES} >/proc/sys/net/core/optmem_max; /tmp/warner"
    assert machine.run(script, timeout=60).status == ENOBUFS
    messages = machine.run("dmesg -c", timeout=60).stdout
    warning = re.search(r"WARNING: CPU: 0 PID: \d+ at mm/page_alloc\.c:\d+ (\S+)", messages)
    assert warning is not None, messages
    assert f"RIP: 0010:{warning[1]}\n" in messages
    assert re.search(r"Code: .* <0f> 0b ", messages), messages      # the UD2 that RIP is at
    assert not re.search(r"Oops|invalid opcode", messages), messages
    assert machine.run("echo on", timeout=60).stdout == "on\n"


def test_breakpoints_in_the_kernel_are_hit_and_change_nothing(tracing: Machine) -> None:
    """A kprobe in the midst of a function is an INT3 there, and its instruction emulated or run elsewhere."""
    script = """
        cd /sys/kernel/tracing
        for offset in $(seq 5 40); do
            echo "p:tests/at$offset do_sys_openat2+$offset" >>kprobe_events && echo $offset
        done 2>/dev/null >/tmp/offsets
        echo 1 >events/tests/enable
        cat /etc/alpine-release
        echo 0 >events/tests/enable
        cat kprobe_profile
        echo >kprobe_events
        wc -l </tmp/offsets
    """
    release, *profile, offsets = tracing.run(script, check=True, timeout=60).stdout.splitlines()
    hits = {line.split()[0]: int(line.split()[1]) for line in profile}
    assert re.fullmatch(r"\d+\.\d+\.\d+", release)
    assert len(hits) == int(offsets) >= 5
    first, *rest = hits.values()
    assert first >= 2 and rest == [first] * len(rest)


def test_function_tracer_rewrites_every_function_and_back(tracing: Machine) -> None:
    """Some 40,000 calls are patched in by stores through other pages than the code runs from, and out again."""
    script = """
        cd /sys/kernel/tracing
        echo function >current_tracer
        cat /etc/alpine-release
        echo 0 >tracing_on
        grep -c do_sys_openat2 trace
        echo nop >current_tracer
        echo 1 >tracing_on
        sleep 0.1
        grep -c do_sys_openat2 trace
        wc -l <enabled_functions
    """
    release, traced, after, enabled = tracing.run(script, timeout=60).stdout.splitlines()
    assert re.fullmatch(r"\d+\.\d+\.\d+", release)
    assert int(traced) >= 1
    assert (after, enabled) == ("0", "0")
