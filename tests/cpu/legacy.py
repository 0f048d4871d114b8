"""A CPU outside long mode: 32- and 16-bit protected mode, virtual-8086 mode and real mode, with handlers that tell.

All memory is mapped one to one, without paging. The program under test is at PROGRAM, and in most modes at offset
OFFSET of a code segment that has a base. Every vector leads to a stub that tells the host what was pushed, and halts,
or returns if the test wants that.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field

from emu import micro
from emu.cpu.cpu import Cpu
from emu.cpu.entry import enter
from emu.cpu.platform import Exit, Platform
from emu.loader import BootState
from emu.memory import MIB, GuestMemory
from emu.micro import EVENT_PORT, FIXED, PATIENCE_S, WITH_ERROR_CODE
from hypercalls import GuestFault

IVT, REAL_STUBS, GDT, IDT, TSS, STUBS, RESUMING = 0, 0x5000, 0x6000, 0x6800, 0x7000, 0x8000, 0x9000
RESUMING_REAL, FRAME, POINTER, ENTRY = 0x9100, 0x9200, 0x9300, 0x9500
BASE, OFFSET = 0x20000, 0x345           # of the program's segment, and in it
PROGRAM = BASE + OFFSET
TO_REAL = 0xFF00                        # in that segment, too
DATA = 0x40000
STACK, KERNEL_STACK = 0x5F000, 0x7F000
REAL_SS = 0x5000                        # real and virtual-8086 mode: STACK and REAL_SP are the same place
REAL_SP = STACK - (REAL_SS << 4)
VM = 1 << 17
BIG = 1 << 22                           # of a segment's attributes: 32-bit stack

CODE_16, CODE_32, DATA_32, CODE_32_BASE, DATA_16, TR, USER_CODE, USER_DATA = range(0x08, 0x48, 8)
DESCRIPTORS = (
    0,
    0x0000_9B02_0000_FFFF,              # 16-bit code from BASE on
    0x00CF_9B00_0000_FFFF,              # flat 32-bit code, flat data
    0x00CF_9300_0000_FFFF,
    0x00CF_9B02_0000_FFFF,              # 32-bit code from BASE on
    0x0000_9305_0000_FFFF,              # 16-bit data, as REAL_SS
    0x0000_8900_0000_0088 | TSS << 16,  # with a permission map for 256 ports
    0x00CF_FB02_0000_FFFF,              # of ring 3: 32-bit code from BASE on, flat data
    0x00CF_F300_0000_FFFF,
)
MODES = ("32", "32 with a base", "32, ring 3", "16", "virtual-8086", "real")
SELECTORS = {"32": CODE_32, "32 with a base": CODE_32_BASE, "32, ring 3": USER_CODE | 3, "16": CODE_16}


@dataclass(frozen=True)
class Event:
    """What the CPU pushed; the error code is 0 in real mode, which has none."""

    vector: int
    error_code: int
    ip: int
    cs: int
    flags: int


def gate(vector: int) -> bytes:
    """A 32-bit interrupt gate that leads to a vector's stub; programs may use it."""
    return struct.pack("<HHHH", STUBS + 16 * vector, CODE_32, 0xEE00, 0)


