"""Exceptions, interrupts and exits outside long mode: 32-bit, 16-bit, virtual-8086 and real mode, with bases in CS."""

from __future__ import annotations

import struct

import pytest

from emu.cpu.platform import Exit
from emu.micro import BP, CF, DB, DE, FIXED, GP, IF, OF, TF, UD
from tests.cpu import legacy
from tests.cpu.legacy import BASE, CODE_16, CODE_32, DATA, MODES, OFFSET, SELECTORS, VM, LegacyGuest

V86 = "virtual-8086"
PRIVILEGED = tuple(mode for mode in MODES if mode not in ("32, ring 3", V86))
SIXTEEN = ("16", V86, "real")           # bits of addresses and operands
OVERFLOW = 1 << 11
FLAGS = FIXED | CF | OVERFLOW
RF, IOPL_3 = 1 << 16, 3 << 12
MSR, NO_MSR = 0x4B56_4D20, 0x4B56_4D09
PORT = 0x80
VECTOR = 0x21

# name: (instructions, vector, how far IP is behind their start)
EVERYWHERE = {
    "ud2": (b"\x0f\x0b", UD, 0),
    "div cl, by zero": (b"\xf6\xf1", DE, 0),
    "int3": (b"\xcc", BP, 1),
    "into": (b"\xce", OF, 1),
    "int1": (b"\xf1", DB, 1),
    "vmmcall": (b"\x0f\x01\xd9", UD, 0),
    "cpuid with a prefix, ud2": (b"\x66\x0f\xa2\x0f\x0b", UD, 3),
    "syscall, without EFER.SCE": (b"\x0f\x05", UD, 0),
}
OF_PRIVILEGE = {
    "int 0x50": (b"\xcd\x50", 0x50, 2),
    "int 6": (b"\xcd\x06", UD, 2),
    "wrmsr of no MSR": (b"\x0f\x30", GP, 0),
    "rdmsr of no MSR": (b"\x0f\x32", GP, 0),
}
REFUSED = {
    "hlt": b"\xf4",
    "cli": b"\xfa",
    "wrmsr": b"\x0f\x30",
    "mov eax, cr0": b"\x0f\x20\xc0",
    "in al, dx": b"\xec",
    "out dx, al": b"\xee",
}
REGISTERS = {"rax": 0, "rcx": NO_MSR & ~0xFF, "rdx": PORT}


def selector(mode: str) -> int:
    return SELECTORS.get(mode, BASE >> 4)


def cases() -> list[tuple[str, bytes, int, int]]:
    found = [(mode, *case) for mode in MODES for case in EVERYWHERE.values()]
    return found + [(mode, *case) for mode in PRIVILEGED for case in OF_PRIVILEGE.values()]


@pytest.mark.parametrize(("mode", "code", "vector", "offset"), cases())
def test_exception(mode: str, code: bytes, vector: int, offset: int) -> None:
    with LegacyGuest(mode) as guest:
        assert guest.run(code, FLAGS, **REGISTERS) is Exit.HALT
        (event,) = guest.events
        assert (event.vector, event.ip - guest.place, event.cs) == (vector, offset, selector(mode))
        assert event.error_code == 0
        assert event.flags == FLAGS | (VM if mode == V86 else 0)


@pytest.mark.parametrize("mode", ["32, ring 3", V86])
@pytest.mark.parametrize("name", REFUSED)
def test_what_programs_may_not(mode: str, name: str) -> None:
    with LegacyGuest(mode) as guest:
        guest.run(REFUSED[name], FLAGS, **REGISTERS)
        (event,) = guest.events
        assert (event.vector, event.error_code, event.ip) == (GP, 0, guest.place)
        assert not guest.ins and not guest.outs


