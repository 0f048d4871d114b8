"""`emu snapshot`: boot a guest, prepare it, and save it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from emu.cli.options import GuestOptions, Seconds, guest_options
from emu.cli.progress import ram_progress
from emu.cli.session import booted, log_to_stderr, run_shown
from emu.phases import Phases

SETTLE_S = 0.3                          # until nothing of the preparation is under way


@click.command(
    "snapshot",
    short_help="Boot a guest, prepare it by a command, and save it.",
    context_settings={"allow_interspersed_args": False},
)
@guest_options
@click.option("--timeout", type=Seconds(), help="For the boot and for the command; none without it.")
@click.option("--verbose", is_flag=True, help="Show what was tried, and a time for each phase at the end.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("words", metavar="[-- CMD...]", nargs=-1, type=click.UNPROCESSED)
def command(
    guest: GuestOptions, timeout: float | None, verbose: bool, directory: Path, words: tuple[str, ...]
) -> int:
    """Boot a guest, run a command in it, and save the machine to DIRECTORY; a snapshot that is there is replaced.

    If the command fails nothing is saved, and its exit status is ours.

    \b
    Examples:
      emu snapshot base.snap
      emu snapshot --memory 512M --share src=./src work.snap -- sh -c 'cp -r /mnt/src /root && sh /root/src/prepare'
      emu exec --snapshot work.snap -- sh /root/src/job
    """
    if words[:1] == ("--",):            # click leaves it where an argument stands before
        words = words[1:]
    phases = Phases()
    if verbose:
        log_to_stderr()
    try:
        with booted(guest, phases) as machine:
            with phases("boot"):
                machine.wait_ready(timeout)
            if words:
                status = run_shown(machine, words, timeout, phases)
                if status:
                    return status
            with phases("settle"):
                machine.run("sync", timeout=timeout)
                machine.drive(lambda: False, SETTLE_S)
            with phases("save"), ram_progress("saving") as progress:
                machine.snapshot(directory, progress=progress)
    finally:
        if verbose:
            print(phases.table(), file=sys.stderr)
    return 0
