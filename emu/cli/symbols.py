"""`emu symbols`: a file of a guest kernel's symbols, for gdb."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from emu.cli.options import GuestOptions, guest_options
from emu.cli.session import booted
from emu.errors import EmuError
from emu.phases import Phases


@click.command("symbols", short_help="Write a guest kernel's symbols to a file for gdb.")
@click.option("--map", "listing", type=click.Path(path_type=Path), help="Take them from a System.map; boot nothing.")
@guest_options
@click.argument("output", type=click.Path(path_type=Path))
def command(guest: GuestOptions, listing: Path | None, output: Path) -> int:
    """Write the symbols of a guest's kernel and of its modules to OUTPUT, an ELF file that gdb's `file` takes.

    The guest is booted, and asked for /proc/kallsyms. Give it the options that the guest to be debugged gets: then its
    kernel is at the same place.

    \b
    Examples:
      emu symbols kernel.symbols
      emu symbols --kernel cloud kernel.symbols
      emu symbols --map /boot/System.map-6.1.0 kernel.symbols
    """
    from emu.gdb.symbols import kernel_symbols, read_symbols, write_symbols

    if listing is not None:
        try:
            symbols = read_symbols(listing.read_bytes())
        except EmuError as error:
            raise EmuError(f"{listing}: {error}") from None
    else:
        with booted(guest, Phases()) as machine:
            symbols = kernel_symbols(machine)
    write_symbols(output, symbols)
    print(f"emu: {len(symbols)} symbols; in gdb: file {output}", file=sys.stderr)
    return 0
