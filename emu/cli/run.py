"""`emu run`: one command in a fresh guest."""

from __future__ import annotations

import sys
from time import monotonic

import click

from emu.cli.options import GuestOptions, Seconds, guest_options
from emu.cli.session import booted, log_to_stderr, run_shown, stats_at_end
from emu.errors import GuestStopped
from emu.phases import Phases


@click.command(
    "run",
    short_help="Run one command in a fresh guest; its exit status is ours.",
    context_settings={"allow_interspersed_args": False},
)
@guest_options
@click.option("--timeout", type=Seconds(), help="For the boot and the command together; none without it.")
@click.option("--verbose", is_flag=True, help="Show what was tried, and a time for each phase at the end.")
@click.option("--stats", is_flag=True, help="Show at the end which exits the guest caused, and what they cost.")
@click.argument("words", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(guest: GuestOptions, timeout: float | None, verbose: bool, stats: bool, words: tuple[str, ...]) -> int:
    """Boot a fresh guest, run one command in it, and show its output, byte for byte, as it comes.

    The command gets no standard input. Its exit status is ours, 128 + n if signal n ended it, or the status that the
    guest ended the machine with. Other statuses: 2 for input that cannot be used, 124 when --timeout has passed, 125
    when the guest failed: if its kernel panicked, the panic's line is on standard error.

    \b
    Examples:
      emu run -- uname -a
      emu run --memory 512M --timeout 60 -- sh -c 'dmesg | tail -3; exit 3'
      emu run --root ./rootfs --verbose -- /app/selftest
      emu run --share data=./data,ro -- sh -c 'wc -l /mnt/data/*.csv'
    """
    phases = Phases()
    if verbose:
        log_to_stderr()
    deadline = None if timeout is None else monotonic() + timeout
    try:
        with booted(guest, phases, accounting=stats) as machine, stats_at_end(machine, stats):
            with phases("boot"):
                machine.wait_ready(_left(deadline))
            status = run_shown(machine, words, _left(deadline), phases)
    except GuestStopped:
        if machine.exit_status is None:
            raise
        return machine.exit_status
    finally:
        if verbose:
            print(phases.table(), file=sys.stderr)
    return status


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - monotonic(), 0.001)
