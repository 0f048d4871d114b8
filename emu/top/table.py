"""Machines as a table in a terminal, and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from devices.frozen import frozen
from emu.rates import Rates, rates
from emu.top.find import Found

__all__ = ["Shown", "as_json", "compared", "table"]

MIB = 1 << 20
LEFT: JustifyMethod = "left"
RIGHT: JustifyMethod = "right"
COLUMNS = (                             # and their widths; the machine's name has the rest
    ("pid", 7), ("machine", None), ("own MiB", 7), ("shared", 6), ("guest", 6), ("host", 6), ("idle", 6), ("irq/s", 6),
    ("exits/s", 8),
)  # fmt: skip
FRAME_LINES = 4                         # of both tables, beside their rows
MOST_ROWS = 12                          # handlers of one machine


@frozen
class Shown:
    """A machine, and what it did since it was looked at before; None if it stands, or was not there before."""

    found: Found
    rates: Rates | None


def compared(before: list[Found], after: list[Found]) -> list[Shown]:
    """The machines that there are now."""
    old = {(each.pid, each.number): each.report for each in before}
    shown = []
    for each in after:
        then, now = old.get((each.pid, each.number)), each.report
        is_known = then is not None and now is not None and now.now_ns > then.now_ns
        done = rates(then.stats(), now.stats(), now.now_ns - then.now_ns) if is_known and then and now else None
        shown.append(Shown(each, done))
    return shown


def table(machines: list[Shown], height: int) -> Group:
    """The machines, and below what each does most, in not many more than `height` lines."""
    upper = Table(box=None, pad_edge=False, expand=True)
    for name, width in COLUMNS:
        rest, justify = (None, RIGHT) if width else (1, LEFT)
        upper.add_column(name, width=width, ratio=rest, justify=justify, no_wrap=True, overflow="ellipsis")
    lower = Table(box=None, pad_edge=False)
    for name, justify in ("pid", RIGHT), ("kind", LEFT), ("handler", LEFT), ("a second", RIGHT):
        lower.add_column(name, justify=justify, no_wrap=True)
    each = min(max((height - FRAME_LINES - len(machines)) // max(len(machines), 1), 1), MOST_ROWS)
    for machine in machines:
        upper.add_row(*map(Text, _cells(machine)))
        done = machine.rates
        for row in done.rows[:each] if done else ():
            rate = f"{done.of(row):,.1f}" if done else ""
            lower.add_row(*map(Text, (str(machine.found.pid), row.kind.value, row.handler, rate)))
    return Group(upper, "", lower) if lower.rows else Group(upper)


def _cells(machine: Shown) -> list[str]:
    """A machine's line."""
    found, done, memory = machine.found, machine.rates, machine.found.memory
    cells = [str(found.pid), _name(found)]
    cells += [f"{memory.private_bytes / MIB:.0f}", f"{memory.shared_bytes / MIB:.0f}"] if memory else ["", ""]
    if done is None:
        return [*cells, "stands" if found.report is None else "", "", "", "", ""]
    shares = [f"{share:.1%}" for share in (done.guest, done.host, done.idle)]
    return [*cells, *shares, f"{done.interrupts:,.0f}", f"{sum(done.kinds().values()):,.0f}"]


def _name(found: Found) -> str:
    """A machine's name."""
    report = found.report
    if report is None:
        return found.command
    origin = f", of {report.snapshot}" if report.snapshot else ""
    return f"{found.command} ({report.memory // MIB} MiB{origin})"


def as_json(machines: list[Shown]) -> list[dict[str, Any]]:
    """The same for programs: bytes, shares of time from 0 to 1, and numbers a second; null where it stands."""
    return [_as_json(machine) for machine in machines]


def _as_json(machine: Shown) -> dict[str, Any]:
    found, done = machine.found, machine.rates
    values: dict[str, Any] = {"pid": found.pid, "number": found.number, "command": found.command}
    if found.memory is not None:
        values |= {"private_bytes": found.memory.private_bytes, "shared_bytes": found.memory.shared_bytes}
    if found.report is not None:
        values |= {"memory_bytes": found.report.memory, "snapshot": found.report.snapshot or None}
    values |= {"guest": None, "host": None, "idle": None, "interrupts": None, "kinds": {}, "handlers": []}
    if done is not None:
        values |= {
            "guest": done.guest, "host": done.host, "idle": done.idle, "interrupts": done.interrupts,
            "kinds": done.kinds(),
            "handlers": [{"kind": row.kind.value, "handler": row.handler, "rate": done.of(row)} for row in done.rows],
        }  # fmt: skip
    return values
