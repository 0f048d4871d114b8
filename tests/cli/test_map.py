"""`emu map` with machines that are none."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emu.cli import main
from emu.pool import pool as module
from tests.pool.fakes import FakeHost
from tests.pool.waiting import until


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    host = FakeHost()
    monkeypatch.setattr(module, "spawn", host.spawn)
    yield host
    until(lambda: host.all_gone)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return tmp_path / "jobs.txt"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_line_is_a_command(jobs: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.write_text("echo a b\n\n   \nstatus 0")
    assert main(["map", "--snapshot", "base.snap", "-j1", str(jobs)]) == 0
    assert lines(capsys) == [
        {"job": 0, "command": "echo a b", "status": 0, "stdout": "a b\n", "stderr": ""},
        {"job": 1, "command": "status 0", "status": 0, "stdout": "", "stderr": ""},
    ]
    assert str(host.asked[0][0]) == "base.snap"


def test_each_line_is_put_into_the_command(jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.write_bytes(b"one two\n\xff\n")
    words = ["map", "--snapshot", "s", "--ordered", "--inputs", str(jobs), "--", "echo", "<{}>", "-j"]
    assert main(words) == 0
    assert [(line["job"], line["input"], line.get("stdout")) for line in lines(capsys)] == [
        (0, "one two", "<one two> -j\n"), (1, "\\xff", None)
    ]


def test_failures_are_told_and_make_the_status(jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.write_text("status 3\nhang\necho " + 3000 * "x" + "\ndie\n")
    assert main(["map", "--snapshot", "s", "--timeout", "0.05", "--output-limit", "2K", "--ordered", str(jobs)]) == 1
    first, *others = lines(capsys)
    assert first["status"] == 3
    assert [line["error"] for line in others] == ["GuestTimeout", "OutputLimit", "MachineDied"]
    assert others[0]["message"] == "'hang' did not end within 0.05 s"


def test_results_come_as_they_end_or_in_order(jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.write_text("hang\necho 1\necho 2\n")
    for ordered, expected in ([], [1, 2, 0]), (["--ordered"], [0, 1, 2]):
        assert main(["map", "--snapshot", "s", "-j2", "--timeout", "0.3", *ordered, str(jobs)]) == 1
        assert sorted(order := [line["job"] for line in lines(capsys)]) == [0, 1, 2]
        assert order == expected


def test_results_are_written_while_more_input_is_to_come(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    keep = os.dup(0)
    os.dup2(reading, 0)
    said = ""

    def type_in() -> None:
        nonlocal said
        os.write(writing, b"echo 1\nec")
        until(lambda: (taken := capfd.readouterr().out) and taken)
        os.write(writing, b"ho 2")
        os.close(writing)

    thread = threading.Thread(target=type_in)
    thread.start()
    try:
        assert main(["map", "--snapshot", "s", "-"]) == 0
    finally:
        os.dup2(keep, 0)
        os.close(keep)
        os.close(reading)
    thread.join()
    assert json.loads(capfd.readouterr().out)["stdout"] == "2\n"


def test_limits_and_options_reach_the_pool(jobs: Path, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write_text("true\n")
    made: dict[str, Any] = {}

    class Spy(module.Pool):
        def __init__(self, snapshot: Any, **keywords: Any) -> None:
            made.update(keywords)
            super().__init__(snapshot, **keywords)

    monkeypatch.setattr("emu.cli.map.Pool", Spy)
    words = ["map", "--snapshot", "s", "-j3", "--timeout", "2.5", "--memory-limit", "40M", "--share", "data=.,ro"]
    assert main([*words, str(jobs)]) == 0
    assert (made["size"], made["timeout"], made["memory_limit"], made["output_limit"]) == (3, 2.5, 40 << 20, 64 << 20)
    assert host.asked[0][1]["shares"]["data"].read_only and host.asked[0][1]["vsock"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["one", "two"], "name one file of commands"),
        (["--inputs", "nowhere.txt", "--", "wc"], "needs a {}"),
        (["-j0", "jobs.txt"], "'-j'"),
        (["--output-limit", "0", "jobs.txt"], "'0' is not a size"),
        (["--vsock", "x", "jobs.txt"], "No such option"),
        ([], "Missing argument"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "--snapshot", "s", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_snapshot_that_cannot_be_used(jobs: Path, host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.write_text("true\n")
    host.refuse_spawns = 1
    assert main(["map", "--snapshot", "s", str(jobs)]) == 2
    assert capsys.readouterr() == ("", "emu: no such snapshot\n")


def test_a_reader_that_goes_away(jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.write_text("true\n" * 100)

    def broken(*_words: Any, **_options: Any) -> None:
        raise BrokenPipeError

    with open(os.devnull, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr("builtins.print", broken)
        keep = os.dup(1)
        try:
            assert main(["map", "--snapshot", "s", str(jobs)]) == 141
        finally:
            os.dup2(keep, 1)
            os.close(keep)
