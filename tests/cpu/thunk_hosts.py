"""The machine code of a listing in an engine of the host's own architecture, among functions that only take notes.

So the routines for aarch64 hosts can be run on any host, and compared with those for x86-64.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import unicorn
from unicorn import arm64_const as arm64
from unicorn import x86_const as x86

from emu.cpu.layout import Layout
from emu.cpu.library import FUNCTIONS, OFFSETS
from emu.cpu.thunks import ALIGNMENT, assemble, read_listing

KIB, MIB = 1 << 10, 1 << 20
CODE, STUBS, STACK, DATA = (n * MIB for n in (1, 2, 3, 4))
END = STUBS + 64 * KIB - 16             # where a routine returns to
STUB_BYTES = 16
LIMIT = 500_000                         # instructions: more than clearing a table takes
WIDTHS = {1: 0xFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}

PYTHON = {
    "vmexit": (4, 4), "port_in": (8, 4, 4, 8), "port_out": (8, 4, 4, 4, 8), "syscall": (8,),
}
"""Widths of the arguments of the context's callbacks."""

SIGNATURES = PYTHON | {
    "x86_cpu_do_interrupt": (8,),
    "cpu_ldub_code": (8, 8),
    "do_interrupt_x86_hardirq": (8, 4, 4),
    "raise_exception_err": (8, 4, 4),
    "raise_exception_err_ra": (8, 4, 4, 8),
    "helper_rechecking_single_step": (8,),
    "cpu_vmexit": (8, 4, 8, 8),
    "cpu_abort": (8,),
    "breakpoint_handler": (8,),
    "helper_sysenter": (8, 4),
    "helper_write_crN": (8, 4, 8),
    "helper_read_crN": (8, 4),
    "helper_read_eflags": (8,),
    "helper_check_iob": (8, 4),
    "helper_check_iow": (8, 4),
    "helper_check_iol": (8, 4),
    "cpu_x86_cpuid": (8, 4, 4, 8, 8, 8, 8),
    "helper_cc_compute_all": (8, 8, 8, 4),
    "uc_emu_stop": (8,),
    "helper_check_exit_request": (8, 4),
    "tb_invalidate_phys_page_fast": (8, 8, 8, 4, 8),
    "qemu_map_ram_ptr": (8, 8, 8),
    "tlb_reset_dirty": (8, 8, 8),
    "tlb_reset_dirty_by_vaddr": (8, 8, 8),
    "x86_ldq_phys": (8, 8),
    "helper_ret_stb_mmu": (8, 8, 1, 4, 8),
    "helper_le_stw_mmu": (8, 8, 1, 4, 8),
    "helper_le_stl_mmu": (8, 8, 4, 4, 8),
    "helper_le_stq_mmu": (8, 8, 8, 4, 8),
    "helper_lookup_tb_ptr": (8,),
    "tb_htable_lookup": (8, 8, 8, 4, 4),
    "tb_flush": (8,),
    "tcg_temp_new_internal": (8, 4, 4),
    "tcg_gen_op3": (8, 4, 8, 8, 8),
    "gen_new_label": (8,),
    "tcg_gen_brcondi_i32": (8, 4, 8, 4, 8),
    "tcg_temp_free_internal": (8, 8),
    "tcg_gen_callN": (8, 8, 8, 4, 8),
    "tcg_gen_op1": (8, 4, 8),
    "tcg_gen_exit_tb": (8, 8, 4),
}
"""Widths of the arguments of libunicorn's functions, in bytes; what a register holds above does not matter."""

NEVER_RETURN = "raise_exception_err", "raise_exception_err_ra", "cpu_vmexit"


@dataclass
class Call:
    """A function that a routine called or ended in, with what memory held then."""

    name: str
    arguments: tuple[int, ...]
    memory: str


@dataclass
class Outcome:
    """What a routine did: how the same thing shows on every host."""

    calls: list[Call] = field(default_factory=list)
    returned: int | None = None         # None if it left by a function that longjmps
    memory: str = ""


Answer = Callable[[str], tuple[int, dict[int, int]]]
"""A function's name -> what it returns, and the 64-bit words that it changes."""


