"""The command `emu`. Each command is a module of this package, imported when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from emu import __version__
from emu.errors import EmuError, GuestError, GuestTimeout

__all__ = ["main"]

COMPLETE = "_EMU_COMPLETE"              # set by a shell that asks for completions

STATUS_BAD_INPUT = 2
STATUS_TIMEOUT = 124            # as timeout(1)
STATUS_GUEST_FAILED = 125       # as `docker run`: the machine failed, not the command
STATUS_BROKEN_PIPE = 141        # as a shell shows SIGPIPE
STATUS_INTERRUPTED = 130
STATUS_BUG = 70                 # EX_SOFTWARE of sysexits.h

COMMANDS = {
    "boot": "Boot a guest on this terminal; Ctrl-] leaves.",
    "exec": "Run one command in a machine restored from a snapshot.",
    "map": "Run many commands, each in a machine of its own; results as JSON lines.",
    "run": "Run one command in a fresh guest; its exit status is ours.",
    "test": "Run test scripts over several machines on a network of their own.",
    "stats": "Show which exits a guest and a command cause, and what they cost.",
    "snapshot": "Boot a guest, prepare it by a command, and save it.",
    "restore": "Go on with a snapshot's machine on this terminal; Ctrl-] leaves.",
    "symbols": "Write a guest kernel's symbols to a file for gdb.",
    "serve": "Show a machine on a page in the browser: terminal, buttons, figures.",
    "top": "Show what running machines do, live.",
    "fetch": "Get the default guest's kernel and root file system.",
    "info": "Show versions, the host, and what is in the cache.",
    "selftest": "Check this machine's libunicorn, and show what exits cost here.",
    "completion": "Print what your shell needs to complete emu's words.",
}
HIDDEN_COMMANDS = ("demo",)


class _LazyGroup(click.Group):
    """Knows its commands' names and summaries without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS and cmd_name not in HIDDEN_COMMANDS:
            return None
        command: click.Command = import_module(f"emu.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="emu %(version)s")
def cli() -> None:
    """Linux machines in pure Python: no KVM, no root, no compiler.

    \b
    Examples:
      emu fetch                        get the default guest, once
      emu boot                         Alpine on this terminal; Ctrl-] leaves
      emu run -- sh -c 'uname -a'      one command in a fresh machine
      emu run --help                   options and exit statuses
      emu exec -- uname -a             the same, from a snapshot: a fraction of a second
      emu info                         what a report of a problem begins with
    """


class Interrupted(Exception):
    """A signal asked us to end; `number` is which."""

    def __init__(self, number: int) -> None:
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Every failure is one line on stderr, never a traceback."""
    try:
        if COMPLETE in os.environ:
            from emu.cli.completion import complete

            return complete()
        words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
        with cli.make_context("emu", words) as context:     # cli.main() would answer a broken pipe its own way
            status = cli.invoke(context)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except Interrupted as signal:
        return 128 + signal.number
    except (KeyboardInterrupt, click.Abort):
        return STATUS_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return STATUS_BROKEN_PIPE
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        message, status = _explained(error)
        print(f"emu: {_one_line(message)}", file=sys.stderr)
        return status


def _one_line(text: str) -> str:
    """Text for a terminal; it may quote a guest, whose escape sequences are shown and not obeyed."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def _meant(message: str) -> str:
    """The command that was meant, if one is much like what was typed."""
    if not message.startswith("No such command"):
        return ""
    from difflib import get_close_matches

    close = get_close_matches(message.split("'")[1], COMMANDS, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _explained(error: Exception) -> tuple[str, int]:
    """One line and an exit status for what went wrong."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "emu"
        message = error.format_message().removesuffix(".")
        return f"{message}{_meant(message)} (see {command} --help)", STATUS_BAD_INPUT
    if isinstance(error, click.ClickException):
        return error.format_message(), STATUS_BAD_INPUT
    if isinstance(error, GuestTimeout):
        return str(error), STATUS_TIMEOUT
    if isinstance(error, GuestError):
        return str(error), STATUS_GUEST_FAILED
    if isinstance(error, EmuError):
        return str(error), STATUS_BAD_INPUT
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}", STATUS_BAD_INPUT
    if isinstance(error, MemoryError):
        return "this host has not enough memory", STATUS_BAD_INPUT
    return f"internal error: {type(error).__name__}: {error} (python -X dev -m emu shows where)", STATUS_BUG
