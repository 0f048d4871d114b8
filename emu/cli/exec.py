"""`emu exec`: one command in a machine that was restored."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from emu.cli.options import RestoreOptions, Seconds, Size, restore_options
from emu.cli.session import log_to_stderr, restored, run_shown
from emu.errors import GuestStopped
from emu.phases import Phases


@click.command(
    "exec",
    short_help="Run one command in a machine restored from a snapshot.",
    context_settings={"allow_interspersed_args": False},
)
@click.option(
    "--snapshot",
    type=click.Path(path_type=Path),
    help="The snapshot; without it one of the default guest, which is made on first use.",
)
@click.option("--memory", type=Size(), help="The default guest's RAM.  [default: 128M]")
@restore_options
@click.option("--timeout", type=Seconds(), help="For the command; none without it.")
@click.option("--verbose", is_flag=True, help="Show a time for each phase at the end, from the start of the process.")
@click.argument("words", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    snapshot: Path | None,
    memory: int | None,
    options: RestoreOptions,
    timeout: float | None,
    verbose: bool,
    words: tuple[str, ...],
) -> int:
    """Restore a machine, run one command in it, and show its output, byte for byte, as it comes.

    Its exit status is ours, as with emu run. The snapshot is only read: each command finds the same machine, and
    nothing remains of it.

    \b
    Examples:
      emu exec -- uname -a
      emu exec --verbose -- true
      emu exec --snapshot work.snap --share data=./other -- ls /mnt/data
      EMU_EAGER_MIB=64 emu exec -- sh -c 'ls | wc -l'
    """
    if snapshot and memory:
        raise click.UsageError("--memory is for the default guest: a snapshot's machine has the memory that it had")
    phases = Phases()
    if verbose:
        log_to_stderr()
    try:
        if snapshot is None:
            from emu.snapshot.ready import DEFAULT_MEMORY, ready_snapshot

            size = memory or DEFAULT_MEMORY
            snapshot = ready_snapshot(size, phases, lambda line: print(f"emu: {line}", file=sys.stderr))
        with restored(snapshot, options, phases) as machine:
            status = run_shown(machine, words, timeout, phases)
            machine.learn_hot_set()
    except GuestStopped:
        if machine.exit_status is None:
            raise
        return machine.exit_status
    finally:
        if verbose:
            print(phases.table(), file=sys.stderr)
    return status
