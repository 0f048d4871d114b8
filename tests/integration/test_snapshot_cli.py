"""`emu snapshot`, `emu exec` and `emu restore`, as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

TIMEOUT_S = 100.0


def emu(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "emu", *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshots") / "work.snap"
    prepare = "echo made >/root/made; echo said"
    made = emu("snapshot", "--kernel", "cloud", "--memory", "96M", path, "--", "sh", "-c", prepare)
    assert (made.returncode, made.stdout, made.stderr) == (0, "said\n", "")
    return path


def test_exec_finds_what_was_prepared_and_passes_on_status_and_outputs(snapshot: Path) -> None:
    script = "cat /root/made; echo wrong >&2; echo more >>/root/made; exit 3"
    done = emu("exec", "--snapshot", snapshot, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (3, "made\n", "wrong\n")
    assert emu("exec", "--snapshot", snapshot, "--", "cat", "/root/made").stdout == "made\n"


def test_exec_tells_its_phases(snapshot: Path) -> None:
    told = emu("exec", "--snapshot", snapshot, "--verbose", "--", "true").stderr
    names = [line.split("  ")[0] for line in told.splitlines()]
    for name in "start python", "open the snapshot", "map the memory", "make the machine", "run", "wall":
        assert name in names


def test_restore_types_its_input_at_the_console(snapshot: Path) -> None:
    done = emu("restore", snapshot, stdin="\ncat /root/made; exit\n")
    assert "\nmade\n" in done.stdout and "Power down" in done.stdout


def test_a_preparation_that_fails_saves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "none.snap"
    failed = emu("snapshot", "--kernel", "cloud", "--memory", "96M", path, "--", "sh", "-c", "exit 9")
    assert failed.returncode == 9
    assert os.listdir(tmp_path) == []


def test_what_is_wrong_is_one_line(snapshot: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.snap"
    subprocess.run(["cp", "-r", snapshot, copy], check=True)
    os.truncate(copy / "ram", 100_000)
    (tmp_path / "damaged.snap").mkdir()
    cases: list[tuple[list[str | Path], str]] = [
        (["exec", "--snapshot", tmp_path / "nothing", "--", "true"], "cannot open the snapshot"),
        (["exec", "--snapshot", copy, "--", "true"], "has 100000 bytes, and had"),
        (["exec", "--snapshot", tmp_path / "damaged.snap", "--", "true"], "is no snapshot"),
        (["exec", "--snapshot", snapshot, "--share", "data=/tmp", "--", "true"], "has no share data: it has none"),
        (["exec", "--snapshot", snapshot, "--eager", "much", "--", "true"], "is not a number of MiB"),
        (["restore", "--vsock", tmp_path / "socket", snapshot], "has no vsock device"),
        (["restore", "--verify", copy], "has 100000 bytes, and had"),
    ]
    for words, message in cases:
        done = emu(*words)
        assert done.returncode == 2 and done.stdout == ""
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
