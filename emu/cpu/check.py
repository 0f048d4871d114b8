"""The start-up self-test: a few instructions through every private offset, before a guest depends on them (2 ms)."""

from __future__ import annotations

import mmap
import time
from functools import cache

from emu.cpu.abi import REMEDY, UNICORN_VERSION
from emu.cpu.constants import EFER_LMA, EFER_LME, EFER_SCE, MSR_EFER, MSR_LSTAR, MSR_SFMASK, MSR_STAR
from emu.cpu.cpu import Cpu
from emu.cpu.entry import enter_flat_long_mode
from emu.cpu.platform import Exit, Platform
from emu.errors import UnsupportedHost

RAM_BYTES = 64 * 1024
VMCB = 0x100_0000
CODE, KERNEL, HANDLER, IDT = 0x1000, 0x2000, 0x3000, 0x4000
MSR, MSR_VALUE = 0x4B56_4DFF, 0x1122_3344_5566_7788
PORT, VECTOR = 0xE9, 0x21
LIMIT_NS = 2_000_000_000

PROGRAM = {
    CODE: (
        "b9 ff 4d 56 4b "           # mov ecx, MSR
        "0f 32 "                    # rdmsr
        "0f 30 "                    # wrmsr: back again
        "89 d7 "                    # mov edi, edx
        "b8 01 00 00 40 "           # mov eax, 0x40000001
        "0f a2 "                    # cpuid
        "89 c5 "                    # mov ebp, eax
        "f9 "                       # stc
        "0f 05"                     # syscall
    ),
    KERNEL: (
        "fb "                       # sti
        "90 "                       # nop: in STI's shadow
        "e6 e9 "                    # out PORT, al: asks for an interrupt
        "eb 00 "                    # jmp: a block ends, and the interrupt comes
        "0f 0b"                     # ud2
    ),
    HANDLER: "f4",                  # hlt
    HANDLER + 0x10: "48 cf",        # iretq
}
AFTER_SYSCALL = CODE + 23
UD2_ADDRESS = KERNEL + 6


@cache
def check() -> None:
    """Run the test program, once a process.

    Raises:
        UnsupportedHost: the CPU did not do what it says.
    """
    asked: list[object] = []

    def rdmsr(number: int) -> int:
        asked.append(("rdmsr", number))
        return MSR_VALUE

    def wrmsr(number: int, value: int) -> None:
        asked.append(("wrmsr", number, value))

    def port_out(port: int, size: int, value: int) -> None:
        asked.append(("out", port, size))
        cpu.set_interrupt_line(True)

    def acknowledge() -> int:
        asked.append("acknowledge")
        cpu.set_interrupt_line(False)
        return VECTOR

    platform = Platform(lambda port, size: 0, port_out, rdmsr, wrmsr, acknowledge, lambda: 0, lambda priority: None)
    cpu = Cpu(platform, VMCB)
    try:
        ram = mmap.mmap(-1, RAM_BYTES)
        cpu.map_ram(0, ram)
        cpu.open_trap_door()
        for at, code in PROGRAM.items():
            ram[at : at + len(bytes.fromhex(code))] = bytes.fromhex(code)
        for vector, handler in ((6, HANDLER), (VECTOR, HANDLER + 0x10)):
            ram[IDT + 16 * vector : IDT + 16 * vector + 8] = (0x8E00 << 32 | 0x10 << 16 | handler).to_bytes(8, "little")
        ram[0x510:0x520] = (0x00AF9B000000FFFF).to_bytes(8, "little") + (0x00CF93000000FFFF).to_bytes(8, "little")
        enter_flat_long_mode(cpu, CODE, stack=0x8000, gdt=(0x500, 0x1F), idt=(IDT, 0xFFF))
        cpu.write_msr(MSR_EFER, EFER_LME | EFER_LMA | EFER_SCE)
        cpu.write_msr(MSR_STAR, 0x10 << 32)
        cpu.write_msr(MSR_LSTAR, KERNEL)
        cpu.write_msr(MSR_SFMASK, 0)
        exit_ = cpu.run(time.monotonic_ns() + LIMIT_NS)
        registers = cpu.registers
        saved_rip = int.from_bytes(ram[registers.rsp : registers.rsp + 8], "little")
        seen = (
            *(exit_, registers.rip, saved_rip, registers.rdi, registers.rbp, registers.rcx, registers.r11 & 0x201),
            *(registers.cpl, asked),
        )
        expected = (
            *(Exit.HALT, HANDLER + 1, UD2_ADDRESS, MSR_VALUE >> 32, cpu.context.hypervisor_leaves[1][0]),
            *(AFTER_SYSCALL, 1, 0, [("rdmsr", MSR), ("wrmsr", MSR, MSR_VALUE), ("out", PORT, 1), "acknowledge"]),
        )
    finally:
        cpu.close()
    if seen != expected:
        raise UnsupportedHost(
            f"this libunicorn does not behave as {UNICORN_VERSION} should: {REMEDY}"
        )
