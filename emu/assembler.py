"""The few instructions that tests of hypercalls are made of, as bytes of 64-bit code.

    code = mov("rcx", 0x4B564D20) + mov("rax", 0x5000) + mov("rdx", 0) + WRMSR + HLT

Registers go by their names. Encodings: Intel SDM volume 2.
"""

from __future__ import annotations

import struct

from emu.cpu.registers import GENERAL

__all__ = [
    "CPUID", "HLT", "NOP", "OUT", "RDMSR", "SYSCALL", "UD2", "WRMSR", "interrupt", "load", "mov", "repeat", "store",
]

CPUID = b"\x0f\xa2"
HLT = b"\xf4"
NOP = b"\x90"
OUT = b"\xee"                           # out dx, al
RDMSR = b"\x0f\x32"
SYSCALL = b"\x0f\x05"
UD2 = b"\x0f\x0b"
WRMSR = b"\x0f\x30"

MASK_64 = (1 << 64) - 1

REX_W, REX_R, REX_B = 0x48, 0x04, 0x01
RSP, RBP = 4, 5                         # as a base, the low three bits of these mean something else
DISP8 = 0x40                            # ModRM: a displacement of one byte follows
SIB_BASE_ONLY = b"\x24"


def mov(register: str, value: int) -> bytes:
    """MOV register, imm64; a negative value is taken modulo 2**64."""
    number = _number(register)
    return bytes((REX_W | REX_B * (number > 7), 0xB8 | number & 7)) + struct.pack("<Q", value & MASK_64)


def load(register: str, base: str) -> bytes:
    """MOV register, [base]: eight bytes from memory."""
    return _move(0x8B, register, base)


def store(base: str, register: str) -> bytes:
    """MOV [base], register: eight bytes to memory."""
    return _move(0x89, register, base)


def interrupt(vector: int) -> bytes:
    """INT n; ValueError unless n is 0 to 255."""
    return bytes((0xCD, vector))


def repeat(counter: str, body: bytes) -> bytes:
    """Instructions again and again, and DEC and JNZ behind them: as often as the counter's register says.

    Args:
        counter: a register that the instructions leave alone; 0 in it means 2**64.
        body: the instructions.
    """
    number = _number(counter)
    decrement = bytes((REX_W | REX_B * (number > 7), 0xFF, 0xC8 | number & 7))
    back = -(len(body) + len(decrement) + 6)
    return body + decrement + b"\x0f\x85" + struct.pack("<i", back)


def _number(register: str) -> int:
    if register not in GENERAL:
        raise ValueError(f"no general register is called {register!r}; there are {', '.join(GENERAL)}")
    return GENERAL.index(register)


def _move(opcode: int, register: str, base: str) -> bytes:
    one, two = _number(register), _number(base)
    rex = REX_W | REX_R * (one > 7) | REX_B * (two > 7)
    modrm = (one & 7) << 3 | two & 7
    if two & 7 == RSP:
        return bytes((rex, opcode, modrm)) + SIB_BASE_ONLY
    if two & 7 == RBP:
        return bytes((rex, opcode, modrm | DISP8, 0))
    return bytes((rex, opcode, modrm))
