"""The report of a self-test: what this host and its libunicorn are, what was checked, and what things cost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import emu
from devices.frozen import frozen
from emu.cpu import abi, layout
from emu.errors import EmuError
from emu.host import REQUIREMENTS, cpu_model, host, package_version, python_version, usable_cpus
from emu.selftest.check import Check
from emu.selftest.costs import COSTS, Cost, measure
from emu.selftest.runner import FAILED, PASSED, SKIPPED, Outcome, Runner
from emu.selftest.traps import GROUPS

__all__ = ["CheckResult", "CostResult", "Report", "make_report"]


@frozen
class CheckResult:
    """A check and how it ended.

    Attributes:
        group: title of its group.
    """

    group: str
    check: Check
    outcome: Outcome

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        check, outcome = self.check, self.outcome
        return {
            "group": self.group, "name": check.name, "state": outcome.state, "detail": outcome.detail,
            "otherwise": check.otherwise, "seconds": round(outcome.seconds, 6),
        }  # fmt: skip


@frozen
class CostResult:
    """What was to be measured, and the figures; None if that failed."""

    name: str
    cost: Cost | None
    outcome: Outcome

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        row: dict[str, Any] = {
            "name": self.name, "what": COSTS[self.name].what,
            "state": self.outcome.state, "detail": self.outcome.detail,
        }  # fmt: skip
        if self.cost is not None:
            row |= {key: round(value, 2) for key, value in asdict(self.cost).items() if key != "name"}
        return row


@frozen
class Report:
    """All of it.

    Attributes:
        about: versions, host and library, by name, for people.
        load: the host's load averages over 1, 5 and 15 minutes, before anything was done.
        seconds: how long everything took.
    """

    about: dict[str, str]
    load: tuple[float, float, float]
    checks: list[CheckResult]
    costs: list[CostResult]
    seconds: float

    def count(self, state: str) -> int:
        """How many checks and measurements ended like this."""
        outcomes = [result.outcome for result in self.checks] + [result.outcome for result in self.costs]
        return sum(outcome.state == state for outcome in outcomes)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.count(FAILED)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "passed": self.passed,
            "about": self.about,
            "load": list(self.load),
            "checks": [result.plain() for result in self.checks],
            "costs": [result.plain() for result in self.costs],
            "seconds": round(self.seconds, 3),
        }


def make_report() -> Report:
    """Check and measure everything, in child processes; nothing that goes wrong there is raised here."""
    started, load = time.monotonic(), os.getloadavg()
    about = dict(_about())
    runner = Runner()
    checks = list(_check_all(runner))
    refusal = next((result for result in checks if result.check.vital and result.outcome.state == FAILED), None)
    if refusal is None:
        costs = list(_measure_all(runner))
    else:
        outcome = _not_tried(refusal.check)
        costs = [CostResult(name, None, outcome) for name in COSTS]
    return Report(about, load, checks, costs, time.monotonic() - started)


def _not_tried(refusal: Check) -> Outcome:
    return Outcome(SKIPPED, f"libunicorn was refused: {refusal.name}")


def _check_all(runner: Runner) -> Iterator[CheckResult]:
    refusal: Check | None = None
    for group in GROUPS:                # each in a process of its own: damage done by one is not the next one's
        outcomes = runner.run([check.run for check in group.checks])
        for check in group.checks:
            outcome = next(outcomes) if refusal is None else _not_tried(refusal)
            if check.vital and outcome.state == FAILED:
                refusal = check
            yield CheckResult(group.title, check, outcome)


def _measure_all(runner: Runner) -> Iterator[CostResult]:
    outcomes = runner.run([partial(_figures, name) for name in COSTS])
    for name, outcome in zip(COSTS, outcomes, strict=True):
        yield CostResult(name, Cost(**outcome.value) if outcome.state == PASSED else None, outcome)


def _figures(name: str) -> dict[str, Any]:
    return asdict(measure(name))


def _about() -> Iterator[tuple[str, str]]:
    yield "emu", emu.__version__
    yield "Python", python_version()
    for name in REQUIREMENTS:
        yield name, package_version(name)
    yield "host", host()
    yield "host CPU", f"{cpu_model()}, {usable_cpus()} usable"
    try:
        path = abi.library_path()
        yield "libunicorn", path
        yield "its build", layout.build_id(path)
        yield "layout row", _row(path)
    except EmuError as error:
        yield "layout row", f"none: {error}"


def _row(path: str) -> str:
    layout.layout_of(path)
    rows = list(layout.known_builds())
    return f"{rows.index(layout.build_id(path)) + 1} of {len(rows)} in emu/cpu/layout.py"
