"""A virtio console as the guest's console, in place of the serial port."""

from __future__ import annotations

import hashlib
import os
import re
import termios
from collections.abc import Iterator

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.errors import GuestError
from emu.machine import Machine
from emu.memory import KIB, MIB
from emu.run_loop import StopReason
from tests.integration.test_host import Terminal

pytestmark = pytest.mark.integration

BOOT_S = 60.0
RUN_S = 60.0
COLUMNS, ROWS = 132, 43


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine at the shell on its virtio console, with all of the kernel's messages."""
    with emu.boot(kernel="cloud", console="hvc0", append=f"loglevel=7 {LOUD_SETTINGS}") as machine:
        machine.console.resize(COLUMNS, ROWS)
        machine.wait_prompt(BOOT_S)
        yield machine
        assert complaints(machine.run("dmesg", timeout=RUN_S).stdout) == []


@pytest.fixture
def console(machine: Machine) -> emu.console.Console:
    """Its console, at a prompt, nothing unread."""
    machine.console.sendline("stty -echo; echo at the prompt")
    machine.console.expect(r"at the prompt\r\n.*# ", RUN_S)
    return machine.console


def wait_for_size(columns: int, rows: int) -> str:
    """A command that ends when the terminal has this size: that comes another way than what is typed."""
    return f'n=0; until [ "$(stty size)" = "{rows} {columns}" ] || [ $n = 200 ]; do n=$((n + 1)); sleep 0.05; done'


def messages(text: str) -> list[str]:
    return re.findall(r"^\[ *\d+\.\d+\] .*$", text.replace("\r", ""), re.MULTILINE)


def test_kernel_messages_come_once_and_none_is_missing(machine: Machine) -> None:
    """Before the driver is there over the serial port, then over hvc0."""
    shown = machine.console.history.decode()
    machine.run("echo '<4>a late message' >/dev/kmsg", timeout=RUN_S)
    machine.console.expect("a late message", RUN_S)
    shown += machine.console.before + machine.console.after
    until_then = "s/^<[0-6]>//p; /a late message/q"         # the kernel may say more meanwhile
    logged = messages(machine.run(f"dmesg -r | sed -n '{until_then}'", timeout=RUN_S).stdout)
    assert len(logged) > 100 and any("[hvc0] enabled" in line for line in logged)
    assert messages(shown) == logged


def test_shell_is_on_hvc0(console: emu.console.Console) -> None:
    console.sendline("tty; cat /sys/class/tty/console/active")
    console.expect_exact("/dev/hvc0\r\nttyS0 hvc0\r\n")
    console.sendline("echo value=$((6 * 7))")
    assert console.expect([r"value=43", r"value=(\d+)"]) == 1


def test_only_kernel_messages_go_over_the_serial_port_then(machine: Machine, console: emu.console.Console) -> None:
    serial = bytearray()
    machine.serial_sinks.append(serial.extend)
    console.sendline("echo over hvc0; echo '<3>over both' >/dev/kmsg; sleep 0.1; echo end")
    console.expect("over both.*end\r\n")
    machine.serial_sinks.remove(serial.extend)
    assert b"over both" in serial and b"over hvc0" not in serial


def test_control_c_and_control_d_are_keys(machine: Machine, console: emu.console.Console) -> None:
    console.sendline("sh -c 'echo begun; exec sleep 1000'")
    console.expect("begun\r\n")
    console.sendcontrol("c")
    console.expect("# ")
    console.sendline("echo ended $?")
    console.expect("ended 130")
    console.sendline("cat; echo input over")
    machine.drive(lambda: False, 0.2)
    console.sendeof()
    console.expect("input over")


def test_size_is_the_host_s(console: emu.console.Console) -> None:
    for columns, rows in ((COLUMNS, ROWS), (80, 25), (200, 100)):
        console.resize(columns, rows)
        console.sendline(wait_for_size(columns, rows) + "; stty size")
        console.expect(r"(\d+ \d+)\r\n")
        assert console.match is not None and not isinstance(console.match, type)
        assert console.match[1] == f"{rows} {columns}"


def test_a_mebibyte_comes_whole(machine: Machine, console: emu.console.Console) -> None:
    output = bytearray()
    hvc = machine.console
    make = f"awk 'BEGIN {{ for (i = 0; i < {MIB // 16}; i++) printf \"%015d\\n\", i * 7919 }}'"
    sent = machine.run(f"{make} >/tmp/out; sha256sum </tmp/out", timeout=RUN_S).stdout.split()[0]
    console.sendline("stty raw; cat /tmp/out; stty sane -echo; echo end of output")
    hvc.tap = lambda data: (output.extend(data), data)[1]
    console.expect("end of output", RUN_S)
    hvc.tap = None
    assert hashlib.sha256(output[: output.index(b"end of output")]).hexdigest() == sent


def test_every_byte_and_much_input_reach_the_guest(machine: Machine, console: emu.console.Console) -> None:
    data = bytes(range(256)) * 512
    console.sendline(f"stty raw; echo ready; head -c {len(data)} | sha256sum; stty sane -echo")
    console.expect("ready\n")
    for start in range(0, len(data), 2 * KIB):      # a terminal's buffer is 4 KiB
        console.send(data[start : start + 2 * KIB])
        machine.drive(lambda: False, 0.005)
    console.expect(hashlib.sha256(data).hexdigest(), RUN_S)


def test_serial_commands_work_on_it(machine: Machine) -> None:
    result = machine._shell.run("echo out; echo err >&2; exit 7", timeout=RUN_S)
    assert (result.status, result.stdout, result.stderr) == (7, "out\n", "err\n")


def test_panic_is_seen_and_power_off_s_message_too() -> None:
    with emu.boot(kernel="cloud", console="hvc0") as machine:
        machine.wait_prompt(BOOT_S)
        serial = bytearray()
        machine.serial_sinks.append(serial.extend)
        with pytest.raises(GuestError, match=r"^Kernel panic - not syncing: sysrq triggered crash$"):
            machine.run("echo c >/proc/sysrq-trigger", timeout=RUN_S)
        assert machine.run_to_end(RUN_S) is StopReason.RESET
        said = machine.console.history.decode()
        assert said.count("Kernel panic - not syncing: sysrq triggered crash") == 1


def test_a_terminal_s_keys_and_size_reach_the_guest() -> None:
    terminal = Terminal("--console", "hvc0")
    try:
        termios.tcsetwinsize(terminal.master, (ROWS, COLUMNS))
        terminal.expect(b"~ # ")
        os.write(terminal.master, wait_for_size(COLUMNS, ROWS).encode() + b"; tty; stty size; echo e''nd\r")
        terminal.expect(b"/dev/hvc0\r\n%d %d\r\nend" % (ROWS, COLUMNS))
        termios.tcsetwinsize(terminal.master, (25, 80))
        os.write(terminal.master, wait_for_size(80, 25).encode() + b"; stty size\r")
        terminal.expect(b"25 80\r\n")
        os.write(terminal.master, b"exit\r")
        assert terminal.process.wait(RUN_S) == 0
    finally:
        terminal.close()
