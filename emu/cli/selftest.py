"""`emu selftest`: what a report of a bug starts with."""

from __future__ import annotations

import json
import sys
from collections import Counter

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emu.selftest.costs import COSTS
from emu.selftest.report import CheckResult, CostResult, Report, make_report
from emu.selftest.runner import FAILED, PASSED, SKIPPED

STATUS_FAILED = 1
NO_LIMIT = 1000                         # columns where no terminal folds lines

MARKS = {PASSED: Text("ok", "green"), FAILED: Text("FAILED", "bold red"), SKIPPED: Text("skipped", "yellow")}


@click.command("selftest", short_help="Check this machine's libunicorn, and show what exits cost here.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON, for programs.")
def command(as_json: bool) -> int:
    """Check this machine's libunicorn, and every trap on the way from it to a whole CPU, with a guest of a few
    instructions; then show what an exit, a serial byte, a hypercall, a page fault and others cost here.

    Nothing is downloaded, no guest is booted. Takes a few seconds. Ends with 0 if everything is as it should be, with
    1 if not. A report of a bug starts with what this prints.

    \b
    Examples:
      emu selftest
      emu selftest --json > report.json
    """
    report = make_report()
    if as_json:
        click.echo(json.dumps(report.plain(), indent=2))
    else:
        _show(report)
    return 0 if report.passed else STATUS_FAILED


def _show(report: Report) -> None:
    counts = {state: report.count(state) for state in (PASSED, FAILED, SKIPPED)}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count or state == PASSED)
    end = Text(f"{told}, in {report.seconds:.1f} s", "green" if report.passed else "bold red")
    console = Console(width=None if sys.stdout.isatty() else NO_LIMIT, highlight=False)
    with console.capture() as text:
        for part in (_about_table(report), _checks_table(report.checks), _costs_table(report.costs)):
            if part.row_count:
                console.print(part)
                console.print()
        console.print(end)
    for line in text.get().splitlines():
        click.echo(line.rstrip())


def _table(*justify: str) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for side in justify:
        table.add_column(justify=side)      # type: ignore[arg-type]
    return table


def _about_table(report: Report) -> Table:
    table = _table("left", "left")
    for name, value in report.about.items():
        table.add_row(name, Text(value))
    table.add_row("load", " ".join(f"{value:.2f}" for value in report.load))
    return table


def _checks_table(checks: list[CheckResult]) -> Table:
    table = _table("left", "left", "left")
    group = ""
    for result in checks:
        if result.outcome.state == SKIPPED:
            continue
        if result.group != group:
            if group:
                table.add_row("")
            table.add_row("", Text(result.group, "bold"), "" if group else Text("or else, in a guest:", "dim"))
            group = result.group
        otherwise = result.check.otherwise
        passed = result.outcome.state == PASSED
        text = Text(otherwise, "dim") if passed else Text(f"{result.outcome.detail}. So: {otherwise}", "red")
        table.add_row(MARKS[result.outcome.state], Text(result.check.name), text)
    skipped = [result for result in checks if result.outcome.state == SKIPPED]
    for reason, count in Counter(result.outcome.detail for result in skipped).items():
        name = next(result.check.name for result in skipped if result.outcome.detail == reason)
        what = Text(name if count == 1 else f"{count} checks")
        table.add_row(MARKS[SKIPPED], what, Text(reason, "yellow"))
    return table


def _costs_table(costs: list[CostResult]) -> Table:
    table = _table("left", "right", "right", "right", "left")
    tried = [result for result in costs if result.outcome.state != SKIPPED]
    if tried:
        table.add_row(*(Text(title, "bold") for title in ("cost", "ns", "spread", "TSC cycles", "")))
    for result in tried:
        cost = result.cost
        if cost is None:
            table.add_row(result.name, "", "", MARKS[FAILED], Text(result.outcome.detail, "red"))
        else:
            figures = f"{cost.ns_median:,.0f}", f"±{cost.ns_spread / 2:,.0f}", f"{cost.cycles_median:,.0f}"
            table.add_row(result.name, *figures, Text(COSTS[result.name].what))
    return table
