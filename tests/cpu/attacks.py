"""Turns random bytes into hostile guests: instructions, tables and flags that are wrong in interesting ways.

A decoder and not a composition of strategies, because ten thousand attacks have to be made in seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from emu import micro
from tests.cpu.hostile import Attack

T = TypeVar("T")

RAX, RCX, RDX = 0, 1, 2
BASED_CS = 0x38                         # in the GDT's gap: ring 0, 32-bit code, its base CODE
CODE_WITH_BASE = struct.pack("<Q", 0x00CF_9B00_0000_FFFF | micro.CODE << 16)
MASK_64 = (1 << 64) - 1

VALUES = (
    *(0, 1, micro.PML4, micro.PT, micro.GDT, micro.IDT, micro.TSS, micro.STUBS, micro.CODE, micro.DATA),
    *(micro.USER_CODE, micro.USER_DATA, micro.KERNEL_STACK, micro.ALIAS, micro.ALIAS + micro.CODE, micro.MMIO),
    *(micro.MMIO + 0xFFE, micro.UNMAPPED, micro.VMCB, 64 << 20, 0xC000_0000, 0xFFFF_FFFF, 1 << 32, 1 << 40, 1 << 52),
    *((1 << 47) - 1, 1 << 47, MASK_64 - (1 << 47) + 1, MASK_64 - 4095, MASK_64 - 7, MASK_64),
)
MSRS = (
    *(0x10, 0x11, 0x12, 0x1B, 0x8B, 0x9E, 0xFE, 0x122, 0x174, 0x175, 0x176, 0x179, 0x17A, 0x17B, 0x1A0, 0x1D9, 0x277),
    *(0x2FF, 0x34, 0x3A, 0x3B, 0x6E0, 0x800, 0x802, 0xD90, 0xDA0, 0x480, 0x4B56_4D00, 0x4B56_4D01, 0x4B56_4D09),
    *range(0x200, 0x210),
    *range(0x250, 0x270),
    *range(0x400, 0x430),
    *range(0x800, 0x840),
    *range(0xC000_0080, 0xC000_0085),
    *range(0xC000_0100, 0xC000_0104),
    *(0xC001_0015, 0xC001_0058, 0xC001_0111, 0xC001_0112, 0xC001_0114, 0xC001_0117),
)
PORTS = (
    *(0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0xA0, 0xA1),
    *(0x3F8, 0x3F9, 0x3FB, 0xCF8, 0xCF9, 0xCFC, 0xCFE, 0x600, 0x602, 0x604, 0x608, 0x620, 0xFFFF, 0xFFFD),
)
SELECTORS = (
    *(0, 0, 3, 8, 0x10, 0x18, 0x20, 0x23, 0x28, 0x2B, 0x30, 0x33),
    *(0x38, 0x3B, 0x40, 0x43, 0x48, 0x4C, 0xFFF8, 0xFFFC),
)
FLAGS = (2, 0x102, 0x202, 0x302, 0x3202, 0x2_0002, 0x4002, 0x3F_FFD7)
TABLES = (micro.IDT, micro.GDT, micro.TSS, micro.PML4, micro.PDPT, micro.PD, micro.PT, micro.STUBS)
DESCRIPTOR_KINDS = (0x0, 0x89, 0x8B, 0x85, 0x8C, 0x8E, 0x8F, 0xEE, 0xE5, 0x9A, 0xFA, 0x92, 0xF2, 0x81, 0x82, 0xE9)


def _codes(*lines: str) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(code) for line in lines for code in line.split())


LONE = _codes(
    "cc f1 f4 fb fa fbf4 cf 48cf 9d c3 cb 9b d7",           # int3, int1, hlt, sti, cli, sti hlt, iret, popf, ret, ...
    "0f05 0f07 480f07 0f34 0f35 480f35 0f0b 0faa 0f01f8",   # syscall, sysret, sysenter, sysexit, ud2, rsm, swapgs
    "0f01d8 0f01d9 0f01da 0f01db 0f01dc 0f01dd 0f01de 0f01df",      # vmrun, vmmcall, vmload, ..., invlpga
    "0f01c8 0f01c9 f390 0f06 0f08 0f09",                    # monitor, mwait, pause, clts, invd, wbinvd
    "0fa2 0f31 0f33 0f01f9 0f30 0f32",                      # cpuid, rdtsc, rdpmc, rdtscp, wrmsr, rdmsr
    "f3a4 f348ab f2ae f36d f36f 6c 666f",                   # rep movs, stos, scas, ins, outs
    "c800101f dbe3 0f77 0fae00 0fae08 0fc708 f0480fc708",   # enter, fninit, emms, fxsave, fxrstor, cmpxchg8b and 16b
)
WITH_RAX = _codes(
    "0f22c0 0f22d0 0f22d8 0f22e0 440f22c0 0f01f0",          # mov cr0, cr2, cr3, cr4, cr8; lmsw
    "0f23c0 0f23c8 0f23d0 0f23d8 0f23e0 0f23e8 0f23f0 0f23f8 0f23f8",       # mov dr0 to dr7
    "ffe0 ffd0 488b00 488900 8a00 8800 668900 f048ff00 0f0138",     # jmp, call, loads, stores, lock inc, invlpg
    "ff28 48ff28 ff18 4889c4 4889c7 4889c6 4889c1",         # far jumps, far call; mov rsp, rdi, rsi, rcx
    "0f1800 0fae38 509d 50c3",                              # prefetch, clflush; push and popf; push and ret
)
WITH_SELECTOR = _codes("0f00d8 0f00d0 8ed8 8ed0 8ee0 8ee8 0f00e0 0f00e8 0f02c0 0f03c0")    # ltr, lldt, mov, verr, lar
# mov [rax], dl/dx/edx/rdx; mov dl/dx/edx/rdx, [rax]; lock inc qword [rax]; movups [rax], xmm0 and back
DEVICE_ACCESSES = _codes("8810 668910 8910 488910 8a10 668b10 8b10 488b10 f048ff00 0f1100 0f1000")
DEVICE_OFFSETS = (
    *range(0, 0x40, 4),                     # I/O APIC, virtio's common configuration, the host bridge
    *range(0, 0x400, 16),                   # local APIC
    *(0x1000, 0x2000, 0x3000, 0x3004, 0x4000, 0x400C, 0x5000, 0xFF8, 0xFFE, 0x8000, 0x8014, 0x8038, 0x8FFC),
    *(0x10_8000, 0x10_8004, 0x10_8010, 0x10_8034, 0x10_8040, 0x10_8078, 0x1F_FFF8, 0x1F_FFFE),
)
IN_OUT = (b"\xec", b"\x66\xed", b"\xed", b"\xee", b"\x66\xef", b"\xef")


class Dice:
    """Choices made by the bytes of a string, one after the other; zeros follow its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def bytes(self, count: int) -> bytes:
        """The next bytes as they are."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1."""
        return int.from_bytes(self.bytes(1 if limit <= 256 else 2), "little") % limit

    def pick(self, choices: Sequence[T]) -> T:
        """One of a sequence."""
        return choices[self.below(len(choices))]

    def value(self) -> int:
        """64 bits: an address of interest, a few bits, a place in the code, or anything."""
        match self.below(4):
            case 0:
                return self.pick(VALUES)
            case 1:
                return (1 << self.below(32) | 1 << self.below(32) | 1 << self.below(32)) & ~self.below(2)
            case 2:
                return micro.CODE + self.below(128)
        return int.from_bytes(self.bytes(8), "little")

    def selector(self) -> int:
        """A segment selector."""
        return self.pick(SELECTORS) if self.below(4) else self.below(0x1_0000)

    def flags(self) -> int:
        """RFLAGS."""
        return self.pick(FLAGS) if self.below(2) else self.below(0x1_0000)


