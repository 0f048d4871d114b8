"""A libunicorn that is not the right one: the command says what is wrong with it, and ends as it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.selftest import damaged
from tests.selftest.damaged import Change, cut, in_function, in_section, instead

CHANGED = "the file is not the one that was installed"
UNUSED = "helper_uadd8_aarch64"         # a function that no x86 guest calls
DELIVERY = "x86_cpu_do_interrupt_x86_64"
CRASHING, HANGING = b"\x0f\x0b", b"\xeb\xfe"          # ud2; jmp to itself


IMPATIENT = """
import sys
from emu.cli import main
from emu.selftest import report, runner
report.Runner = lambda: runner.Runner(limit_s=2.0, budget_s=5.0)
sys.exit(main(["selftest", "--json"]))
"""


def python(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the package in `directory`."""
    environment = os.environ | {"PYTHONPATH": f"{directory}:{os.getcwd()}"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=110, env=environment)


def selftest(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command with the package in `directory`."""
    return python(directory, "-m", "emu", "selftest", *options)


def report(directory: Path) -> dict[str, Any]:
    """What it reports, which is to be a failure, and nothing else."""
    done = selftest(directory, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["passed"] is False
    return report


def failed(report: dict[str, Any]) -> dict[str, str]:
    """What each check that failed says."""
    return {check["name"]: check["detail"] for check in report["checks"] if check["state"] == "failed"}


NOT_ELF = {"its file": "is not a 64-bit ELF library"}
UNKNOWN_BUILD = {"its checksum": CHANGED, "its build": "is not known"}
UNLOADABLE = {"its checksum": CHANGED, "loading it": "crashed by signal"}
REFUSED: dict[str, tuple[Change, str, dict[str, str]]] = {
    "an empty file": (instead(b""), "2.1.4", NOT_ELF),
    "a text": (instead(b"#!/bin/sh\n" * 100), "2.1.4", NOT_ELF),
    "a library for 32 bits": (instead(b"\x7fELF\x01" + bytes(999)), "2.1.4", NOT_ELF),
    "half of it": (cut(0.5), "2.1.4", {"its file": "is cut short"}),
    "another build": (damaged.other_build_id, "2.1.4", UNKNOWN_BUILD),
    "another version": (damaged.nothing, "2.1.3", {"its package": "unicorn 2.1.3 is installed, and is not known"}),
    "no section to load by": (in_section(".dynamic", 0x4141_4141_4141), "2.1.4", UNLOADABLE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_step_that_refuses_it_is_named(tmp_path: Path, name: str) -> None:
    change, version, said = REFUSED[name]
    seen = report(damaged.package(tmp_path, change, version))
    assert failed(seen).keys() == said.keys()
    assert all(text in failed(seen)[check] for check, text in said.items())
    last = list(said)[-1]
    behind = [check for check in seen["checks"] if check["state"] == "skipped"]
    assert len(behind) > 50
    assert {check["detail"] for check in behind} <= {f"libunicorn was refused: {last}"}
    assert {cost["state"] for cost in seen["costs"]} == {"skipped"}


def test_damage_that_no_guest_comes_by_is_found(tmp_path: Path) -> None:
    seen = report(damaged.package(tmp_path, in_function(UNUSED, CRASHING)))
    assert failed(seen).keys() == {"its checksum"}
    assert CHANGED in failed(seen)["its checksum"]
    assert {cost["state"] for cost in seen["costs"]} == {"passed"}


def test_a_crash_is_told_for_each_check_that_meets_it(tmp_path: Path) -> None:
    seen = report(damaged.package(tmp_path, in_function(DELIVERY, CRASHING)))
    said = failed(seen)
    assert said.keys() >= {"its checksum", "its start-up test", "exceptions", "undefined instructions", "double faults"}
    assert said["exceptions"] == "crashed by signal 4 (SIGILL)"
    passed = {check["name"] for check in seen["checks"] if check["state"] == "passed"}
    assert passed >= {"SYSCALL", "CPUID", "code rewritten by the host", "stores"}
    assert {cost["state"] for cost in seen["costs"] if cost["name"] in ("page fault", "cpuid")} == {"passed", "failed"}


def test_a_library_that_hangs_does_not_hang_the_command(tmp_path: Path) -> None:
    done = python(damaged.package(tmp_path, in_function("uc_open", HANGING)), "-c", IMPATIENT)
    assert (done.returncode, done.stderr) == (1, "")
    checks = json.loads(done.stdout)["checks"]
    hanging = {check["name"] for check in checks if "did not end" in check["detail"]}
    assert {"its layout", "its start-up test"} <= hanging
    assert checks[-1]["detail"] == "too much time has gone into what failed"


def test_for_people_each_failure_is_a_line(tmp_path: Path) -> None:
    done = selftest(damaged.package(tmp_path, damaged.nothing, "2.1.3"))
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FAILED"))
    assert "its package" in line and "unicorn 2.1.3 is installed" in line
    assert done.stdout.splitlines()[-1].startswith("0 passed, 1 failed, ")
