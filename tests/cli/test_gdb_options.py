"""The options and the command that are for gdb: what is wrong with them is said in one line, at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from emu.cli import main


@pytest.mark.parametrize("words", [["boot", "--wait"], ["restore", "--wait", "none.snap"]])
def test_waiting_for_nobody_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"emu: --wait waits for gdb: give --gdb, too (see emu {words[0]} --help)\n"


def test_symbols_of_a_listing_need_no_guest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing, output = tmp_path / "System.map", tmp_path / "symbols"
    listing.write_text("ffffffff81000000 T _text\nffffffff81000100 D jiffies\n")
    assert main(["symbols", "--map", str(listing), str(output)]) == 0
    assert "2 symbols" in capsys.readouterr().err
    with open(output, "rb") as file:
        assert ELFFile(file).get_section_by_name(".symtab").num_symbols() == 3


@pytest.mark.parametrize("content", [None, b"", b"ELF", b"ffffffffffffffff B The real System.map is elsewhere\n"])
def test_a_listing_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    listing = tmp_path / "System.map"
    if content is not None:
        listing.write_bytes(content)
    assert main(["symbols", "--map", str(listing), str(tmp_path / "symbols")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"emu: {listing}: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "symbols").exists()
