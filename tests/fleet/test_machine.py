"""What a test does with one machine, and what it says when that fails."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from typing import cast

import pytest

from emu.errors import EmuError, GuestError, GuestStopped, GuestTimeout, MachineDied
from emu.fleet.failures import MachineFailure, MachineTimeout, OutOfTime
from emu.fleet.fleet import Fleet
from emu.fleet.machine import FleetMachine, retry
from tests.fleet.fakes import FakeProcess, FakeTemplates, result

SHORT_S = 0.05


@pytest.fixture
def machine(fleet: Fleet) -> FleetMachine:
    return fleet.add("server")


@pytest.fixture
def process(machine: FleetMachine) -> FakeProcess:
    """What stands for the machine."""
    return cast(FakeProcess, machine.process)


# -- starting --------------------------------------------------------------------------------------------------------


def test_starts_when_it_is_first_used_and_only_then(machine: FleetMachine, templates: FakeTemplates) -> None:
    assert machine.current is None and not templates.made
    machine.succeed("true")
    machine.succeed("true")
    machine.start()
    (process,) = templates.made
    assert [command for command, _ in process.asked] == ["hostname server", "true", "true"]
    assert machine.current is not None


def test_starts_once_though_two_threads_use_it(machine: FleetMachine, templates: FakeTemplates) -> None:
    meeting = threading.Barrier(2)

    def meet(_process: FakeProcess) -> None:
        with suppress(threading.BrokenBarrierError):        # nobody else is there, as it should be
            meeting.wait(SHORT_S)

    templates.prepare_process = meet
    threads = [threading.Thread(target=machine.start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(templates.made) == 1


def test_a_machine_that_cannot_be_made_says_which_one(machine: FleetMachine, templates: FakeTemplates) -> None:
    templates.fails.append(EmuError("no room"))
    with pytest.raises(MachineFailure, match=r"^server: no room$"):
        machine.succeed("true")
    machine.succeed("true")


def test_a_guest_that_does_not_take_its_name_has_not_started(machine: FleetMachine, templates: FakeTemplates) -> None:
    templates.prepare_process = lambda process: process.answers.update({"hostname server": [result(1)]})
    with pytest.raises(MachineFailure, match=r"^server: 'hostname server' ended with status 1$"):
        machine.start()


@pytest.mark.parametrize("name", ["", "1", "a b", "-a", "a-", "../x", "a" * 64, "ä", "a\n"])
def test_names_that_no_host_can_have(fleet: Fleet, name: str) -> None:
    with pytest.raises(EmuError, match="no machine's name"):
        fleet.add(name)


# -- commands --------------------------------------------------------------------------------------------------------


def test_execute_gives_status_and_output(machine: FleetMachine, process: FakeProcess) -> None:
    process.answers["cat x"] = [result(3, "some", "none")]
    assert machine.execute("cat x") == (3, "some")


def test_succeed_gives_what_all_commands_wrote(machine: FleetMachine, process: FakeProcess) -> None:
    process.answers.update({"one": [result(0, "1\n")], "two": [result(0, "2\n", "noise")]})
    assert machine.succeed("one", "two") == "1\n2\n"


def test_succeed_stops_at_the_first_that_fails_and_says_what_it_did(
    machine: FleetMachine, process: FakeProcess
) -> None:
    process.answers["two"] = [result(7, "out", "err")]
    with pytest.raises(MachineFailure, match=r"^server: 'two' ended with status 7, and had to succeed$") as failure:
        machine.succeed("one", "two", "three")
    assert (failure.value.machine, failure.value.command) == ("server", "two")
    assert failure.value.result == result(7, "out", "err")
    assert [command for command, _ in process.asked][1:] == ["one", "two"]


def test_fail_is_the_opposite(machine: FleetMachine, process: FakeProcess) -> None:
    process.answers["no"] = [result(1, "out")]
    assert machine.fail("no") == "out"
    with pytest.raises(MachineFailure, match="'yes' ended with status 0, and had to fail"):
        machine.fail("no", "yes")


def test_a_long_command_is_cut_in_the_message_and_whole_in_the_failure(
    machine: FleetMachine, process: FakeProcess
) -> None:
    command = "x" * 1000
    process.answers[command] = [result(1)]
    with pytest.raises(MachineFailure) as failure:
        machine.succeed(command)
    assert len(str(failure.value)) < 200 and failure.value.command == command


@pytest.mark.parametrize(("error", "kind"), [
    (GuestTimeout("'slow' did not end within 5 s"), MachineTimeout), (MachineDied("gone"), MachineFailure),
    (GuestStopped("the guest powered off"), MachineFailure), (GuestError("Kernel panic"), MachineFailure),
])  # fmt: skip
def test_what_goes_wrong_below_names_machine_and_command(
    machine: FleetMachine, process: FakeProcess, error: Exception, kind: type[MachineFailure]
) -> None:
    process.answers["slow"] = [error]
    for do in machine.execute, machine.succeed, machine.fail, machine.wait_until_succeeds:
        with pytest.raises(kind) as failure:
            do("slow")
        assert (str(failure.value), failure.value.command) == (f"server: {error}", "slow")


def test_times_given_reach_the_machine(machine: FleetMachine, process: FakeProcess) -> None:
    machine.succeed("a", timeout=5)
    machine.execute("b")
    assert dict(process.asked)["a"] == 5 and dict(process.asked)["b"] == 900


def test_no_time_is_longer_than_what_the_test_has_left(
    fleet: Fleet, machine: FleetMachine, process: FakeProcess
) -> None:
    fleet.timeout = 100
    machine.succeed("a")
    assert 0 < dict(process.asked)["a"] < 100


def test_nothing_is_begun_when_the_time_of_the_test_is_over(
    fleet: Fleet, machine: FleetMachine, process: FakeProcess
) -> None:
    fleet.timeout = 0
    with pytest.raises(OutOfTime, match=r"^the 0 s for the test are over$"):
        machine.succeed("a")
    assert "a" not in dict(process.asked)


def test_a_command_that_the_end_of_the_test_s_time_ends_says_so(
    fleet: Fleet, machine: FleetMachine, process: FakeProcess
) -> None:
    def too_late(*_arguments: object, **_options: object) -> None:
        fleet.timeout = 0
        raise GuestTimeout("'slow' did not end within 1 s")

    process.run = too_late      # type: ignore[assignment,method-assign]
    with pytest.raises(OutOfTime, match=r"server: the 0 s for the test are over: 'slow' did not end") as failure:
        machine.succeed("slow")
    assert failure.value.command == "slow"


# -- waiting ---------------------------------------------------------------------------------------------------------


def test_wait_until_succeeds_tries_again_and_gives_the_last_output(machine: FleetMachine, process: FakeProcess) -> None:
    process.answers["up"] = [result(1, "no"), result(2, "no"), result(0, "yes")]
    assert machine.wait_until_succeeds("up") == "yes"
    assert [command for command, _ in process.asked].count("up") == 3


def test_wait_until_fails_tries_again(machine: FleetMachine, process: FakeProcess) -> None:
    process.answers["up"] = [result(0), result(0), result(9, "down")]
    assert machine.wait_until_fails("up") == "down"


def test_waiting_in_vain_tells_the_last_attempt(machine: FleetMachine, process: FakeProcess) -> None:
    process.answers["up"] = [result(1, "", "not yet")]
    with pytest.raises(MachineTimeout, match=r"'up' still ended with status 1 after 0\.05 s") as failure:
        machine.wait_until_succeeds("up", timeout=SHORT_S)
    assert failure.value.result == result(1, "", "not yet")
    assert isinstance(failure.value, GuestTimeout)


def test_wait_for_a_file_of_any_name(machine: FleetMachine, process: FakeProcess) -> None:
    machine.wait_for_file("/tmp/it's here")
    assert process.asked[-1][0] == """test -e '/tmp/it'"'"'s here'"""


def test_wait_for_a_vsock_port(machine: FleetMachine, process: FakeProcess) -> None:
    process.ports[80] = 3
    machine.wait_for_vsock_port(80)
    process.ports[81] = 1000
    with pytest.raises(MachineTimeout, match=r"^server: vsock: guest port 81: refused by the guest, for 0.05 s$"):
        machine.wait_for_vsock_port(81, timeout=SHORT_S)


def test_wait_for_a_vsock_port_of_a_machine_that_died(machine: FleetMachine, process: FakeProcess) -> None:
    process.kill()
    with pytest.raises(MachineFailure, match="is gone"):
        machine.wait_for_vsock_port(80)


def test_wait_for_console_text(machine: FleetMachine, process: FakeProcess) -> None:
    process.unseen = "booting\nlogin: "
    assert machine.wait_for_console_text("login") == "booting\nlogin"
    with pytest.raises(MachineTimeout, match=r"^server: the console has not shown 'nothing' in 0\.05 s$"):
        machine.wait_for_console_text("nothing", timeout=SHORT_S)


def test_retry_tries_once_even_without_time() -> None:
    tries: list[float] = []
    assert not retry(lambda left: bool(tries.append(left)), 0)
    assert len(tries) == 1 and tries[0] > 0


# -- console, files, network, the end --------------------------------------------------------------------------------


def test_console_files_and_network(machine: FleetMachine, process: FakeProcess, tmp_path: object) -> None:
    process.console = b"caf\xc3\xa9 \xff"
    machine.send_chars("ls\n")
    machine.copy_from_host("/host", "/guest")
    machine.copy_from_machine("/guest", f"{tmp_path}/new")
    machine.block()
    machine.unblock()
    assert machine.console_text() == "café \ufffd"
    assert process.asked[-5:] == [
        ("typed", b"ls\n"), ("copy in /host", "/guest"), ("copy out /guest", f"{tmp_path}/new"), ("isolate", True),
        ("isolate", False),
    ]  # fmt: skip


@pytest.mark.parametrize("answer", [result(), GuestStopped("the guest powered off")])
def test_shutdown_waits_for_the_end_and_start_makes_another_one(
    machine: FleetMachine, process: FakeProcess, templates: FakeTemplates, answer: Exception
) -> None:
    process.answers["poweroff"] = [answer]
    process.console = b"last words"
    machine.shutdown()
    assert machine.current is None and not process.alive
    assert machine.last_console == b"last words"
    machine.succeed("true")
    assert [each.alive for each in templates.made] == [False, True]
    assert templates.made[0].network == templates.made[1].network


def test_a_guest_that_does_not_power_off(
    machine: FleetMachine, process: FakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emu.fleet.machine.SHUTDOWN_S", SHORT_S)
    process.stops = False
    with pytest.raises(MachineTimeout, match=r"it has not powered off in 0\.05 s"):
        machine.shutdown()


def test_crash_kills_and_keeps_the_console(machine: FleetMachine, process: FakeProcess) -> None:
    process.console = b"last words"
    machine.crash()
    assert process.ends == ["kill", "close"], "at once: nobody waits for the guest"
    assert (process.alive, machine.current, machine.last_console) == (False, None, b"last words")
    machine.crash()


def test_each_step_is_logged_with_name_depth_and_outcome(
    machine: FleetMachine, process: FakeProcess, lines: list[str]
) -> None:
    process.answers["no"] = [result(1)]
    machine.succeed("echo \x1b[2Jhidden\n")
    with pytest.raises(MachineFailure):
        machine.succeed("no")
    shown = [re.sub(r"[0-9.]+ s$", "T", line[8:]) for line in lines]
    assert shown == [
        "  server: start", "    server: done in T", "  server: succeed: echo \\x1b[2Jhidden\\n",
        "    server: done in T", "  server: succeed: no", "    server: failed in T",
    ]  # fmt: skip
