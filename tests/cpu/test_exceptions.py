"""Exceptions and interrupts arrive as on hardware: vector, error code, saved RIP and flags."""

from __future__ import annotations

import struct

import pytest

from emu import micro
from emu.cpu.platform import Exit
from emu.micro import (
    AF,
    ALIAS,
    BP,
    CF,
    CODE,
    DATA,
    DB,
    DE,
    DF,
    DIRECTION,
    EVENT_PORT,
    FAULT_STACK,
    FIXED,
    GP,
    KERNEL_CS,
    NP,
    OF,
    PF,
    SF,
    TF,
    UD,
    UNMAPPED,
    USER_CODE,
    USER_CS,
    USER_CS32,
    USER_DS,
    MicroGuest,
)

RINGS = {0: CODE, 3: USER_CODE}
FLAGS = FIXED | CF | SF | DIRECTION


def absolute(address: int) -> bytes:
    return struct.pack("<I", address)


READ = b"\x48\x8b\x04\x25"              # mov rax, [disp32]
WRITE = b"\x48\x89\x04\x25"             # mov [disp32], rax

# name: (instructions, vector, error code, how far RIP is behind their start)
BOTH_RINGS = {
    "ud2": (b"\x0f\x0b", UD, 0, 0),
    "div rcx, by zero": (b"\x48\xf7\xf1", DE, 0, 0),
    "int3": (b"\xcc", BP, 0, 1),
    "int 3, two bytes": (b"\xcd\x03", BP, 0, 2),
    "int1": (b"\xf1", DB, 0, 1),
    "int 0x80, a gate for ring 3": (b"\xcd\x80", 0x80, 0, 2),
    "into, which 64-bit code does not have": (b"\xce", UD, 0, 0),
    "mov rax, [1 << 47]": (b"\x48\xa1" + struct.pack("<Q", 1 << 47), GP, 0, 0),
    "lock nop": (b"\xf0\x90", UD, 0, 0),
    "vmrun": (b"\x0f\x01\xd8", UD, 0, 0),
    "vmmcall": (b"\x0f\x01\xd9", UD, 0, 0),
    "vmload": (b"\x0f\x01\xda", UD, 0, 0),
    "vmsave": (b"\x0f\x01\xdb", UD, 0, 0),
    "stgi": (b"\x0f\x01\xdc", UD, 0, 0),
    "clgi": (b"\x0f\x01\xdd", UD, 0, 0),
    "skinit": (b"\x0f\x01\xde", UD, 0, 0),
    "invlpga": (b"\x0f\x01\xdf", UD, 0, 0),
    "monitor": (b"\x0f\x01\xc8", UD, 0, 0),
    "mwait": (b"\x0f\x01\xc9", UD, 0, 0),
    "sysenter": (b"\x0f\x34", UD, 0, 0),
    "rsm": (b"\x0f\xaa", UD, 0, 0),
}

RING_0 = {
    "int 0x50": (b"\xcd\x50", 0x50, 0, 2),
    "int 6": (b"\xcd\x06", UD, 0, 2),
    "read of no page": (READ + absolute(UNMAPPED), PF, 0, 0),
    "write to no page": (WRITE + absolute(UNMAPPED), PF, 2, 0),
    "jump to no page": (b"\xb8" + absolute(UNMAPPED) + b"\xff\xe0", PF, 0x10, None),
    "jump to a page that is not executable": (b"\xb8" + absolute(ALIAS) + b"\xff\xe0", PF, 0x11, None),
    "wrmsr of no MSR": (b"\xb9\x09\x4d\x56\x4b\x0f\x30", GP, 0, 5),
    "rdmsr of no MSR": (b"\xb9\x09\x4d\x56\x4b\x0f\x32", GP, 0, 5),
    "mov ds, selector behind the GDT": (b"\xb8\x00\x10\x00\x00\x8e\xd8", GP, 0x1000, 5),
    "mov ds, segment not present": (b"\xb8\x38\x00\x00\x00\x8e\xd8", NP, 0x38, 5),
}