def load(register: int, value: int) -> bytes:
    """mov r64, imm64"""
    return bytes((0x48, 0xB8 + register)) + struct.pack("<Q", value & MASK_64)


def push(value: int) -> bytes:
    """mov rax, imm64; push rax"""
    return load(RAX, value) + b"\x50"


def _anything(dice: Dice) -> bytes:
    return dice.bytes(1 + dice.below(12))


def _interrupt(dice: Dice) -> bytes:
    return bytes((0xCD, dice.below(256)))                           # int n


def _msr(dice: Dice) -> bytes:
    number = dice.pick(MSRS) if dice.below(4) else dice.value()
    value = dice.value()
    opcode = dice.pick((b"\x0f\x30", b"\x0f\x32"))                  # wrmsr, rdmsr
    return load(RCX, number) + load(RAX, value & 0xFFFF_FFFF) + load(RDX, value >> 32) + opcode


def _port(dice: Dice) -> bytes:
    port = dice.pick(PORTS) if dice.below(4) else dice.below(0x1_0000)
    return load(RAX, dice.value()) + load(RDX, port) + dice.pick(IN_OUT)


def _device(dice: Dice) -> bytes:
    """A few accesses to a device's registers."""
    page = micro.DEVICES + (dice.below(len(micro.DEVICES_PHYSICAL)) << 21)
    code = b""
    for _ in range(1 + dice.below(4)):
        offset = dice.pick(DEVICE_OFFSETS) if dice.below(4) else dice.below(0x1_0000)
        code += load(RAX, page + offset) + load(RDX, dice.value()) + dice.pick(DEVICE_ACCESSES)
    return code


