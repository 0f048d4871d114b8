"""Exceptions and interrupts arrive as on hardware: vector, error code, saved RIP and flags."""

from __future__ import annotations

import struct

import pytest

from emu.cpu.cpu import Exit
from tests.support import micro
from tests.support.micro import (
    AF,
    ALIAS,
    BP,
    CF,
    CODE,
    DATA,
    DB,
    DE,
    DF,
    DIRECTION,
    EVENT_PORT,
    FAULT_STACK,
    FIXED,
    GP,
    KERNEL_CS,
    KERNEL_STACK,
    NP,
    OF,
    PF,
    SF,
    TF,
    UD,
    UNMAPPED,
    USER_CODE,
    USER_CS,
    USER_CS32,
    USER_DS,
    MicroGuest,
)

RINGS = {0: CODE, 3: USER_CODE}
FLAGS = FIXED | CF | SF | DIRECTION


def absolute(address: int) -> bytes:
    return struct.pack("<I", address)


READ = b"\x48\x8b\x04\x25"              # mov rax, [disp32]
WRITE = b"\x48\x89\x04\x25"             # mov [disp32], rax

# name: (instructions, vector, error code, how far RIP is behind their start)
BOTH_RINGS = {
    "ud2": (b"\x0f\x0b", UD, 0, 0),
    "div rcx, by zero": (b"\x48\xf7\xf1", DE, 0, 0),
    "int3": (b"\xcc", BP, 0, 1),
    "int 3, two bytes": (b"\xcd\x03", BP, 0, 2),
    "int1": (b"\xf1", DB, 0, 1),
    "int 0x80, a gate for ring 3": (b"\xcd\x80", 0x80, 0, 2),
    "into, which 64-bit code does not have": (b"\xce", UD, 0, 0),
    "mov rax, [1 << 47]": (b"\x48\xa1" + struct.pack("<Q", 1 << 47), GP, 0, 0),
    "lock nop": (b"\xf0\x90", UD, 0, 0),
    "vmrun": (b"\x0f\x01\xd8", UD, 0, 0),
    "vmmcall": (b"\x0f\x01\xd9", UD, 0, 0),
    "vmload": (b"\x0f\x01\xda", UD, 0, 0),
    "vmsave": (b"\x0f\x01\xdb", UD, 0, 0),
    "stgi": (b"\x0f\x01\xdc", UD, 0, 0),
    "clgi": (b"\x0f\x01\xdd", UD, 0, 0),
    "skinit": (b"\x0f\x01\xde", UD, 0, 0),
    "invlpga": (b"\x0f\x01\xdf", UD, 0, 0),
    "monitor": (b"\x0f\x01\xc8", UD, 0, 0),
    "mwait": (b"\x0f\x01\xc9", UD, 0, 0),
    "sysenter": (b"\x0f\x34", UD, 0, 0),
    "rsm": (b"\x0f\xaa", UD, 0, 0),
}

RING_0 = {
    "int 0x50": (b"\xcd\x50", 0x50, 0, 2),
    "int 6": (b"\xcd\x06", UD, 0, 2),
    "read of no page": (READ + absolute(UNMAPPED), PF, 0, 0),
    "write to no page": (WRITE + absolute(UNMAPPED), PF, 2, 0),
    "jump to no page": (b"\xb8" + absolute(UNMAPPED) + b"\xff\xe0", PF, 0x10, None),
    "jump to a page that is not executable": (b"\xb8" + absolute(ALIAS) + b"\xff\xe0", PF, 0x11, None),
    "wrmsr of no MSR": (b"\xb9\x09\x4d\x56\x4b\x0f\x30", GP, 0, 5),
    "rdmsr of no MSR": (b"\xb9\x09\x4d\x56\x4b\x0f\x32", GP, 0, 5),
    "mov ds, selector behind the GDT": (b"\xb8\x00\x10\x00\x00\x8e\xd8", GP, 0x1000, 5),
    "mov ds, segment not present": (b"\xb8\x38\x00\x00\x00\x8e\xd8", NP, 0x38, 5),
}

RING_3 = {
    "hlt": (b"\xf4", GP, 0, 0),
    "cli": (b"\xfa", GP, 0, 0),
    "in al, dx": (b"\xec", GP, 0, 0),
    "mov rax, cr0": (b"\x0f\x20\xc0", GP, 0, 0),
    "wrmsr": (b"\x0f\x30", GP, 0, 0),
    "int 0x50, a gate for ring 0": (b"\xcd\x50", GP, 0x50 * 8 + 2, 0),
    "int 6, a gate for ring 0": (b"\xcd\x06", GP, 6 * 8 + 2, 0),
    "read of no page": (READ + absolute(UNMAPPED), PF, 4, 0),
    "write to no page": (WRITE + absolute(UNMAPPED), PF, 6, 0),
    "read of the kernel's page": (READ + absolute(DATA), PF, 5, 0),
    "write to the kernel's page": (WRITE + absolute(DATA), PF, 7, 0),
    "jump into the kernel": (b"\xb8" + absolute(CODE) + b"\xff\xe0", PF, 0x15, None),
    "jump to a page that is not executable": (b"\xb8" + absolute(ALIAS + USER_CODE) + b"\xff\xe0", PF, 0x15, None),
}

CASES = [(name, ring, *case) for ring in RINGS for name, case in BOTH_RINGS.items()]
CASES += [(name, 0, *case) for name, case in RING_0.items()] + [(name, 3, *case) for name, case in RING_3.items()]
NOT_PRESENT = 0x00CF_1300_0000_FFFF     # ring 0 data without its present bit


@pytest.mark.parametrize(("name", "ring", "code", "vector", "error", "offset"), CASES, ids=lambda value: str(value)[:40])
def test_exception(name: str, ring: int, code: bytes, vector: int, error: int, offset: int | None) -> None:
    at = RINGS[ring]
    with MicroGuest() as guest:
        guest.write_quads(micro.GDT + 0x38, NOT_PRESENT)
        assert guest.run(code, at, rflags=FLAGS, rcx=0) is Exit.HALT
        event = guest.event
        target = int.from_bytes(code[1:5], "little")
        # a long vector number in a software interrupt's error code: 16 bytes a gate, but eight count (AMD64 manual, 8.4.2)
        assert (event.vector, event.error_code) == (vector, error * 2 - 2 if "gate for ring 0" in name else error)
        assert event.rip == (target if offset is None else at + offset)
        assert event.rflags == FLAGS
        assert (event.cs, event.ss) == ((USER_CS, USER_DS) if ring else (KERNEL_CS, micro.KERNEL_DS))
        assert event.rsp == (micro.USER_TOP if ring else micro.KERNEL_TOP)
        if vector == PF:
            assert event.cr2 == (target if offset is None else int.from_bytes(code[4:8], "little"))