RING_3 = {
    "hlt": (b"\xf4", GP, 0, 0),
    "cli": (b"\xfa", GP, 0, 0),
    "in al, dx": (b"\xec", GP, 0, 0),
    "mov rax, cr0": (b"\x0f\x20\xc0", GP, 0, 0),
    "wrmsr": (b"\x0f\x30", GP, 0, 0),
    "int 0x50, a gate for ring 0": (b"\xcd\x50", GP, 0x50 * 8 + 2, 0),
    "int 6, a gate for ring 0": (b"\xcd\x06", GP, 6 * 8 + 2, 0),
    "read of no page": (READ + absolute(UNMAPPED), PF, 4, 0),
    "write to no page": (WRITE + absolute(UNMAPPED), PF, 6, 0),
    "read of the kernel's page": (READ + absolute(DATA), PF, 5, 0),
    "write to the kernel's page": (WRITE + absolute(DATA), PF, 7, 0),
    "jump into the kernel": (b"\xb8" + absolute(CODE) + b"\xff\xe0", PF, 0x15, None),
    "jump to a page that is not executable": (b"\xb8" + absolute(ALIAS + USER_CODE) + b"\xff\xe0", PF, 0x15, None),
}

CASES = [(name, ring, *case) for ring in RINGS for name, case in BOTH_RINGS.items()]
CASES += [(name, 0, *case) for name, case in RING_0.items()] + [(name, 3, *case) for name, case in RING_3.items()]
NOT_PRESENT = 0x00CF_1300_0000_FFFF     # ring 0 data without its present bit


@pytest.mark.parametrize(
    ("ring", "code", "vector", "error", "offset"),
    [case[1:] for case in CASES],
    ids=[f"{name}, ring {ring}" for name, ring, *_ in CASES],
)
def test_exception(ring: int, code: bytes, vector: int, error: int, offset: int | None) -> None:
    at = RINGS[ring]
    with MicroGuest() as guest:
        guest.write_quads(micro.GDT + 0x38, NOT_PRESENT)
        assert guest.run(code, at, rflags=FLAGS, rcx=0) is Exit.HALT
        event = guest.event
        target = int.from_bytes(code[1:5], "little")
        assert (event.vector, event.error_code) == (vector, error)
        assert event.rip == (target if offset is None else at + offset)
        assert event.rflags == FLAGS
        assert (event.cs, event.ss) == ((USER_CS, USER_DS) if ring else (KERNEL_CS, micro.KERNEL_DS))
        assert event.rsp == (micro.USER_TOP if ring else micro.KERNEL_TOP)
        if vector == PF:
            assert event.cr2 == (target if offset is None else int.from_bytes(code[4:8], "little"))


def test_int_through_a_gate_that_is_not_present_names_the_gate_and_the_instruction() -> None:
    with MicroGuest() as guest:
        guest.memory.write(micro.IDT + 16 * 0x50 + 5, b"\x0e")       # clears the present bit
        guest.run(b"\xcd\x50")                                      # int 0x50
        assert (guest.event.vector, guest.event.error_code, guest.event.rip) == (NP, 0x50 * 8 + 2, CODE)


def test_arithmetic_flags_that_nobody_asked_for_are_pushed() -> None:
    with MicroGuest() as guest:
        guest.run(b"\xb0\xff\x04\x01\x0f\x0b")                    # mov al, 0xff; add al, 1; ud2
        assert guest.event.rflags == FIXED | CF | 1 << 2 | AF | 1 << 6
        assert guest.event.rip == CODE + 4


def test_trap_flag_stops_after_each_instruction() -> None:
    with MicroGuest(resume={DB}) as guest:
        guest.run(b"\x90\x48\xff\xc0\xf4", rflags=FIXED | TF)       # nop; inc rax; hlt
        assert [event.rip for event in guest.events[:2]] == [CODE + 1, CODE + 4]
        assert all(event.vector == DB and event.rflags & TF for event in guest.events)


@pytest.mark.parametrize("code", [b"\x0f\xa2", b"\x0f\x32", b"\x0f\x30"], ids=["cpuid", "rdmsr", "wrmsr"])
def test_trap_flag_stops_after_an_instruction_that_is_done_by_the_host(code: bytes) -> None:
    with MicroGuest(resume={DB}) as guest:
        guest.msrs[0x4B56_4D20] = 0
        guest.run(code + b"\x90\xf4", rflags=FIXED | TF, rax=0, rcx=0x4B56_4D20)        # nop; hlt
        assert [event.rip for event in guest.events[:2]] == [CODE + 2, CODE + 3]


