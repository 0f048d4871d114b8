"""The guest that unit tests of hypercalls use: fresh, quick, and hard to break."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from emu import EmuError, GuestError, GuestException, GuestTimeout, MicroGuest
from emu.assembler import CPUID, HLT, NOP, OUT, RDMSR, SYSCALL, UD2, WRMSR, interrupt, load, mov, store
from emu.cpu.constants import MSR_LSTAR, MSR_SFMASK
from emu.micro import DF, EVENT_PORT, GP, HALTING, KERNEL_CS, PF, UD
from emu.micro_system import MEMORY_SIZE, SYSTEM, SYSTEM_SIZE
from emu.microguest import CODE, STACK
from hypercalls.numbers import LAST, PV_CONSOLE, PV_MARK

SPIN = b"\xeb\xfe"                      # jmp to itself


def wrmsr(number: int, value: int) -> bytes:
    """The instructions that write an MSR."""
    return mov("rcx", number) + mov("rax", value) + mov("rdx", value >> 32) + WRMSR


@pytest.fixture
def guest() -> Iterator[MicroGuest]:
    with MicroGuest() as guest:
        yield guest


# -- code ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("end", [b"", HLT, HLT + UD2])
def test_code_runs_to_hlt_or_its_end(guest: MicroGuest, ring: int, end: bytes) -> None:
    guest.run(NOP + mov("rbx", 5) + end, ring=ring)
    assert guest.registers.rbx == 5
    assert guest.registers.rip == CODE + 12
    assert f"cs {0x33 if ring else 0x10:016x}" in guest.describe()
    assert guest.registers.rsp == STACK


def test_registers_are_those_given_and_zero(guest: MicroGuest) -> None:
    guest.run(mov("r15", 2**64 - 1) + mov("rbp", 1))
    guest.run(NOP, rax=2**64 - 1, r8=-2, rsp=0x5000)
    registers = guest.registers
    assert (registers.rax, registers.r8, registers.rsp) == (2**64 - 1, 2**64 - 2, 0x5000)
    assert (registers.r15, registers.rbp) == (0, 0)


@pytest.mark.parametrize("ring", [0, 3])
def test_code_has_all_memory_and_a_stack(guest: MicroGuest, ring: int) -> None:
    guest.memory.write(MEMORY_SIZE - 8, b"abcdefgh")
    code = mov("rax", MEMORY_SIZE - 8) + load("rbx", "rax") + b"\x53\x59" + mov("rax", 0) + store("rax", "rcx")
    guest.run(code, ring=ring)                                      # \x53\x59: push rbx; pop rcx
    assert guest.memory.read(0, 8) == b"abcdefgh"


def test_new_code_runs_in_place_of_old(guest: MicroGuest) -> None:
    for value in range(20):
        guest.run(mov("rbx", value))
        assert guest.registers.rbx == value


def test_every_guest_is_fresh() -> None:
    for _ in range(3):
        with MicroGuest() as guest:
            assert not any(guest.memory.ram[: 8 << 20])
            assert (guest.console, guest.marks, guest.idles, guest.exit_status) == (b"", [], 0, None)
            guest.run(mov("rcx", MSR_LSTAR) + RDMSR)
            assert guest.registers.rax == 0
            guest.memory.write(0, b"x")
            guest.run(wrmsr(PV_CONSOLE, ord("x")) + wrmsr(MSR_LSTAR, 5))


@pytest.mark.parametrize("address", [SYSTEM, SYSTEM + SYSTEM_SIZE - 8])
def test_what_the_cpu_needs_for_itself_is_not_for_ring_3(guest: MicroGuest, address: int) -> None:
    with pytest.raises(GuestException, match=r"#PF .* error code 0x5"):
        guest.run(load("rbx", "rax"), ring=3, rax=address)


def test_system_calls_and_cpuid(guest: MicroGuest) -> None:
    guest.memory.write(0x5000, mov("rbx", 7) + HLT)
    guest.run(wrmsr(MSR_LSTAR, 0x5000) + wrmsr(MSR_SFMASK, 0))
    guest.run(SYSCALL, ring=3)
    assert guest.registers.rbx == 7 and guest.registers.segment("cs")[0] == KERNEL_CS
    guest.run(CPUID, rax=0x4000_0000)
    assert struct.pack("<I", guest.registers.rbx) == b"KVMK"


def test_mistakes_in_calls_are_told(guest: MicroGuest) -> None:
    with pytest.raises(TypeError, match="no general register is called eax"):
        guest.run(NOP, eax=1)
    with pytest.raises(ValueError, match="ring 1"):
        guest.run(NOP, ring=1)
    with pytest.raises(ValueError, match="too many"):
        guest.run(bytes(1 << 20))
    guest.run(NOP * ((1 << 20) - 1))


# -- exceptions ------------------------------------------------------------------------------------------------

EXCEPTIONS = {
    "ud2": (NOP + UD2, UD, 0, CODE + 1, 0),
    "write to nothing": (mov("rax", 1 << 32) + store("rax", "rax"), PF, 2, CODE + 10, 1 << 32),
    "int 0x80": (interrupt(0x80), 0x80, 0, CODE + 2, 0),
    "bad stack pointer": (mov("rsp", 1 << 40) + UD2, UD, 0, CODE + 10, 0),
    "push onto no stack": (mov("rsp", 1 << 40) + b"\x50", PF, 2, CODE + 10, (1 << 40) - 8),
}


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_is_one(guest: MicroGuest, name: str, ring: int) -> None:
    code, vector, error_code, rip, cr2 = EXCEPTIONS[name]
    error_code |= 4 if vector == PF and ring else 0                 # by code of ring 3
    for _ in range(2):
        with pytest.raises(GuestException) as raised:
            guest.run(code, ring=ring, rbx=9)
        fault = raised.value
        assert (fault.vector, fault.error_code, fault.rip, fault.cr2) == (vector, error_code, rip, cr2)
        assert (guest.registers.rip, guest.registers.rbx) == (rip, 9)
        assert f"=> {rip:#x}" in guest.describe()
        assert f"cs 00000000000000{0x33 if ring else 0x10:x}" in guest.describe()


def test_an_exception_reads_well(guest: MicroGuest) -> None:
    with pytest.raises(GuestException) as raised:
        guest.run(load("rax", "rbx"), rbx=0x9000_0000)
    assert str(raised.value) == "#PF (vector 14), error code 0x0, at RIP 0x100000, CR2 0x90000000"
    with pytest.raises(GuestException) as raised:
        guest.wrmsr(LAST, 0)
    assert str(raised.value).startswith("#GP (vector 13), error code 0x0, at RIP 0x")
    assert isinstance(raised.value, EmuError)


@pytest.mark.parametrize("ring", [0, 3])
def test_only_ring_0_may_use_msrs(guest: MicroGuest, ring: int) -> None:
    code = wrmsr(PV_MARK, 5)
    if ring:
        with pytest.raises(GuestException, match="#GP"):
            guest.run(code, ring=3)
    else:
        guest.run(code)
    assert guest.marks == ([] if ring else [5])


def test_a_halt_that_is_no_end_is_still_gp(guest: MicroGuest) -> None:
    with pytest.raises(GuestException) as raised:
        guest.run(b"\xfa", ring=3)                                  # cli
    assert (raised.value.vector, raised.value.rip) == (GP, CODE)


@pytest.mark.parametrize("ring", [0, 3])
def test_a_loop_without_end_ends(guest: MicroGuest, ring: int) -> None:
    guest.memory.write(0x5000, b"kept")
    for _ in range(2):
        for timeout in (0.05, 5, 50):       # on a busy host it may not have begun in the first of them
            with pytest.raises(GuestTimeout, match=f"^the guest has not come to an end in {timeout} s; ") as raised:
                guest.run(NOP + SPIN, ring=ring, timeout=timeout)
            if str(raised.value).endswith("it is at RIP 0x100001"):
                break
        assert "=> 0x100001  eb fe  jmp 0x100001" in guest.describe()
    guest.run(mov("rbx", 3), ring=ring)
    assert guest.registers.rbx == 3
    assert guest.memory.read(0x5000, 4) == b"kept"


NO_IDT = b"\x0f\x01\x1c\x25" + struct.pack("<I", 0x5000)            # lidt [0x5000], which is all zero


def test_a_triple_fault_is_not_the_end(guest: MicroGuest) -> None:
    for _ in range(2):
        with pytest.raises(GuestError, match=r"^the guest is dead: triple fault at RIP 0x100008$"):
            guest.run(NO_IDT + UD2)
        assert "=> 0x100008  0f 0b" in guest.describe()
    guest.wrmsr(PV_MARK, 1)
    assert guest.marks == [1]


def test_code_in_another_mode_is_not_the_end(guest: MicroGuest) -> None:
    """A far return to the 32-bit segment, and HLT there."""
    guest.run(b"\x6a\x08\x68" + struct.pack("<I", CODE + 9) + b"\x48\xcb" + HLT)   # push 8; push; retfq
    assert guest.registers.code_bits == 32
    assert "=> 0x10000a" in guest.describe()
    guest.run(mov("rbx", 2**40))
    assert guest.registers.rbx == 2**40


@pytest.mark.parametrize("rsp", [0, SYSTEM - 8, SYSTEM + SYSTEM_SIZE - 8, 2**64 - 8])
def test_a_guest_that_plays_a_stub_is_no_harm(guest: MicroGuest, rsp: int) -> None:
    guest.run(OUT, rdx=EVENT_PORT)
    guest.run(b"\xff\xe0", rax=SYSTEM + HALTING, rsp=rsp)           # jmp rax
    guest.run(NOP)


def test_a_double_fault_has_its_name(guest: MicroGuest) -> None:
    """An IDT in RAM whose only gate is the double fault's: the stub of the guest's own for it."""
    guest.memory.write(0x6000 + 16 * DF, _gate_of(guest, DF))
    guest.memory.write(0x5000, struct.pack("<HQ", 0xFFF, 0x6000))
    with pytest.raises(GuestException, match=r"^#DF \(vector 8\)"):
        guest.run(NO_IDT + UD2)


def _gate_of(guest: MicroGuest, vector: int) -> bytes:
    """The gate that the guest's own IDT has."""
    guest.run(b"\x0f\x01\x0b", rbx=0x7000)                          # sidt [rbx]
    (base,) = struct.unpack("<Q", guest.memory.read(0x7002, 8))
    guest.run(load("rax", "rbx") + load("rcx", "rdx"), rbx=base + 16 * vector, rdx=base + 16 * vector + 8)
    return struct.pack("<QQ", guest.registers.rax, guest.registers.rcx)


# -- its end ---------------------------------------------------------------------------------------------------


def test_a_closed_guest_says_so() -> None:
    guest = MicroGuest()
    guest.close()
    guest.close()
    for use in (lambda: guest.run(NOP), lambda: guest.wrmsr(PV_MARK, 0), lambda: guest.registers, guest.describe):
        with pytest.raises(EmuError, match="closed"):
            use()


def test_an_error_inside_with_is_noted_where_the_guest_was() -> None:
    with pytest.raises(AssertionError) as raised, MicroGuest() as guest:
        guest.run(mov("rbx", 0x1234))
        raise AssertionError
    (note,) = raised.value.__notes__
    assert "rbx 0000000000001234" in note
    assert note.endswith("   0x10000a  f4                             hlt")     # RIP is behind it
