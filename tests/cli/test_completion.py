"""Shells complete what is typed behind `emu`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from emu.cli import COMMANDS, COMPLETE
from emu.cli.completion import SHELLS

# What bash does when Tab is pressed: the words, the one under the cursor, and the function; then its answers
BASH = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_emu_completion emu "${COMP_WORDS[COMP_CWORD]}" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""


def emu(*words: str, **environment: str) -> str:
    """What the command prints."""
    return subprocess.run(
        [sys.executable, "-m", "emu", *words], env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def complete(tmp_path: Path) -> Callable[..., set[str]]:
    """Press Tab in bash behind some words."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    script, programs = tmp_path / "script", tmp_path / "bin"
    script.write_text(emu("completion", "bash"))
    programs.mkdir()
    (programs / "emu").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m emu "$@"\n')
    (programs / "emu").chmod(0o755)

    def press_tab(*words: str) -> set[str]:
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        command = [bash, "--norc", "-c", BASH, "bash", script, *words]
        # `complete` and `compopt` complain where nothing is edited; what counts is the answer
        said = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
        return {line for line in said.splitlines() if line}

    return press_tab


def test_bash_completes_commands_options_and_names(complete: Callable[..., set[str]]) -> None:
    assert complete("emu", "") == {*COMMANDS}
    assert complete("emu", "sn") == {"snapshot"}
    assert complete("emu", "run", "--root") == {"--root", "--root-over"}
    assert complete("emu", "boot", "--kernel", "c") == {"cloud"}
    assert complete("emu", "boot", "--root-over", "") == {"initramfs", "9p"}


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script_that_it_understands(shell: str) -> None:
    script = emu("completion", shell)
    assert COMPLETE in script and "emu" in script
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_a_file_is_left_to_the_shell() -> None:
    words = {COMPLETE: "bash_complete", "COMP_WORDS": "emu boot --kernel ./b", "COMP_CWORD": "3"}
    assert emu(**words) == "file,./b\n"
