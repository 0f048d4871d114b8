"""What a snapshot keeps of a CPU: everything that a guest can see, by its architectural name.

Not kept, because it follows from this or is a cache: translated code, TLB, hidden flags (`_hidden_flags`), the lazily
computed arithmetic flags (folded into RFLAGS), softfloat's modes (they follow from the x87 control word and MXCSR),
breakpoints (from DR7). Not kept, because it cannot change: A20 is on, SMM does not exist, and CPUID shows neither XSAVE
nor AVX, so that there is no XCR0 and nothing above XMM15 and bit 127. CR8 and the APIC base are the local APIC's.
Hooks, the trap door and the counters of a CPU's context belong to the process, not to the guest.

Written are plain memory and two registers of the public API, none of which reads guest memory or can raise an
exception in the guest: from Python, a longjmp would take the host process with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from devices.frozen import frozen
from emu.cpu.abi import ffi
from emu.cpu.constants import (
    CONTROL_TLB_FLUSH,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    HF2_GIF,
    HF2_NMI,
    HF_ADDSEG,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_GUEST,
    HF_INHIBIT_IRQ,
    HF_LMA,
    HF_MP_SHIFT,
    HF_OSFXSR,
    HF_PE,
    HF_SS32,
    INTERRUPT_WINDOW,
    REGISTER_FPCW,
    REGISTER_MXCSR,
    control_write,
)
from emu.cpu.library import Library
from emu.cpu.registers import DF, MASK_64, Registers

ARITHMETIC_FLAGS = 0x8D5                # OF, SF, ZF, AF, PF, CF
CC_OP_EFLAGS = 1                        # cc_src holds them
RFLAGS_VM = 1 << 17
TOP = 0b111 << 11                       # of the x87 status word

CR0_PE, CR0_MP_EM_TS = 1 << 0, 0b111 << 1
CR4_OSFXSR, CR4_SMAP, CR4_PKE = 1 << 9, 1 << 21, 1 << 22
DR7_DISABLED = 1 << 10                  # the bit that is always set, and no other

ATTRIBUTES_DPL_SHIFT = 13               # of a descriptor's upper half
ATTRIBUTES_L, ATTRIBUTES_DB = 1 << 21, 1 << 22

_GENERAL = struct.Struct("<16Q")
_RIP_FLAGS = struct.Struct("<QQQQQIi")  # RIP; between runs all of RFLAGS; cc_dst, cc_src, cc_src2, cc_op, df
_HIDDEN_FLAGS = struct.Struct("<II")
_SEGMENTS = struct.Struct("<" + 10 * "I4xQII")
_FPU = struct.Struct("<IHH8B")          # top, status, control, tags: 0 valid, 1 empty
_FPU_REGISTERS = struct.Struct("<" + 8 * "QH6x" + "HHH2xQQ")
_XMM = struct.Struct("<" + 16 * "QQ48x")


@frozen
class Segment:
    """A segment register and its hidden part.

    Attributes:
        attributes: the descriptor's upper 32 bits, of which those of base and limit do not matter.
    """

    selector: int
    base: int
    limit: int
    attributes: int


@frozen
class Fpu:
    """The x87 unit.

    Attributes:
        status: with TOP.
        tags: bit n is 1 if Rn is in use, as FXSAVE stores it.
        registers: R0 to R7, 80 bits each; MMX registers are the lower 64.
        opcode: of the last instruction; `code` and `data` are the selectors and addresses of it and of its operand.
    """

    control: int
    status: int
    tags: int
    registers: tuple[int, ...]
    opcode: int
    code: tuple[int, int]
    data: tuple[int, int]


@frozen
class CpuState:
    """All that one CPU is, between two instructions.

    The privilege level is SS' DPL, as on every x86.

    Attributes:
        general: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
        segments: ES, CS, SS, DS, FS, GS, LDTR, TR.
        gdtr, idtr: base and limit.
        dr: DR0 to DR3, DR6, DR7.
        msrs: (number, value) of each that libunicorn keeps, besides EFER and the bases of FS and GS; ascending.
        xmm: XMM0 to XMM15, 128 bits each.
        interrupt_shadow: the next instruction follows STI or MOV SS, and is not interrupted.
        nmi_masked: an NMI's handler has not returned yet.
        halted: HLT; whoever runs the CPU waits first for what ends it.
        interrupt_line: level of the INTR pin.
        tsc: what RDTSC read at the time.
    """

    general: tuple[int, ...]
    rip: int
    rflags: int
    segments: tuple[Segment, ...]
    gdtr: tuple[int, int]
    idtr: tuple[int, int]
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    dr: tuple[int, ...]
    efer: int
    msrs: tuple[tuple[int, int], ...]
    fpu: Fpu
    mxcsr: int
    xmm: tuple[int, ...]
    interrupt_shadow: bool
    nmi_masked: bool
    halted: bool
    interrupt_line: bool
    tsc: int


ALLOWED = {
    "rflags": 0x3F_7FD7,
    "cr0": 0xFFFF_FFFF,
    "cr4": 0xFFFF_FFFF & ~(CR4_SMAP | CR4_PKE),
    "efer": EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE,      # SVME would give the guest the trap door's key
}
"""Bits of registers that a guest of this CPU can set. It checks no others, so that all combinations occur."""


class StateAccess:
    """Reads and writes the state of a CPU that is not running.

    Args:
        library: the loaded libunicorn.
        uc, cpu: the engine, and the host address of its CPUState.
        registers: the CPU's.
    """

    def __init__(self, library: Library, uc: Any, cpu: int, registers: Registers) -> None:
        self._api = library.api
        self._layout = layout = library.layout
        self._uc = uc
        self._env = cpu + layout.env
        self._registers = registers
        self._halted = ffi.cast("uint32_t *", cpu + layout.halted)
        self._interrupt_request = ffi.cast("uint32_t *", cpu + layout.interrupt_request)
        end = max(offset + 8 * count for _, count, offset in layout.msrs)
        self._memory = ffi.buffer(ffi.cast("uint8_t *", self._env), end)

    def read(self, tsc: int) -> CpuState:
        """The state now, when the guest's TSC reads `tsc`."""
        layout, memory = self._layout, self._memory[:]
        words = _SEGMENTS.unpack_from(memory, layout.segs)
        *segments, gdtr, idtr = (words[at : at + 4] for at in range(0, 40, 4))
        cr = struct.unpack_from("<9Q", memory, layout.cr)
        dr = struct.unpack_from("<8Q", memory, layout.dr)
        xmm = _XMM.unpack_from(memory, layout.xmm)
        hidden, hidden2 = _HIDDEN_FLAGS.unpack_from(memory, layout.hflags)
        return CpuState(
            general=_GENERAL.unpack_from(memory),
            rip=self._registers.rip,
            rflags=self._registers.rflags,
            segments=tuple(Segment(*segment) for segment in segments),
            gdtr=gdtr[1:3],
            idtr=idtr[1:3],
            cr0=cr[0],
            cr2=cr[2],
            cr3=cr[3],
            cr4=cr[4],
            dr=dr[:4] + dr[6:],
            efer=self._registers.efer,
            msrs=tuple(self._read_msrs(memory)),
            fpu=self._read_fpu(memory),
            mxcsr=int.from_bytes(memory[layout.mxcsr : layout.mxcsr + 4], "little"),
            xmm=tuple(low | high << 64 for low, high in zip(xmm[::2], xmm[1::2], strict=True)),
            interrupt_shadow=bool(hidden & HF_INHIBIT_IRQ),
            nmi_masked=bool(hidden2 & HF2_NMI),
            halted=bool(self._halted[0]),
            interrupt_line=bool(self._interrupt_request[0] & INTERRUPT_WINDOW),
            tsc=tsc,
        )

    def _read_msrs(self, memory: bytes) -> Iterator[tuple[int, int]]:
        for first, count, offset in self._layout.msrs:
            yield from enumerate(struct.unpack_from(f"<{count}Q", memory, offset), first)

    def _read_fpu(self, memory: bytes) -> Fpu:
        top, status, control, *tags = _FPU.unpack_from(memory, self._layout.fpstt)
        *halves, opcode, code, data, code_address, data_address = _FPU_REGISTERS.unpack_from(
            memory, self._layout.fpregs
        )
        return Fpu(
            control=control,
            status=status & ~TOP | top << 11,
            tags=sum(1 << n for n, empty in enumerate(tags) if not empty),
            registers=tuple(low | high << 64 for low, high in zip(halves[::2], halves[1::2], strict=True)),
            opcode=opcode,
            code=(code, code_address),
            data=(data, data_address),
        )

    def write(self, state: CpuState) -> None:
        """Make the CPU what `state` says; its TSC is not touched.

        Raises:
            ValueError: no CPU of this kind can be in that state; nothing has changed.
        """
        try:
            chunks = self._encode(state)
        except struct.error as error:
            raise ValueError(f"not the state of a CPU: {error}") from None
        for name, allowed in ALLOWED.items():
            if getattr(state, name) & ~allowed:
                raise ValueError(f"{name} of {getattr(state, name):#x} is not one of this CPU")
        api, env = self._api, ffi.cast("void *", self._env)
        api.cpu_x86_update_dr7_x86_64(env, DR7_DISABLED)    # before DR0 to DR3 change: it drops their breakpoints
        for offset, data in chunks:
            self._memory[offset : offset + len(data)] = data
        api.cpu_x86_update_dr7_x86_64(env, state.dr[5])     # makes breakpoints, and a hidden flag
        api.uc_reg_write(self._uc, REGISTER_FPCW, ffi.new("uint16_t *", state.fpu.control))
        api.uc_reg_write(self._uc, REGISTER_MXCSR, ffi.new("uint32_t *", state.mxcsr))
        api.uc_ctl(self._uc, control_write(CONTROL_TLB_FLUSH, 0))
        self._halted[0] = state.halted
        self._interrupt_request[0] = INTERRUPT_WINDOW if state.interrupt_line else 0

    def _encode(self, state: CpuState) -> list[tuple[int, bytes]]:
        """What to store where in CPUX86State; all that has its width goes through struct, which checks it."""
        layout, fpu = self._layout, state.fpu
        arithmetic, direction = state.rflags & ARITHMETIC_FLAGS, -1 if state.rflags & DF else 1
        segments = [word for s in state.segments for word in (s.selector, s.base, s.limit, s.attributes)]
        tables = (0, *state.gdtr, 0, 0, *state.idtr, 0)
        *breakpoints, dr6, dr7 = state.dr
        pointers = fpu.opcode, fpu.code[0], fpu.data[0], fpu.code[1], fpu.data[1]
        tags = [0 if fpu.tags & 1 << n else 1 for n in range(8)]
        struct.pack("<IIHBQ", dr7, state.mxcsr, fpu.control, fpu.tags, state.tsc)       # stored otherwise
        return [
            (0, _GENERAL.pack(*state.general)),
            (layout.eip, _RIP_FLAGS.pack(state.rip, state.rflags | 2, 0, arithmetic, 0, CC_OP_EFLAGS, direction)),
            (layout.hflags, _HIDDEN_FLAGS.pack(_hidden_flags(state), HF2_GIF | (HF2_NMI if state.nmi_masked else 0))),
            (layout.segs, _SEGMENTS.pack(*segments, *tables)),
            (layout.cr, struct.pack("<Q", state.cr0)),
            (layout.cr + 16, struct.pack("<3Q", state.cr2, state.cr3, state.cr4)),
            (layout.dr, struct.pack("<4Q", *breakpoints)),
            (layout.dr + 48, struct.pack("<Q", dr6)),
            (layout.efer, struct.pack("<Q", state.efer)),
            (layout.fpstt, _FPU.pack((fpu.status & TOP) >> 11, fpu.status & ~TOP, 0, *tags)),
            (layout.fpregs, _FPU_REGISTERS.pack(*_halves(fpu.registers), *pointers)),
            (layout.xmm, _XMM.pack(*_halves(state.xmm))),
            *self._encode_msrs(state.msrs),
        ]

    def _encode_msrs(self, msrs: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, bytes]]:
        runs, start = self._layout.msrs, 0
        kept = [number for first, count, _ in runs for number in range(first, first + count)]
        if [number for number, _ in msrs] != kept:
            raise ValueError("its MSRs are not those of this CPU")
        for _, count, offset in runs:
            yield offset, struct.pack(f"<{count}Q", *(value for _, value in msrs[start : start + count]))
            start += count


