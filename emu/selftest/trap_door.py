"""Checks of the trap door: SVM's intercepts lead from MSRs, CPUID and the interrupt window to the machine and back."""

from __future__ import annotations

import struct

from emu.cpu import cpuid
from emu.cpu.constants import MSR_APIC_BASE, MSR_EFER, MSR_TSC
from emu.micro import CODE, DB, FIXED, GP, TF, UD, MicroGuest
from emu.selftest.check import Failure, Group, Listing, expect, fault, halt, run

GROUP = Group("the trap door")

MSR = 0x4B56_4D20
MASK_32, MASK_64 = (1 << 32) - 1, (1 << 64) - 1
EFER_SVME = 1 << 12
AMD = b"AuthenticAMD"
STEP_ENDS = 2, 7, 9, 11                 # of `STEPS`

READ_MSR = Listing("""
  000  0f 32  rdmsr
  002  f4     hlt
""")
WRITE_MSR = Listing("""
  000  f3 0f 30  wrmsr  ; a prefix counts for the length
  003  f4        hlt
""")


@GROUP.check("MSRs", "kvmclock, the local APIC and every hypercall are out of reach")
def msrs() -> None:
    """RDMSR and WRMSR leave by SVM's intercept; the error code says which, and RIP is ours to move."""
    with MicroGuest() as guest:
        guest.msrs[MSR] = 0xFFFF_FFFF_0000_0001
        run(guest, READ_MSR, rcx=MSR | 1 << 40, rax=MASK_64, rdx=MASK_64)
        expect("RDMSR: RAX and RDX", (guest.registers.rax, guest.registers.rdx), (1, MASK_32))
        expect("RDMSR: RIP", guest.registers.rip, CODE + len(READ_MSR.code))
        run(guest, WRITE_MSR, rcx=MSR, rax=0x89AB_CDEF, rdx=0x0123_4567)
        expect("WRMSR: value", guest.msrs[MSR], 0x0123_4567_89AB_CDEF)
        expect("WRMSR: RIP", guest.registers.rip, CODE + len(WRITE_MSR.code))


@GROUP.check("MSRs that nobody answers", "a kernel that probes for one takes rubbish for the answer, or hangs")
def unclaimed_msrs() -> None:
    """They raise #GP at the instruction itself; machine code does it, for it leaves by longjmp."""
    with MicroGuest() as guest:
        for program in (READ_MSR, WRITE_MSR):
            seen = fault(guest, program, rcx=MSR)
            expect("vector, error code and RIP", (seen.vector, seen.error_code, seen.rip), (GP, 0, CODE))


@GROUP.check("MSRs of libunicorn's own", "the kernel reads a TSC that is not ours, and an APIC that is not there")
def own_msrs() -> None:
    """TSC and APIC base are libunicorn's unless the permission map says otherwise."""
    with MicroGuest() as guest:
        for number in (MSR_TSC, MSR_APIC_BASE):
            guest.msrs[number] = 77
            run(guest, READ_MSR, rcx=number, rax=0)
            expect(f"MSR {number:#x}", guest.registers.rax, 77)


CPUID_HLT = Listing("""
  000  66 0f a2  cpuid  ; a prefix counts for the length
  003  f4        hlt
""")


def _leaf(guest: MicroGuest, number: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX."""
    registers = guest.registers
    run(guest, CPUID_HLT, rax=number | 0xAAAA << 32, rcx=0xBBBB << 32, rbx=MASK_64, rdx=MASK_64)
    expect(f"leaf {number:#x}: RIP", registers.rip, CODE + len(CPUID_HLT.code))
    return registers.rax, registers.rbx, registers.rcx, registers.rdx


@GROUP.check("CPUID", "Linux does not see that it is a guest: no kvmclock, no quick clock for programs")
def cpuid_exits() -> None:
    """CPUID leaves by SVM's intercept, and machine code answers; the hypervisor's leaves are a table of ours."""
    with MicroGuest() as guest:
        for number, row in (0x4000_0000, 0), (0x4000_0001, 1), (0x4000_0002, 2), (0x4000_FFFF, 2):
            expect(f"leaf {number:#x}", _leaf(guest, number), cpuid.HYPERVISOR_LEAVES[row])
        expect("a leaf behind them", _leaf(guest, 0x4001_0000), _leaf(guest, 0x3FFF_FFFF))


@GROUP.check("the CPU's model", "Linux thinks it is an Intel, and flushes the TLB twice at every system call")
def model() -> None:
    """libunicorn's default is a Haswell, for which Linux isolates page tables and clears buffers; qemu64 is an AMD."""
    with MicroGuest() as guest:
        _, ebx, ecx, edx = _leaf(guest, 0)
        vendor = struct.pack("<3I", ebx, edx, ecx)
        if vendor != AMD:
            raise Failure(f"it is {vendor.decode('latin-1')}, not {AMD.decode()}")


VMRUN = Listing("""
  000  0f 01 d8  vmrun rax
""")
SET_SVME = Listing("""
  000  0f 30  wrmsr
  002  0f 32  rdmsr
  004  f4     hlt
""")


@GROUP.check("the CPU's features", "the guest finds SVM, and takes the trap door away; or misses what makes it quick")
def features() -> None:
    """SVM, SEP and MONITOR are hidden, others added. The words are 64 bits wide; written as 32 nothing changes."""
    with MicroGuest() as guest:
        _, ebx_7, _, _ = _leaf(guest, 7)
        _, _, ecx_1, edx_1 = _leaf(guest, 1)
        _, _, ecx_extended, _ = _leaf(guest, 0x8000_0001)
        words = {"1_EDX": edx_1, "1_ECX": ecx_1, "7_0_EBX": ebx_7, "80000001_ECX": ecx_extended}
        for name, word in words.items():
            expect(f"{name}: bits that are to be hidden", word & cpuid.CLEAR.get(name, 0), 0)
            expect(f"{name}: bits that are to be there", word & cpuid.SET.get(name, 0), cpuid.SET.get(name, 0))
        efer = guest.registers.efer
        run(guest, SET_SVME, rcx=MSR_EFER, rax=efer | EFER_SVME, rdx=0)
        expect("EFER with SVME written to it", guest.registers.rax, efer)
        expect("VMRUN: vector", fault(guest, VMRUN).vector, UD)


STEPS = Listing("""
  000  0f a2           cpuid
  002  b9 <MSR:4>      mov ecx, MSR
  007  0f 32           rdmsr
  009  0f 30           wrmsr
  00b  f4              hlt
""", MSR=MSR)


@GROUP.check("single step over CPUID and MSRs", "a debugger in the guest loses its place at CPUID, RDMSR and WRMSR")
def single_step() -> None:
    """What is done by us ends without TCG's look at TF, so its trap is asked for."""
    with MicroGuest(resume={DB}) as guest:
        guest.msrs[MSR] = 0
        guest.put(STEPS.code, rflags=FIXED | TF, rax=0, rcx=0)
        halt(guest)
        steps = [(seen.vector, seen.rip - CODE) for seen in guest.events[: len(STEP_ENDS)]]
        expect("vectors, and RIPs from the start", steps, [(DB, offset) for offset in STEP_ENDS])
