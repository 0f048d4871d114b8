"""A CPU's registers by name, through pointers into its state (50 ns each; the official binding takes 2 µs)."""

from __future__ import annotations

from typing import Any

from emu.cpu.abi import ffi
from emu.cpu.constants import HF_CPL, HF_CS32, HF_CS64
from emu.cpu.layout import SEGMENT_SIZE, Layout

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
RAX, RCX, RDX, RBX = range(4)

DF = 1 << 10
MASK_64 = (1 << 64) - 1


class _General:
    """A general register as an attribute, 64 bits."""

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, registers: Registers, _owner: type | None = None) -> int:
        return int(registers.general[self._index])

    def __set__(self, registers: Registers, value: int) -> None:
        registers.general[self._index] = value & MASK_64


class Registers:
    """The registers of one CPU.

    Attributes:
        general: pointer to RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15 (index by `RAX` and so on).
    """

    rax = _General(0)
    rcx = _General(1)
    rdx = _General(2)
    rbx = _General(3)
    rsp = _General(4)
    rbp = _General(5)
    rsi = _General(6)
    rdi = _General(7)
    r8 = _General(8)
    r9 = _General(9)
    r10 = _General(10)
    r11 = _General(11)
    r12 = _General(12)
    r13 = _General(13)
    r14 = _General(14)
    r15 = _General(15)

    def __init__(self, api: Any, layout: Layout, env: int) -> None:
        self._api = api
        self._env = env
        self._segments = env + layout.segs
        self.general = ffi.cast("uint64_t *", env)
        self._eip = ffi.cast("uint64_t *", env + layout.eip)
        self._eflags = ffi.cast("uint64_t *", env + layout.eflags)
        self._cc = ffi.cast("uint64_t *", env + layout.cc_dst)      # cc_dst, cc_src, cc_src2
        self._cc_op = ffi.cast("uint32_t *", env + layout.cc_op)
        self._df = ffi.cast("int32_t *", env + layout.df)
        self._hflags = ffi.cast("uint32_t *", env + layout.hflags)
        self._cr = ffi.cast("uint64_t *", env + layout.cr)
        self._efer = ffi.cast("uint64_t *", env + layout.efer)

    @property
    def rip(self) -> int:
        """RIP, exact between runs and in every exit."""
        return int(self._eip[0])

    @rip.setter
    def rip(self, value: int) -> None:
        self._eip[0] = value & MASK_64

    @property
    def rflags(self) -> int:
        """RFLAGS; QEMU keeps the arithmetic flags and DF apart until somebody asks."""
        cc = self._cc
        arithmetic = self._api.helper_cc_compute_all_x86_64(cc[0], cc[1], cc[2], self._cc_op[0])
        return int(self._eflags[0] | arithmetic | (DF if self._df[0] < 0 else 0))

    @property
    def cpl(self) -> int:
        """Current privilege level, 0 to 3."""
        return int(self._hflags[0] & HF_CPL)

    @property
    def code_bits(self) -> int:
        """16, 32 or 64: the kind of code that the CPU is in."""
        hflags = self._hflags[0]
        return 64 if hflags & HF_CS64 else 32 if hflags & HF_CS32 else 16

    @property
    def efer(self) -> int:
        """EFER."""
        return int(self._efer[0])

    def cr(self, number: int) -> int:
        """Control register 0, 2, 3, 4 or 8."""
        return int(self._cr[number])

    @property
    def paging(self) -> tuple[int, int, int, int]:
        """CR0, CR3, CR4 and EFER, which decide how addresses are translated."""
        cr = self._cr
        return cr[0], cr[3], cr[4], self._efer[0]

    @property
    def syscall_arguments(self) -> tuple[int, int, int, int, int, int]:
        """RDI, RSI, RDX, R10, R8 and R9 (System V ABI, AMD64 supplement, A.2.1)."""
        _, _, rdx, _, _, _, rsi, rdi, r8, r9, r10 = ffi.unpack(self.general, 11)
        return rdi, rsi, rdx, r10, r8, r9

    def segment(self, name: str) -> tuple[int, int, int, int]:
        """(selector, base, limit, attributes) of a segment register."""
        words, base = self._segment(name)
        return int(words[0]), int(base[0]), int(words[4]), int(words[5])

    def set_segment(self, name: str, selector: int, base: int, limit: int, attributes: int) -> None:
        """Set a segment register with its hidden part; a code segment's width and privilege are not looked at."""
        words, place = self._segment(name)
        words[0], place[0], words[4], words[5] = selector, base, limit, attributes

    def _segment(self, name: str) -> tuple[Any, Any]:
        at = self._segments + SEGMENT_SIZE * SEGMENTS.index(name)
        return ffi.cast("uint32_t *", at), ffi.cast("uint64_t *", at + 8)

    def dump(self) -> dict[str, int]:
        """All of them by name, for a report."""
        values = {name: int(self.general[i]) for i, name in enumerate(GENERAL)}
        values |= {"rip": self.rip, "rflags": self.rflags, "cs": self.segment("cs")[0], "ss": self.segment("ss")[0]}
        return values | {f"cr{n}": self.cr(n) for n in (0, 2, 3, 4)}
