"""The assembler's bytes are what Capstone reads in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu import assembler
from emu.assembler import NOP, interrupt, load, mov, repeat, store
from emu.cpu.registers import GENERAL
from emu.disassembly import disassemble

AT = 0x10_0000
registers = st.sampled_from(GENERAL)


def text(code: bytes) -> str:
    """The one instruction that some bytes are."""
    (only,) = disassemble(code, AT, 64)
    assert only.code == code
    return only.text


def number(value: int) -> str:
    """As Capstone writes it."""
    return hex(value) if value > 9 else str(value)


@given(registers, st.integers(-(2**63), 2**64 - 1))
def test_mov(register: str, value: int) -> None:
    assert text(mov(register, value)) == f"movabs {register}, {number(value % 2**64)}"


@given(registers, registers)
def test_load_and_store(register: str, base: str) -> None:
    assert text(load(register, base)) == f"mov {register}, qword ptr [{base}]"
    assert text(store(base, register)) == f"mov qword ptr [{base}], {register}"


@given(st.integers(0, 255))
def test_interrupt(vector: int) -> None:
    assert text(interrupt(vector)) == f"int {number(vector)}"


@given(registers, st.integers(0, 1000))
def test_repeat(counter: str, count: int) -> None:
    body = count * NOP
    decrement, jump = disassemble(repeat(counter, body), AT, 64)[count:]
    assert decrement.text == f"dec {counter}"
    assert jump.text == f"jne {AT:#x}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CPUID", "cpuid"), ("HLT", "hlt"), ("NOP", "nop"), ("OUT", "out dx, al"), ("RDMSR", "rdmsr"),
        ("SYSCALL", "syscall"), ("UD2", "ud2"), ("WRMSR", "wrmsr"),
    ],
)
def test_instructions_without_operands(name: str, expected: str) -> None:
    assert text(getattr(assembler, name)) == expected


def test_every_instruction_without_operands_is_among_these() -> None:
    assert len([name for name in assembler.__all__ if name.isupper()]) == 8


@pytest.mark.parametrize("register", ["eax", "rip", ""])
def test_other_registers_are_refused(register: str) -> None:
    with pytest.raises(ValueError, match="no general register"):
        mov(register, 0)
    with pytest.raises(ValueError, match="no general register"):
        load("rax", register)


@pytest.mark.parametrize("vector", [-1, 256])
def test_other_vectors_are_refused(vector: int) -> None:
    with pytest.raises(ValueError, match="range"):
        interrupt(vector)
