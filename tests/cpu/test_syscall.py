"""SYSCALL in its three kinds, and SYSENTER, which this CPU does not have (AMD64 manual, volume 3)."""

from __future__ import annotations

import pytest

from emu import micro
from emu.cpu.constants import (
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    MSR_CSTAR,
    MSR_EFER,
    MSR_LSTAR,
    MSR_SFMASK,
    MSR_STAR,
)
from emu.cpu.platform import Exit
from emu.micro import (
    CODE,
    DATA,
    DB,
    DIRECTION,
    FIXED,
    IF,
    KERNEL_CS,
    KERNEL_CS32,
    KERNEL_DS,
    RF,
    TF,
    UD,
    USER_CODE,
    USER_CS,
    USER_CS32,
    MicroGuest,
)

SYSCALL = b"\x0f\x05"
ENTRY = DATA                            # LSTAR; in supervisor memory
COMPAT_ENTRY = DATA + 0x100             # CSTAR
LEGACY_ENTRY = DATA + 0x200             # STAR[31:0]

ARITHMETIC = 0x8D5                      # O, S, Z, A, P, C
NT, AC, ID = 1 << 14, 1 << 18, 1 << 21
EVERYTHING = FIXED | ARITHMETIC | IF | DIRECTION | NT | AC | ID | 3 << 12
MASKABLE = [1 << bit for bit in range(22) if EVERYTHING & ~FIXED & 1 << bit]


def guest_with_entries(mask: int = 0) -> MicroGuest:
    """A guest whose three entries halt."""
    guest = MicroGuest()
    for msr, value in (
        (MSR_LSTAR, ENTRY),
        (MSR_CSTAR, COMPAT_ENTRY),
        (MSR_STAR, 0x23 << 48 | KERNEL_CS << 32 | LEGACY_ENTRY),
        (MSR_SFMASK, mask),
    ):
        guest.cpu.write_msr(msr, value)
    for entry in (ENTRY, COMPAT_ENTRY, LEGACY_ENTRY):
        guest.memory.write(entry, b"\xf4")                  # hlt
    return guest


@pytest.mark.parametrize("mask", [0, (1 << 22) - 1, *MASKABLE])
def test_syscall_of_a_64_bit_program(mask: int) -> None:
    with guest_with_entries(mask) as guest:
        assert guest.run(b"\x90" + SYSCALL, USER_CODE, rflags=EVERYTHING) is Exit.HALT     # nop; syscall
        registers = guest.registers
        assert registers.rip == ENTRY + 1
        assert registers.rcx == USER_CODE + 3
        assert registers.r11 == EVERYTHING
        assert registers.rflags == EVERYTHING & ~mask | FIXED
        assert registers.segment("cs")[:3] == (KERNEL_CS, 0, 0xFFFF_FFFF)
        assert registers.segment("ss")[:3] == (KERNEL_DS, 0, 0xFFFF_FFFF)
        assert registers.cpl == 0
        assert registers.rsp == micro.USER_TOP


def test_flags_that_nobody_asked_for_are_in_r11() -> None:
    with guest_with_entries() as guest:
        guest.run(b"\xb0\xff\x04\x01" + SYSCALL, USER_CODE)      # mov al, 0xff; add al, 1
        assert guest.registers.r11 == FIXED | 0x55
        assert guest.registers.rflags == FIXED | 0x55


@pytest.mark.parametrize("prefix", [b"\x66", b"\x48", b"\x66\x48", b"\x2e\x66\x67"])
def test_prefixes_count_for_the_return_address(prefix: bytes) -> None:
    with guest_with_entries() as guest:
        guest.run(prefix + SYSCALL, USER_CODE)
        assert guest.registers.rcx == USER_CODE + len(prefix) + 2
        assert guest.registers.rip == ENTRY + 1


def test_kernel_code_and_stack_work_after_it() -> None:
    with guest_with_entries() as guest:
        guest.memory.write(ENTRY, b"\x48\xbc" + (CODE + 0x800).to_bytes(8, "little") + b"\x50\x5b\x0f\x20\xc0\xf4")
        # mov rsp, CODE + 0x800; push rax; pop rbx; mov rax, cr0; hlt
        assert guest.run(SYSCALL, USER_CODE, rax=7) is Exit.HALT
        assert (guest.registers.rbx, guest.registers.rax & 1) == (7, 1)