def _halves(values: tuple[int, ...]) -> Iterator[int]:
    for value in values:
        yield value & MASK_64
        yield value >> 64


def _hidden_flags(state: CpuState) -> int:
    """QEMU's hflags (target/i386/cpu.h), less those that are RFLAGS' or that DR7 decides."""
    es, cs, ss, ds, *_ = state.segments
    flags = HF_GUEST | ss.attributes >> ATTRIBUTES_DPL_SHIFT & HF_CPL
    flags |= (state.cr0 & CR0_MP_EM_TS) << HF_MP_SHIFT - 1
    for condition, flag in (
        (state.interrupt_shadow, HF_INHIBIT_IRQ),
        (state.cr0 & CR0_PE, HF_PE),
        (state.efer & EFER_LMA, HF_LMA),
        (state.cr4 & CR4_OSFXSR, HF_OSFXSR),
        (ss.attributes & ATTRIBUTES_DB, HF_SS32),
    ):
        flags |= flag if condition else 0
    if state.efer & EFER_LMA and cs.attributes & ATTRIBUTES_L:
        return flags | HF_CS64 | HF_CS32
    if cs.attributes & ATTRIBUTES_DB:
        flags |= HF_CS32
    is_flat = flags & HF_PE and flags & HF_CS32 and not state.rflags & RFLAGS_VM
    return flags if is_flat and not es.base | ss.base | ds.base else flags | HF_ADDSEG
