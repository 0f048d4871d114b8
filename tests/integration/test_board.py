"""What an unmodified kernel makes of the board: with its tables, without them, at rest, off and on again."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.fetch import DEBIAN_KERNELS
from emu.loader.linux import BOARD_SETTINGS
from emu.machine import Machine
from emu.run_loop import StopReason

pytestmark = pytest.mark.integration

BOOT_S = 60.0
RUN_S = 60.0
REST_S = 10.0


@pytest.fixture(scope="module", params=DEBIAN_KERNELS)
def as_shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A kernel with nothing on its command line but the console, at Alpine's shell, a directory shared."""
    shares = {"data": tmp_path_factory.mktemp("data")} if request.param == "generic" else {}
    with emu.boot(kernel=request.param, as_shipped=True, shares=shares) as machine:
        machine.wait_prompt(BOOT_S)
        yield machine


def interrupts(machine: Machine) -> dict[str, tuple[int, str]]:
    """/proc/interrupts: by name, how often, and the rest of the line."""
    rows = [line.split(maxsplit=2) for line in machine.run("cat /proc/interrupts", timeout=RUN_S).stdout.splitlines()]
    return {row[0].rstrip(":"): (int(row[1]), row[2]) for row in rows if len(row) == 3 and row[1].isdigit()}


def rows_of_messages(rows: dict[str, tuple[int, str]]) -> dict[str, int]:
    """By virtio device, how many message signalled interrupts of its queues came."""
    counts: dict[str, int] = {}
    for count, text in rows.values():
        if found := re.search(r"PCI-MSI.* (virtio\d+)-(?!config)", text):
            counts[found[1]] = counts.get(found[1], 0) + count
    return counts


def test_the_default_command_line_needs_nothing_but_a_console(as_shipped: Machine) -> None:
    assert BOARD_SETTINGS == "console=ttyS0 panic=-1"
    assert as_shipped.run("cat /proc/cmdline", timeout=RUN_S).stdout.strip() == BOARD_SETTINGS


def test_kernel_messages_hold_no_complaint_and_no_warning(as_shipped: Machine) -> None:
    messages = as_shipped.run("dmesg", timeout=RUN_S).stdout
    assert "Run /init as init process" in messages
    assert complaints(messages) == []
    assert not re.search(r"ACPI (BIOS )?(Error|Warning)|APIC error|MP-BIOS bug|IO-APIC.*(fail|not)", messages)


def test_apics_deliver_timer_serial_line_and_messages(as_shipped: Machine) -> None:
    rows = interrupts(as_shipped)
    assert rows["LOC"][0] > 10
    assert rows["4"][0] > 10 and re.search(r"IO-APIC +4-edge +ttyS0", rows["4"][1])
    assert re.search(r"IO-APIC +9-fasteoi +acpi", rows["9"][1])
    assert rows_of_messages(rows)["virtio0"] > 0             # entropy
    assert "ERR" not in rows or rows["ERR"][0] == 0


def test_entropy_comes_from_the_host_by_default(as_shipped: Machine) -> None:
    assert as_shipped.run("cat /sys/class/misc/hw_random/rng_current", timeout=RUN_S).stdout == "virtio_rng.0\n"
    assert "crng init done" in as_shipped.run("dmesg", timeout=RUN_S).stdout


def test_a_guest_at_rest_wakes_seldom(as_shipped: Machine) -> None:
    """The figures themselves are a benchmark's; here it is an order of magnitude: a ticking guest has 100 to 250."""
    as_shipped.drive(lambda: False, 2)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw, time.process_time()
    as_shipped.drive(lambda: False, REST_S)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before) / REST_S < 40
    assert (time.process_time() - started) / REST_S < 0.1


# Without a local APIC, Linux warns when a driver asks for MSI
@pytest.mark.parametrize(
    "settings", ["acpi=off", "noapic", "acpi=off nolapic noapic pci=nomsi", "nox2apic", "pci=nomsi"]
)
def test_older_ways_work_too(settings: str, tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("over INTx or a message\n")
    with emu.boot(kernel="generic", shares={"data": tmp_path}, append=f"{LOUD_SETTINGS} {settings}") as machine:
        machine.wait_prompt(BOOT_S)
        assert machine.run("cat /mnt/data/hello", timeout=RUN_S).stdout == "over INTx or a message\n"
        assert complaints(machine.run("dmesg", timeout=RUN_S).stdout) == []
        rows = interrupts(machine)
        legacy = any("XT-PIC" in row[1] for row in rows.values())
        assert legacy == ("noapic" in settings or "acpi=off" in settings)


def test_reboot_boots_again_and_poweroff_ends(tmp_path: Path) -> None:
    with emu.boot(kernel="generic", shares={"data": tmp_path}) as machine:
        machine.wait_prompt(BOOT_S)
        machine.run("echo before >/tmp/mark; echo kept >/mnt/data/mark", timeout=RUN_S, check=True)
        board = machine.board
        machine.console.sendline("reboot -f")
        assert machine.drive(lambda: machine.board is not board, RUN_S)
        machine.wait_prompt(BOOT_S)
        assert machine.run("cat /tmp/mark /mnt/data/mark", timeout=RUN_S).stdout == "kept\n"
        assert float(machine.run("cut -d' ' -f1 /proc/uptime", timeout=RUN_S).stdout) < BOOT_S
        machine.console.sendline("poweroff")
        assert machine.run_to_end(RUN_S) is StopReason.POWER_OFF


def test_a_panic_ends_the_machine_and_boots_nothing_again() -> None:
    with emu.boot(kernel="cloud") as machine:
        machine.wait_prompt(BOOT_S)
        machine.console.sendline("echo c >/proc/sysrq-trigger")
        assert machine.run_to_end(RUN_S) is StopReason.RESET
        assert machine.panic == "Kernel panic - not syncing: sysrq triggered crash"
