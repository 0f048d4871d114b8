"""Listings around a place in code of 16, 32 and 64 bits, whatever of it can be read."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import OutsideMemory
from emu.assembler import HLT, UD2, WRMSR, mov
from emu.cpu.platform import Exit
from emu.disassembly import AFTER, BEFORE, around, describe, disassemble, linear_rip, listing
from emu.micro import CODE, KERNEL_CS32, USER_CODE, USER_CS32, MicroGuest
from hypercalls.fake import FakeMemory

PAGE = 4096


class Pages:
    """Memory of some pages."""

    def __init__(self, start: int, content: bytes) -> None:
        self.start = start
        self.content = content

    def read(self, address: int, size: int) -> bytes:
        """Copy of bytes."""
        offset = address - self.start
        if offset < 0 or offset + size > len(self.content):
            raise OutsideMemory(f"{address:#x}")
        return self.content[offset : offset + size]


def test_code_of_each_width_is_read_as_such() -> None:
    code = b"\xb8\x01\x00\x00\x00"
    assert [one.text for one in disassemble(code, 0, 64)] == ["mov eax, 1"]
    assert [one.text for one in disassemble(code, 0, 32)] == ["mov eax, 1"]
    assert [one.text for one in disassemble(code, 0, 16)] == ["mov ax, 1", "add byte ptr [bx + si], al"]
    assert [one.text for one in disassemble(b"\x48\x89\xc3", 0, 32)] == ["dec eax", "mov ebx, eax"]


def test_a_byte_that_begins_no_instruction_is_listed_alone() -> None:
    (bad, good) = disassemble(b"\x06\xf4", 0x1000, 64)
    assert (bad.address, bad.code, bad.text) == (0x1000, b"\x06", ".byte 0x06")
    assert (good.address, good.text) == (0x1001, "hlt")


def test_an_arrow_marks_the_current_instruction() -> None:
    code = mov("rax", 5) + WRMSR + HLT
    lines = listing(disassemble(code, 0x1000, 64), 0x100A).splitlines()
    assert lines == [
        "   0x1000  48 b8 05 00 00 00 00 00 00 00  movabs rax, 5",
        "=> 0x100a  0f 30                          wrmsr",
        "   0x100c  f4                             hlt",
    ]


def test_before_and_behind_there_are_so_many_instructions() -> None:
    code = 40 * mov("rax", 5)
    shown = around(Pages(0x1000, code.ljust(PAGE, b"\x90")).read, 0x1000 + 200, 64)
    assert len(shown) == BEFORE + 1 + AFTER
    assert shown[BEFORE].address == 0x1000 + 200
    assert {one.text for one in shown} == {"movabs rax, 5"}


def test_where_the_code_begins_and_ends_nothing_else_is_shown() -> None:
    memory = Pages(0, b"\xff" * 0x1000 + mov("rax", 5) + UD2 + b"\xff" * 0x1000)
    shown = around(memory.read, 0x100A, 64, range(0x1000, 0x100C))
    assert [one.text for one in shown] == ["movabs rax, 5", "ud2"]


@pytest.mark.parametrize("known", [None, range(PAGE, 3 * PAGE)])
def test_a_page_that_cannot_be_read_hides_only_itself(known: range | None) -> None:
    last = Pages(PAGE, (b"\x90" * (PAGE - 2)) + UD2)
    assert [one.text for one in around(last.read, 2 * PAGE - 2, 64, known)] == [*["nop"] * BEFORE, "ud2"]
    first = Pages(2 * PAGE, b"\x90" * PAGE)
    for address in (2 * PAGE, 2 * PAGE + 2):
        assert around(first.read, address, 64, known)[0].address == 2 * PAGE


def test_no_memory_is_said_to_be_none() -> None:
    memory = FakeMemory(0)
    assert around(memory.read, 0x1234, 64) == []
    text = describe({"rip": 0x1234}, memory.read, 0x1234, 64)
    assert text == "   rip 0000000000001234\n\nthere is no memory at 0x1234"


@given(
    st.binary(min_size=1, max_size=200),
    st.integers(0, PAGE - 1),
    st.integers(0, PAGE - 1),
    st.sampled_from([16, 32, 64]),
    st.sampled_from([0, PAGE, 2**32 - PAGE, 2**47 - PAGE, 2**64 - PAGE]),
)
def test_any_bytes_anywhere_are_listed_in_order(content: bytes, at: int, offset: int, bits: int, start: int) -> None:
    page = (bytes(at) + content).ljust(PAGE, b"\x0f")[:PAGE]
    shown = around(Pages(start, page).read, start + offset, bits)
    assert all(one.address + len(one.code) == other.address for one, other in pairwise(shown))
    (current,) = (one for one in shown if one.address == start + offset)
    assert current.code == page[offset : offset + len(current.code)]
    assert len(shown) <= BEFORE + 1 + AFTER


@pytest.mark.parametrize(
    ("at", "cs", "bits"), [(CODE, 0, 64), (CODE, KERNEL_CS32, 32), (USER_CODE, 0, 64), (USER_CODE, USER_CS32, 32)]
)
def test_the_cpu_tells_what_code_it_is_in(at: int, cs: int, bits: int) -> None:
    with MicroGuest() as guest:
        guest.put(b"\xeb\xfe", at, cs=cs)
        assert guest.go(0.001) is Exit.KICK
        assert guest.registers.code_bits == bits
        assert linear_rip(guest.registers) == at


def test_code_of_16_bits_is_behind_the_base_of_its_segment() -> None:
    with MicroGuest() as guest:
        guest.write_quads(0x6000 + 8, 0x0000_9B02_0000_FFFF)       # selector 0x08: 16-bit code from 0x20000 on
        guest.put(b"\xeb\xfe", CODE + 0x10, cs=KERNEL_CS32)
        guest.write_quads(0x9800, 0x10)                             # the IP that IRETQ loads
        assert guest.go(0.001) is Exit.KICK
        assert guest.registers.code_bits == 16
        assert linear_rip(guest.registers) == CODE + 0x10
