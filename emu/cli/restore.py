"""`emu restore`: a snapshot's machine on this terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from emu.cli.boot import ESCAPE
from emu.cli.debugging import debugged, gdb_options
from emu.cli.options import RestoreOptions, restore_options
from emu.cli.session import log_to_stderr, restored
from emu.errors import GuestError
from emu.phases import Phases


@click.command("restore", short_help="Go on with a snapshot's machine on this terminal; Ctrl-] leaves.")
@restore_options
@click.option("--verify", is_flag=True, help="Read all of the snapshot first and compare it with its checksums.")
@click.option("--verbose", is_flag=True, help="Show a time for each phase at the end.")
@gdb_options
@click.argument("snapshot", type=click.Path(path_type=Path))
def command(
    snapshot: Path, options: RestoreOptions, verify: bool, verbose: bool, gdb: str | None, wait: bool
) -> int:
    """Go on with the machine of SNAPSHOT on this terminal. Ctrl-] leaves; the guest ends then, the snapshot stays.

    Its console is where it was: press Enter for a prompt. Without a terminal, standard input is typed there.

    \b
    Examples:
      emu restore work.snap
      emu restore --share data=./elsewhere work.snap
      emu restore --gdb 1234 work.snap
      echo 'uname -a' | emu restore work.snap
    """
    phases = Phases()
    if verbose:
        log_to_stderr()
    try:
        if verify:
            from emu.cli.progress import ram_progress
            from emu.snapshot.files import Snapshot

            with phases("verify"), Snapshot.open(snapshot) as opened, ram_progress("verifying") as progress:
                opened.verify(progress)
        with restored(snapshot, options, phases) as machine, debugged(machine, gdb, wait):
            if sys.stdin.isatty():
                print("emu: restored; Ctrl-] leaves", file=sys.stderr)
            with phases("session"):
                machine.console.interact(ESCAPE)
            if machine.panic is not None:
                raise GuestError(machine.panic)
    finally:
        if verbose:
            print(phases.table(), file=sys.stderr)
    return 0
