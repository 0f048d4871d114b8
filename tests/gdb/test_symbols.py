"""The file of symbols: what another ELF reader finds in it, and listings that are none."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from emu.errors import EmuError
from emu.gdb.symbols import Symbol, read_symbols, write_symbols

LISTING = b"""\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000040 t helper_of_it
ffffffff82000000 D jiffies
ffffffff82000008 d panic_timeout
ffffffffc0001000 t in_a_module\t[virtio]
ffffffffc0002000 W weak_one [virtio]
"""


def test_symbols_of_a_listing() -> None:
    symbols = read_symbols(LISTING)
    assert symbols[1] == Symbol(0xFFFF_FFFF_8100_0000, "T", "_stext")
    assert symbols[5] == Symbol(0xFFFF_FFFF_C000_1000, "t", "in_a_module")
    assert [symbol.is_code for symbol in symbols] == [False, True, True, False, False, True, True]


@pytest.mark.parametrize(
    "listing",
    [b"", b"hello", b"\0" * 100, b"0000000000000000 T hidden\n0000000000000000 D it\n", b"12345678901234567 T wide\n"],
)
def test_what_is_no_listing_is_refused_in_one_line(listing: bytes) -> None:
    with pytest.raises(EmuError) as caught:
        read_symbols(listing)
    assert "\n" not in str(caught.value)


def test_random_bytes_are_refused() -> None:
    draw = random.Random(1)
    for _ in range(200):
        listing = bytearray(LISTING)
        listing[draw.randrange(len(listing))] = draw.randrange(256)
        try:
            read_symbols(bytes(listing))
        except EmuError:
            pass


def test_the_file_holds_each_symbol_in_a_section_of_its_kind(tmp_path: Path) -> None:
    write_symbols(tmp_path / "symbols", read_symbols(LISTING))
    with open(tmp_path / "symbols", "rb") as file:
        elf = ELFFile(file)
        table = elf.get_section_by_name(".symtab")
        found = {}
        for symbol in list(table.iter_symbols())[1:]:
            section = elf.get_section(symbol["st_shndx"])
            assert section["sh_addr"] <= symbol["st_value"] < section["sh_addr"] + section["sh_size"]
            assert section["sh_type"] == "SHT_NOBITS"
            found[symbol.name] = symbol["st_value"], section.name[:5], symbol["st_info"]["bind"]
    assert found["_stext"] == (0xFFFF_FFFF_8100_0000, ".text", "STB_GLOBAL")
    assert found["helper_of_it"] == (0xFFFF_FFFF_8100_0040, ".text", "STB_LOCAL")
    assert found["jiffies"] == (0xFFFF_FFFF_8200_0000, ".data", "STB_GLOBAL")
    assert found["weak_one"] == (0xFFFF_FFFF_C000_2000, ".text", "STB_WEAK")
    assert len(found) == 7


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_gdb_reads_it(tmp_path: Path) -> None:
    write_symbols(tmp_path / "symbols", read_symbols(LISTING))
    commands = ["info symbol 0xffffffff81000044", "info address jiffies", "info line weak_one"]
    words = [word for command in commands for word in ("-ex", command)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", *words, str(tmp_path / "symbols")], capture_output=True, text=True, timeout=60
    )
    assert "helper_of_it + 4 in section .text" in done.stdout, done
    assert "jiffies" in done.stdout and "0xffffffff82000000" in done.stdout
