"""The smallest guest: a CPU, page tables, GDT, IDT and TSS, and the handful of instructions a test gives it.

Everything is identity-mapped below 2 MiB; from `ALIAS` on the same pages appear once more, not executable. Every IDT
gate leads to a stub that tells the host what was pushed and then, as the test wants, halts or returns.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Self

from devices.frozen import frozen
from emu.cpu.abi import ffi
from emu.cpu.constants import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, MSR_EFER, MSR_STAR
from emu.cpu.cpu import Cpu
from emu.cpu.entry import enter
from emu.cpu.platform import Exit, Platform
from emu.cpu.registers import GENERAL
from emu.errors import EmuError
from emu.loader import BootState
from emu.memory import MIB, GuestMemory
from hypercalls.call import GuestFault

PML4, PDPT, PD, PT, PT_ALIAS = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
GDT, IDT, TSS, BOOT, FRAME = 0x6000, 0x7000, 0x8000, 0x9000, 0x9800
ENTRY, IRETQ = BOOT + 16, BOOT + 32
STUBS = 0xA000                          # 16 bytes a vector
HALTING, RESUMING = 0xB000, 0xB100      # how a stub ends
KERNEL_STACK, FAULT_STACK, KERNEL_TOP = 0xF000, 0xE000, 0x1F000
CODE, DATA = 0x20000, 0x30000           # supervisor
USER_CODE, USER_DATA, USER_TOP = 0x40000, 0x50000, 0x5F000
USER_FIRST, USER_LAST = 0x40000, 0x7FFFF
ALIAS = 0x20_0000
MMIO = 0x60_0000                        # virtual; open bus at guest-physical MMIO_PHYSICAL
MMIO_PHYSICAL = 0xD000_0000
DEVICES = 0x200_0000                    # virtual, and on: the 2 MiB pages at DEVICES_PHYSICAL
DEVICES_PHYSICAL = (0xC000_0000, 0xFD00_0000, 0xFEC0_0000, 0xFEE0_0000)     # virtio, ECAM, I/O and local APIC
UNMAPPED = 0x90_0000
VMCB = 0xFD00_0000

PRESENT, WRITABLE, USER, LARGE, NO_EXECUTE = 1, 2, 4, 1 << 7, 1 << 63

KERNEL_CS32, KERNEL_CS, KERNEL_DS, USER_CS32, USER_DS, USER_CS, TR = 0x08, 0x10, 0x18, 0x23, 0x2B, 0x33, 0x40
DESCRIPTORS = (
    0,
    0x00CF_9B00_0000_FFFF,              # 0x08: ring 0, 32-bit code
    0x00AF_9B00_0000_FFFF,              # 0x10: ring 0, 64-bit code
    0x00CF_9300_0000_FFFF,              # 0x18: ring 0, data
    0x00CF_FB00_0000_FFFF,              # 0x23: ring 3, 32-bit code
    0x00CF_F300_0000_FFFF,              # 0x2b: ring 3, data
    0x00AF_FB00_0000_FFFF,              # 0x33: ring 3, 64-bit code
    0,
)
TSS_DESCRIPTOR = 0x0000_8900_0000_0067  # 0x40, 16 bytes: a TSS's, with the address yet to be put in
GDT_LIMIT = 8 * (len(DESCRIPTORS) + 2) - 1

WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
DE, DB, BP, OF, UD, DF, TS, NP, SS, GP, PF = 0, 1, 3, 4, 6, 8, 10, 11, 12, 13, 14
CF, AF, SF, TF, IF, DIRECTION, RF = 1, 1 << 4, 1 << 7, 1 << 8, 1 << 9, 1 << 10, 1 << 16
FIXED = 2                               # RFLAGS bit 1 is always set

EVENT_PORT = 0xF8                       # the stubs write here
PATIENCE_S = 10.0                       # for a few instructions, on however busy a host
EVENT = struct.Struct("<7Q")


@frozen
class Event:
    """What the CPU pushed when it went through a gate, and CR2 at that time."""

    vector: int
    error_code: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int
    cr2: int


def gate(
    vector: int, selector: int = KERNEL_CS, dpl: int = 0, ist: int = 0, kind: int = 0xE, base: int = 0
) -> bytes:
    """An IDT entry that leads to the stub of `vector`: kind 0xE is an interrupt gate, 0xF a trap gate."""
    target = base + STUBS + 16 * vector
    return struct.pack("<HHBBHQ", target & 0xFFFF, selector, ist, 0x80 | dpl << 5 | kind, target >> 16, 0)


def _stub(vector: int, resume: bool) -> bytes:
    code = b"" if vector in WITH_ERROR_CODE else b"\x6a\x00"            # push 0
    code += b"\x68" + struct.pack("<I", vector)                         # push vector
    target = RESUMING if resume else HALTING
    at = STUBS + 16 * vector + len(code) + 5
    return (code + b"\xe9" + struct.pack("<i", target - at)).ljust(16, b"\xcc")     # jmp


def tables(base: int, resume: Collection[int], own_stack: Collection[int]) -> bytes:
    """GDT, IDT, TSS, the code that loads them, and the stubs: the pages from GDT on.

    Args:
        base: where the addresses of this module count from; below 2 GiB.
        resume: vectors whose handler returns with IRETQ; the others halt.
        own_stack: vectors whose handler has a stack of its own, at FAULT_STACK.
    """
    memory = bytearray(HALTING + 0x1000)

    def put(address: int, data: bytes) -> None:
        memory[address : address + len(data)] = data

    tss = base + TSS
    low = TSS_DESCRIPTOR | (tss & 0xFF_FFFF) << 16 | (tss >> 24) << 56
    put(GDT, struct.pack(f"<{len(DESCRIPTORS) + 2}Q", *DESCRIPTORS, low, 0))
    for vector in range(256):
        dpl = 3 if vector in (BP, OF, 0x80) else 0
        put(IDT + 16 * vector, gate(vector, dpl=dpl, ist=1 if vector in own_stack else 0, base=base))
        put(STUBS + 16 * vector, _stub(vector, vector in resume))
    out = bytes((0xE6, EVENT_PORT))                 # out EVENT_PORT, al
    put(HALTING, out + b"\xf4\xeb\xfd")             # hlt; jmp to it
    put(RESUMING, out + b"\x48\x83\xc4\x10\x48\xcf")  # add rsp, 16; iretq
    put(TSS, struct.pack("<I4Q", 0, base + KERNEL_STACK, 0, 0, 0) + struct.pack("<Q", base + FAULT_STACK))
    put(TSS + 0x66, b"\x68\x00")                    # no I/O permission map
    put(BOOT, struct.pack("<HQ", 0xFFF, base + IDT))
    put(ENTRY, b"\x0f\x01\x1c\x25" + struct.pack("<I", base + BOOT))      # lidt [BOOT]
    put(ENTRY + 8, b"\x66\xb8" + struct.pack("<H", TR))         # mov ax, TR
    put(ENTRY + 12, b"\x0f\x00\xd8")                           # ltr ax
    put(ENTRY + 15, b"\xf4")                                   # hlt
    put(IRETQ, b"\x48\xcf")                                    # iretq
    return bytes(memory[GDT:])


@cache
def image(resume: frozenset[int] = frozenset()) -> bytes:
    """The first pages of memory: page tables, and the other tables.

    Args:
        resume: vectors whose handler returns with IRETQ; the others halt.
    """
    memory = bytearray(GDT)

    def put_quads(address: int, *quads: int) -> None:
        memory[address : address + 8 * len(quads)] = struct.pack(f"<{len(quads)}Q", *quads)

    table = PRESENT | WRITABLE | USER
    put_quads(PML4, PDPT | table)
    put_quads(PDPT, PD | table)
    devices = [physical | table | LARGE for physical in DEVICES_PHYSICAL]
    put_quads(PD, PT | table, PT_ALIAS | table, 0, MMIO_PHYSICAL | table | LARGE)
    put_quads(PD + (DEVICES >> 18), *devices)
    for page in range(0, 512 << 12, 1 << 12):
        entry = page | PRESENT | WRITABLE | (USER if USER_FIRST <= page <= USER_LAST else 0)
        put_quads(PT + (page >> 9), entry)
        put_quads(PT_ALIAS + (page >> 9), entry | NO_EXECUTE)
    return bytes(memory) + tables(0, resume, {DF})


START = BootState(rip=ENTRY, rsi=0, rsp=KERNEL_TOP, cr3=PML4, gdt_base=GDT, gdt_limit=GDT_LIMIT)
"""How the CPU starts: it loads IDTR and TR, and halts."""


def install(
    memory: GuestMemory, code: bytes, ring: int = 0, rflags: int = FIXED, resume: frozenset[int] = frozenset()
) -> BootState:
    """Lay a whole program into memory, for a machine that is to run it from power-on.

    Args:
        memory: RAM.
        code: instructions, at CODE or USER_CODE.
        ring: 0 or 3.
        rflags: flags at the first of them.
        resume: vectors whose handler returns; the others halt.

    Returns:
        How the CPU starts.
    """
    at, cs, stack, ss = (USER_CODE, USER_CS, USER_TOP, USER_DS) if ring else (CODE, KERNEL_CS, KERNEL_TOP, KERNEL_DS)
    memory.write(0, image(resume))
    memory.write(FRAME, struct.pack("<5Q", at, cs, rflags, stack, ss))
    memory.write(ENTRY + 15, b"\xbc" + struct.pack("<I", FRAME) + b"\x48\xcf")       # mov esp, FRAME; iretq
    memory.write(at, code)
    return START


@dataclass
class MicroGuest:
    """A CPU ready to run a few instructions in ring 0 or 3.

    Args:
        resume: vectors whose handler returns; the others halt the CPU.
        memory: RAM, by default 64 MiB.

    Attributes:
        events: exceptions and interrupts, in order.
        outs: (port, size, value) of every OUT but the stubs'.
        ins: (port, size) of every IN; it reads `input`.
        msrs: what the platform's MSRs hold; others are #GP.
        vectors: what INTA cycles will yield, in order.
        priorities: what was written to CR8, after the 0 it starts with.
    """

    resume: Collection[int] = ()
    memory: GuestMemory = field(default_factory=lambda: GuestMemory(64 * MIB))
    events: list[Event] = field(default_factory=list)
    outs: list[tuple[int, int, int]] = field(default_factory=list)
    ins: list[tuple[int, int]] = field(default_factory=list)
    input: int = 0xFFFF_FFFF
    msrs: dict[int, int] = field(default_factory=dict)
    vectors: list[int] = field(default_factory=list)
    priorities: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        self.memory.write(0, image(frozenset(self.resume)))
        handlers = self.port_in, self.port_out, self.rdmsr, self.wrmsr, self.acknowledge
        self.cpu = Cpu(Platform(*handlers, lambda: self.priorities[-1], self.priorities.append), VMCB)
        for start, block in self.memory.blocks():
            self.cpu.map_ram(start, block)
        self.memory.drop_code = self.cpu.drop_code
        self.cpu.open_trap_door()
        low, high = self.memory.low_size, (1 << 32) + self.memory.high_size
        for start, end in ((low, VMCB), (VMCB + 0x4000, 1 << 32), (high, 1 << 52)):
            self.cpu.map_mmio(start, end - start, self.mmio_read, self.mmio_write)
        enter(self.cpu, START)
        self.cpu.write_msr(MSR_EFER, EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE)
        self.cpu.write_msr(MSR_STAR, 0x23 << 48 | KERNEL_CS << 32)
        self.registers = self.cpu.registers
        if self.go() is not Exit.HALT:                  # no assertion: python -O would not run it
            raise EmuError(f"the micro guest did not start: {self.cpu.error or 'it does not halt'}")

    # -- the board ---------------------------------------------------------------------------------------------

    def port_in(self, port: int, size: int) -> int:
        """IN: all of `input` that fits."""
        self.ins.append((port, size))
        return self.input & (1 << 8 * size) - 1

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT: remembered; a stub's is an event."""
        if port != EVENT_PORT:
            self.outs.append((port, size, value))
            return
        registers = self.registers
        vector, error_code, rip, cs, rflags, rsp, ss = EVENT.unpack(self.memory.read(registers.rsp, EVENT.size))
        self.events.append(Event(vector, error_code, rip, cs, rflags, rsp, ss, registers.cr(2)))

    def mmio_read(self, address: int, size: int) -> int:
        """A load from outside RAM: open bus."""
        return (1 << 8 * size) - 1

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A store outside RAM: dropped."""

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

    def put(
        self, code: bytes, at: int = CODE, *, rflags: int = FIXED, cs: int = 0, rsp: int = 0, **registers: int
    ) -> None:
        """Place code, and get ready to enter it by IRETQ.

        Args:
            code: instructions.
            at: their address; it decides the ring.
            rflags: flags at the first instruction.
            cs: code selector, by default 64-bit code of the ring.
            rsp: stack, by default one of the ring.
            registers: general registers by name.
        """
        self.memory.write(at & ALIAS - 1, code)
        user = USER_FIRST <= at <= USER_LAST
        cs = cs or (USER_CS if user else KERNEL_CS)
        stack = rsp or (USER_TOP if user else KERNEL_TOP)
        ss = USER_DS if cs & 3 else KERNEL_DS
        self.memory.write(FRAME, struct.pack("<5Q", at, cs, rflags, stack, ss))
        for name, value in registers.items():
            self.registers.general[GENERAL.index(name)] = value
        self.registers.rsp = FRAME
        self.registers.rip = IRETQ

    def go(self, seconds: float = PATIENCE_S) -> Exit:
        """Run until an exit, or until the time is over (Exit.KICK)."""
        return self.cpu.run(time.monotonic_ns() + int(seconds * 1e9))

    def run(self, code: bytes, at: int = CODE, **arguments: int) -> Exit:
        """`put` and `go`."""
        self.put(code, at, **arguments)
        return self.go()

    @property
    def event(self) -> Event:
        """The only event."""
        (event,) = self.events
        return event

    def quad(self, address: int) -> int:
        """64-bit word of guest memory."""
        return int.from_bytes(self.memory.read(address, 8), "little")

    def write_quads(self, address: int, *values: int) -> None:
        """Store 64-bit words in guest memory."""
        self.memory.write(address, struct.pack(f"<{len(values)}Q", *values))

    def close(self) -> None:
        """Free the CPU."""
        self.cpu.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def host_address(pointer: object) -> int:
    """Address that a cffi pointer holds, for tests that change private state by hand."""
    return int(ffi.cast("uintptr_t", pointer))
