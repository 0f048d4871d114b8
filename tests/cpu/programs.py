"""Random programs for every mode of the CPU: integer, x87, MMX and SSE code that comes to an end without a fault.

Register operands and the addressing form [DI] are encoded alike in 16-, 32- and 64-bit code, so one table of
instructions serves all modes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from emu import micro
from emu.cpu.constants import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE
from emu.cpu.registers import MASK_64
from emu.cpu.state import CpuState, Segment
from emu.memory import GuestMemory

MARK, RAISE, END = 0xE0, 0xE1, 0xE2     # ports: the machine may move here; raise an interrupt; the program is over
VECTOR = 0x30                           # of that interrupt
HERE = b"\xe6" + bytes([MARK])          # out MARK, al
NEXT_BLOCK = b"\xeb\x00"                # jmp to what follows
FINISH = b"\xe6" + bytes([END]) + b"\xeb\xfe"
VM86_TSS = 0x7_0000                     # with an I/O permission map that allows everything

PE, PG, OSFXSR, OSXMMEXCPT, PAE, FSGSBASE = 1, 1 << 31, 1 << 9, 1 << 10, 1 << 5, 1 << 16
IOPL_3, VM = 3 << 12, 1 << 17
STACK_16 = micro.KERNEL_TOP & ~0xFFFF
GDT_16 = 0x50                           # three more descriptors
CODE_64, CODE_32, CODE_16, DATA_32, DATA_16, RING_3 = 0xA0_9B00, 0xC0_9B00, 0x9B00, 0xC0_9300, 0x9300, 0x6000
CODE_SELECTORS = {
    (64, 0): micro.KERNEL_CS, (64, 3): micro.USER_CS, (32, 0): micro.KERNEL_CS32, (32, 3): micro.USER_CS32,
}
LDT = Segment(0, 0, 0, 0)
REAL_SEGMENTS = micro.CODE >> 4, micro.DATA >> 4, STACK_16 >> 4


@dataclass(frozen=True)
class Mode:
    """A mode of the CPU.

    Attributes:
        attributes: of CS, and of the other segments.
        own_segments: selectors of CS, DS and SS that start at the code, the data and the stack; else all start at 0.
    """

    name: str
    bits: int
    ring: int
    attributes: tuple[int, int]
    is_long: bool = False
    cr0: int = PE
    rflags: int = micro.FIXED
    own_segments: tuple[int, int, int] | None = None

    @property
    def code(self) -> int:
        """Linear address of the program."""
        return micro.USER_CODE if self.is_long and self.ring else micro.CODE

    @property
    def data(self) -> int:
        """Linear address of its data."""
        return micro.USER_DATA if self.is_long and self.ring else micro.DATA

    @property
    def data_offset(self) -> int:
        """Where the data is for the program."""
        return 0 if self.own_segments else self.data

    def prepare(self, memory: GuestMemory, code: bytes, data: bytes) -> None:
        """Lay the program into memory, and what the mode needs beside the micro guest's tables."""
        memory.write(self.code, code)
        memory.write(self.data, data)
        memory.write(VM86_TSS + 0x66, struct.pack("<H", 0x68))
        rows = [
            limit | base << 16 | attributes << 32
            for base, attributes in ((self.code, CODE_16), (self.data, DATA_16), (STACK_16, DATA_16))
            for limit in (0xFFFF,)
        ]
        memory.write(micro.GDT + GDT_16, struct.pack("<3Q", *rows))

    def enter(self, state: CpuState) -> CpuState:
        """`state` at the program's start in this mode."""
        code, others = (attributes | RING_3 * bool(self.ring) for attributes in self.attributes)
        stack = micro.USER_TOP if self.is_long and self.ring else micro.KERNEL_TOP
        if self.own_segments:
            starts = (self.code, code), (self.data, others), (STACK_16, others)
            cs, ds, ss = (Segment(s, base, 0xFFFF, a) for s, (base, a) in zip(self.own_segments, starts, strict=True))
        else:
            ds = ss = Segment(micro.USER_DS if self.ring else micro.KERNEL_DS, 0, 0xFFFF_FFFF, others)
            cs = Segment(CODE_SELECTORS[self.bits, self.ring], 0, 0xFFFF_FFFF, code)
        is_vm86 = self.rflags & VM
        return replace(
            state,
            general=(*(0x0123_4567_89AB_CDEF * n & MASK_64 for n in (1, 2, 3, 4)), stack - ss.base, *state.general[5:]),
            rip=self.code - cs.base,
            rflags=self.rflags,
            segments=(ds, cs, ss, ds, ds, ds, LDT, Segment(micro.TR, VM86_TSS, 0x2100, 0x8900))
            if is_vm86 else (ds, cs, ss, ds, ds, ds, *state.segments[6:]),
            gdtr=(micro.GDT, GDT_16 + 3 * 8 - 1),
            cr0=PG | PE if self.is_long else self.cr0,
            cr4=OSFXSR | OSXMMEXCPT | FSGSBASE | PAE * self.is_long,
            efer=EFER_SCE | EFER_NXE | (EFER_LME | EFER_LMA if self.is_long else 0),
            halted=False,
        )


