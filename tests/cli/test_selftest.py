"""`emu selftest` as people and programs see it; tests/selftest has the checks themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emu.cli import COMMANDS, main, selftest
from emu.selftest.check import Check
from emu.selftest.costs import COSTS, Cost
from emu.selftest.report import CheckResult, CostResult, Report
from emu.selftest.runner import FAILED, PASSED, SKIPPED, Outcome

FINE = Outcome(PASSED)
COST = Cost("exit", 1234.5, 20.0, 3200.0)
ABOUT = {"emu": "1", "host": "[bold]Linux"}


def do_nothing() -> None:
    """In place of a check."""


def made(*outcomes: Outcome, cost: Outcome = FINE) -> Report:
    """A report of checks that ended like this."""
    checks = [
        CheckResult(f"group {number // 2}", Check(f"check {number}", "all is lost", do_nothing), outcome)
        for number, outcome in enumerate(outcomes)
    ]
    costs = [CostResult("exit", COST if cost.state == PASSED else None, cost)]
    return Report(ABOUT, (0.5, 1.0, 2.25), checks, costs, 1.5)


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the command on a report made beforehand: its status, and the lines it prints."""

    def run(result: Report, *options: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(selftest, "make_report", lambda: result)
        status = main(["selftest", *options])
        out, err = capfd.readouterr()
        assert err == ""
        return status, out.splitlines()

    return run


def test_all_is_well(output: Any) -> None:
    assert output(made(Outcome(PASSED), Outcome(PASSED), Outcome(PASSED))) == (0, [
        "emu   1",
        "host  [bold]Linux",
        "load  0.50 1.00 2.25",
        "",
        "    group 0  or else, in a guest:",
        "ok  check 0  all is lost",
        "ok  check 1  all is lost",
        "",
        "    group 1",
        "ok  check 2  all is lost",
        "",
        "cost     ns  spread  TSC cycles",
        "exit  1,234     ±10       3,200  an OUT to a port that nobody claims: into Python and back",
        "",
        "4 passed, in 1.5 s",
    ])  # fmt: skip


def test_a_failure_is_told_in_a_line(output: Any) -> None:
    failure = Outcome(FAILED, "crashed by signal 11 (SIGSEGV): [red]" + "x" * 300)
    status, lines = output(made(failure, Outcome(PASSED), cost=Outcome(FAILED, "it did not end within 10 s")))
    assert status == 1
    assert lines[5] == f"FAILED  check 0  {failure.detail}. So: all is lost"
    assert lines[-3].split() == ["exit", "FAILED", "it", "did", "not", "end", "within", "10", "s"]
    assert lines[-1] == "1 passed, 2 failed, in 1.5 s"


def test_what_is_skipped_is_counted(output: Any) -> None:
    refused, alone = Outcome(SKIPPED, "libunicorn was refused: its file"), Outcome(SKIPPED, "no record")
    result = made(alone, Outcome(FAILED, "it is broken"), refused, refused, cost=refused)
    status, lines = output(result)
    assert status == 1
    assert lines[-4:] == [
        "skipped  check 0   no record",
        "skipped  2 checks  libunicorn was refused: its file",
        "",
        "0 passed, 1 failed, 4 skipped, in 1.5 s",
    ]


def test_a_check_that_was_skipped_is_no_failure(output: Any) -> None:
    assert output(made(Outcome(SKIPPED, "no record"), Outcome(PASSED)))[0] == 0


def test_json(output: Any) -> None:
    status, lines = output(made(Outcome(PASSED, seconds=0.25), Outcome(FAILED, "why")), "--json")
    assert status == 1
    assert json.loads("\n".join(lines)) == {
        "passed": False,
        "about": ABOUT,
        "load": [0.5, 1.0, 2.25],
        "checks": [
            {
                "group": "group 0", "name": "check 0", "state": "passed", "detail": "", "otherwise": "all is lost",
                "seconds": 0.25,
            },
            {
                "group": "group 0", "name": "check 1", "state": "failed", "detail": "why", "otherwise": "all is lost",
                "seconds": 0.0,
            },
        ],
        "costs": [
            {
                "name": "exit", "what": COSTS["exit"].what, "state": "passed", "detail": "",
                "ns_median": 1234.5, "ns_spread": 20.0, "cycles_median": 3200.0,
            },
        ],
        "seconds": 1.5,
    }  # fmt: skip


OFFLINE = """
import os, sys

def audit(event, arguments):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.")) and event != "socket.gethostname":
        os.write(2, event.encode())
        os._exit(99)

sys.addaudithook(audit)
from emu.cli import main
status = main(["selftest", "--json"])
with open("/proc/self/maps") as maps:           # what is damaged about it is not to harm the report
    sys.exit(98 if "libunicorn" in maps.read() else status)
"""


def test_nothing_is_downloaded_nothing_kept_and_libunicorn_not_loaded_here(tmp_path: Path) -> None:
    """On a machine without network, home and cache; the whole report, for real."""
    cache = tmp_path / "absent" / "cache"
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"PVEMU_CACHE": str(cache), "PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", OFFLINE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["passed"] is True
    assert {check["state"] for check in result["checks"]} == {"passed"}
    assert {cost["name"] for cost in result["costs"] if cost["ns_median"] > 0} == set(COSTS)
    assert result["about"]["unicorn"] == "2.1.4" and result["about"]["layout row"].startswith("1 of ")
    assert list(tmp_path.iterdir()) == []


def test_other_commands_do_without_it() -> None:
    modules = ", ".join(f"emu.cli.{name}" for name in COMMANDS if name != "selftest")
    script = f"import sys, emu, emu.cli, {modules}\nprint([name for name in sys.modules if 'selftest' in name])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_it_is_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert ["selftest", COMMANDS["selftest"]] in [line.split(None, 1) for line in capfd.readouterr().out.splitlines()]
