"""`emu boot`: a guest on this terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from emu.cli.debugging import debugged, gdb_options
from emu.cli.options import GuestOptions, guest_options
from emu.cli.session import booted, log_to_stderr, stats_at_end
from emu.errors import GuestError
from emu.phases import Phases

if TYPE_CHECKING:
    from emu.machine import Machine

ESCAPE = b"\x1d"    # Ctrl-]
PATIENCE_S = 120.0  # for a shell that input can be typed at; with gdb it takes as long as it takes


@click.command("boot", short_help="Boot a guest on this terminal; Ctrl-] leaves.")
@guest_options
@click.option("--verbose", is_flag=True, help="Show what was tried, and at the end a time for each phase.")
@click.option("--stats", is_flag=True, help="Show at the end which exits the guest caused, and what they cost.")
@gdb_options
def command(guest: GuestOptions, verbose: bool, stats: bool, gdb: str | None, wait: bool) -> int:
    """Boot a guest on this terminal. Ctrl-] leaves; the guest ends then.

    Every other key goes to the guest, Ctrl-C too. The session also ends when the guest does: type exit. Without a
    terminal, standard input is typed at the guest's shell once it is there.

    A multiboot kernel runs until it ends the machine; the status is what it chose by the debug exit port, or 125 if it
    halted for good or crashed.

    \b
    Examples:
      emu boot
      emu boot --memory 1G --kernel cloud
      emu boot --kernel ./bzImage --root ./rootfs --append 'loglevel=7'
      echo 'uname -a' | emu boot
      emu boot --gdb 1234 --wait
      emu boot --kernel ./kernel.elf --append 'words for it' --initrd 'module.bin its words'
    """
    phases = Phases()
    if verbose:
        log_to_stderr()
    try:
        with (
            booted(guest, phases, accounting=stats) as machine,
            debugged(machine, gdb, wait),
            stats_at_end(machine, stats),
        ):
            if sys.stdin.isatty():
                print("emu: booting; Ctrl-] leaves", file=sys.stderr)
            elif machine.has_shell:
                with phases("boot to prompt"):
                    machine.wait_prompt(None if gdb else PATIENCE_S)
            with phases("session"):
                machine.console.interact(ESCAPE, type_end=machine.has_shell)
            return _status(machine)
    finally:
        if verbose:
            print(phases.table(), file=sys.stderr)


def _status(machine: Machine) -> int:
    """Our exit status, once the session is over.

    Raises:
        GuestError: the guest has failed.
    """
    from emu.run_loop import StopReason

    if machine.panic is not None:
        raise GuestError(machine.panic)
    if machine.exit_status is not None:
        return machine.exit_status
    well = None, StopReason.POWER_OFF, StopReason.REQUESTED
    if not machine.has_shell and machine.stop_reason not in well:
        raise GuestError(machine.stop_detail)
    return 0