def _configuration(dice: Dice) -> bytes:
    """An access to a PCI function's configuration, by ports."""
    address = 1 << 31 | dice.below(4) << 11 | dice.below(64) << 2
    return (
        load(RAX, address) + load(RDX, 0xCF8) + b"\xef"
        + load(RAX, dice.value()) + load(RDX, 0xCFC + dice.below(4)) + dice.pick(IN_OUT)
    )


def _table(dice: Dice) -> bytes:
    opcode = dice.pick((b"\x0f\x01\x54\x24\x06", b"\x0f\x01\x5c\x24\x06"))      # lgdt, lidt [rsp + 6]
    return push(dice.value()) + load(RAX, dice.below(0x1_0000) << 48) + b"\x50" + opcode


def _return(dice: Dice) -> bytes:
    frame = (dice.selector(), dice.value(), dice.flags(), dice.selector(), dice.value())
    opcode = dice.pick((b"\x48\xcf", b"\xcf", b"\x48\xcb", b"\xcb"))          # iretq, iretd, retfq, retf
    return b"".join(push(part) for part in frame) + opcode


def _descend(dice: Dice) -> bytes:
    """An IRETQ that works, to the second program, in ring 3."""
    cs = dice.pick((micro.USER_CS, micro.USER_CS, micro.USER_CS32))
    frame = (micro.USER_DS, micro.USER_TOP, dice.pick((2, 2, 0x102, 0x202, 0x3002)), cs, micro.USER_CODE)
    return b"".join(push(part) for part in frame) + b"\x48\xcf"


def _place(dice: Dice) -> int:
    """An offset in the program; few, so that some meet."""
    return dice.pick((0, 40, 80, 120)) + dice.below(2)


def _breakpoint(dice: Dice) -> bytes:
    """A debug register and DR7, so that there is something to hit."""
    number, kind = dice.below(4), dice.pick((0, 0, 0, 1, 2, 3))
    address = dice.pick((micro.CODE, micro.CODE, micro.USER_CODE, micro.PML4)) + _place(dice)
    enable = 1 << 2 * number | kind << 16 + 4 * number
    return load(RAX, address) + bytes((0x0F, 0x23, 0xC0 | number << 3)) + load(RAX, enable) + b"\x0f\x23\xf8"


def _far_return(dice: Dice) -> bytes:
    """RETF into the code segment that has a base."""
    return push(BASED_CS) + push(_place(dice)) + b"\x48\xcb"


GADGETS: tuple[Callable[[Dice], bytes], ...] = (
    _anything,
    _anything,
    _interrupt,
    _msr,
    _port,
    _device,
    _device,
    _configuration,
    _table,
    _return,
    _descend,
    _breakpoint,
    _far_return,
    lambda dice: dice.pick(LONE),
    lambda dice: load(RAX, dice.value()) + dice.pick(WITH_RAX),
    lambda dice: load(RAX, dice.value()) + dice.pick(WITH_RAX),
    lambda dice: load(RAX, dice.selector()) + dice.pick(WITH_SELECTOR),
)


def _descriptor(dice: Dice) -> bytes:
    """Eight bytes that pass for a segment, TSS, LDT or gate more often than random ones do."""
    base = dice.value()
    granularity = dice.pick((0, 0x20, 0x40, 0xCF, 0xAF))
    kind = dice.pick(DESCRIPTOR_KINDS)
    low, middle, high = base & 0xFFFF, base >> 16 & 0xFF, base >> 24 & 0xFF
    return struct.pack("<HHBBBB", low, dice.selector(), middle, kind, granularity, high)


def _patch(dice: Dice) -> tuple[int, str]:
    address = dice.pick(TABLES) + 8 * dice.below(40)
    return address, (dice.bytes(1 + dice.below(16)) if dice.below(2) else _descriptor(dice)).hex()


def _program(dice: Dice) -> bytes:
    return b"".join(dice.pick(GADGETS)(dice) for _ in range(1 + dice.below(6)))


def attack(data: bytes) -> Attack:
    """The hostile guest that a string of bytes stands for."""
    dice = Dice(data)
    ring, rflags, resume = dice.pick((0, 0, 3)), dice.pick((2, 0x202, 0x102, 0x302, 0x3002)), dice.below(2) == 1
    patches = [_patch(dice) for _ in range(max(0, dice.below(8) - 3))]
    code = _program(dice)
    if not ring:
        patches += [(micro.USER_CODE, _program(dice).hex()), (micro.GDT + BASED_CS, CODE_WITH_BASE.hex())]
    return Attack(code.hex(), ring, rflags, patches, resume)
