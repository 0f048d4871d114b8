"""The regression guard: what it says of figures, fed with planted ones; and that its work is what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import callgrind, common, guard
from bench.callgrind import NotCounted
from bench.guard_compare import COUNTS, RATIOS, BadBaseline, Baseline, Verdict, compare, markdown

MAKER = {"CPython": "3.11.7 abc", "valgrind": "3.19.0"}
BEFORE = {"exit": 5764.0, "hypercall": 12071.0, "imports": 156_000_000.0}


def verdicts(now: dict[str, float]) -> dict[str, Verdict]:
    return {row.key: row.verdict for row in compare(BEFORE, now, COUNTS)}


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.0, Verdict.SAME), (1.044, Verdict.SAME), (0.956, Verdict.SAME),
        (1.05, Verdict.WARN), (1.094, Verdict.WARN),
        (1.096, Verdict.FAIL), (1.1, Verdict.FAIL), (3.0, Verdict.FAIL),
        (0.9, Verdict.BETTER),
    ],
)  # fmt: skip
def test_what_is_said_of_a_planted_change(factor: float, verdict: Verdict) -> None:
    assert verdicts(BEFORE | {"exit": 5764.0 * factor}) == dict.fromkeys(BEFORE, Verdict.SAME) | {"exit": verdict}


def test_ratios_have_wider_limits() -> None:
    (row,) = compare({"exit": 1.0}, {"exit": 1.11}, RATIOS)
    assert (row.percent, row.verdict) == (11, Verdict.WARN)


def test_new_and_missing_figures_are_told() -> None:
    now = {"exit": 5764.0, "hypercall": 12071.0, "mmio": 6000.0}
    assert verdicts(now) == {
        "exit": Verdict.SAME, "hypercall": Verdict.SAME, "imports": Verdict.MISSING, "mmio": Verdict.NEW,
    }  # fmt: skip


def test_the_report_begins_with_the_worst() -> None:
    rows = compare(BEFORE, {"exit": 6100.0, "hypercall": 14000.0, "mmio": 6000.0}, COUNTS)
    lines = markdown(rows, ["counted so"]).splitlines()
    assert lines[2] == "Of 4 figures 1 failed, 1 came near it."
    assert lines[6:10] == [
        "| hypercall | 12,071 | 14,000 | +16 % | **worse** |",
        "| exit | 5,764 | 6,100 | +6 % | a little worse |",
        "| imports | 156,000,000 |  |  | not measured any more |",
        "| mmio |  | 6,000 |  | not in the baseline |",
    ]
    assert lines[-1] == "counted so"


def test_a_baseline_is_read_as_it_was_saved(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    Baseline(MAKER, BEFORE, {"exit": 1.541234}).save(file)
    assert Baseline.load(file) == Baseline(MAKER, BEFORE, {"exit": 1.541})


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"made_by": {}, "counts": [], "ratios": 1}', '{"made_by": 1, "counts": {}, "ratios": {}}',
        '{"made_by": {}, "counts": {"exit": 0}, "ratios": {}}',
        '{"made_by": {}, "counts": {"exit": "x"}, "ratios": {}}',
    ],
)  # fmt: skip
def test_a_damaged_baseline_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(text)
    with pytest.raises(BadBaseline, match="is no baseline"):
        Baseline.load(file)


@contextmanager
def planted(monkeypatch: pytest.MonkeyPatch, directory: Path, factor: float, maker: dict[str, str]) -> Iterator[Path]:
    """A guard whose counts are planted, with a baseline beside it."""
    counts = BEFORE | {"exit": BEFORE["exit"] * factor, "reference": 1000.0}
    monkeypatch.setattr(guard, "made_by", lambda: maker)
    monkeypatch.setattr(callgrind, "count", lambda module: dict(counts))
    for module in common, guard:
        monkeypatch.setattr(module, "OUTPUT", directory)
    monkeypatch.setattr(common, "ROOT", directory)
    file = directory / "baseline.json"
    Baseline(MAKER, BEFORE, {key: value / 1000 for key, value in BEFORE.items()}).save(file)
    monkeypatch.setattr(sys, "argv", ["guard", "--baseline", str(file)])
    yield file


@pytest.mark.parametrize(("factor", "status", "title"), [
    (1.0, 0, "none failed, none came near it."), (1.07, 0, "none failed, 1 came near it."), (1.1, 1, "1 failed, none"),
])  # fmt: skip
def test_the_exit_status_and_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, factor: float, status: int, title: str
) -> None:
    with planted(monkeypatch, tmp_path, factor, MAKER):
        assert guard.main() == status
        assert title in (tmp_path / "guard.md").read_text()
        assert json.loads((tmp_path / "guard.json").read_text())["failed"] == status


def test_counts_of_another_build_are_compared_as_ratios(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with planted(monkeypatch, tmp_path, 1.12, MAKER | {"CPython": "3.12.1 def"}):
        assert guard.main() == 0
    said = capsys.readouterr().out
    assert "exit: +12 %: a little worse" in said
    assert "the baseline was counted with 3.11.7 abc instead of 3.12.1 def" in said


def test_an_update_makes_the_baseline_that_then_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with planted(monkeypatch, tmp_path, 1.5, MAKER) as file:
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--update"])
        assert guard.main() == 0
        assert Baseline.load(file).counts["exit"] == 8646
        monkeypatch.setattr(sys, "argv", sys.argv[:-1])
        assert guard.main() == 0


def test_without_valgrind_it_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with planted(monkeypatch, tmp_path, 1.0, MAKER):
        monkeypatch.undo()
        monkeypatch.setenv("PATH", os.fspath(tmp_path))
        monkeypatch.setattr(sys, "argv", ["guard"])
        assert guard.main() == 2
    assert capsys.readouterr().err == (
        "bench.guard: no instructions can be counted here: valgrind is not installed\n"
    )


def test_a_program_that_fails_is_told_in_a_line() -> None:
    with pytest.raises(NotCounted, match=r"status 1: .*No module named"):
        callgrind._run([sys.executable, "-m", "bench.no_such_work"])


def test_the_work_names_each_part_with_what_was_counted() -> None:
    """Run without an instrument: every part's counts are those of a single and a double run, one behind the other."""
    done = subprocess.run(
        [sys.executable, "-m", guard.WORK], cwd=common.ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    parts = json.loads(done.stdout)
    baseline = Baseline.load(guard.BASELINE)
    assert {*parts} - {"reference"} == {*baseline.counts} == {*baseline.ratios}
    assert parts.pop("imports")[1] == [2]
    assert all(double == single + 1 for _, (single, double) in parts.values())
    assert len({dump for _, dumps in parts.values() for dump in dumps}) == 2 * len(parts)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_counts_are_of_one_time_of_their_part() -> None:
    counts = callgrind.count("tests.bench.counting_work")
    assert counts["as some"] == pytest.approx(counts["some"], rel=0.01)
    assert counts["twice"] == pytest.approx(2 * counts["some"], rel=0.1)
    assert counts["some"] < counts["start"] < 10 * counts["some"]       # Python has not adapted to it yet
