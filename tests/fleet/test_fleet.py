"""Machines by name, what is done on several of them at once, subtests, and what is left in the end."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from emu.errors import EmuError, GuestTimeout
from emu.fleet.failures import MachineFailure, OutOfTime
from emu.fleet.fleet import Fleet
from emu.fleet.machine import FleetMachine
from tests.fleet.fakes import FakeTemplates, result

SHORT_S = 0.05
LONG_S = 30.0


def test_machines_by_name_with_addresses_of_their_own(fleet: Fleet) -> None:
    machines = [fleet.add(name) for name in ("one", "two", "three")]
    assert list(fleet) == machines == [fleet[name] for name in ("one", "two", "three")]
    assert [machine.cid for machine in machines] == [3, 4, 5]
    assert len(fleet) == 3


def test_names_are_unique_and_unknown_ones_are_refused(fleet: Fleet) -> None:
    fleet.add("one")
    with pytest.raises(EmuError, match="there is a machine one already"):
        fleet.add("one")
    with pytest.raises(EmuError, match="there is no machine two; there are one"):
        fleet["two"]


def test_a_fleet_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu.fleet.fleet.Templates", FakeTemplates)
    with Fleet("one", "two", sink=lambda _line: None) as fleet:
        assert list(fleet.machines) == ["one", "two"]
    with pytest.raises(EmuError, match="no machine's name"):
        Fleet("one", "..")


@pytest.mark.parametrize("options", [{"vsock": True}, {"snapshot": "x", "memory": 1}, {"snapshot": "x", "kernel": "y"}])
def test_options_that_do_not_go_together(fleet: Fleet, options: dict[str, object]) -> None:
    with pytest.raises(EmuError):
        fleet.add("one", **options)     # type: ignore[arg-type]
    assert not fleet.machines


def test_start_all_starts_those_that_do_not_run(fleet: Fleet, templates: FakeTemplates) -> None:
    one, two = fleet.add("one"), fleet.add("two")
    one.start()
    fleet.start_all()
    assert one.current and two.current and len(templates.made) == 2
    assert templates.prepared == [two.origin]


def test_wait_all_does_it_at_the_same_time_and_keeps_the_order(fleet: Fleet) -> None:
    machines = [fleet.add(f"m{number}") for number in range(8)]
    everybody = threading.Barrier(8, timeout=LONG_S)    # breaks if one waits for another to be done

    def name_of(machine: FleetMachine) -> str:
        everybody.wait()
        return machine.name

    assert fleet.wait_all(machines, name_of) == [machine.name for machine in machines]
    assert fleet.wait_all([], name_of) == []


def test_wait_all_raises_what_failed_first_and_mentions_the_others(fleet: Fleet, templates: FakeTemplates) -> None:
    templates.prepare_process = lambda process: process.answers.update({"no": [result(process.network.cid)]})
    one, two, three = (fleet.add(name) for name in ("one", "two", "three"))
    done: list[str] = []

    def work(machine: FleetMachine) -> None:
        machine.succeed("yes" if machine is two else "no")
        done.append(machine.name)

    with pytest.raises(MachineFailure, match="one: 'no' ended with status 3") as failure:
        fleet.wait_all([one, two, three], work)
    assert failure.value.__notes__ == ["and three: 'no' ended with status 5, and had to succeed"]
    assert done == ["two"], "the others went on"


def test_threads_log_below_what_is_under_way(fleet: Fleet, lines: list[str]) -> None:
    machine = fleet.add("one")
    with fleet.subtest("outer"):
        fleet.wait_all([machine], lambda one: one.succeed("true"))
    assert [line[8:] for line in lines if "succeed" in line] == ["    one: succeed: true"]


def test_the_innermost_subtest_of_a_failure_is_known(fleet: Fleet, lines: list[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        with fleet.subtest("outer"), fleet.subtest("middle"):
            with pytest.raises(KeyError), fleet.subtest("expected"):
                raise KeyError
            with fleet.subtest("inner"):
                raise ZeroDivisionError
    assert fleet.failed_in == ("outer", "middle", "inner")
    assert [line[8:] for line in lines[:2]] == ["  subtest: outer", "    subtest: middle"]


def test_a_subtest_in_a_thread_knows_where_it_is(fleet: Fleet) -> None:
    def work(machine: FleetMachine) -> None:
        with fleet.subtest(f"on {machine.name}"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), fleet.subtest("outer"):
        fleet.wait_all([fleet.add("one")], work)
    assert fleet.failed_in == ("outer", "on one")


def test_retry_until_it_is_true(fleet: Fleet) -> None:
    tries = iter([False, None, "", 1])
    fleet.retry(lambda: next(tries))
    with pytest.raises(GuestTimeout, match=r"did not come true in 0\.05 s"):
        fleet.retry(lambda: False, timeout=SHORT_S)


def test_there_is_one_time_for_the_whole_test(fleet: Fleet) -> None:
    assert 0 < fleet.seconds_left() <= fleet.timeout
    fleet.timeout = 0
    assert fleet.is_out_of_time
    for do in fleet.seconds_left, fleet.start_all, lambda: fleet.retry(lambda: True):
        fleet.machines or fleet.add("one")
        with pytest.raises(OutOfTime, match="the 0 s for the test are over"):
            do()


def test_a_question_that_is_not_answered_in_time(fleet: Fleet) -> None:
    never = threading.Event()
    assert fleet.within(SHORT_S, never.wait) is None
    assert fleet.within(LONG_S, lambda: 5) == 5
    assert fleet.within(LONG_S, lambda: 1 // 0) is None
    never.set()


def test_close_ends_machines_and_what_they_were_asked(fleet: Fleet, templates: FakeTemplates) -> None:
    machine = fleet.add("one")
    process = machine.process
    process.gate = threading.Event()        # type: ignore[attr-defined]
    failures: list[Exception] = []

    def ask() -> None:
        try:
            machine.succeed("sleep 1000")
        except MachineFailure as failure:
            failures.append(failure)

    thread = threading.Thread(target=ask)
    thread.start()
    while ("sleep 1000", 900.0) not in [(text, 900.0) for text, _ in process.asked]:     # type: ignore[attr-defined]
        pass
    fleet.close()
    thread.join(LONG_S)
    assert [str(failure) for failure in failures] == ["one: the machine's process 4711 is gone"]
    assert templates.is_closed and process.ends == ["kill", "close"]       # type: ignore[attr-defined]
    assert not fleet.directory.exists() and not fleet.shared.exists()
    with pytest.raises(MachineFailure, match="the fleet is closed"):
        fleet.add("two").start()
    assert not templates.made[-1].alive, "made too late, and ended"


def test_the_shared_directory_is_the_user_s_or_goes_with_the_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emu.fleet.fleet.Templates", FakeTemplates)
    (tmp_path / "mine").write_text("precious")
    with Fleet(shared=tmp_path) as fleet:
        assert fleet.shared == tmp_path and fleet._templates.shared == tmp_path     # type: ignore[attr-defined]
        with Fleet() as other:
            assert other.shared.is_dir() and other.shared != fleet.shared
            assert os.stat(other.directory.parent).st_mode & 0o077 == 0, "other users are kept out"
        assert not other.shared.exists()
    assert (tmp_path / "mine").read_text() == "precious"
    with pytest.raises(EmuError, match="no directory"):
        Fleet(shared=tmp_path / "mine")


def test_an_exception_that_leaves_the_fleet_carries_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("emu.fleet.fleet.Templates", FakeTemplates)
    with pytest.raises(ZeroDivisionError) as failure, Fleet("one") as fleet:
        fleet.start_all()
        raise ZeroDivisionError
    assert re.match(r"FAILED after [0-9.]+ s: ZeroDivisionError\n", failure.value.__notes__[0])
    assert "one (CID 3): running" in failure.value.__notes__[0]
    assert "one: start" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt) as interrupt, Fleet("one"):
        raise KeyboardInterrupt
    assert not hasattr(interrupt.value, "__notes__")
