"""`emu boot`: a guest on this terminal."""

from __future__ import annotations

import sys

import click

from emu.cli.options import GuestOptions, guest_options
from emu.cli.session import booted, log_to_stderr
from emu.errors import GuestError
from emu.phases import Phases

ESCAPE = b"\x1d"    # Ctrl-]


@click.command("boot", short_help="Boot a guest on this terminal; Ctrl-] leaves.")
@guest_options
@click.option("--verbose", is_flag=True, help="Show what was tried, and at the end a time for each phase.")
def command(guest: GuestOptions, verbose: bool) -> int:
    """Boot a guest on this terminal. Ctrl-] leaves; the guest ends then.

    Every other key goes to the guest, Ctrl-C too. The session also ends when the guest does: type exit. Without a
    terminal, standard input is typed at the guest's shell once it is there.

    \b
    Examples:
      emu boot
      emu boot --memory 1G --kernel cloud
      emu boot --kernel ./bzImage --root ./rootfs --append 'loglevel=7'
      echo 'uname -a' | emu boot
    """
    phases = Phases()
    if verbose:
        log_to_stderr()
    try:
        with booted(guest, phases) as machine:
            if sys.stdin.isatty():
                print("emu: booting; Ctrl-] leaves", file=sys.stderr)
            else:
                with phases("boot to prompt"):
                    machine.wait_prompt()
            with phases("session"):
                machine.console.interact(ESCAPE)
            if machine.panic is not None:
                raise GuestError(machine.panic)
    finally:
        if verbose:
            print(phases.table(), file=sys.stderr)
    return 0
