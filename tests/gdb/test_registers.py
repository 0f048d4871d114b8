"""Registers: the description is well-formed and fits what is sent; every register goes there and back."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from devices.frozen import replace
from emu.cpu.state import CpuState
from emu.gdb.registers import ReadOnly, Register, description, registers
from emu.micro import MicroGuest

REFUSED = {"cs", "ss", "ds", "es", "fs", "gs", "k_gs_base"}


@pytest.fixture(scope="module")
def state() -> Iterator[CpuState]:
    with MicroGuest() as guest:
        yield guest.cpu.save()


def named(name: str, is_long: bool = True) -> Register:
    return next(register for register in registers(is_long) if register.name == name)


@pytest.mark.parametrize("is_long", [True, False])
def test_the_description_lists_the_registers_in_their_order(is_long: bool) -> None:
    root = ElementTree.fromstring(description(is_long).decode())
    listed = [(each.get("name"), int(each.get("bitsize", "0"))) for each in root.iter("reg")]
    assert listed == [(register.name, register.bits) for register in registers(is_long)]
    assert root.findtext("architecture") == ("i386:x86-64" if is_long else "i386")
    known = {each.get("id") for kind in ("flags", "union", "vector") for each in root.iter(kind)}
    assert {each.get("type", "") for each in root.iter("reg")} <= {
        *known, "int", "int32", "int64", "code_ptr", "data_ptr", "i387_ext",
    }  # fmt: skip


def test_gdb_finds_what_its_features_must_have() -> None:
    long, short = (" ".join(register.name for register in registers(is_long)) for is_long in (True, False))
    assert long.startswith("rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip eflags cs ss ds es fs gs")
    assert short.startswith("eax ecx edx ebx esp ebp esi edi eip eflags cs ss ds es fs gs st0")


@pytest.mark.parametrize("register", registers(True), ids=lambda register: register.name)
def test_what_is_written_is_read(state: CpuState, register: Register) -> None:
    value = (0x16).to_bytes(register.size, "little")
    if register.name in REFUSED:
        with pytest.raises(ReadOnly):
            register.write(state, value)
    else:
        expected = 0xFFFF if register.name == "ftag" else 0x16
        written = register.write(state, b"\xff\xff\0\0" if register.name == "ftag" else value)
        assert int.from_bytes(register.read(written), "little") == expected
    assert register.write(state, register.read(state)) is state


def test_the_x87_stack_turns_with_top(state: CpuState) -> None:
    values = tuple(0x3FFF_8000_0000_0000_0000 + n for n in range(8))
    fpu = replace(state.fpu, registers=values, status=3 << 11, tags=0xFF)
    turned = replace(state, fpu=fpu)
    assert [named(f"st{n}").get(turned) for n in range(8)] == [values[(3 + n) % 8] for n in range(8)]
    assert named("st0").put(turned, 5).fpu.registers[3] == 5


def test_the_tag_word_tells_zero_special_and_empty(state: CpuState) -> None:
    zero, one, nan = 0, 0x3FFF_8000_0000_0000_0000, 0x7FFF_C000_0000_0000_0000
    fpu = replace(state.fpu, registers=(zero, one, nan, one, zero, zero, zero, zero), tags=0b111)
    tags = named("ftag").get(replace(state, fpu=fpu))
    assert [tags >> 2 * n & 3 for n in range(4)] == [1, 0, 2, 3]
    assert named("ftag").put(state, 0xFFFC).fpu.tags == 1