def test_hardware_breakpoint_stops_before_its_instruction() -> None:
    with MicroGuest() as guest:
        code = (
            b"\xb8" + absolute(CODE + 17)        # mov eax, CODE + 17
            + b"\x0f\x23\xc0"                    # mov dr0, rax
            + b"\xb8\x01\x00\x00\x00"            # mov eax, 1
            + b"\x0f\x23\xf8"                    # mov dr7, rax
            + b"\x90\x90\xf4"                    # nop; nop; hlt
        )  # fmt: skip
        guest.run(code)
        assert (guest.event.vector, guest.event.rip) == (DB, CODE + 17)


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize(
    "code",
    [
        b"\x66\x0f\xa2",                   # cpuid, with an operand size prefix
        b"\xf2\x0f\xa2",                   # with repne
        b"\x48\x0f\xa2",                   # with REX.W
        b"\x2e\x66\x67\x0f\xa2",           # with three
    ],
)
def test_cpuid_with_prefixes_goes_on_right_behind_itself(ring: int, code: bytes) -> None:
    with MicroGuest() as guest:
        guest.run(code + b"\x0f\x0b", RINGS[ring], rax=0)          # ud2
        assert (guest.event.vector, guest.event.rip) == (UD, RINGS[ring] + len(code))
        assert guest.registers.rbx == int.from_bytes(b"Auth", "little")


@pytest.mark.parametrize("code", [b"\x0f\x30", b"\x66\x0f\x30", b"\x48\x0f\x30", b"\xf3\x66\x0f\x30"])     # wrmsr
def test_wrmsr_with_prefixes_goes_on_right_behind_itself(code: bytes) -> None:
    with MicroGuest() as guest:
        guest.msrs[0x4B56_4D20] = 0
        assert guest.run(code + b"\xf4", rcx=0x4B56_4D20, rax=0x89AB_CDEF, rdx=0x0123_4567) is Exit.HALT
        assert guest.msrs[0x4B56_4D20] == 0x0123_4567_89AB_CDEF
        assert guest.registers.rip == CODE + len(code) + 1


class Stepping(MicroGuest):
    """A guest whose page fault handler goes on behind the instruction."""

    def port_out(self, port: int, size: int, value: int) -> None:
        super().port_out(port, size, value)
        if port == EVENT_PORT:
            at = self.registers.rsp + 16
            self.write_quads(at, self.quad(at) + len(READ) + 4)


def test_a_second_page_fault_is_no_double_fault() -> None:
    with Stepping(resume={PF}) as guest:
        guest.run((READ + absolute(UNMAPPED)) * 3 + b"\xf4")
        assert [event.vector for event in guest.events] == [PF] * 3


def test_a_page_fault_while_an_exception_is_delivered_is_a_double_fault() -> None:
    with MicroGuest() as guest:
        guest.write_quads(micro.TSS + 4, UNMAPPED)
        guest.run(b"\x0f\x0b", USER_CODE)                           # ud2
        assert (guest.event.vector, guest.event.error_code, guest.event.rip) == (DF, 0, USER_CODE)
        assert guest.registers.rsp < FAULT_STACK


def test_a_fault_while_a_double_fault_is_delivered_shuts_down() -> None:
    with MicroGuest() as guest:
        guest.write_quads(micro.TSS + 4, UNMAPPED)
        guest.write_quads(micro.TSS + 0x24, UNMAPPED)
        assert guest.run(b"\x0f\x0b", USER_CODE) is Exit.SHUTDOWN   # ud2
        assert not guest.events
        assert guest.registers.rip == USER_CODE


def test_a_failed_int_n_is_seen_where_it_stands() -> None:
    """Its delivery faults on the stack; libunicorn has moved RIP behind it by then."""
    with MicroGuest() as guest:
        guest.write_quads(micro.TSS + 4, UNMAPPED)
        guest.memory.write(micro.IDT + 16 * PF, micro.gate(PF, ist=1))
        guest.run(b"\xcd\x80", USER_CODE)                           # int 0x80
        assert (guest.event.vector, guest.event.rip) == (PF, USER_CODE)


def test_exceptions_after_an_interrupt_instruction_have_their_own_rip() -> None:
    """`exception_is_int` is stale after a delivery; the next VM exit would shift RIP by it."""
    with MicroGuest(resume={BP}) as guest:
        guest.run(b"\xcc\x0f\xa2\x0f\x0b", rax=0)                  # int3; cpuid; ud2
        assert [(event.vector, event.rip) for event in guest.events] == [(BP, CODE + 1), (UD, CODE + 3)]


