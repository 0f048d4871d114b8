"""The options --gdb and --wait, which boot and restore share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from emu.machine import Machine

__all__ = ["debugged", "gdb_options"]


def _needs_gdb(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    if value and context.params.get("gdb") is None:
        raise click.UsageError("--wait waits for gdb: give --gdb, too")
    return value


GDB = click.option(
    "--gdb",
    metavar="PORT|PATH",
    is_eager=True,                      # --wait looks at it
    help="Let gdb debug the guest, by a TCP port of this host or a socket file.",
)
WAIT = click.option(
    "--wait", is_flag=True, callback=_needs_gdb, help="With --gdb: the guest does not run until gdb lets it."
)


def gdb_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command both options, as arguments `gdb` and `wait`."""
    for option in (WAIT, GDB):
        command = option(command)
    return command


@contextmanager
def debugged(machine: Machine, address: str | None, wait: bool) -> Iterator[None]:
    """Let a gdb connect inside, if an address is given; says where."""
    if address is None:
        yield
        return
    from emu.gdb import GdbServer

    with GdbServer(machine, address, wait) as server:
        waiting = "; the guest waits for it" if wait else ""
        print(f"emu: gdb can connect: target remote {server.address}{waiting}", file=sys.stderr)
        yield
