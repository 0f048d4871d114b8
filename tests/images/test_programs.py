"""The programs for guests: their listings, the ELF files made of them, and `vsock` on this machine's own kernel."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import capstone
import pytest

from emu.cpu.thunks import listed_routines
from emu.images import programs
from emu.images.programs import PROGRAMS, listed_program

CODE = 64 + 56
TIMEOUT_S = 20.0
USAGE_STATUS = 2

each = pytest.mark.parametrize("name", PROGRAMS)


def lines_of(name: str) -> list[str]:
    (lines,) = listed_routines(Path(programs.__file__).with_name(f"{name}.lst").read_text()).values()
    return lines


@each
def test_every_line_is_what_the_disassembler_makes_of_its_bytes(name: str) -> None:
    instructions = [line for line in lines_of(name) if "  .asci" not in line]
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoded = list(disassembler.disasm(listed_program(name)[CODE:], 0))[: len(instructions)]
    assert len(decoded) == len(instructions) > 40
    for line, found in zip(instructions, decoded, strict=True):
        shown = re.match(r"  ([0-9a-f]{3})  (?:[0-9a-f]{2} )+ *(.*?) *(?:;.*)?$", line)
        assert shown is not None, line
        assert (int(shown[1], 16), shown[2]) == (found.address, f"{found.mnemonic} {found.op_str}".strip())


@each
def test_texts_are_their_bytes_and_stand_behind_the_code(name: str) -> None:
    lines = lines_of(name)
    texts = [line for line in lines if "  .asci" in line]
    assert texts and lines[-len(texts) :] == texts
    for line in texts:
        shown = re.match(r'  ([0-9a-f]{3})  ((?:[0-9a-f]{2} )+) *\.asci(i|z)\s+"(.*)"$', line)
        assert shown is not None, line
        text = shown[4].encode().decode("unicode_escape").encode() + (b"\0" if shown[3] == "z" else b"")
        assert bytes.fromhex(shown[2]) == text
        assert listed_program(name)[CODE + int(shown[1], 16) :].startswith(text)


@each
def test_the_code_looks_for_texts_where_they_are(name: str) -> None:
    text = Path(programs.__file__).with_name(f"{name}.lst").read_text()
    starts = {int(offset, 16) for offset in re.findall(r"^\w+:\n  ([0-9a-f]{3})  .*  \.asci", text, re.MULTILINE)}
    code = listed_program(name)[CODE:]
    decoded = list(capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(code[: min(starts)], 0))
    wanted = [
        found.address + found.size + int(match[1], 16)
        for found in decoded if (match := re.search(r"\[rip \+ (0x[0-9a-f]+)\]", found.op_str))
    ]
    assert set(wanted) == starts


@each
def test_it_is_an_elf_file_that_the_loader_of_ours_takes(name: str) -> None:
    program = listed_program(name)
    assert program[:4] == b"\x7fELF" and program[16:20] == b"\x02\x00\x3e\x00"
    assert int.from_bytes(program[24:32], "little") == 0x40_0000 + CODE
    assert int.from_bytes(program[64 + 32 : 64 + 40], "little") == len(program)


@pytest.mark.parametrize("words", [
    (), ("2",), ("2", "80", "true", "more"), ("2", ""), ("", "80"), ("two", "80"), ("2", "80x"), ("2", "-1"),
    ("2", "4294967296"), ("99999999999999999999", "80"), ("listen", "80"), ("2", " 80"),
])  # fmt: skip
def test_vsock_misused_says_how_to_use_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    program = tmp_path / "vsock"
    program.write_bytes(listed_program("vsock"))
    program.chmod(0o755)
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stdout) == (USAGE_STATUS, "")
    assert done.stderr.startswith("usage: vsock CID PORT [COMMAND]") and done.stderr.endswith("port\n")
