"""The table of machines, as text and as JSON, and the command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import emu
from emu.cli import main
from emu.memory import MIB
from emu.process.memory import MemoryUse
from emu.stats import Kind
from emu.top.find import Found
from emu.top.report import Report, Row
from emu.top.table import as_json, compared, table
from tests.process.small_guest import SPINNING, small_kernel

SECOND = 10**9


def machine(pid: int, seconds: int, exits: int = 0, command: str = "emu boot") -> Found:
    rows = Row(Kind.WRMSR, "x2apic", 2 * exits, 0), Row(Kind.INTERRUPT, "lapic", exits, 0)
    now = Report(seconds * SECOND, 256 * MIB, "work.snap", rows, seconds * SECOND, seconds * SECOND // 4, 0, False)
    return Found(pid, 1, command, now, MemoryUse(10 * MIB, 20 * MIB))


def text(before: list[Found], after: list[Found], height: int = 50) -> str:
    output = io.StringIO()
    Console(file=output, width=100).print(table(compared(before, after), height))
    return output.getvalue()


def test_a_machine_and_what_it_does_most() -> None:
    lines = text([machine(7, 10, 100)], [machine(7, 12, 300)]).splitlines()
    assert lines[1].split() == [
        "7", "emu", "boot", "(256", "MiB,", "of", "work.snap)", "10", "20", "25.0%", "75.0%", "0.0%", "100", "300",
    ]
    assert [line.split() for line in lines[4:]] == [
        ["7", "wrmsr", "x2apic", "200.0"], ["7", "interrupt", "lapic", "100.0"],
    ]


def test_a_machine_that_stands_or_is_new_has_no_rates() -> None:
    standing = Found(8, 1, "python job.py", None, MemoryUse(MIB, MIB))
    lines = text([], [machine(7, 10, 100), standing]).splitlines()
    assert lines[1].split()[-2:] == ["10", "20"] and lines[2].split() == ["8", "python", "job.py", "1", "1", "stands"]
    assert [each["guest"] for each in as_json(compared([], [machine(7, 10), standing]))] == [None, None]


def test_another_machine_of_the_same_number_has_no_rates_either() -> None:
    assert compared([machine(7, 10, 100)], [machine(7, 5, 1)])[0].rates is None


def test_many_machines_have_a_line_in_each_table() -> None:
    before, after = ([machine(pid, seconds, seconds) for pid in range(30)] for seconds in (1, 2))
    assert len(text(before, after, 24).splitlines()) == 2 * 31 + 1


def test_nothing_in_a_name_is_obeyed() -> None:
    shown = text([], [machine(7, 1, 1, command="[red]x[/] [bold")])
    assert "[red]x[/] [bold" in shown


def test_the_command_shows_a_running_machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with emu.spawn(kernel=small_kernel(tmp_path, SPINNING), memory=64 * MIB) as running:
        running.console_expect(">", 60)
        assert main(["top", "--json"]) == 0
        (found,) = [each for each in json.loads(capfd.readouterr().out) if each["pid"] == running.pid]
        assert found["memory_bytes"] == 64 * MIB and found["guest"] > 0.01 and found["private_bytes"] > 0
        assert main(["top", "--once"]) == 0
        assert str(running.pid) in capfd.readouterr().out
