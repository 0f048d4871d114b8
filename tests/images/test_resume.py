"""The program for guests that were restored: its listing, and the ELF file made of it."""

from __future__ import annotations

import re
from pathlib import Path

import capstone

from emu.cpu.thunks import listed_routines
from emu.images import resume
from emu.images.resume import resume_program

CODE = 64 + 56


def test_every_line_is_what_the_disassembler_makes_of_its_bytes() -> None:
    text = Path(resume.__file__).with_name(resume.LISTING).read_text()
    lines = listed_routines(text)["RESUME"]
    instructions = [line for line in lines if ".asciz" not in line]
    code = resume_program()[CODE:]
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoded = list(disassembler.disasm(code, 0))[: len(instructions)]
    assert len(decoded) == len(instructions) > 40
    for line, found in zip(instructions, decoded, strict=True):
        shown = re.match(r"  ([0-9a-f]{3})  (?:[0-9a-f]{2} )+ *(.*?) *(?:;.*)?$", line)
        assert shown is not None, line
        assert (int(shown[1], 16), shown[2]) == (found.address, f"{found.mnemonic} {found.op_str}".strip())


def test_strings_stand_where_the_code_looks_for_them() -> None:
    code = resume_program()[CODE:]
    assert code[0xCD:] == b"/dev/cpu/0/msr\0/dev/urandom\0"


def test_it_is_an_elf_file_that_the_loader_of_ours_takes() -> None:
    program = resume_program()
    assert program[:4] == b"\x7fELF" and program[16:20] == b"\x02\x00\x3e\x00"
    assert int.from_bytes(program[24:32], "little") == 0x40_0000 + CODE
    assert int.from_bytes(program[64 + 32 : 64 + 40], "little") == len(program)
