"""The declarations cffi reads at start-up are those that stand in `declarations`."""

from __future__ import annotations

from pathlib import Path

from emu.cpu import declarations


def test_generated_module_is_up_to_date(tmp_path: Path) -> None:
    fresh = tmp_path / "_abi.py"
    declarations.generate(fresh)
    assert declarations.OUTPUT.read_text() == fresh.read_text()
