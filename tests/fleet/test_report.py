"""What a failed test leaves behind."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from emu.errors import EmuError
from emu.fleet.failures import MachineFailure
from emu.fleet.fleet import Fleet
from emu.fleet.report import CONSOLE_LINES, OUTPUT_LINES
from emu.process.messages import Diagnosis, LogLine
from tests.fleet.fakes import FakeProcess, FakeTemplates, result

REFUSED = "guest port 1023 to CID 3 port 81: refused: by that machine"


def failure(fleet: Fleet) -> BaseException:
    """Of a command in a subtest."""
    with pytest.raises(MachineFailure) as caught, fleet.subtest("outer"), fleet.subtest("the client asks"):
        fleet["client"].succeed("vsock 3 81")       # the line that is shown
    return caught.value


@pytest.fixture
def client(fleet: Fleet, templates: FakeTemplates) -> FakeProcess:
    """One of two machines; its command fails."""
    fleet.add("server")
    client = cast(FakeProcess, fleet.add("client").process)
    client.answers["vsock 3 81"] = [result(104, "half an answer\n", "vsock: nobody there\n")]
    return client


def test_it_says_what_failed_where_and_what_the_command_wrote(fleet: Fleet, client: FakeProcess) -> None:
    report = fleet.report(failure(fleet)).splitlines()
    assert report[0].endswith(" s: client: 'vsock 3 81' ended with status 104, and had to succeed")
    assert report[1] == "  subtest: outer > the client asks"
    assert report[2].startswith(f"  at: {__file__}:")
    assert report[2].endswith('fleet["client"].succeed("vsock 3 81")       # the line that is shown')
    assert report[3:10] == [
        "  command:", "    vsock 3 81", "  status: 104", "  stdout:", "    half an answer", "  stderr:",
        "    vsock: nobody there",
    ]  # fmt: skip


def test_it_shows_every_machine_s_ways_log_and_console(fleet: Fleet, client: FakeProcess) -> None:
    server = cast(FakeProcess, fleet["server"].process)
    server.console = b"line one\r\nbad \x1b[2J line\r\n"
    client.diagnosis = Diagnosis("", "", "no program has the port open", "no driver", (LogLine(250, REFUSED),))
    report = fleet.report(failure(fleet))
    assert report.partition("\n\n")[2] == (
        "server (CID 3): running\n  agent: there\n  vsock: ready\n  console:\n    line one\n    bad \\x1b[2J line\n\n"
        "client (CID 4): running\n  agent: no program has the port open\n  vsock: no driver\n  log, seconds ago:\n"
        f"       0.25  {REFUSED}\n  console: nothing"
    )


@pytest.mark.parametrize(("diagnosis", "state"), [
    (Diagnosis("the guest powered off (at 0x1)", "", "", "", ()), "stopped: the guest powered off (at 0x1)"),
    (Diagnosis("triple fault", "Kernel panic - not syncing: x", "", "", ()), "Kernel panic - not syncing: x"),
])  # fmt: skip
def test_a_machine_that_has_stopped_says_why(
    fleet: Fleet, client: FakeProcess, diagnosis: Diagnosis, state: str
) -> None:
    client.diagnosis = diagnosis
    assert f"client (CID 4): {state}\n" in fleet.report(failure(fleet))


def test_machines_that_do_not_run_or_answer_are_told_of(
    fleet: Fleet, client: FakeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emu.fleet.report.ANSWER_S", 0.05)
    error = failure(fleet)
    fleet["server"].crash()
    gone, hung = (cast(FakeProcess, fleet.add(name).process) for name in ("gone", "hung"))
    gone.kill()
    never = threading.Event()
    hung.diagnose = never.wait          # type: ignore[assignment,method-assign]
    crashed = fleet.add("crashed")
    cast(FakeProcess, crashed.process).console = b"before that\n"
    crashed.crash()
    report = fleet.report(error)
    never.set()
    assert "server (CID 3): not running\n  console: nothing\n" in report
    assert "gone (CID 5): its process 4711 is gone, and the end of its console with it\n" in report
    assert "hung (CID 6): its process 4711 does not answer\n" in report
    assert report.endswith("crashed (CID 7): not running\n  console:\n    before that")


def test_a_machine_that_is_still_starting_does_not_hold_up_the_report(
    fleet: Fleet, templates: FakeTemplates
) -> None:
    comes_up = threading.Event()

    def hang(process: FakeProcess) -> None:
        process.wait_ready = lambda _timeout: comes_up.wait(30)       # type: ignore[assignment,method-assign]
        process.console = b"booting"

    templates.prepare_process = hang
    thread = threading.Thread(target=fleet.add("slow").start)
    thread.start()
    while not templates.made or fleet["slow"].current is None:
        pass
    report = fleet.report(EmuError("too slow"))
    assert thread.is_alive()
    comes_up.set()
    thread.join()
    assert report.endswith("slow (CID 3): running\n  agent: there\n  vsock: ready\n  console:\n    booting")


def test_long_outputs_are_shown_from_their_end(fleet: Fleet, client: FakeProcess) -> None:
    client.answers["vsock 3 81"] = [result(1, "".join(f"out {n}\n" for n in range(1000)), "x" * 100_000)]
    client.console = b"".join(b"console %d\r\n" % n for n in range(1000))
    report = fleet.report(failure(fleet))
    assert f"    ... {1000 - OUTPUT_LINES} lines before\n    out {1000 - OUTPUT_LINES}\n" in report
    assert f"    ... {1000 - CONSOLE_LINES} lines before\n    console {1000 - CONSOLE_LINES}\n" in report
    assert len(report) < 5000


def test_a_command_killed_by_a_signal_and_one_that_did_not_end(fleet: Fleet, client: FakeProcess) -> None:
    client.answers["vsock 3 81"] = [result(139)]
    assert "  status: 139 (signal 11)\n" in fleet.report(failure(fleet))
    client.answers["vsock 3 81"] = [EmuError("gone")]
    assert "  command:\n    vsock 3 81\n  it had not ended\n" in fleet.report(failure(fleet))


def test_other_exceptions_are_reported_too(fleet: Fleet) -> None:
    error = AssertionError("one\ntwo")
    error.add_note("and another")
    report = fleet.report(error)
    assert report.endswith(" s: AssertionError: one two and another\n  and another")
