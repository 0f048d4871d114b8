"""`emu completion`: what a shell needs to complete commands, options and names."""

from __future__ import annotations

import os

import click

from emu.cli import COMPLETE, cli

SHELLS = "bash", "zsh", "fish"


@click.command("completion", short_help="Print what your shell needs to complete emu's words.")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print a script for SHELL that completes commands, options, and the names that they take.

    \b
    Examples, each for the shell's start-up file:
      eval "$(emu completion bash)"           ~/.bashrc
      eval "$(emu completion zsh)"            ~/.zshrc
      emu completion fish | source            ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None             # SHELLS are click's
    click.echo(kind(cli, {}, "emu", COMPLETE).source())


def complete() -> int:
    """Answer what the script asks, by the environment; the exit status."""
    from click.shell_completion import shell_complete

    return shell_complete(cli, {}, "emu", COMPLETE, os.environ[COMPLETE])