class Host:
    """An engine with all routines of a listing loaded, and a stub for each function."""

    arguments: Sequence[int]            # registers
    result: int
    stack: int
    volatile: Sequence[int]             # lost in a call
    kept: Sequence[int]
    return_code: bytes

    def __init__(self, name: str, architecture: int, mode: int, layout: Layout) -> None:
        self.engine: Any = unicorn.Uc(architecture, mode)
        for start in (CODE, STUBS, STACK, DATA):
            self.engine.mem_map(start, MIB)
        self.functions = [*FUNCTIONS, *PYTHON]
        values = {function: self.stub(function) for function in FUNCTIONS}
        values |= {offset: getattr(layout, offset) for offset in OFFSETS}
        self.listing = read_listing(name)
        self.starts: dict[str, int] = {}
        at = CODE
        for routine, lines in self.listing.items():
            values[routine] = self.starts[routine] = at
            code = assemble(lines, values)
            self.engine.mem_write(at, code)
            at += len(code) + -len(code) % ALIGNMENT
        self.engine.mem_write(STUBS, self.return_code.ljust(STUB_BYTES, b"\0") * len(self.functions))
        self.engine.hook_add(unicorn.UC_HOOK_CODE, self._on_call, None, STUBS, END - 1)
        self.engine.hook_add(unicorn.UC_HOOK_CODE, self._on_instruction, None, CODE, CODE + MIB - 1)
        self.executed: set[int] = set()

    def stub(self, function: str) -> int:
        """Address of a function that takes notes."""
        return STUBS + STUB_BYTES * self.functions.index(function)

    def run(self, routine: str, arguments: Sequence[int], memory: bytes, answer: Answer) -> Outcome:
        """Call a routine.

        Args:
            memory: what stands at DATA before.
            answer: what the functions that it calls do.
        """
        self.outcome, self.answer, self.left = Outcome(), answer, False
        self.engine.mem_write(DATA, memory)
        self.size = len(memory)
        for register, value in zip(self.arguments, arguments, strict=False):
            self.engine.reg_write(register, value)
        self.belongings = {register: random.getrandbits(64) for register in self.kept}
        for register, value in self.belongings.items():
            self.engine.reg_write(register, value)
        self.engine.mem_write(STACK, random.randbytes(KIB) * 64)
        self.start()
        self.engine.emu_start(self.starts[routine], END, count=LIMIT)
        self.outcome.memory = self.digest()
        if not self.left:
            self.check_returned()
            self.outcome.returned = self.engine.reg_read(self.result)
        return self.outcome

    def start(self) -> None:
        """Make the stack, with END to return to."""
        raise NotImplementedError

    def check_returned(self) -> None:
        """Registers that belong to the caller are as they were."""
        assert {register: self.engine.reg_read(register) for register in self.kept} == self.belongings

    def check_called(self) -> None:
        """The stack is as a function may expect it."""
        raise NotImplementedError

    def digest(self) -> str:
        return hashlib.blake2b(self.engine.mem_read(DATA, self.size), digest_size=8).hexdigest()

    def argument(self, index: int) -> int:
        return int(self.engine.reg_read(self.arguments[index]))

    def _on_instruction(self, _engine: Any, address: int, _size: int, _data: Any) -> None:
        self.executed.add(address)

    def _on_call(self, engine: Any, address: int, _size: int, _data: Any) -> None:
        name = self.functions[(address - STUBS) // STUB_BYTES]
        arguments = tuple(self.argument(i) & WIDTHS[width] for i, width in enumerate(SIGNATURES[name]))
        self.check_called()
        self.outcome.calls.append(Call(name, arguments, self.digest()))
        if name in NEVER_RETURN:
            self.left = True
            engine.emu_stop()
            return
        for register in self.volatile:
            engine.reg_write(register, random.getrandbits(64))
        returned, changed = self.answer(name)
        engine.reg_write(self.result, returned)
        for at, value in changed.items():
            engine.mem_write(at, value.to_bytes(8, "little"))


class X86Host(Host):
    """System V ABI, AMD64 supplement, 3.2."""

    arguments = (
        x86.UC_X86_REG_RDI, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_R8,
        x86.UC_X86_REG_R9,
    )
    result, stack = x86.UC_X86_REG_RAX, x86.UC_X86_REG_RSP
    volatile = (*arguments, x86.UC_X86_REG_R10, x86.UC_X86_REG_R11)
    kept = (
        x86.UC_X86_REG_RBX, x86.UC_X86_REG_RBP, x86.UC_X86_REG_R12, x86.UC_X86_REG_R13, x86.UC_X86_REG_R14,
        x86.UC_X86_REG_R15,
    )
    return_code = b"\xc3"

    def __init__(self, layout: Layout) -> None:
        super().__init__("x86_64", unicorn.UC_ARCH_X86, unicorn.UC_MODE_64, layout)

    def start(self) -> None:
        self.engine.reg_write(self.stack, STACK + 64 * KIB - 8)
        self.engine.mem_write(STACK + 64 * KIB - 8, END.to_bytes(8, "little"))

    def check_called(self) -> None:
        assert self.engine.reg_read(self.stack) % 16 == 8

    def argument(self, index: int) -> int:
        if index < len(self.arguments):
            return super().argument(index)
        at = self.engine.reg_read(self.stack) + 8 * (index - len(self.arguments) + 1)
        return int.from_bytes(self.engine.mem_read(at, 8), "little")


class Aarch64Host(Host):
    """Procedure Call Standard for the Arm 64-bit Architecture, 6.1 and 6.2."""

    arguments = tuple(range(arm64.UC_ARM64_REG_X0, arm64.UC_ARM64_REG_X0 + 8))
    result, stack = arm64.UC_ARM64_REG_X0, arm64.UC_ARM64_REG_SP
    volatile = tuple(range(arm64.UC_ARM64_REG_X0, arm64.UC_ARM64_REG_X0 + 18))
    kept = (*range(arm64.UC_ARM64_REG_X0 + 18, arm64.UC_ARM64_REG_X0 + 29), arm64.UC_ARM64_REG_X29)
    return_code = bytes.fromhex("c0035fd6")

    def __init__(self, layout: Layout) -> None:
        super().__init__("aarch64", unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM, layout)

    def start(self) -> None:
        self.engine.reg_write(self.stack, STACK + 64 * KIB)
        self.engine.reg_write(arm64.UC_ARM64_REG_LR, END)

    def check_called(self) -> None:
        assert self.engine.reg_read(self.stack) % 16 == 0

    def check_returned(self) -> None:
        super().check_returned()
        assert self.engine.reg_read(self.stack) == STACK + 64 * KIB
