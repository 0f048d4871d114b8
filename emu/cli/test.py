"""`emu test`: test scripts over several machines."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import click

from emu.cli import Interrupted
from emu.cli.options import Seconds
from emu.errors import EmuError
from emu.fleet.failures import OutOfTime
from emu.fleet.fleet import DEFAULT_TIMEOUT_S, Fleet
from emu.fleet.script import read_script, run_script

STATUS_FAILED = 1
WATCH_S = 1.0                           # between two looks at the time, for scripts that wait for no machine
ENDING_SIGNALS = signal.SIGTERM, signal.SIGHUP


@click.command("test", short_help="Run test scripts over several machines on a network of their own.")
@click.option(
    "--timeout", type=Seconds(), default=DEFAULT_TIMEOUT_S, show_default=True, help="For each script as a whole."
)
@click.option(
    "--shared",
    type=click.Path(file_okay=False, path_type=Path),
    help="A directory of the host that all machines have at /mnt/shared; without it an empty one, for a script's time.",
)
@click.option("--keep-going", is_flag=True, help="Run the other scripts when one has failed.")
@click.argument("scripts", metavar="FILE.py...", nargs=-1, required=True, type=click.Path(path_type=Path))
def command(timeout: float, shared: Path | None, keep_going: bool, scripts: tuple[Path, ...]) -> int:
    """Run Python files that test several machines at once; docs/fleet.md says what they can use.

    The log goes to standard error; when a test fails, so does a report: what failed, where, what the command said, and
    the state and the last console lines of every machine. The exit status is 0 if all have passed, 1 if one has failed,
    2 if a script cannot be read. At the end, also on Ctrl-C, no machine is left.

    \b
    Example:
      emu test --timeout 60 network.py

    \b
    A script:
      server = fleet.add("server")
      client = fleet.add("client")
      start_all()
      server.succeed("vsock listen 80 'echo hello, CID $1'")
      with subtest("the client is greeted by its address"):
          assert client.succeed(f"vsock {server.cid} 80") == f"hello, CID {client.cid}\\n"
    """
    codes = [read_script(path) for path in scripts]
    failed = 0
    for path, code in zip(scripts, codes, strict=True):
        with Fleet(shared=shared, timeout=timeout) as fleet:
            passed = _passes(fleet, code)
            print(f"emu: {path}: {'passed' if passed else 'FAILED'} in {fleet.log.seconds:.2f} s", file=sys.stderr)
        failed += not passed
        if failed and not keep_going:
            break
    return STATUS_FAILED if failed else 0


def _passes(fleet: Fleet, script: CodeType) -> bool:
    """Run a script; tell what failed, if something did."""
    try:
        with _limits(fleet):
            run_script(script, fleet)
    except SystemExit as end:
        if end.code in (None, 0):
            return True
        error: BaseException = end
    except Interrupted:
        raise
    except Exception as failure:
        error = failure
    else:
        return True
    if not isinstance(error, EmuError):
        _show_traceback(error, script.co_filename)
    print(fleet.report(error), file=sys.stderr)
    return False


def _show_traceback(error: BaseException, filename: str) -> None:
    """As Python would, from the script's frame on."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename != filename:
        trace = trace.tb_next
    traceback.print_exception(error.with_traceback(trace), file=sys.stderr)


@contextmanager
def _limits(fleet: Fleet) -> Iterator[None]:
    """End what is done inside at signals, and when the test's time is over even if it waits for no machine.

    Each does what Ctrl-C does, for which also a machine that runs in this process is prepared.
    """
    reason: int | None = None

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal reason
        # Machines see to the time themselves, and know more
        if number != signal.SIGALRM or fleet.log.seconds > fleet.timeout + WATCH_S:
            reason = number
            signal.raise_signal(signal.SIGINT)

    usual = {number: signal.signal(number, end) for number in (*ENDING_SIGNALS, signal.SIGALRM)}
    usual[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = signal.setitimer(signal.ITIMER_REAL, WATCH_S, WATCH_S)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if reason == signal.SIGALRM:
            raise OutOfTime(fleet.out_of_time()).with_traceback(interrupt.__traceback__) from None
        if reason is not None:
            raise Interrupted(reason) from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in usual.items():
            signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)
