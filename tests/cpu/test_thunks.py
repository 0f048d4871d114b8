"""The machine code is what its listing says, and names the context's fields by their real offsets."""

from __future__ import annotations

import re
from importlib import resources

import capstone
import pytest

from emu.cpu import declarations
from emu.cpu.abi import ffi
from emu.cpu.library import FUNCTIONS, OFFSETS
from emu.cpu.thunks import ALIGNMENT, Thunks, assemble, read_listing

ROUTINES = read_listing("x86_64")
# Values that cannot be mistaken for one another; the offsets fit a signed displacement
VALUES = {name: 0x7B00_0000_0000_0000 + i for i, name in enumerate(FUNCTIONS)}
VALUES |= {name: 0x7A00_0000 + i for i, name in enumerate(OFFSETS)}
VALUES |= {name: 0x7900_0000_0000_0000 + i for i, name in enumerate(ROUTINES)}


def short(line: str) -> re.Match[str]:
    """A line of the listing in its parts: offset, (bytes), text."""
    match = re.match(r"  ([0-9a-f]{3})  ((?:(?:[0-9a-f]{2}|<\w+:\d>) )+) *([^;]+?) *(?:;.*)?$", line)
    assert match is not None, line
    return match


def named(text: str) -> str:
    """An instruction's text with the placeholders' names in place of their values."""
    for name, value in VALUES.items():
        text = text.replace(hex(value), name)
    return text


@pytest.mark.parametrize("routine", ROUTINES)
def test_every_instruction_is_what_the_listing_says(routine: str) -> None:
    lines = ROUTINES[routine]
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    code = assemble(lines, VALUES)
    decoded = list(engine.disasm(code, 0))
    assert sum(instruction.size for instruction in decoded) == len(code)
    seen = [(f"{i.address:03x}", named(f"{i.mnemonic} {i.op_str}".strip())) for i in decoded]
    assert seen == [(short(line)[1], short(line)[3]) for line in lines]


def test_every_line_of_the_listing_is_a_comment_a_heading_a_label_or_an_instruction() -> None:
    for line in resources.files("emu.cpu").joinpath("thunks.lst").read_text().splitlines():
        assert not line or line[0] in ";[" or re.fullmatch(r"\w+:(?:  ;.*)?", line) or short(line), line


def test_context_fields_named_in_the_listing_are_where_it_says() -> None:
    fields = dict(ffi.typeof("struct context").fields)
    text = "\n".join(line for lines in ROUTINES.values() for line in lines)
    found = re.findall(r"\[r\w+(?: \+ (?:r\w+(?:\*8)? \+ )?(0x[0-9a-f]+|8))?\][^;\n]*; context\.(\w+)", text)
    named = {name for _, name in found}
    assert named >= {"vmexit", "port_in", "port_out", "exceptions", "ram_base", "code_pages", "low_bytes"}
    assert named >= {"intercepting", "intercepted", "intercepted_numbers"}
    for offset, name in found:
        assert fields[name].offset == int(offset or "0", 0), name


def test_declared_offsets_are_the_compilers() -> None:
    fields = dict(ffi.typeof("struct context").fields)
    for line in declarations.CONTEXT.splitlines():
        if match := re.match(r"\s+\w+ ([^;]+);\s+// ((?:0x[0-9a-f]+(?:, )?)+)", line):
            names = [name.split("[")[0].strip() for name in match[1].split(",")]
            for name, offset in zip(names, match[2].split(", "), strict=False):
                assert fields[name].offset == int(offset, 0), name
    assert fields["vmexit"].offset == 0x10
    assert fields["hypervisor_leaves"].offset == 0x90


def test_routines_are_loaded_as_assembled_each_on_a_cache_line_of_its_own() -> None:
    thunks = Thunks(VALUES)
    for name, lines in read_listing().items():
        code = assemble(lines, VALUES | thunks.addresses)
        assert thunks[name] % ALIGNMENT == 0
        assert bytes(ffi.buffer(ffi.cast("char *", thunks[name]), len(code))) == code


def test_a_line_that_is_no_machine_code_is_refused() -> None:
    with pytest.raises(ValueError, match="not a line of machine code"):
        assemble(["  000  zz  nop"], {})
