"""How guests end, and how that is told: by stop reasons, by `run`, and by the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from time import monotonic

import pytest

import emu
from emu.console import EOF
from emu.errors import GuestError, GuestStopped
from emu.machine import Machine
from emu.run_loop import StopReason

pytestmark = pytest.mark.integration

END_S = 60.0
PANIC = "Kernel panic - not syncing: sysrq triggered crash"
CRASH = "echo c >/proc/sysrq-trigger"


@pytest.fixture
def fresh() -> Iterator[Machine]:
    """A machine at its shell, for one test."""
    with emu.boot(kernel="cloud") as machine:
        machine.wait_prompt()
        yield machine


@pytest.mark.parametrize("typed", ["exit", "poweroff", "poweroff -f"])
def test_guest_s_own_end_is_the_machine_s(fresh: Machine, typed: str) -> None:
    assert fresh.stop_reason is None
    fresh.console.sendline(typed)
    assert fresh.run_to_end(END_S) is StopReason.POWER_OFF
    assert fresh.stop_reason is StopReason.POWER_OFF
    assert str(fresh.stop_reason) in fresh.stop_detail and "\n" not in fresh.stop_detail
    assert fresh.panic is None
    assert fresh.run_to_end(END_S) is StopReason.POWER_OFF      # again: nothing changes
    with pytest.raises(GuestStopped):
        fresh.run("true", timeout=END_S)


def test_run_and_expect_tell_of_an_end_in_their_midst(fresh: Machine) -> None:
    with pytest.raises(GuestStopped):
        fresh.run("poweroff -f; sleep 1000", timeout=END_S)
    assert fresh.console.expect(["never said", EOF]) == 1


def test_request_to_stop_ends_a_machine_that_computes(fresh: Machine) -> None:
    fresh.console.sendline("while :; do :; done")
    started = monotonic()
    asked: list[float] = []

    def ask() -> bool:
        if not asked and monotonic() - started > 0.2:
            asked.append(monotonic())
            fresh.request_stop()
        return False

    with pytest.raises(GuestStopped, match="by request"):
        fresh.drive(ask, END_S)
    assert fresh.stop_reason is StopReason.REQUESTED
    assert monotonic() - asked[0] < END_S / 2


def test_panic_is_run_s_error_with_its_line(fresh: Machine) -> None:
    with pytest.raises(GuestError, match=f"^{PANIC}$") as caught:
        fresh.run(CRASH, timeout=END_S)
    assert not isinstance(caught.value, GuestStopped)
    assert fresh.panic == PANIC
    assert fresh.run_to_end(END_S) is not None


def command_line(*words: str, typed: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "emu", *words]
    return subprocess.run(command, input=typed, capture_output=True, timeout=100)


def test_emu_run_passes_on_status_and_outputs() -> None:
    script = r"printf '\000\001\377'; echo problem >&2; exit 42"
    ended = command_line("run", "--kernel", "cloud", "--", "sh", "-c", script)
    assert (ended.returncode, ended.stdout, ended.stderr) == (42, b"\x00\x01\xff", b"problem\n")


def test_emu_run_fails_with_the_panic_s_line() -> None:
    ended = command_line("run", "--kernel", "cloud", "--", "sh", "-c", CRASH)
    assert (ended.returncode, ended.stdout) == (125, b"")
    assert ended.stderr.decode() == f"emu: {PANIC}\n"


def test_emu_run_gives_up_in_time() -> None:
    ended = command_line("run", "--kernel", "cloud", "--timeout", "4", "--", "sleep", "1000")
    assert (ended.returncode, ended.stdout) == (124, b"")
    assert ended.stderr.startswith(b"emu: ") and ended.stderr.count(b"\n") == 1


def test_emu_boot_types_its_input_and_ends_with_it() -> None:
    ended = command_line("boot", "--kernel", "cloud", typed=b"echo sum $((40 + 2))\nuname -s\n")
    assert ended.returncode == 0, ended.stderr
    assert b"sum 42\r\n" in ended.stdout and b"Linux\r\n" in ended.stdout
