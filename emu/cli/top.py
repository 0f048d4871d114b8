"""`emu top`: what running machines do."""

from __future__ import annotations

import json
import sys
import time

import click

from emu.top.find import Found, find
from emu.top.table import Shown, as_json, compared, table

INTERVAL_S = 1.0
NONE = "no machine of yours is running"
MANY_LINES = 1000


@click.command("top", short_help="Show what running machines do, live.")
@click.option("--once", is_flag=True, help="Look for a second and print one table, as is done without a terminal.")
@click.option("--json", "wants_json", is_flag=True, help="The same as JSON.")
def command(once: bool, wants_json: bool) -> int:
    """Show all running machines of this user, whatever has started them, once a second until Ctrl-C: memory of their
    own and shared with others, the share of time spent in the guest, in the host's handlers and asleep, interrupts and
    exits a second, and below each machine what it does most.

    Without exact times (emu boot --stats, accounting=True) the guest's share has the handlers of its exits in it.
    A machine that nothing drives at the moment "stands".

    \b
    Examples:
      emu top
      emu top --once
      emu top --json | python -m json.tool
    """
    if once or wants_json or not sys.stdout.isatty():
        _, machines = _look(find())
        if wants_json:
            click.echo(json.dumps(as_json(machines)))
        else:
            _print(machines)
        return 0
    _show()
    return 0


def _look(before: list[Found]) -> tuple[list[Found], list[Shown]]:
    """Wait a moment, and see what was done in it."""
    time.sleep(INTERVAL_S)
    after = find()
    return after, compared(before, after)


def _print(machines: list[Shown]) -> None:
    from rich.console import Console

    if machines:
        Console(width=None if sys.stdout.isatty() else 120).print(table(machines, MANY_LINES))
    else:
        click.echo(NONE)


def _show() -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    before = find()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        live.update(Text("looking…" if before else NONE), refresh=True)
        while True:
            before, machines = _look(before)
            live.update(table(machines, console.height) if machines else Text(NONE), refresh=True)
