"""The suite: one table, a failure that does not end it, and pictures of what is there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from bench import __main__ as suite_main
from bench import common, pictures
from bench.suite import SUITE, Benchmark, table


def rows(figures: dict[str, dict[str, object] | None]) -> dict[str, list[str]]:
    """The table's rows: by the figure's name the cells behind it."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(figures)[2:]]
    return {row[1]: row[2:] for row in cells}


def test_targets_are_told_as_reached_or_not() -> None:
    found = rows({"exec": {"exec_wall_ms": 171.2, "exec_ratio": 0.8}, "fork": {"fork_p50_ms": 1.5}})
    assert found["exec_wall_ms"] == ["171.2 ms", "≤ 150", "NOT REACHED"]
    assert found["exec_ratio"][:2] == ["0.8", ""]
    assert found["fork_p50_ms"] == ["1.5 ms", "≤ 1.5", "reached"]
    assert found["command_p50_ms"] == ["", "", "not measured"]


def test_what_varies_is_told_of_a_figure_and_of_what_a_ratio_is_made_of() -> None:
    varying = {"generic_ours_s_variation": 0.12, "generic_qemu_s_variation": 0.31}
    found = rows({"boot": {"generic_ours_s": 2.8, "generic_ratio": 0.34, **varying}})
    assert found["generic_ours_s"][2] == "varies by 12%"
    assert found["generic_ratio"][2] == "reached, varies by 31%"


def test_a_truth_is_no_number() -> None:
    assert rows({"serial": {"identical": True}})["identical"][0] == "True"


def test_a_benchmark_that_failed_has_a_row() -> None:
    assert table({"exec": None})[2].split("|")[1].strip() == "exec"
    assert "FAILED" in table({"exec": None})[2]


@pytest.mark.parametrize("name", [each.name for each in SUITE])
def test_each_has_a_module_and_a_target_of_make(name: str) -> None:
    assert importlib.util.find_spec(f"bench.{name}") is not None
    names = (common.ROOT / "Makefile").read_text().partition("BENCHMARKS := ")[2].partition("\n")[0]
    assert name in [*names.split(), "ninep"]


def test_a_look_leaves_out_what_takes_long_and_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    running, left_out = suite_main.chosen(["exec", "boot", "guard"], quick=True)
    assert [each.name for each in running] == ["exec"]
    assert left_out == [
        "boot is left out: it takes longer than a look", "guard is left out: valgrind is not installed",
    ]  # fmt: skip


def test_one_that_fails_does_not_end_the_suite_and_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def run(benchmark: Benchmark, quick: bool) -> dict[str, object] | None:
        ran.append(benchmark.name)
        return None if benchmark.name == "exec" else {"fork_p50_ms": 1.2}

    monkeypatch.setattr(suite_main, "run", run)
    monkeypatch.setattr(suite_main, "OUTPUT", tmp_path)
    monkeypatch.setattr(pictures, "draw_all", lambda svg: [])
    monkeypatch.setattr(sys, "argv", ["bench", "fork", "exec"])
    assert suite_main.main() == 1
    assert ran == ["exec", "fork"]
    assert capsys.readouterr().out.splitlines()[-1] == "failed: exec"
    assert "| fork " in (tmp_path / "summary.md").read_text()


def test_a_failed_process_and_a_stale_file_give_no_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite_main, "OUTPUT", tmp_path)
    (tmp_path / "no_such.json").write_text("{}")
    assert suite_main.run(Benchmark("no_such", ()), quick=False) is None
    assert not (tmp_path / "no_such.json").exists()


def test_pictures_of_what_is_there(tmp_path: Path) -> None:
    micro = {"host_read8_aligned_ns": 160.0, "guest_write4_across_pages_ns": 80.0, "exit_hlt_ns": 4300.0}
    (tmp_path / "micro.json").write_text(json.dumps(micro))
    growth = {"restore_ms_exports_0": 5.0, "restore_ms_exports_24": 14.0}
    (tmp_path / "growth.json").write_text(json.dumps(growth))
    assert {path.name for path in pictures.draw_all(tmp_path)} == {"memory.png", "exits.png", "growth.png"}
    assert all(path.stat().st_size > 1000 for path in tmp_path.glob("*.png"))
    (tmp_path / "boot.json").write_text(json.dumps({"generic_qemu_s": 8.3, "generic_ratio": 0.34}))
    assert pictures._of_rival({"boot": {"generic_qemu_s": 8.3, "generic_ratio": 0.34, "busy_thread_ratio": 1.0}}) == {
        "boot: generic": 0.34
    }


def test_without_matplotlib_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    pictures.main()
    assert capsys.readouterr().out == "pictures need matplotlib: pip install 'pvemu[plot]'\n"