MODES = (
    Mode("64-bit, ring 0", 64, 0, (CODE_64, DATA_32), is_long=True),
    Mode("64-bit, ring 3", 64, 3, (CODE_64, DATA_32), is_long=True, rflags=micro.FIXED | IOPL_3),
    Mode("compatibility, ring 0", 32, 0, (CODE_32, DATA_32), is_long=True),
    Mode("compatibility, ring 3", 32, 3, (CODE_32, DATA_32), is_long=True, rflags=micro.FIXED | IOPL_3),
    Mode("32-bit protected", 32, 0, (CODE_32, DATA_32)),
    Mode("16-bit protected", 16, 0, (CODE_16, DATA_16), own_segments=(GDT_16, GDT_16 + 8, GDT_16 + 16)),
    Mode("real", 16, 0, (CODE_16, DATA_16), cr0=0x10, own_segments=REAL_SEGMENTS),
    Mode("virtual 8086", 16, 3, (CODE_16, DATA_16), rflags=micro.FIXED | IOPL_3 | VM, own_segments=REAL_SEGMENTS),
)

BINARY = bytes.fromhex("01 03 09 0b 11 13 19 1b 21 23 29 2b 31 33 39 3b 85 87 89 8b")
TWO_BYTE = bytes.fromhex("af a3 ab b3 bb b6 b7 be bf bc bd") + bytes(range(0x40, 0x50))
BYTES = bytes.fromhex("00 08 10 18 20 28 30 38 84 86 88")
LONE = tuple(bytes.fromhex("fc fd f8 f9 f5 98 99 9e 9f fa".replace(" ", "")[2 * i : 2 * i + 2]) for i in range(10))
STRINGS = tuple(bytes([code]) for code in (0xA4, 0xA5, 0xAA, 0xAB, 0xAC, 0xAD, 0xA6, 0xA7, 0xAE, 0xAF, 0x6E))
X87 = tuple(
    bytes((0xD9, second)) for second in (*range(0xE8, 0xEF), 0xE0, 0xE1, 0xE4, 0xE5, *range(0xF0, 0x100), 0xD0)
) + tuple(bytes.fromhex(code) for code in ("dec1", "dec9", "def9", "dee9", "dfe0", "dbe2", "dae9", "ded9", "0f77"))
X87_STACK = (0xD8C0, 0xD8C8, 0xD8D0, 0xD8E0, 0xD8F0, 0xD9C0, 0xD9C8, 0xDCC0, 0xDCC8, 0xDDC0, 0xDDD0, 0xDDD8, 0xDBF0)
X87_MEMORY = (
    *(0xD900, 0xD902, 0xD903, 0xD905, 0xD906, 0xD907, 0xD800, 0xD801, 0xD807, 0xDA00, 0xDB00, 0xDB03, 0xDB05, 0xDB07),
    *(0xDC00, 0xDC06, 0xDD00, 0xDD03, 0xDD04, 0xDD06, 0xDD07, 0xDF00, 0xDF04, 0xDF05, 0xDF07),
)
SSE = bytes.fromhex("51 54 55 56 57 58 59 5c 5d 5e 5f 14 15 16 12 28 5a")
INTEGER_SSE = bytes.fromhex("60 61 63 64 6a 6b 74 76 d4 d5 d8 db dc e0 e4 eb ef f5 f6 fa fc fe")
SSE_MEMORY = (0x1000, 0x1100, 0xAE02, 0xAE03, 0xAE00, 0xAE01, 0x2800, 0x2900)
MSRS = (0x174, 0x175, 0x176, 0x200, 0x20F, 0x268, 0x277, 0x2FF, 0xC000_0082, 0xC000_0084, 0xC000_0102, 0xC000_0103)


