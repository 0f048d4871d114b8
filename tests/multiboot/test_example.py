"""docs/multiboot.md: its kernel is built and run as it says there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import emu

TEXT = (Path(__file__).parents[2] / "docs" / "multiboot.md").read_text()
TIMEOUT_S = 60.0


def block(kind: str) -> str:
    """The first block of code of a kind."""
    match = re.search(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)
    assert match is not None
    return match[1]


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("ld")), reason="needs as and ld (binutils)")
def test_the_kernel_does_what_the_text_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kernel.s").write_text(block("asm"))
    lines = block("console").splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    ended = subprocess.run(
        ["bash", "-c", "\n".join(commands)], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=TIMEOUT_S,
    )  # fmt: skip
    assert (ended.stdout.splitlines(), ended.stderr) == ([line for line in lines if not line.startswith("$ ")], "")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"emu": emu}
    exec(block("python"), names)
    assert capsys.readouterr().out == "world 11 the guest ended the machine\n"
