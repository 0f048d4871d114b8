"""`emu fetch`: the default guest, into the cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from emu.cache import Cache
from emu.fetch import KERNELS, Progress, Say, fetch_guest


@click.command("fetch", short_help="Get the default guest's kernel and root file system.")
@click.option(
    "--kernel",
    type=click.Choice(KERNELS),
    default=KERNELS[0],
    show_default=True,
    help="Alpine's own (Debian's generic one where Alpine's mirror cannot be reached), or Debian's: generic, with "
    "modules for everything, or cloud, without.",
)
def command(kernel: str) -> None:
    """Get the default guest, Alpine, into the cache, once. Says what was taken from where.

    No root is needed. `emu boot` and `emu run` fetch by themselves what is missing.

    \b
    Examples:
      emu fetch
      emu fetch --kernel cloud
    """
    with _progress() as (progress, say):
        guest = fetch_guest(Cache(), kernel, progress, say)
    for line in guest.description:
        click.echo(line)
    click.echo(f"kernel file: {guest.kernel_path}")
    click.echo(f"root file: {guest.root_path}")


@contextmanager
def _progress() -> Iterator[tuple[Progress, Say]]:
    """Bars on a terminal; elsewhere a line when something begins."""
    if not sys.stderr.isatty():
        begun: set[str] = set()

        def line(what: str, _done: int, _total: int | None) -> None:
            if what not in begun:
                begun.add(what)
                click.echo(f"emu: fetching {what}", err=True)

        yield line, lambda text: click.echo(f"emu: {text}", err=True)
        return

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def bar(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield bar, lambda text: bars.console.print(f"emu: {text}", markup=False, highlight=False)