@dataclass
class LegacyGuest:
    """A CPU to run a few instructions in one of MODES.

    Args:
        mode: which.
        resume: whether handlers return; they halt otherwise.
        last: vector of the event that ends the run, for a guest whose handlers return.

    Attributes:
        events, outs, ins, msrs, vectors: as of `emu.micro.MicroGuest`.
    """

    mode: str
    resume: bool = False
    last: int | None = None
    events: list[Event] = field(default_factory=list)
    outs: list[tuple[int, int, int]] = field(default_factory=list)
    ins: list[tuple[int, int]] = field(default_factory=list)
    msrs: dict[int, int] = field(default_factory=dict)
    vectors: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = GuestMemory(64 * MIB)
        self._install()
        handlers = self.port_in, self.port_out, self.rdmsr, self.wrmsr, self.acknowledge
        self.cpu = Cpu(Platform(*handlers, lambda: 0, lambda priority: None), micro.VMCB)
        for start, block in self.memory.blocks():
            self.cpu.map_ram(start, block)
        self.memory.drop_code = self.cpu.drop_code
        self.cpu.open_trap_door()
        self.cpu.map_mmio(64 * MIB, micro.VMCB - 64 * MIB, lambda address, size: 0, lambda address, size, value: None)
        self.registers = self.cpu.registers

    def _install(self) -> None:
        put = self.memory.write
        out = bytes((0xE6, EVENT_PORT))                                     # out EVENT_PORT, al
        ends = out + (b"\x83\xc4\x08\xcf" if self.resume else b"\xf4")      # add esp, 8; iretd, or hlt
        put(RESUMING, ends)
        put(RESUMING_REAL, out + (b"\x83\xc4\x02\xcf" if self.resume else b"\xf4"))     # add sp, 2; iret
        for vector in range(256):
            code = b"" if vector in WITH_ERROR_CODE else b"\x6a\x00"        # push 0
            code += b"\x68" + struct.pack("<I", vector)                     # push vector
            put(STUBS + 16 * vector, code + jump(STUBS + 16 * vector + len(code), RESUMING, 4))
            put(IDT + 8 * vector, gate(vector))
            at = REAL_STUBS + 8 * vector
            put(at, b"\x6a" + bytes((vector,)) + jump(at + 2, RESUMING_REAL, 2))    # push vector
            put(IVT + 4 * vector, struct.pack("<HH", at, 0))
        put(GDT, struct.pack(f"<{len(DESCRIPTORS)}Q", *DESCRIPTORS))
        put(TSS, struct.pack("<3I", 0, KERNEL_STACK, DATA_32).ljust(0x66, b"\0") + b"\x68\0" + b"\xff" * 33)
        put(POINTER, struct.pack("<HI", 0x3FF, IVT))

    # -- the board ---------------------------------------------------------------------------------------------

    def port_in(self, port: int, size: int) -> int:
        """IN: all ones."""
        self.ins.append((port, size))
        return (1 << 8 * size) - 1

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT: remembered; a stub's is an event."""
        if port != EVENT_PORT:
            self.outs.append((port, size, value))
            return
        _, base, _, attributes = self.registers.segment("ss")
        top = base + (self.registers.rsp & (0xFFFF_FFFF if attributes & BIG else 0xFFFF))
        if self.mode == "real":
            vector, ip, cs, flags = struct.unpack("<4H", self.memory.read(top, 8))
            self.events.append(Event(vector & 0xFF, 0, ip, cs, flags))
        else:
            self.events.append(Event(*struct.unpack("<5I", self.memory.read(top, 20))))
        if self.events[-1].vector == self.last:
            self.cpu.stop()

    def rdmsr(self, number: int) -> int:
        """RDMSR of a platform MSR."""
        if number not in self.msrs:
            raise GuestFault
        return self.msrs[number]

    def wrmsr(self, number: int, value: int) -> None:
        """WRMSR of a platform MSR."""
        if number not in self.msrs:
            raise GuestFault
        self.msrs[number] = value

    def acknowledge(self) -> int | None:
        """INTA: the next of `vectors`."""
        vector = self.vectors.pop(0) if self.vectors else None
        self.cpu.set_interrupt_line(bool(self.vectors))
        return vector

    # -- running -----------------------------------------------------------------------------------------------

    @property
    def place(self) -> int:
        """The offset at which the program is entered."""
        return PROGRAM if self.mode == "32" else OFFSET

    def run(self, code: bytes, flags: int = FIXED, **registers: int) -> Exit:
        """Run a program from its first instruction on.

        Args:
            code: instructions.
            flags: at the first of them.
            registers: general registers by name.
        """
        self.memory.write(PROGRAM, code)
        self.memory.write(ENTRY, self._way_in(flags, registers.get("rax", 0)))
        enter(self.cpu, BootState(ENTRY, rsi=0, rsp=STACK, cr3=None, gdt_base=GDT, gdt_limit=8 * len(DESCRIPTORS) - 1))
        for name, value in registers.items():
            setattr(self.registers, name, value)
        return self.go()

    def go(self, seconds: float = PATIENCE_S) -> Exit:
        """Run until an exit, or until the time is over (Exit.KICK)."""
        return self.cpu.run(time.monotonic_ns() + int(seconds * 1e9))

    def _way_in(self, flags: int, eax: int) -> bytes:
        """32-bit code that leads to the program, and what it needs in memory."""
        if self.mode == "real":
            self.memory.write(BASE + TO_REAL, to_real_mode(flags, eax))
            return b"\xea" + struct.pack("<IH", TO_REAL, CODE_16)                   # jmp CODE_16:TO_REAL
        frame = struct.pack("<3I", self.place, SELECTORS.get(self.mode, BASE >> 4), flags)
        at = STACK - len(frame)
        esp, ss, data = (REAL_SP - len(frame), DATA_16, DATA_32) if self.mode == "16" else (at, DATA_32, DATA_32)
        if self.mode == "32, ring 3":
            at = esp = FRAME
            data = USER_DATA | 3
            frame += struct.pack("<2I", STACK, USER_DATA | 3)
        elif self.mode == "virtual-8086":
            at = esp = FRAME
            frame = struct.pack("<9I", OFFSET, BASE >> 4, flags | VM, REAL_SP, REAL_SS, 0, 0, 0, 0)
        self.memory.write(at, frame)
        self.memory.write(POINTER, struct.pack("<HIHIHH", 0x7FF, IDT, TR, esp, ss, data))
        return b"".join(
            code + struct.pack("<I", POINTER + offset)
            for code, offset in (
                (b"\x0f\x01\x1d", 0),          # lidt [POINTER]
                (b"\x0f\x00\x1d", 6),          # ltr [POINTER + 6]
                (b"\x8e\x1d", 14),             # mov ds, [POINTER + 14]
                (b"\x0f\xb2\x25", 8),          # lss esp, [POINTER + 8]
            )
        ) + b"\xcf"                             # iretd

    def close(self) -> None:
        """Free the CPU."""
        self.cpu.close()

    def __enter__(self) -> LegacyGuest:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def to_real_mode(flags: int, eax: int) -> bytes:
    """16-bit code, at offset TO_REAL, that leaves protected mode and goes to the program."""
    code = (
        b"\x0f\x20\xc0"                                    # mov eax, cr0
        + b"\x24\xfe"                                      # and al, ~PE
        + b"\x0f\x22\xc0"                                  # mov cr0, eax
        + b"\xea" + struct.pack("<HH", TO_REAL + 13, BASE >> 4)     # jmp here, in real mode
        + b"\x31\xc0\x8e\xd8\x8e\xc0"                      # xor ax, ax; mov ds, ax; mov es, ax
        + b"\x0f\x01\x1e" + struct.pack("<H", POINTER)     # lidt [POINTER]
        + b"\xb8" + struct.pack("<H", REAL_SS)             # mov ax, REAL_SS
        + b"\x8e\xd0"                                      # mov ss, ax
        + b"\x66\xbc" + struct.pack("<I", REAL_SP)         # mov esp, REAL_SP
        + b"\x66\x68" + struct.pack("<I", flags)           # push flags
        + b"\x66\xb8" + struct.pack("<I", eax)             # mov eax, what it is to be
        + b"\x66\x9d"                                      # popfd
    )  # fmt: skip
    return code + jump(TO_REAL + len(code), OFFSET, 2)


def jump(source: int, target: int, width: int) -> bytes:
    """A near jump with an offset of `width` bytes."""
    return b"\xe9" + (target - source - 1 - width & (1 << 8 * width) - 1).to_bytes(width, "little")
