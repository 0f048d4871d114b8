"""Checks of system calls and privileges: what libunicorn leaves to whoever uses it, or lets every program do."""

from __future__ import annotations

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
from emu.micro import (
    BP,
    CF,
    CODE,
    DATA,
    DIRECTION,
    FIXED,
    GP,
    IF,
    KERNEL_CS,
    KERNEL_CS32,
    KERNEL_DS,
    RF,
    UD,
    USER_CODE,
    USER_CS,
    USER_CS32,
    USER_DS,
    MicroGuest,
)
from emu.selftest.check import Group, Listing, expect, fault, run

GROUP = Group("system calls and privileges")

LSTAR, CSTAR, LEGACY = DATA, DATA + 0x100, DATA + 0x200     # entries; the last is STAR[31:0]
FLAGS = FIXED | CF | IF | DIRECTION
INC_FLAGS = 0x8D4                       # O, S, Z, A, P
IOPL_3 = 3 << 12
PORT = 0x80


ENTRY = Listing("""
  000  48 ff c0  inc rax  ; as 32-bit code: dec eax; inc eax
  003  f4        hlt
""")


def _guest() -> MicroGuest:
    """A guest whose three entries halt; IF and DF are cleared by SYSCALL."""
    guest = MicroGuest()
    for msr, value in (
        (MSR_LSTAR, LSTAR),
        (MSR_CSTAR, CSTAR),
        (MSR_STAR, USER_CS32 << 48 | KERNEL_CS << 32 | LEGACY),
        (MSR_SFMASK, IF | DIRECTION),
    ):
        guest.cpu.write_msr(msr, value)
    for entry in (LSTAR, CSTAR, LEGACY):
        guest.memory.write(entry, ENTRY.code)
    return guest


def _expect_kernel(guest: MicroGuest, entry: int, bits: int) -> None:
    registers = guest.registers
    expect("RIP", registers.rip, entry + len(ENTRY.code))
    expect("what the entry's code did to RAX", registers.rax, 1 if bits == 64 else 0)
    expect("CPL", registers.cpl, 0)
    expect("CS and SS", (registers.segment("cs")[0], registers.segment("ss")[0]), (KERNEL_CS, KERNEL_DS))


STC_SYSCALL = Listing("""
  000  f9     stc
  001  0f 05  syscall
""")


@GROUP.check("SYSCALL", "programs cannot call the kernel, or come back with flags and registers that are not theirs")
def syscall() -> None:
    """Unicorn only calls a hook: the whole instruction is ours. RCX, R11, RFLAGS and SFMASK, CS, SS, CPL, RIP."""
    with _guest() as guest:
        run(guest, STC_SYSCALL, USER_CODE, rflags=FLAGS, rax=0)
        registers = guest.registers
        _expect_kernel(guest, LSTAR, 64)
        expect("RCX", registers.rcx, USER_CODE + len(STC_SYSCALL.code))
        expect("R11", registers.r11, FLAGS)
        expect("RFLAGS, but for those of INC", registers.rflags & ~INC_FLAGS, FIXED | CF)


SYSRET = Listing("""
  000  48 ff c3  inc rbx
  003  48 0f 07  sysretq
""")
SYSCALL_INT3 = Listing("""
  000  0f 05  syscall
  002  cc     int3
""")


@GROUP.check("SYSRET", "no program goes on behind its system call")
def sysret() -> None:
    """The way back from SYSCALL: selectors from STAR, flags from R11."""
    with _guest() as guest:
        guest.memory.write(LSTAR, SYSRET.code)
        seen = fault(guest, SYSCALL_INT3, USER_CODE, rflags=FLAGS, rbx=0)
        expect("calls", guest.registers.rbx, 1)
        expect("vector and RIP", (seen.vector, seen.rip), (BP, USER_CODE + 3))
        expect("CS and SS", (seen.cs, seen.ss), (USER_CS, USER_DS))
        expect("RFLAGS", seen.rflags & ~RF, FLAGS)


@GROUP.check("SYSCALL of a 32-bit program", "32-bit programs enter the kernel at the 64-bit entry, and crash")
def compatible_syscall() -> None:
    """From compatibility mode SYSCALL enters 64-bit code at CSTAR, not LSTAR."""
    with _guest() as guest:
        run(guest, STC_SYSCALL, USER_CODE, cs=USER_CS32, rflags=FLAGS, rax=0)
        _expect_kernel(guest, CSTAR, 64)
        expect("RCX", guest.registers.rcx, USER_CODE + len(STC_SYSCALL.code))


