"""`emu test` with machines that are none."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from emu.cli import main
from tests.fleet.fakes import FakeTemplates


@pytest.fixture(autouse=True)
def no_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu.fleet.fleet.Templates", FakeTemplates)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "script.py"


def run(script: Path, text: str, *options: str) -> int:
    """The exit status of a script of that text."""
    script.write_text(text)
    return main(["test", *options, str(script)])


@pytest.mark.parametrize("text", ["", "start_all()", "raise SystemExit", "import sys; sys.exit(0)"])
def test_a_script_that_comes_to_its_end_passes(script: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(script, text) == 0
    assert re.search(rf"^emu: {script}: passed in [0-9.]+ s\n$", capsys.readouterr().err, re.MULTILINE)


def test_a_machine_s_failure_is_reported_without_a_traceback(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(script, 'one = fleet.add("one")\nwith subtest("part"):\n    one.fail("true")\n') == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert f"\n  subtest: part\n  at: {script}:3: one.fail(\"true\")\n" in error
    places = [error.index(text) for text in ("one: start", "FAILED after", "one (CID 3)", "FAILED in")]
    assert places == sorted(places)


def test_other_exceptions_have_a_traceback_of_the_script_alone(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, "def check():\n    assert 1 == 2, 'no'\ncheck()\n") == 1
    error = capsys.readouterr().err
    frames = re.findall(r'File "(.*?)", line (\d+)', error)
    assert frames == [(str(script), "3"), (str(script), "2")]
    assert "AssertionError: no\nFAILED after" in error


@pytest.mark.parametrize("text", ["raise SystemExit(3)", "raise SystemExit('no')", "fleet.add('')", "fleet['x']"])
def test_whatever_else_ends_a_script_is_a_failure(script: Path, text: str) -> None:
    assert run(script, text) == 1


def test_scripts_run_in_turn_up_to_the_first_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = []
    for number, text in enumerate(["", "1 // 0", "fleet.add('only-here')", "assert not fleet.machines"]):
        scripts.append(str(tmp_path / f"{number}.py"))
        Path(scripts[-1]).write_text(text)
    assert main(["test", *scripts]) == 1
    assert len(re.findall(r"^emu: ", capsys.readouterr().err, re.MULTILINE)) == 2
    assert main(["test", "--keep-going", *scripts]) == 1
    outcomes = re.findall(r"^emu: .*: (passed|FAILED) in", capsys.readouterr().err, re.MULTILINE)
    assert outcomes == ["passed", "FAILED", "passed", "passed"]
    assert main(["test", scripts[0], scripts[2]]) == 0


@pytest.mark.parametrize(("text", "message"), [("x = (", "script.py:1: "), ("\0", "script.py")])
def test_what_cannot_be_read_is_bad_input_and_nothing_runs(
    script: Path, tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.py").write_text("print('ran')")
    script.write_text(text)
    assert main(["test", str(tmp_path / "good.py"), str(script)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == "" and captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["missing.py"], ["--timeout", "0", "x"], ["--shared", "/etc/passwd", "x"]])
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *arguments]) == 2
    assert capsys.readouterr().err.startswith("emu: ")


def test_options_reach_the_fleet(script: Path, tmp_path: Path) -> None:
    text = f"assert str(fleet.shared) == {str(tmp_path)!r} and fleet.timeout == 7"
    assert run(script, text, "--shared", str(tmp_path), "--timeout", "7") == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_the_script_and_are_given_back(script: Path, number: int, status: int) -> None:
    before = signal.getsignal(number), signal.getsignal(signal.SIGALRM)
    assert run(script, f"import os, time\nos.kill({os.getpid()}, {number})\ntime.sleep(60)") == status
    assert (signal.getsignal(number), signal.getsignal(signal.SIGALRM)) == before


def test_the_time_limit_also_ends_what_waits_for_no_machine(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("emu.cli.test.WATCH_S", 0.05)
    assert run(script, "while True:\n    pass\n", "--timeout", "0.1") == 1
    error = capsys.readouterr().err
    assert "the 0.1 s for the test are over\n" in error and "Traceback" not in error