# -- port I/O is privileged ----------------------------------------------------------------------------------------

PORT = 0x80
PORT_INSTRUCTIONS = {
    "in al, dx": b"\xec",
    "in ax, dx": b"\x66\xed",
    "in eax, dx": b"\xed",
    "in al, 0x80": b"\xe4\x80",
    "out dx, al": b"\xee",
    "out dx, ax": b"\x66\xef",
    "out dx, eax": b"\xef",
    "insb": b"\x6c",
    "rep outsb": b"\xf3\x6e",
}
GENERAL = {"rdx": PORT, "rcx": 1, "rdi": micro.USER_DATA, "rsi": micro.USER_DATA}


@pytest.mark.parametrize("name", PORT_INSTRUCTIONS)
def test_port_io_of_a_program_is_refused(name: str) -> None:
    with MicroGuest() as guest:
        guest.run(PORT_INSTRUCTIONS[name], USER_CODE, rflags=FLAGS & ~DIRECTION, **GENERAL)
        assert (guest.event.vector, guest.event.error_code, guest.event.rip) == (GP, 0, USER_CODE)
        assert guest.event.rflags == FLAGS & ~DIRECTION
        assert not guest.ins and not guest.outs


@pytest.mark.parametrize("name", PORT_INSTRUCTIONS)
def test_port_io_of_a_program_with_iopl_3_is_done(name: str) -> None:
    with MicroGuest() as guest:
        guest.run(PORT_INSTRUCTIONS[name] + b"\x0f\x0b", USER_CODE, rflags=FIXED | 3 << 12, **GENERAL)     # ud2
        assert (guest.event.vector, guest.event.rip) == (UD, USER_CODE + len(PORT_INSTRUCTIONS[name]))
        assert len(guest.ins) + len(guest.outs) == 1


def test_port_io_follows_the_permission_map() -> None:
    """Port 0x80 is allowed and 0x81 is not: two bytes at 0x80 are refused."""
    with MicroGuest() as guest:
        guest.memory.write(micro.GDT + micro.TR, struct.pack("<H", 0x67 + 0x20))
        guest.memory.write(micro.GDT + micro.TR + 5, b"\x89")
        guest.memory.write(micro.TSS + 0x68, b"\xff" * 16 + b"\xfe" + b"\xff" * 15)
        guest.run(b"\x66\xb8\x40\x00\x0f\x00\xd8\xf4")                # mov ax, TR; ltr ax; hlt
        guest.run(b"\xec\x66\xed", USER_CODE, **GENERAL)               # in al, dx; in ax, dx
        assert guest.ins == [(PORT, 1)]
        assert (guest.event.vector, guest.event.rip) == (GP, USER_CODE + 1)


def test_the_bypass_is_no_way_round_it() -> None:
    with MicroGuest() as guest:
        guest.cpu.context.thr_port = guest.cpu.context.lsr_port = PORT
        guest.run(b"\xee", USER_CODE, **GENERAL)                         # out dx, al
        guest.run(b"\xec", USER_CODE, **GENERAL)                         # in al, dx
        assert [event.vector for event in guest.events] == [GP, GP]
        assert guest.cpu.context.used == guest.cpu.context.lsr_reads == 0


# -- 32-bit programs -----------------------------------------------------------------------------------------------


def test_int_0x80_of_a_32_bit_program() -> None:
    with MicroGuest(resume={0x80}) as guest:
        code = b"\x40\xcd\x80\x40\x0f\x0b"                              # inc eax; int 0x80; inc eax; ud2
        guest.run(code, USER_CODE, cs=USER_CS32, rflags=FIXED | CF, rax=4)
        first, second = guest.events
        assert (first.vector, first.rip, first.cs, first.rflags & CF) == (0x80, USER_CODE + 3, USER_CS32, CF)
        assert (second.vector, second.rip, guest.registers.rax) == (UD, USER_CODE + 4, 6)


def test_into_of_a_32_bit_program() -> None:
    with MicroGuest() as guest:
        guest.run(b"\xce", USER_CODE, cs=USER_CS32, rflags=FIXED | 1 << 11)      # into, with OF
        assert (guest.event.vector, guest.event.rip) == (OF, USER_CODE + 1)