PAGING_OFF = Listing("""
  000  0f 20 c0        mov eax, cr0
  003  25 ff ff ff 7f  and eax, 0x7fffffff  ; without PG: out of long mode
  008  0f 22 c0        mov cr0, eax
  00b  31 c0           xor eax, eax
  00d  0f 05           syscall
""", bits=32)


@GROUP.check("SYSCALL in legacy mode", "a 32-bit kernel's system calls go to a 64-bit address")
def legacy_syscall() -> None:
    """Out of long mode SYSCALL enters 32-bit code at STAR[31:0], and leaves R11 alone."""
    with _guest() as guest:
        run(guest, PAGING_OFF, cs=KERNEL_CS32, rflags=FIXED | IF, r11=0x77)
        _expect_kernel(guest, LEGACY, 32)
        expect("RCX", guest.registers.rcx, CODE + len(PAGING_OFF.code))
        expect("R11", guest.registers.r11, 0x77)


@GROUP.check("SYSCALL before EFER allows it", "what has no entry yet is jumped to")
def syscall_not_allowed() -> None:
    """Without EFER.SCE it is undefined."""
    with _guest() as guest:
        guest.cpu.write_msr(MSR_EFER, EFER_LME | EFER_LMA | EFER_NXE)
        seen = fault(guest, STC_SYSCALL, USER_CODE)
        expect("vector and RIP", (seen.vector, seen.rip), (UD, USER_CODE + 1))


STC_SYSENTER = Listing("""
  000  f9     stc
  001  0f 34  sysenter
""")


@GROUP.check("SYSENTER", "it does nothing, or RIP goes anywhere: a program's call is lost")
def sysenter() -> None:
    """libunicorn's SYSENTER does nothing but call hooks; this CPU does not have it, so it is undefined."""
    for cs in (USER_CS, USER_CS32):
        with _guest() as guest:
            seen = fault(guest, STC_SYSENTER, USER_CODE, cs=cs)
            expect("vector and RIP", (seen.vector, seen.rip), (UD, USER_CODE + 1))


OUT_IN = Listing("""
  000  ee     out dx, al
  001  ec     in al, dx
  002  0f 0b  ud2
""")
IN = Listing("""
  000  ec  in al, dx
""")


@GROUP.check("port I/O of programs", "every program may talk to every device")
def port_privilege() -> None:
    """libunicorn asks neither IOPL nor the TSS' permission map."""
    with MicroGuest() as guest:
        for program in (OUT_IN, IN):
            seen = fault(guest, program, USER_CODE, rdx=PORT)
            expect("vector and RIP", (seen.vector, seen.rip), (GP, USER_CODE))
        expect("accesses that came through", len(guest.ins) + len(guest.outs), 0)
        seen = fault(guest, OUT_IN, USER_CODE, rdx=PORT, rflags=FIXED | IOPL_3)
        expect("with IOPL 3: vector and RIP", (seen.vector, seen.rip), (UD, USER_CODE + 2))
        expect("with IOPL 3: accesses", len(guest.ins) + len(guest.outs), 2)


LOAD_TASK = Listing("""
  000  66 b8 <TR:2>  mov ax, TR
  004  0f 00 d8      ltr ax
  007  f4            hlt
""", TR=micro.TR)
IN_TWICE = Listing("""
  000  ec     in al, dx
  001  66 ed  in ax, dx
""")


@GROUP.check("the port permission map", "a program that was given one port gets its neighbours too, or none")
def port_map() -> None:
    """Port 0x80 is allowed, and 0x81 is not: an access of two bytes at 0x80 is refused."""
    with MicroGuest() as guest:
        guest.memory.write(micro.GDT + micro.TR, (0x67 + 0x20).to_bytes(2, "little"))       # limit: the map counts
        guest.memory.write(micro.GDT + micro.TR + 5, b"\x89")                               # not busy
        guest.memory.write(micro.TSS + 0x68, b"\xff" * 16 + b"\xfe" + b"\xff" * 15)
        run(guest, LOAD_TASK)
        seen = fault(guest, IN_TWICE, USER_CODE, rdx=PORT)
        expect("accesses that came through", guest.ins, [(PORT, 1)])
        expect("vector and RIP", (seen.vector, seen.rip), (GP, USER_CODE + 1))
