"""Checks of exceptions: libunicorn delivers none by itself, and errs about some of those it prepares."""

from __future__ import annotations

from emu import micro
from emu.cpu.platform import Exit
from emu.micro import (
    ALIAS,
    BP,
    CF,
    CODE,
    DATA,
    DB,
    DE,
    DF,
    FIXED,
    GP,
    IF,
    NP,
    PF,
    RF,
    UD,
    UNMAPPED,
    USER_CODE,
    MicroGuest,
)
from emu.selftest.check import PATIENCE_S, Failure, Group, Listing, expect, fault, halt, run

GROUP = Group("exceptions")

VECTOR, INTA_VECTOR = 0x50, 0x21
BAD_STACKS = 20


UD2 = Listing("""
  000  0f 0b  ud2
""")
DIVIDE = Listing("""
  000  48 f7 f1  div rcx  ; by zero
""")
READ_NO_PAGE = Listing("""
  000  48 8b 04 25 <UNMAPPED:4>  mov rax, qword ptr [UNMAPPED]
""", UNMAPPED=UNMAPPED)
WRITE_KERNEL_PAGE = Listing("""
  000  48 89 04 25 <DATA:4>  mov qword ptr [DATA], rax
""", DATA=DATA)
JUMP_TO_DATA = Listing("""
  000  b8 <PAGE:4>  mov eax, PAGE
  005  ff e0        jmp rax        ; a page that is not executable
""", PAGE=ALIAS)
HLT = Listing("""
  000  f4  hlt
""")
INT3 = Listing("""
  000  cc  int3
""")
LOAD_DS = Listing("""
  000  b8 00 10 00 00  mov eax, 0x1000
  005  8e d8           mov ds, eax      ; a selector behind the GDT
""")


CASES = (
    # what, program, where, vector, error code, how far RIP is behind the start (None: at ALIAS), CR2
    ("DIV by zero", DIVIDE, CODE, DE, 0, 0, None),
    ("UD2", UD2, USER_CODE, UD, 0, 0, None),
    ("INT3", INT3, USER_CODE, BP, 0, 1, None),
    ("HLT of a program", HLT, USER_CODE, GP, 0, 0, None),
    ("MOV DS", LOAD_DS, CODE, GP, 0x1000, 5, None),
    ("a read of no page", READ_NO_PAGE, CODE, PF, 0, 0, UNMAPPED),
    ("a program's write to the kernel", WRITE_KERNEL_PAGE, USER_CODE, PF, 7, 0, DATA),
    ("a jump to data", JUMP_TO_DATA, CODE, PF, 0x11, None, ALIAS),
)


@GROUP.check("exceptions", "faults reach the wrong handler, or none; page faults are misread: no system boots")
def exceptions() -> None:
    """Unicorn delivers no exception. Vector, error code, saved RIP and flags, and CR2 are to be as on hardware."""
    with MicroGuest() as guest:
        for what, program, at, vector, error_code, offset, cr2 in CASES:
            seen = fault(guest, program, at, rflags=FIXED | CF, rcx=0)
            expect(f"{what}: vector", seen.vector, vector)
            expect(f"{what}: error code", seen.error_code, error_code)
            expect(f"{what}: RIP", seen.rip, ALIAS if offset is None else at + offset)
            expect(f"{what}: RFLAGS", seen.rflags, FIXED | CF)
            if cr2 is not None:
                expect(f"{what}: CR2", seen.cr2, cr2)


SKIP_UD2 = Listing("""
  000  48 83 04 24 02  add qword ptr [rsp], 2  ; RIP behind the UD2
  005  48 cf           iretq
""")
TWO_UD2 = Listing("""
  000  0f 0b  ud2
  002  0f 0b  ud2
  004  f4     hlt
""")


@GROUP.check("undefined instructions", "a program that probes for an instruction ends the machine; so do WARN and BUG")
def undefined() -> None:
    """An undefined instruction ends Unicorn's run, and never comes to the hook for exceptions."""
    with MicroGuest(resume={UD}) as guest:
        guest.memory.write(micro.STUBS + 16 * UD, SKIP_UD2.code)
        run(guest, TWO_UD2)
        expect("UD2 twice: RIP", guest.registers.rip, CODE + len(TWO_UD2.code))


INT1 = Listing("""
  000  f1  int1
""")


@GROUP.check("INT1", "a debugger's one-byte trap is an illegal instruction")
def int1() -> None:
    """libunicorn does not know INT1, and calls it undefined."""
    with MicroGuest() as guest:
        seen = fault(guest, INT1)
        expect("vector and RIP", (seen.vector, seen.rip), (DB, CODE + 1))


THREE_READS = Listing("""
  000  48 8b 04 25 <UNMAPPED:4>  mov rax, qword ptr [UNMAPPED]
  008  48 8b 04 25 <UNMAPPED:4>  mov rax, qword ptr [UNMAPPED]
  010  48 8b 04 25 <UNMAPPED:4>  mov rax, qword ptr [UNMAPPED]
  018  f4                        hlt
""", UNMAPPED=UNMAPPED)
SKIP_READ = Listing("""
  000  48 83 c4 08     add rsp, 8              ; the error code
  004  48 83 04 24 08  add qword ptr [rsp], 8  ; RIP behind the read
  009  48 cf           iretq
""")


