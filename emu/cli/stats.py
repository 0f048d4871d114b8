"""`emu stats`: where a guest's time goes."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path

import click

from emu.cli.options import GuestOptions, guest_options
from emu.cli.session import booted, show
from emu.launch import DEFAULT_GUEST, DEFAULT_KERNEL
from emu.phases import Phases
from emu.picture import check_picture, draw
from emu.stats import ExitStats

OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command(
    "stats",
    short_help="Show which exits a guest and a command cause, and what they cost.",
    context_settings={"allow_interspersed_args": False},
)
@guest_options
@click.option("--json", "json_file", type=OUTPUT, metavar="FILE", help="Write the figures there as well.")
@click.option("--plot", "picture", type=OUTPUT, metavar="FILE.png|.svg", help="Draw them; needs matplotlib.")
@click.argument("words", metavar="[-- CMD...]", nargs=-1, type=click.UNPROCESSED)
def command(guest: GuestOptions, json_file: Path | None, picture: Path | None, words: tuple[str, ...]) -> int:
    """Boot a fresh guest and show how often each handler was called and how long it took; then for a command, if
    one is given.

    The command's output, both kinds, goes to standard error. Its exit status is ours, as with emu run.

    \b
    Examples:
      emu stats
      emu stats --share data=./data -- cat /mnt/data/file
      emu stats --kernel cloud --json exits.json --plot exits.png -- ls -lR /usr
    """
    if picture is not None:
        check_picture(picture)
    title = f"{guest.initrd or guest.root or DEFAULT_GUEST}, kernel {guest.kernel or DEFAULT_KERNEL}"
    parts, status = _measured(guest, words)
    for name, stats in parts:
        click.echo(f"{title}: {name}\n{stats.table()}\n")
    if json_file is not None:
        figures = [{"name": name, **stats.as_json()} for name, stats in parts]
        json_file.write_text(json.dumps({"guest": title, "parts": figures}, indent=1) + "\n")
    if picture is not None:
        draw(picture, title, parts)
    return status


def _measured(guest: GuestOptions, words: tuple[str, ...]) -> tuple[list[tuple[str, ExitStats]], int]:
    """Statistics of the boot and of the command, by name, and the command's exit status."""
    with booted(guest, Phases(), accounting=True) as machine:
        machine.wait_ready()
        boot = machine.stats()
        if not words:
            return [("boot", boot)], 0
        output = partial(show, sys.stderr)
        status = machine.run(list(words), stdout=output, stderr=output).status
        return [("boot", boot), (shlex.join(words), machine.stats() - boot)], status
