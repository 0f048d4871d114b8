"""`emu serve`: machines on a page in the browser."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emu.cli.options import GuestOptions, served_options
from emu.errors import EmuError

if TYPE_CHECKING:
    from emu.process.client import MachineProcess

PLACE = "127.0.0.1:8086"
OF_SNAPSHOTS = "shares", "hypercalls", "syscalls", "files"      # options that a restored machine takes, too


@click.command("serve", short_help="Show a machine on a page in the browser: terminal, buttons, figures.")
@served_options
@click.option("--snapshot", type=click.Path(path_type=Path), help="Go on with this one's machine; none is booted.")
@click.option(
    "--snapshots",
    type=click.Path(file_okay=False, path_type=Path),
    default="snapshots",
    show_default=True,
    help="The directory that the page's button saves to, and restores from.",
)
@click.option("--listen", default=PLACE, show_default=True, metavar="[HOST:]PORT", help="Where; port 0 is a free one.")
def command(guest: GuestOptions, snapshot: Path | None, snapshots: Path, listen: str) -> int:
    """Boot a guest and show it on a page in the browser, until Ctrl-C. The page's address is printed; it ends in a
    token, without which nothing is answered.

    The page has a terminal, buttons (start, pause, snapshot, restore, fork into a new tab), and live figures. Any
    number of browsers may look at a machine; all see the same.

    Needs the extra: pip install 'pvemu[serve]'. From another machine: ssh -L 8086:127.0.0.1:8086 HOST.

    \b
    Examples:
      emu serve
      emu serve --memory 1G --share data=./data
      emu serve --snapshot work.snap --listen 9000
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        raise EmuError("emu serve needs aiohttp: pip install 'pvemu[serve]'") from None
    import asyncio

    from emu.process.spawn import spawn
    from emu.serve.run import run

    words = vars(guest)
    others = {name: words[name] for name in OF_SNAPSHOTS}

    def restore(path: Path) -> MachineProcess:
        return spawn(path, **others)

    make = partial(spawn, **words) if snapshot is None else partial(restore, snapshot)
    return asyncio.run(run(make, restore, snapshots, listen, lambda line: print(line, flush=True, file=sys.stdout)))