@pytest.mark.parametrize("mode", ["32, ring 3", V86])
def test_port_io_follows_the_permission_map(mode: str) -> None:
    with LegacyGuest(mode) as guest:
        guest.memory.write(legacy.TSS + 0x68 + PORT // 8, b"\xfe")               # PORT alone
        guest.run(b"\xec\xee\x42\xec", FIXED, rdx=PORT)                           # in al, dx; out dx, al; inc edx; in
        assert (guest.ins, guest.outs) == ([(PORT, 1)], [(PORT, 1, 0xFF)])
        (event,) = guest.events
        assert (event.vector, event.ip - guest.place) == (GP, 3)


def test_io_privilege_is_no_right_to_ports_in_virtual_8086_mode() -> None:
    with LegacyGuest(V86) as guest:
        guest.run(b"\xec", FIXED | IOPL_3, rdx=PORT)
        assert [event.vector for event in guest.events] == [GP]


@pytest.mark.parametrize("iopl", [0, IOPL_3])
def test_int_n_in_virtual_8086_mode_goes_through_the_idt_if_iopl_allows_it(iopl: int) -> None:
    with LegacyGuest(V86) as guest:
        guest.run(b"\xcd\x50", FIXED | iopl)
        (event,) = guest.events
        assert (event.vector, event.ip - OFFSET) == ((0x50, 2) if iopl else (GP, 0))


@pytest.mark.parametrize("mode", PRIVILEGED)
def test_exits_into_the_machine(mode: str) -> None:
    """IN, OUT, RDMSR, WRMSR, CPUID and HLT, one behind the other."""
    with LegacyGuest(mode) as guest:
        guest.msrs[MSR] = 0x1122_3344_5566_7788
        code = b"\xec\xee\x0f\x32\x40\x0f\x30"      # in al, dx; out dx, al; rdmsr; inc eax; wrmsr
        code += (b"\x66" if mode in SIXTEEN else b"") + b"\x31\xc0\x0f\xa2\xf4"     # xor eax, eax; cpuid; hlt
        assert guest.run(code, FIXED, rax=0, rcx=MSR, rdx=PORT) is Exit.HALT
        assert (guest.ins, guest.outs) == ([(PORT, 1)], [(PORT, 1, 0xFF)])
        assert guest.msrs[MSR] == 0x1122_3344_5566_7789
        assert guest.registers.rbx == int.from_bytes(b"Auth", "little")
        assert guest.registers.rip == guest.place + len(code)
        assert not guest.events


@pytest.mark.parametrize("mode", PRIVILEGED)
def test_string_io(mode: str) -> None:
    """REP OUTSB and REP INSB, by the segments' bases."""
    with LegacyGuest(mode) as guest:
        guest.memory.write(DATA & 0xFFFF | 0x100, b"abc")
        guest.run(b"\xf3\x6e\xb1\x02\xf3\x6c\xf4", FIXED, rcx=3, rdx=PORT, rsi=0x100, rdi=0x200)   # mov cl, 2 between
        assert [value for _, _, value in guest.outs] == list(b"abc")
        assert guest.ins == [(PORT, 1)] * 2
        assert (guest.registers.rsi, guest.registers.rdi, guest.registers.rcx) == (0x103, 0x202, 0)
        assert guest.memory.read(0x200, 3) == b"\xff\xff\0"


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupt_comes_behind_the_shadow_of_sti(mode: str) -> None:
    with LegacyGuest(mode) as guest:
        guest.vectors = [VECTOR]
        guest.cpu.set_interrupt_line(True)
        code = b"\x40\xfb\x40\x40\x0f\x0b"                                       # inc eax; sti; inc eax; inc eax; ud2
        assert guest.run(code, FIXED | IOPL_3, rax=0) is Exit.HALT
        (event,) = guest.events
        assert (event.vector, event.ip - guest.place, event.cs) == (VECTOR, 3, selector(mode))
        assert event.flags & IF
        assert guest.registers.rax & 0xFF == 2


@pytest.mark.parametrize("mode", PRIVILEGED)
def test_an_interrupt_wakes_hlt_and_iret_comes_back(mode: str) -> None:
    with LegacyGuest(mode, resume=True) as guest:
        assert guest.run(b"\xfb\xf4\x40\xfa\xf4", FIXED, rax=7) is Exit.HALT       # sti; hlt; inc eax; cli; hlt
        assert guest.registers.rip == guest.place + 2
        guest.vectors = [VECTOR]
        guest.cpu.set_interrupt_line(True)
        assert guest.go() is Exit.HALT
        assert [(event.vector, event.ip - guest.place) for event in guest.events] == [(VECTOR, 2)]
        assert (guest.registers.rip, guest.registers.rax) == (guest.place + 5, 8)
        assert not guest.cpu.interrupts_enabled


@pytest.mark.parametrize("mode", MODES)
def test_software_interrupts_come_back_behind_themselves(mode: str) -> None:
    with LegacyGuest(mode, resume=True, last=0x51) as guest:
        # inc eax; int 0x50; inc eax; int3; inc eax; int 0x51; jmp $
        guest.run(b"\x40\xcd\x50\x40\xcc\x40\xcd\x51\xeb\xfe", FIXED | IOPL_3, rax=0)
        assert [(event.vector, event.ip - guest.place) for event in guest.events] == [(0x50, 3), (BP, 5), (0x51, 8)]
        assert guest.registers.rax == 3


@pytest.mark.parametrize("mode", MODES)
def test_trap_flag_stops_after_each_instruction(mode: str) -> None:
    with LegacyGuest(mode, resume=True, last=0x51) as guest:
        # nop; cpuid; nop; int 0x51; jmp $
        guest.run(b"\x90\x0f\xa2\x90\xcd\x51\xeb\xfe", FIXED | TF | IOPL_3, rax=0)
        # The way into real mode ends in POPF and a jump, which is the first to be stopped behind
        ips = [event.ip - guest.place for event in guest.events if event.vector == DB]
        assert ips[mode == "real" :][:3] == [1, 3, 4]


@pytest.mark.parametrize("mode", MODES)
def test_pushf_shows_neither_rf_nor_vm(mode: str) -> None:
    with LegacyGuest(mode) as guest:
        wide = b"\x66" if mode in SIXTEEN else b""
        guest.run(wide + b"\x9c" + wide + b"\x58\x0f\x0b", FLAGS | RF | IOPL_3)     # pushfd; pop eax; ud2
        assert guest.registers.rax == FLAGS | IOPL_3


@pytest.mark.parametrize("mode", PRIVILEGED)
def test_no_idt_is_a_triple_fault(mode: str) -> None:
    with LegacyGuest(mode) as guest:
        at = 0x100
        guest.memory.write(at, bytes(6))
        lidt = b"\x0f\x01" + (b"\x1e" + struct.pack("<H", at) if mode in SIXTEEN else b"\x1d" + struct.pack("<I", at))
        assert guest.run(lidt + b"\xcd\x50") is Exit.SHUTDOWN                       # int 0x50
        assert guest.registers.rip == guest.place + len(lidt)


def test_int_through_no_gate_names_the_gate_and_the_instruction() -> None:
    with LegacyGuest("32 with a base") as guest:
        guest.memory.write(legacy.IDT + 8 * 0x50 + 5, b"\x6e")                    # clears the present bit
        guest.run(b"\xcd\x50")
        (event,) = guest.events
        assert (event.vector, event.error_code, event.ip) == (11, 0x50 * 8 + 2, OFFSET)


def test_code_goes_on_through_all_modes() -> None:
    """32-bit code, 16-bit code by a far jump, real mode, and back again."""
    with LegacyGuest("32") as guest:
        to_16 = b"\xea" + struct.pack("<IH", 0x1000, CODE_16)
        real = (
            b"\x0f\x20\xc0\x24\xfe\x0f\x22\xc0"                                # mov eax, cr0; and al, ~1; mov cr0, eax
            + b"\xea" + struct.pack("<HH", 0x100D, BASE >> 4)                    # jmp here, in real mode
            + b"\x8c\xcb"                                                        # mov bx, cs
            + b"\x0c\x01\x0f\x22\xc0"                                            # or al, 1; mov cr0, eax
            + b"\x66\xea" + struct.pack("<IH", BASE + 0x2000, CODE_32)           # jmp to 32-bit code
        )  # fmt: skip
        guest.memory.write(BASE + 0x1000, real)
        guest.memory.write(BASE + 0x2000, b"\x8c\xc9\xf4")                       # mov ecx, cs; hlt
        assert guest.run(to_16, rbx=0) is Exit.HALT
        assert (guest.registers.rbx, guest.registers.rcx) == (BASE >> 4, CODE_32)
        assert guest.registers.rip == BASE + 0x2003
