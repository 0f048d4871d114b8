"""Every check passes here, and fails where what it is about has been taken away."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from types import ModuleType

import capstone
import pytest

from emu.cpu.thunks import assemble
from emu.selftest import changed_code, costs, exceptions, exits, hostile, speed, stops, syscalls, trap_door
from emu.selftest.check import Check, Listing, expect
from emu.selftest.report import make_report
from emu.selftest.runner import FAILED, PASSED
from emu.selftest.traps import GROUPS
from tests.selftest.broken import BROKEN, CHECKS

PROGRAMS = changed_code, costs, exceptions, exits, hostile, speed, stops, syscalls, trap_door
FAKE_VALUES = {1: 0x70, 2: 0x7A00, 4: 0x7A_0000}        # by size in bytes; cannot be mistaken for anything else
LINE = re.compile(r"  ([0-9a-f]{3})  ((?:(?:[0-9a-f]{2}|<\w+:\d>) ?)+) +([^;]+?) *(?:;.*)?")


def test_everything_passes_on_this_machine() -> None:
    report = make_report()
    problems = [
        (result.check.name, result.outcome) for result in report.checks if result.outcome.state != PASSED
    ] + [(result.name, result.outcome) for result in report.costs if result.outcome.state != PASSED]
    assert problems == []
    assert report.passed
    assert [result.check for result in report.checks] == list(CHECKS.values())
    assert [result.name for result in report.costs] == list(costs.COSTS)


def test_no_check_is_without_its_counterpart() -> None:
    assert {broken.check for broken in BROKEN} == set(CHECKS)
    assert sum(len(group.checks) for group in GROUPS) == len(CHECKS)


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, object]]:
    """What the checks say, one after the other, each with its remedy taken away."""
    command = [sys.executable, "-m", "tests.selftest.broken"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(BROKEN)), ids=[f"{n} {broken.check}" for n, broken in enumerate(BROKEN)])
def test_check_fails_without_its_remedy(outcomes: list[dict[str, object]], number: int) -> None:
    outcome, broken = outcomes[number], BROKEN[number]
    assert outcome["state"] == FAILED
    assert broken.says in str(outcome["detail"])
    assert "\n" not in str(outcome["detail"])


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.name)
def test_what_is_said_of_a_check_is_a_line(check: Check) -> None:
    assert 3 <= len(check.name) <= 45
    assert 20 <= len(check.otherwise) <= 95
    assert check.otherwise[-1] != "." and check.run.__doc__


# -- machine code --------------------------------------------------------------------------------------------------


def listings(module: ModuleType) -> list[Listing]:
    """All machine code of a module, in tables too."""
    found = []
    waiting = list(vars(module).values())
    while waiting:
        value = waiting.pop()
        if isinstance(value, Listing):
            found.append(value)
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, tuple | list):
            waiting += value
        elif isinstance(value, costs.Scenario):
            waiting += (value.turn, value.before)
    return found


@pytest.mark.parametrize("module", PROGRAMS, ids=lambda module: module.__name__)
def test_machine_code_is_what_its_listing_says(module: ModuleType) -> None:
    assert listings(module)
    for listing in listings(module):
        lines = [LINE.fullmatch(line) for line in listing.lines]
        assert all(lines), listing.lines
        sizes = dict(re.findall(r"<(\w+):(\d)>", "\n".join(listing.lines)))
        assert set(sizes) == set(listing.names)
        values = {name: FAKE_VALUES[int(size)] + i for i, (name, size) in enumerate(sizes.items())}
        mode = {32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[listing.bits]
        decoded = list(capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(assemble(listing.lines, values), 0))
        seen = [(f"{one.address:03x}", named(f"{one.mnemonic} {one.op_str}".strip(), values)) for one in decoded]
        assert seen == [(line[1], line[3]) for line in lines if line is not None]


def named(text: str, values: dict[str, int]) -> str:
    """An instruction's text with names in place of their values."""
    for name, value in values.items():
        text = text.replace(hex(value), name)
    return text


def test_a_failure_says_what_was_seen_and_what_should_have_been() -> None:
    for seen, wanted, said in (
        (0x40000, 7, "RIP: 0x40000, not 7"),
        ((1, [True, None]), (), "RIP: (1, (true, none)), not ()"),
        (b"\1\xff", b"", "RIP: 01 ff, not no bytes"),
        ("a", "b", "RIP: a, not b"),
    ):
        with pytest.raises(Exception, match=re.escape(said)):
            expect("RIP", seen, wanted)
    expect("RIP", 1, 1)
