"""How a CPU gets from its power-on state, 64-bit code without paging, into the mode that a guest starts in.

CS is selector 0x10 and the data segments are 0x18: flat ones, of ring 0. Interrupts are off.
"""

from __future__ import annotations

from emu.cpu.constants import (
    CR0_ET,
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    MSR_EFER,
    REGISTER_CR0,
    REGISTER_CR3,
    REGISTER_CR4,
    REGISTER_EFLAGS,
    REGISTER_GDTR,
    REGISTER_IDTR,
    RFLAGS_FIXED,
)
from emu.cpu.cpu import Cpu
from emu.loader import BootState

__all__ = ["enter", "enter_flat_long_mode"]

CODE, DATA = 0x10, 0x18                 # selectors
CODE_64, CODE_32, DATA_32 = 0xA0_9B00, 0xC0_9B00, 0xC0_9300      # bits 63-32 of their descriptors, limit and base aside
LIMIT = 0xFFFF_FFFF
ON = CR0_ET | CR0_PE


def enter(cpu: Cpu, state: BootState) -> None:
    """Get ready to start a loaded kernel, in the mode that it wants.

    Args:
        cpu: one that has not run, its memory mapped.
        state: the kernel's registers.
    """
    if state.cr3 is None:
        _enter_protected_mode(cpu)
    else:
        _enter_long_mode(cpu, state.cr3)
    _set_segments(cpu, CODE_32 if state.cr3 is None else CODE_64, (state.gdt_base, state.gdt_limit))
    registers = cpu.registers
    registers.rip, registers.rsp = state.rip, state.rsp
    registers.rax, registers.rbx, registers.rsi = state.rax, state.rbx, state.rsi


def enter_flat_long_mode(cpu: Cpu, rip: int, stack: int, gdt: tuple[int, int], idt: tuple[int, int]) -> None:
    """64-bit code without paging, which no real CPU has: for programs of a few instructions.

    Args:
        cpu: one that has not run, its memory mapped.
        rip, stack: physical addresses to start with.
        gdt, idt: base and limit.
    """
    _set_segments(cpu, CODE_64, gdt)
    cpu.write_table(REGISTER_IDTR, idt)
    cpu.registers.rip, cpu.registers.rsp = rip, stack


def _enter_long_mode(cpu: Cpu, cr3: int) -> None:
    """Linux' 64-bit boot protocol (Documentation/arch/x86/boot.rst): paging is on."""
    cpu.write_msr(MSR_EFER, EFER_LME | EFER_LMA)
    cpu.write_register(REGISTER_CR4, CR4_PAE)
    cpu.write_register(REGISTER_CR3, cr3)
    cpu.write_register(REGISTER_CR0, CR0_PG | ON)


def _enter_protected_mode(cpu: Cpu) -> None:
    """The state that Multiboot 0.6.96 asks for, section 3.2: paging is off, and so is long mode."""
    cpu.write_register(REGISTER_CR4, CR4_PAE)
    cpu.write_register(REGISTER_CR0, CR0_PG | ON)       # long mode is left by turning paging off,
    cpu.write_register(REGISTER_CR0, ON)                # which so has to be on first
    cpu.write_msr(MSR_EFER, 0)
    cpu.write_register(REGISTER_CR4, 0)


def _set_segments(cpu: Cpu, code: int, gdt: tuple[int, int]) -> None:
    """Segments as if they had been loaded: libunicorn would read the guest's table, and a fault there ends the host."""
    cpu.write_table(REGISTER_GDTR, gdt)
    cpu.registers.set_segment("cs", CODE, 0, LIMIT, code)
    for name in ("ds", "es", "ss", "fs", "gs"):
        cpu.registers.set_segment(name, DATA, 0, LIMIT, DATA_32)
    cpu.write_register(REGISTER_EFLAGS, RFLAGS_FIXED)
