"""The tutorial, as it is printed: its files are written, its commands typed, their output compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
FILE = re.compile(r"`([\w.]+)`:$")
TIMEOUT_S = 100


def blocks() -> list[tuple[str, str, str]]:
    """(last line before it, language, content) of each block."""
    parts = re.split(r"^```(\w*)$\n?", TUTORIAL, flags=re.MULTILINE)
    return [
        (before.rstrip().rpartition("\n")[2], language, content)
        for before, language, content in zip(parts[0::4], parts[1::4], parts[2::4], strict=False)
    ]


def files() -> dict[str, str]:
    """Content by name of the files."""
    found = {}
    for before, language, content in blocks():
        if language == "python":
            name = FILE.search(before)
            assert name, f"a file without a name behind {before!r}"
            found[name[1]] = content
    return found


def commands() -> list[tuple[str, str]]:
    """(command, output) of what is typed."""
    typed = []
    for _, language, content in blocks():
        if language == "console":
            command, _, output = content.removeprefix("$ ").partition("\n")
            assert content.startswith("$ ") and "\n$ " not in output
            typed.append((command, output))
    return typed


def test_every_block_is_one_that_is_run() -> None:
    assert [language for _, language, _ in blocks()] == ["python", "python", "console", "console"]


def test_it_is_as_short_as_it_says() -> None:
    lines = {name: len([line for line in content.splitlines() if line]) for name, content in files().items()}
    assert lines["my_hypercalls.py"] <= 15 and lines["test_my_hypercalls.py"] <= 10


@pytest.mark.parametrize(
    ("command", "output"),
    [
        pytest.param(command, output, marks=[pytest.mark.integration] if "emu run" in command else [], id=command)
        for command, output in commands()
    ],
)
def test_a_command_does_what_is_printed(command: str, output: str, tmp_path: Path) -> None:
    for name, content in files().items():
        (tmp_path / name).write_text(content)
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", "PYTEST_ADDOPTS": ""}
    process = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert re.fullmatch(re.escape(output).replace(re.escape("..."), ".*"), process.stdout), process.stdout