class Generator:
    """Makes one program.

    Args:
        mode: the mode it will run in.
        choices: where its randomness comes from.
    """

    def __init__(self, mode: Mode, choices: random.Random) -> None:
        self._mode = mode
        self._random = choices
        self._kinds: list[Callable[[], bytes]] = [
            *(self._binary, self._immediate, self._shift, self._byte, self._string, self._x87, self._x87_memory),
            *(self._sse, self._sse_memory, self._stack, self._control, self._segment, self._lone),
        ]
        if mode.is_long:
            self._kinds.append(self._interrupt)
        if mode.bits == 64:
            self._kinds.append(self._wide)
        if mode.bits == 64 and not mode.ring:
            self._kinds.append(self._privileged)

    def program(self, size: int) -> bytes:
        """A program of some `size` instructions, with places where it may be moved to another CPU."""
        code = b""
        for _ in range(size):
            code += self._random.choice(self._kinds)()
            if self._random.random() < 0.3:
                code += HERE + self._random.choice((NEXT_BLOCK, b""))
        return code + FINISH

    def _register(self) -> int:
        return self._random.choice((0, 1, 2, 3, 5, 6, 7))               # not the stack's

    def _modrm(self) -> bytes:
        return bytes([0xC0 | self._register() << 3 | self._register()])

    def _value(self, size: int) -> bytes:
        return self._random.randbytes(size)

    def _load(self, register: int, value: int) -> bytes:
        """MOV of the code's natural size."""
        return bytes([0xB8 + register]) + value.to_bytes(2 if self._mode.bits == 16 else 4, "little")

    def _point(self) -> bytes:
        """DI, and BX which stands for it in 16-bit code, to 512 aligned bytes."""
        value = self._mode.data_offset + 0x400 + 64 * self._random.randrange(32)
        return self._load(7, value) + self._load(3, value)

    def _binary(self) -> bytes:
        if self._random.random() < 0.5:
            return bytes([self._random.choice(BINARY)]) + self._modrm()
        return b"\x0f" + bytes([self._random.choice(TWO_BYTE)]) + self._modrm()

    def _immediate(self) -> bytes:
        if self._random.random() < 0.5:
            return self._load(self._register(), self._random.getrandbits(min(self._mode.bits, 32)))
        return bytes([0x83, 0xC0 | self._random.randrange(8) << 3 | self._register()]) + self._value(1)

    def _shift(self) -> bytes:
        kind = self._random.choice((0, 1, 2, 3, 4, 5, 7)) << 3
        operand = 0xC0 | kind | self._register()
        code = self._random.choice((b"\xc1", b"\xd1", b"\xd3", b"\x0f\xa4", b"\xf7"))
        if code == b"\xf7":                                             # NOT, NEG, MUL, IMUL
            return code + bytes([0xC0 | self._random.choice((2, 3, 4, 5)) << 3 | self._register()])
        return code + bytes([operand]) + (self._value(1) if code[-1] in (0xC1, 0xA4) else b"")

    def _byte(self) -> bytes:
        return bytes([self._random.choice(BYTES), 0xC0 | self._random.randrange(64)])

    def _lone(self) -> bytes:
        return self._random.choice(LONE)

    def _stack(self) -> bytes:
        middle = self._random.choice((HERE + NEXT_BLOCK, b""))
        return bytes([0x50 + self._register()]) + middle + bytes([0x58 + self._register()])

    def _control(self) -> bytes:
        """A conditional jump over an instruction; STI and MOV SS with their shadows; PUSHF, POPF."""
        choice = self._random.randrange(4)
        if choice == 0:
            skipped = self._binary()
            return bytes([0x70 + self._random.randrange(16), len(skipped)]) + skipped
        if choice == 1:
            return HERE + b"\xfb\x90"                                  # sti; nop
        if choice == 2:
            return HERE + b"\x8c\xd0\x8e\xd0\x90"                      # mov ax, ss; mov ss, ax; nop
        return b"\x9c" + HERE + b"\x9d"

    def _segment(self) -> bytes:
        """MOV to DS, ES, FS or GS of what DS has."""
        return b"\x8c\xd8\x8e" + bytes([self._random.choice((0xC0, 0xD8, 0xE0, 0xE8))])

    def _string(self) -> bytes:
        code = self._random.choice(STRINGS)
        offset = self._mode.data_offset + 0x2000
        repeat = self._random.choice((b"", b"\xf3", b"\xf2"))
        if code == b"\x6e":                                            # outsb may move between its iterations
            return self._load(2, MARK) + self._load(6, offset) + self._load(1, self._random.randrange(4)) + b"\xf3\x6e"
        pointers = self._load(6, offset) + self._load(7, offset + self._random.randrange(-64, 64))
        return pointers + self._load(1, self._random.randrange(40)) + repeat + code

    def _x87(self) -> bytes:
        if self._random.random() < 0.5:
            return self._random.choice(X87)
        return (self._random.choice(X87_STACK) + self._random.randrange(8)).to_bytes(2, "big")

    def _x87_memory(self) -> bytes:
        code = self._random.choice(X87_MEMORY)
        return self._point() + bytes([code >> 8, (code & 7) << 3 | 7])

    def _sse(self) -> bytes:
        if self._random.random() < 0.4:
            prefix = self._random.choice((b"", b"\x66"))               # MMX or SSE2
            return prefix + b"\x0f" + bytes([self._random.choice(INTEGER_SSE), 0xC0 | self._random.randrange(64)])
        prefix = self._random.choice((b"", b"\x66", b"\xf3", b"\xf2"))
        code = self._random.choice(SSE)
        if code in (0x54, 0x55, 0x56, 0x57, 0x14, 0x15, 0x16, 0x12, 0x28):
            prefix = self._random.choice((b"", b"\x66")) if code not in (0x16, 0x12) else b""
        return prefix + b"\x0f" + bytes([code, 0xC0 | self._random.randrange(64)])

    def _sse_memory(self) -> bytes:
        code = self._random.choice(SSE_MEMORY)
        register = self._random.randrange(8) if code & 0xFF == 0 and code >> 8 != 0xAE else code & 7
        return self._point() + b"\x0f" + bytes([code >> 8, register << 3 | 7])

    def _interrupt(self) -> bytes:
        return b"\xe6" + bytes([RAISE]) + self._random.choice((b"", NEXT_BLOCK))

    def _wide(self) -> bytes:
        """64-bit operands and the upper registers; WRFSBASE, WRGSBASE."""
        if self._random.random() < 0.2:
            return b"\x48\xb8" + self._value(5) + b"\0\0\0\xf3\x48\x0f\xae" + self._random.choice((b"\xd0", b"\xd8"))
        upper = self._random.randrange(8)                              # REX.W with R, X, B
        return bytes([0x48 | upper]) + bytes([self._random.choice(BINARY)]) + self._modrm()

    def _privileged(self) -> bytes:
        """WRMSR, SWAPGS, MOV to CR2 and to a debug register."""
        choice = self._random.randrange(4)
        if choice == 0:
            return self._load(1, self._random.choice(MSRS)) + self._load(2, 0x1234) + b"\x0f\x30"
        return (b"", b"\x0f\x01\xf8", b"\x0f\x22\xd0", b"\x0f\x23\xc8")[choice]