def test_sysret_goes_back() -> None:
    with guest_with_entries((1 << 22) - 1) as guest:
        guest.memory.write(ENTRY, b"\x48\x0f\x07")               # sysretq
        guest.run(b"\x90" + SYSCALL + b"\x0f\x0b", USER_CODE, rflags=EVERYTHING)
        event = guest.event
        assert (event.vector, event.rip, event.cs, event.ss) == (UD, USER_CODE + 3, USER_CS, micro.USER_DS)
        assert event.rflags & ~RF == EVERYTHING


def test_syscall_of_a_32_bit_program_enters_64_bit_code_at_cstar() -> None:
    with guest_with_entries(IF | DIRECTION) as guest:
        guest.memory.write(COMPAT_ENTRY, b"\x48\xff\xc0\xf4")     # inc rax; hlt. As 32-bit code: dec eax; inc eax; hlt
        guest.run(b"\x40" + SYSCALL, USER_CODE, cs=USER_CS32, rflags=EVERYTHING, rax=4)      # inc eax; syscall
        registers = guest.registers
        assert registers.rip == COMPAT_ENTRY + 4
        assert registers.rax == 6
        assert registers.rcx == USER_CODE + 3
        assert registers.r11 & ~ARITHMETIC == EVERYTHING & ~ARITHMETIC
        assert registers.rflags & (IF | DIRECTION | NT) == NT
        assert (registers.segment("cs")[0], registers.segment("ss")[0], registers.cpl) == (KERNEL_CS, KERNEL_DS, 0)


def test_syscall_in_legacy_mode_enters_32_bit_code_at_star() -> None:
    with guest_with_entries((1 << 22) - 1) as guest:
        guest.memory.write(LEGACY_ENTRY, b"\x48\xff\xc0\xf4")     # dec eax; inc eax; hlt. As 64-bit code: inc rax; hlt
        code = (
            b"\x0f\x20\xc0"                 # mov eax, cr0
            b"\x25\xff\xff\xff\x7f"         # and eax, ~PG
            b"\x0f\x22\xc0"                 # mov cr0, eax: out of long mode
            b"\xb8\x04\x00\x00\x00"         # mov eax, 4
            b"\xf9"                         # stc
            + SYSCALL
        )
        assert guest.run(code, cs=KERNEL_CS32, rflags=FIXED | IF, r11=0x77) is Exit.HALT
        registers = guest.registers
        assert not registers.efer & EFER_LMA
        assert registers.rip == LEGACY_ENTRY + 4
        assert registers.rax == 4
        assert registers.rcx == CODE + len(code)
        assert registers.r11 == 0x77
        assert registers.rflags & (IF | 1) == 1                  # SFMASK is for long mode; IF goes all the same
        assert (registers.segment("cs")[0], registers.segment("ss")[0], registers.cpl) == (KERNEL_CS, KERNEL_DS, 0)


@pytest.mark.parametrize("cs", [USER_CS, USER_CS32])
def test_syscall_is_undefined_until_efer_allows_it(cs: int) -> None:
    with guest_with_entries() as guest:
        guest.cpu.write_msr(MSR_EFER, EFER_LME | EFER_LMA | EFER_NXE)
        guest.run(b"\x90" + SYSCALL, USER_CODE, cs=cs)
        assert (guest.event.vector, guest.event.rip) == (UD, USER_CODE + 1)


@pytest.mark.parametrize("cs", [USER_CS, USER_CS32])
def test_sysenter_is_undefined(cs: int) -> None:
    with guest_with_entries() as guest:
        guest.run(b"\xf9\x0f\x34", USER_CODE, cs=cs)             # stc; sysenter
        assert (guest.event.vector, guest.event.rip, guest.event.rflags) == (UD, USER_CODE + 1, FIXED | 1)


def test_single_step_over_syscall_stops_in_the_kernel_unless_masked() -> None:
    with guest_with_entries(0) as guest:
        guest.run(SYSCALL, USER_CODE, rflags=FIXED | TF)
        assert (guest.event.vector, guest.event.rip, guest.event.cs) == (DB, ENTRY, KERNEL_CS)
    with guest_with_entries(TF) as guest:
        guest.run(SYSCALL, USER_CODE, rflags=FIXED | TF)
        assert not guest.events
        assert guest.registers.rip == ENTRY + 1
