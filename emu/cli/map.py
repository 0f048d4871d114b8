"""`emu map`: many commands, each in a machine of its own."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import click

from emu.cli.jobs import MOST_AHEAD, count, jobs, opened, results, source, write
from emu.cli.options import Amount, RestoreOptions, Seconds, Size, clone_options
from emu.cli.session import ending_signals
from emu.phases import Phases
from emu.pool.pool import Pool
from emu.pool.progress import job_progress

STATUS_SOME_FAILED = 1


@click.command("map", short_help="Run many commands, each in a machine of its own; results as JSON lines.")
@click.option("-j", "--jobs", "size", type=click.IntRange(1), help="Machines that work at a time; the host's CPUs.")
@click.option(
    "--snapshot",
    type=click.Path(path_type=Path),
    help="The snapshot; without it one of the default guest, which is made on first use.",
)
@click.option("--memory", type=Size(), default="128M", show_default=True, help="The default guest's RAM.")
@clone_options
@click.option("--timeout", type=Seconds(), help="For each command; none without it.")
@click.option("--memory-limit", type=Amount(), help="Of the host, that a command's machine may take for itself.")
@click.option("--output-limit", type=Amount(), default="64M", show_default=True, help="Of each command.")
@click.option("--ordered", is_flag=True, help="Results in the order of the commands, not of their ends.")
@click.option(
    "--inputs",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="A file, - for standard input: the command after -- is run for each line, which stands for {} in it.",
)
@click.argument("words", metavar="JOBS|-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def command(
    size: int | None,
    snapshot: Path | None,
    memory: int,
    options: RestoreOptions,
    timeout: float | None,
    memory_limit: int | None,
    output_limit: int,
    ordered: bool,
    inputs: Path | None,
    words: tuple[str, ...],
) -> int:
    """Run each line of the file JOBS (- for standard input) as a shell command, in a machine that no other has used.

    A line of JSON for each command goes to standard output when it has ended: its number, itself or its input, and
    status, stdout and stderr; or error and message, if a limit ended it or its machine died. Output that is not UTF-8
    is in stdout_base64 or stderr_base64. The exit status is 1 if any command had another one than 0, or an error.

    \b
    Examples:
      emu map -j4 jobs.txt
      emu map --timeout 10 --memory-limit 64M --ordered jobs.txt
      seq 100 | emu map --inputs - -- factor {}
      ls data | emu map --share data=./data,ro --inputs - -- wc -l /mnt/data/{}
    """
    path, words = source(inputs, words)
    with ending_signals(), opened(path) as lines:
        total = count(path)
        if snapshot is None:
            from emu.snapshot.ready import ready_snapshot

            snapshot = ready_snapshot(memory, Phases(), lambda line: print(f"emu: {line}", file=sys.stderr))
        given = {field.name: getattr(options, field.name) for field in fields(options)}
        given |= {"timeout": timeout, "memory_limit": memory_limit, "output_limit": output_limit}
        failed = 0
        with Pool(snapshot, size=size, queue=MOST_AHEAD, **given) as pool:
            with job_progress(total, wanted=not sys.stdout.isatty()) as advance:
                for done in results(pool, jobs(lines, words), ordered):
                    failed += not write(done, "input" if words else "command")
                    advance()
    return STATUS_SOME_FAILED if failed else 0
