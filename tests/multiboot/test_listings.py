"""The listings say what their bytes are."""

from __future__ import annotations

from ast import literal_eval

import capstone
import pytest

from tests.multiboot.listing import KERNELS, START, read

MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}


@pytest.mark.parametrize("name", KERNELS)
def test_every_line_is_what_it_says(name: str) -> None:
    engines = {bits: capstone.Cs(capstone.CS_ARCH_X86, mode) for bits, mode in MODES.items()}
    expected = START
    for line in read(name):
        assert line.address == expected, line
        expected += len(line.data)
        if line.text == "data":
            continue
        if line.text.startswith('"'):
            assert literal_eval("b" + line.text) == line.data, line
            continue
        (instruction,) = engines[line.bits].disasm(line.data, line.address)
        assert instruction.size == len(line.data), line
        assert f"{instruction.mnemonic} {instruction.op_str}".strip() == line.text, line


def test_there_are_kernels_for_all_widths() -> None:
    assert {line.bits for name in KERNELS for line in read(name)} == {16, 32, 64}
