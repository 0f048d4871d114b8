"""Checks of what a hostile guest may try: it stops with a reason, or goes on, and the host's process lives."""

from __future__ import annotations

import struct

from devices.frozen import replace
from emu import micro
from emu.cpu.entry import enter
from emu.cpu.platform import Exit
from emu.micro import CODE, DB, PD, START, UNMAPPED, USER_CODE, USER_CS, USER_DS, USER_TOP, VMCB, MicroGuest
from emu.selftest.check import PATIENCE_S, Failure, Group, Listing, expect, fault, halt

GROUP = Group("hostile guests")

BASED_CS = 0x38                         # the GDT's gap: 32-bit code of ring 0 whose base is CODE
CODE_WITH_BASE = 0x00CF_9B00_0000_FFFF | CODE << 16
BREAKPOINT = 0x100                      # from CODE
FAR_AWAY = 1 << 51
AT_VMCB = 0xA0_0000                     # virtual, here


def _expect_shutdown(guest: MicroGuest) -> None:
    end = guest.go(PATIENCE_S)
    if end is not Exit.SHUTDOWN:
        raise Failure(f"the guest ended by {end.value}")


NULL_TASK = Listing("""
  000  31 c0       xor eax, eax
  002  0f 00 d8    ltr ax        ; libunicorn takes it, and has no stack then
  005  6a <SS:1>   push SS
  007  68 <RSP:4>  push RSP
  00c  6a 02       push 2
  00e  6a <CS:1>   push CS
  010  68 <RIP:4>  push RIP
  015  48 cf       iretq         ; to ring 3
""", SS=USER_DS, RSP=USER_TOP, CS=USER_CS, RIP=USER_CODE)
UD2 = Listing("""
  000  0f 0b  ud2
""")


@GROUP.check("a bad task segment", "a guest that loads a null TSS ends the host's process")
def null_task() -> None:
    """libunicorn calls cpu_abort, which aborts the process; it is replaced."""
    with MicroGuest() as guest:
        guest.memory.write(USER_CODE, UD2.code)
        guest.put(NULL_TASK.code)
        _expect_shutdown(guest)


SET_BREAKPOINT = Listing("""
  000  b8 <LINEAR:4>   mov eax, LINEAR
  005  0f 23 c0        mov dr0, rax
  008  b8 01 00 00 00  mov eax, 1
  00d  0f 23 f8        mov dr7, rax
  010  6a <CS:1>       push CS
  012  68 <OFFSET:4>   push OFFSET
  017  48 cb           retfq            ; to 32-bit code, where RIP is not the linear address
""", LINEAR=CODE + BREAKPOINT, CS=BASED_CS, OFFSET=BREAKPOINT)
NOP_HLT = Listing("""
  000  90  nop
  001  f4  hlt
""")


@GROUP.check("a breakpoint under a base", "a guest hangs the host's process for ever")
def based_breakpoint() -> None:
    """libunicorn does not know the breakpoint as the guest's, and waits for a debugger; its handler is replaced."""
    with MicroGuest() as guest:
        guest.write_quads(micro.GDT + BASED_CS, CODE_WITH_BASE)
        guest.put(SET_BREAKPOINT.code)
        guest.memory.write(CODE + BREAKPOINT, NOP_HLT.code)
        halt(guest)


OWN_BREAKPOINT = Listing("""
  000  b8 <NOP:4>      mov eax, NOP
  005  0f 23 c0        mov dr0, rax
  008  b8 01 00 00 00  mov eax, 1
  00d  0f 23 f8        mov dr7, rax
  010  90              nop
  011  90              nop           ; here
  012  f4              hlt
""", NOP=CODE + 17)


@GROUP.check("a breakpoint", "a debugger in the guest stops in the wrong place, or nowhere")
def breakpoint_() -> None:
    """A hardware breakpoint comes before its instruction."""
    with MicroGuest() as guest:
        seen = fault(guest, OWN_BREAKPOINT)
        expect("vector and RIP", (seen.vector, seen.rip), (DB, CODE + 17))


LOAD_CR3 = Listing("""
  000  0f 22 d8  mov cr3, rax
  003  f4        hlt
""")


@GROUP.check("page tables outside of RAM", "a guest reads the host's memory, or ends its process")
def far_tables() -> None:
    """Page walks read RAM without a detour; CR3 may hold any 64 bits, and what is not RAM has to take it."""
    with MicroGuest() as guest:
        guest.put(LOAD_CR3.code, rax=FAR_AWAY)
        _expect_shutdown(guest)


OVERWRITE = Listing("""
  000  bf <VMCB:4>     mov edi, VMCB
  005  b9 00 08 00 00  mov ecx, 0x800
  00a  b8 ff ff ff ff  mov eax, 0xffffffff
  00f  f3 48 ab        rep stosq qword ptr [rdi], rax  ; all of the trap door's pages
  012  b8 00 00 00 40  mov eax, 0x40000000
  017  0f a2           cpuid
  019  f4              hlt
""", VMCB=AT_VMCB)


@GROUP.check("the trap door overwritten", "a guest that finds its control block goes on without intercepts")
def vmcb_overwritten() -> None:
    """The block is in the guest's address space, for TCG looks for it there; a guest may only hurt itself."""
    with MicroGuest() as guest:
        guest.write_quads(PD + 8 * (AT_VMCB >> 21), VMCB | micro.PRESENT | micro.WRITABLE | micro.LARGE)
        guest.put(OVERWRITE.code)
        halt(guest)
        answer = struct.pack("<3I", guest.registers.rbx, guest.registers.rcx, guest.registers.rdx)
        expect("CPUID's answer behind it", answer, b"KVMKVMKVM\0\0\0")


HALT = Listing("""
  000  f4  hlt
""")


@GROUP.check("a start without descriptors", "a kernel with a descriptor table of its own ends the host's process")
def no_descriptors() -> None:
    """Setting FS or GS by the API reads the guest's table, and a fault there is nobody's; they are set directly."""
    with MicroGuest() as guest:
        guest.memory.write(CODE, HALT.code)
        enter(guest.cpu, replace(START, rip=CODE, gdt_base=UNMAPPED))
        halt(guest)
        expect("RIP", guest.registers.rip, CODE + len(HALT.code))