@GROUP.check("second page fault", "the second page fault arrives as a double fault, and the kernel gives up")
def second_page_fault() -> None:
    """`old_exception` is not cleared unless x86_cpu_do_interrupt delivers: two faults make a double fault then."""
    with MicroGuest() as guest:
        guest.memory.write(micro.STUBS + 16 * PF, SKIP_READ.code)
        run(guest, THREE_READS)
        expect("RIP", guest.registers.rip, CODE + len(THREE_READS.code))


PUSHF = Listing("""
  000  9c  pushfq
  001  58  pop rax
  002  f4  hlt
""")


@GROUP.check("PUSHF", "a program finds a flag set that no program ever sees, and carries it along")
def push_flags() -> None:
    """libunicorn shows RF, which is set while an instruction is done again behind its breakpoint."""
    with MicroGuest() as guest:
        run(guest, PUSHF, rflags=FIXED | CF | RF)
        expect("RFLAGS", guest.registers.rax, FIXED | CF)


INT3_CPUID = Listing("""
  000  cc              int3
  001  b8 0f 00 00 00  mov eax, 0xf
  006  0f a2           cpuid
  008  0f 0b           ud2
""")


@GROUP.check("software interrupts", "the instruction behind a system call or breakpoint starts in its middle")
def after_software_interrupt() -> None:
    """`exception_is_int` stays set after INT3; RIP would be shifted by it at the next VM exit."""
    with MicroGuest(resume={BP}) as guest:
        guest.put(INT3_CPUID.code)
        halt(guest)
        expect("vectors and RIPs", [(seen.vector, seen.rip) for seen in guest.events], [(BP, CODE + 1), (UD, CODE + 8)])


INT_80 = Listing("""
  000  cd 80  int 0x80
""")


@GROUP.check("INT n that cannot be delivered", "a program goes on behind an instruction that it has not done")
def failed_int() -> None:
    """QEMU moves RIP past INT n before delivery; the fault of the delivery is to show INT n's own."""
    with MicroGuest() as guest:
        guest.write_quads(micro.TSS + 4, UNMAPPED)                       # the stack of ring 0
        guest.memory.write(micro.IDT + 16 * PF, micro.gate(PF, ist=1))
        seen = fault(guest, INT_80, USER_CODE)
        expect("vector and RIP", (seen.vector, seen.rip), (PF, USER_CODE))


INT_50 = Listing("""
  000  cd 50  int 0x50
""")


@GROUP.check("INT n without a gate", "the error code names another vector than the program used")
def gate_not_present() -> None:
    """libunicorn makes the error code vector * 16 + 2 in long mode; the architecture says vector * 8 + 2."""
    with MicroGuest() as guest:
        guest.memory.write(micro.IDT + 16 * VECTOR + 5, b"\x0e")         # without the present bit
        seen = fault(guest, INT_50)
        expect("vector and error code", (seen.vector, seen.error_code), (NP, VECTOR * 8 + 2))


@GROUP.check("double faults", "a kernel whose stack is gone loops for ever; nothing reports it")
def double_fault() -> None:
    """A fault while an exception is delivered is a double fault; libunicorn leaves by longjmp on the way."""
    with MicroGuest() as guest:
        guest.write_quads(micro.TSS + 4, UNMAPPED)
        seen = fault(guest, UD2, USER_CODE)
        expect("vector and RIP", (seen.vector, seen.rip), (DF, USER_CODE))


NOPS = Listing("""
  000  90  nop
  001  90  nop
  002  f4  hlt
""")


@GROUP.check("interrupts on a bad stack", "the longjmp goes across Python, and the host process dies")
def interrupt_on_bad_stack() -> None:
    """Delivery from an exit into Python faults: only machine code may call it, Python returns what to inject."""
    with MicroGuest() as guest:
        guest.memory.write(micro.IDT + 16 * PF, micro.gate(PF, ist=1))
        for _ in range(BAD_STACKS):
            guest.vectors.append(INTA_VECTOR)
            guest.cpu.set_interrupt_line(True)
            seen = fault(guest, NOPS, rsp=UNMAPPED, rflags=FIXED | IF)
            expect("vector and error code", (seen.vector, seen.error_code), (PF, 2))


NO_IDT = Listing("""
  000  6a 00        push 0
  002  6a 00        push 0
  004  0f 01 1c 24  lidt [rsp]  ; of limit 0
  008  0f 0b        ud2
""")


@GROUP.check("triple faults", "a guest that resets itself by a triple fault stops without a reason")
def triple_fault() -> None:
    """By itself the CPU stops silently; the intercept of SHUTDOWN says why."""
    with MicroGuest() as guest:
        guest.put(NO_IDT.code)
        end = guest.go(PATIENCE_S)
        if end is not Exit.SHUTDOWN:
            raise Failure(f"the guest ended by {end.value}")
