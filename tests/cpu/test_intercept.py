"""System calls that the host answers, instruction by instruction; and all those it must leave alone."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator

import pytest

from emu import micro
from emu.cpu.constants import EFER_LMA, EFER_LME, EFER_NXE, MSR_EFER, MSR_LSTAR
from emu.cpu.platform import Exit
from emu.micro import (
    BP,
    CF,
    CODE,
    DATA,
    DB,
    DIRECTION,
    FIXED,
    IF,
    KERNEL_CS32,
    PF,
    TF,
    UD,
    UNMAPPED,
    USER_CODE,
    USER_CS,
    USER_CS32,
    USER_DATA,
    USER_TOP,
    MicroGuest,
)
from emu.paging import AddressSpace
from hypercalls.fake import FakeClock
from hypercalls.syscall_dispatch import SyscallDispatcher
from hypercalls.syscalls import NUMBERS, PASS, Handler, Syscall, SyscallCall, SyscallResult
from tests.cpu.test_stops import STOPPERS, Stopper
from tests.cpu.test_syscall import COMPAT_ENTRY, ENTRY, EVERYTHING, LEGACY_ENTRY, SYSCALL, guest_with_entries

INT3 = b"\xcc"
NUMBER = 39
MASK = IF | TF | DIRECTION


def intercept(guest: MicroGuest, handlers: dict[int, Handler]) -> None:
    """Answer system calls of a guest."""
    dispatcher = SyscallDispatcher(AddressSpace(guest.memory, guest.registers), FakeClock(), guest.registers)
    guest.cpu.intercept_syscalls(
        {number: dispatcher.bind(Syscall(number, "test", handler)) for number, handler in handlers.items()}
    )


@pytest.fixture
def guest() -> Iterator[MicroGuest]:
    """One whose kernel halts."""
    with guest_with_entries(MASK) as guest:
        yield guest


def counts(guest: MicroGuest) -> tuple[int, int]:
    """How many calls were answered, and how many have reached the kernel."""
    return guest.cpu.context.intercepted, guest.cpu.context.syscalls


def in_the_kernel(guest: MicroGuest, entry: int = ENTRY) -> bool:
    """Whether the call has come to an entry, which halts, and to nothing else."""
    return not guest.events and guest.registers.rip == entry + 1 and guest.registers.cpl == 0


# -- answered ------------------------------------------------------------------------------------------------------


def test_a_handler_has_the_call_and_the_program_its_result(guest: MicroGuest) -> None:
    calls = []

    def handler(call: SyscallCall) -> int:
        calls.append((call.number, call.arguments, call.root))
        return 0x1234_5678_9ABC_DEF0

    intercept(guest, {NUMBER: handler})
    arguments = {"rdi": 1, "rsi": 2**64 - 1, "rdx": 3, "r10": 4, "r8": 1 << 63, "r9": 6}
    others = {name: 0x100 + i for i, name in enumerate(("rbx", "rbp", "r12", "r13", "r14", "r15"))}
    guest.run(b"\x90" + SYSCALL + INT3, USER_CODE, rax=NUMBER, rcx=7, r11=8, **arguments, **others)
    assert calls == [(NUMBER, (1, 2**64 - 1, 3, 4, 1 << 63, 6), micro.PML4)]
    event, registers = guest.event, guest.registers
    assert (event.vector, event.rip, event.cs, event.rsp) == (BP, USER_CODE + 4, USER_CS, USER_TOP)
    assert registers.rax == 0x1234_5678_9ABC_DEF0
    assert registers.rcx == USER_CODE + 3
    assert registers.r11 == event.rflags == FIXED
    for name, value in (arguments | others).items():
        assert getattr(registers, name) == value, name
    assert counts(guest) == (1, 0)


@pytest.mark.parametrize("rflags", [FIXED, EVERYTHING, EVERYTHING & ~IF, FIXED | DIRECTION, FIXED | CF])
def test_flags_are_as_they_were(guest: MicroGuest, rflags: int) -> None:
    intercept(guest, {NUMBER: lambda call: 0})
    guest.run(SYSCALL + INT3, USER_CODE, rax=NUMBER, rflags=rflags)
    assert guest.event.rflags == guest.registers.r11 == rflags


def test_flags_that_nobody_asked_for_are_in_r11_and_still_there(guest: MicroGuest) -> None:
    intercept(guest, {NUMBER: lambda call: 0})
    code = b"\xb0\xff\x04\x01\xb0\x27"                   # mov al, 0xff; add al, 1; mov al, 39
    guest.run(code + SYSCALL + INT3, USER_CODE, rax=0)
    assert guest.event.rflags == guest.registers.r11 == FIXED | 0x55


@pytest.mark.parametrize(("result", "rax"), [(0, 0), (-14, 2**64 - 14), (2**64 - 1, 2**64 - 1), (-(2**63), 1 << 63)])
def test_results_are_64_bits(guest: MicroGuest, result: int, rax: int) -> None:
    intercept(guest, {NUMBER: lambda call: result})
    guest.run(SYSCALL + INT3, USER_CODE, rax=NUMBER)
    assert guest.event.vector == BP
    assert guest.registers.rax == rax


@pytest.mark.parametrize("number", [0, 63, 64, 127, 255, 256, NUMBERS - 1])
def test_every_number_has_its_own_bit(guest: MicroGuest, number: int) -> None:
    intercept(guest, {number: lambda call: call.number + 1000})
    guest.run(SYSCALL + INT3, USER_CODE, rax=number)
    assert guest.registers.rax == number + 1000
    for other in {number - 1, number + 1, number ^ 64, number ^ 256} & set(range(NUMBERS)):
        guest.events.clear()
        guest.run(SYSCALL + INT3, USER_CODE, rax=other)
        assert in_the_kernel(guest)


@pytest.mark.parametrize("prefix", [b"\x66", b"\x48", b"\x2e\x66\x67"])
def test_prefixes_count_for_the_next_instruction(guest: MicroGuest, prefix: bytes) -> None:
    intercept(guest, {NUMBER: lambda call: 0})
    guest.run(prefix + SYSCALL + INT3, USER_CODE, rax=NUMBER)
    assert guest.registers.rcx == USER_CODE + len(prefix) + 2
    assert guest.event.rip == USER_CODE + len(prefix) + 3


def test_a_single_step_traps_behind_it_in_the_program(guest: MicroGuest) -> None:
    intercept(guest, {NUMBER: lambda call: 7})
    guest.run(b"\x90" + SYSCALL + INT3, USER_CODE, rax=NUMBER, rflags=FIXED)
    guest.events.clear()
    guest.run(SYSCALL + INT3, USER_CODE, rax=NUMBER, rflags=FIXED | TF)
    event = guest.event
    assert (event.vector, event.rip, event.cs, event.rflags) == (DB, USER_CODE + 2, USER_CS, FIXED | TF)
    assert (guest.registers.rax, guest.registers.r11) == (7, FIXED | TF)


@pytest.mark.parametrize("at", [USER_CODE + 0xFFE, USER_CODE + 0xFFF])
def test_at_the_end_of_a_page(guest: MicroGuest, at: int) -> None:
    intercept(guest, {NUMBER: lambda call: 0})
    guest.run(SYSCALL + INT3, at, rax=NUMBER)
    assert (guest.event.vector, guest.event.rip) == (BP, at + 3)
    assert counts(guest) == (1, 0)


def test_before_a_page_that_is_not_there_it_is_done_and_the_next_instruction_faults(guest: MicroGuest) -> None:
    intercept(guest, {NUMBER: lambda call: 5})
    guest.write_quads(micro.PT + (USER_CODE + 0x1000 >> 9), 0)
    guest.run(SYSCALL, USER_CODE + 0xFFE, rax=NUMBER)
    event = guest.event
    assert (event.vector, event.rip, event.cr2, event.cs) == (PF, USER_CODE + 0x1000, USER_CODE + 0x1000, USER_CS)
    assert guest.registers.rax == 5


def test_an_interrupt_raised_meanwhile_comes_behind_it(guest: MicroGuest) -> None:
    def handler(call: SyscallCall) -> int:
        guest.cpu.set_interrupt_line(True)
        return 1

    intercept(guest, {NUMBER: handler})
    guest.vectors.append(0x40)
    guest.run(SYSCALL + b"\xeb\xfe", USER_CODE, rax=NUMBER, rflags=FIXED | IF)
    assert (guest.event.vector, guest.event.rip, guest.event.cs) == (0x40, USER_CODE + 2, USER_CS)
    assert guest.registers.rax == 1


def test_memory_is_the_program_s(guest: MicroGuest) -> None:
    def double(call: SyscallCall) -> int:
        source, target, size, *_ = call.arguments
        call.memory.write(target, 2 * call.memory.read(source, size))
        return 2 * size

    intercept(guest, {NUMBER: double})
    data = bytes(range(256)) * 24                       # over the ends of pages
    guest.memory.write(USER_DATA + 5, data)
    guest.run(SYSCALL + INT3, USER_CODE, rax=NUMBER, rdi=USER_DATA + 5, rsi=USER_DATA + 0x3003, rdx=len(data))
    assert guest.registers.rax == 2 * len(data)
    assert guest.memory.read(USER_DATA + 0x3003, 2 * len(data)) == 2 * data


def test_a_handler_may_write_the_very_code_that_called(guest: MicroGuest) -> None:
    intercept(guest, {NUMBER: lambda call: call.memory.write(USER_CODE + 2, b"\x90\xcc") or 0})  # nop; int3
    guest.run(SYSCALL + b"\x0f\x0b", USER_CODE, rax=NUMBER)          # ud2
    assert (guest.event.vector, guest.event.rip) == (BP, USER_CODE + 4)


# -- left alone ----------------------------------------------------------------------------------------------------


def state(guest: MicroGuest) -> dict[str, object]:
    """All that a call changes."""
    registers = guest.registers
    return registers.dump() | {name: registers.segment(name) for name in ("cs", "ss")} | {"cpl": registers.cpl}


@pytest.mark.parametrize("rflags", [FIXED, EVERYTHING])
def test_a_call_passed_on_is_the_kernel_s_as_if_nobody_had_looked(rflags: int) -> None:
    seen = []

    def handler(call: SyscallCall) -> SyscallResult:
        seen.append(call.number)
        return PASS

    states = []
    for table in {}, {NUMBER: handler}:
        with guest_with_entries(MASK) as guest:
            intercept(guest, table)
            guest.run(SYSCALL + INT3, USER_CODE, rax=NUMBER, rdi=1, rsi=2, rdx=3, rflags=rflags)
            assert in_the_kernel(guest)
            assert counts(guest) == (0, 1)
            states.append(state(guest))
    assert states[0] == states[1]
    assert seen == [NUMBER]


ALL: dict[int, Handler] = dict.fromkeys(range(NUMBERS), lambda call: 0)
"""Answers whatever it is asked."""


@pytest.mark.parametrize("number", [512, 1 << 32 | NUMBER, 1 << 63 | NUMBER, 2**64 - 1, 0x4000_0000 | NUMBER])
def test_numbers_beyond_the_table_are_the_kernel_s(guest: MicroGuest, number: int) -> None:
    intercept(guest, ALL)
    guest.run(SYSCALL + INT3, USER_CODE, rax=number)
    assert in_the_kernel(guest)
    assert guest.registers.rax == number


def test_compatibility_mode_is_the_kernel_s(guest: MicroGuest) -> None:
    intercept(guest, ALL)
    guest.run(SYSCALL + INT3, USER_CODE, rax=NUMBER, cs=USER_CS32)
    assert in_the_kernel(guest, COMPAT_ENTRY)


def test_a_call_from_the_kernel_itself_is_the_kernel_s(guest: MicroGuest) -> None:
    intercept(guest, ALL)
    guest.run(SYSCALL + INT3, CODE, rax=NUMBER)
    assert in_the_kernel(guest)


def test_legacy_mode_is_the_kernel_s(guest: MicroGuest) -> None:
    intercept(guest, ALL)
    guest.memory.write(LEGACY_ENTRY, b"\xf4")
    # mov eax, cr0; and eax, ~PG; mov cr0, eax; mov eax, 39; syscall
    guest.run(b"\x0f\x20\xc0\x25\xff\xff\xff\x7f\x0f\x22\xc0\xb8\x27\0\0\0" + SYSCALL + INT3, cs=KERNEL_CS32)
    assert not guest.registers.efer & EFER_LMA
    assert in_the_kernel(guest, LEGACY_ENTRY)


def test_it_is_undefined_until_efer_allows_it(guest: MicroGuest) -> None:
    intercept(guest, ALL)
    guest.cpu.write_msr(MSR_EFER, EFER_LME | EFER_LMA | EFER_NXE)
    guest.run(b"\x90" + SYSCALL + INT3, USER_CODE, rax=NUMBER)
    assert (guest.event.vector, guest.event.rip) == (UD, USER_CODE + 1)
    assert counts(guest) == (0, 0)


# -- what a handler cannot do --------------------------------------------------------------------------------------

READ_ONLY = USER_DATA + 0x3000
BAD = {
    "not mapped": UNMAPPED,
    "not there yet": USER_DATA + 0x2000,
    "the kernel's": DATA,
    "a device's": micro.MMIO,
    "null, as a kernel's": 0,
    "not canonical": 1 << 47,
    "not canonical, high": 0xFFFF_0000_0000_0000,
    "the last byte": 2**64 - 1,
    "into what is not there": USER_DATA + 0x1FFD,
}


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("address", BAD.values(), ids=BAD)
def test_memory_that_is_not_the_program_s_makes_it_the_kernel_s(
    guest: MicroGuest, address: int, write: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(call: SyscallCall) -> int:
        if write:
            call.memory.write(call.arguments[0], b"x" * 8)
        return len(call.memory.read(call.arguments[0], 8))

    intercept(guest, {NUMBER: handler})
    guest.write_quads(micro.PT + (USER_DATA + 0x2000 >> 9), 0)
    before = guest.memory.read(0, 0x20_0000)
    guest.run(SYSCALL + INT3, USER_CODE, rax=NUMBER, rdi=address)
    assert in_the_kernel(guest)
    assert (guest.registers.rax, guest.registers.rdi) == (NUMBER, address)
    assert counts(guest) == (0, 1)
    assert not caplog.records
    assert guest.memory.read(USER_DATA, 0x2000) == before[USER_DATA : USER_DATA + 0x2000]


def test_what_is_read_only_can_be_read(guest: MicroGuest) -> None:
    intercept(guest, {1: lambda call: call.memory.read(READ_ONLY, 1)[0], 2: lambda call: put(call, READ_ONLY)})
    guest.memory.write(READ_ONLY, b"\x2a")
    guest.write_quads(micro.PT + (READ_ONLY >> 9), READ_ONLY | micro.PRESENT | micro.USER)
    guest.run(SYSCALL + INT3, USER_CODE, rax=1)
    assert guest.registers.rax == 0x2A
    guest.events.clear()
    guest.run(SYSCALL + INT3, USER_CODE, rax=2)
    assert in_the_kernel(guest)
    assert guest.memory.read(READ_ONLY, 1) == b"\x2a"


def put(call: SyscallCall, address: int) -> int:
    """A handler's store."""
    call.memory.write(address, b"\0")
    return 0


@pytest.mark.parametrize("size", [1 << 63, 2**64 - 1, 1 << 30])
def test_a_size_without_end_is_refused_before_anything_is_read(
    guest: MicroGuest, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    intercept(guest, {NUMBER: lambda call: len(call.memory.read(USER_DATA, call.arguments[0]))})
    guest.run(SYSCALL + INT3, USER_CODE, rax=NUMBER, rdi=size)
    assert in_the_kernel(guest)
    assert "without end" in caplog.text


def test_an_exception_is_logged_with_the_guest_s_registers_and_the_call_passed_on(
    guest: MicroGuest, caplog: pytest.LogCaptureFixture
) -> None:
    intercept(guest, {NUMBER: lambda call: 1 // 0})
    guest.run(SYSCALL + INT3, USER_CODE, rax=NUMBER, rdi=0x1234_5678)
    assert in_the_kernel(guest)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.exc_info is not None
    text = record.getMessage()
    assert "test (system call 39)" in text
    assert f"rip {USER_CODE:016x}" in text and "rdi 0000000012345678" in text


@pytest.mark.parametrize("result", [None, "0", 2**64, -(2**63) - 1, 1.0])
def test_what_no_register_holds_is_a_handler_s_mistake(
    guest: MicroGuest, result: object, caplog: pytest.LogCaptureFixture
) -> None:
    intercept(guest, {NUMBER: lambda call: result})  # type: ignore[return-value,dict-item]
    guest.run(SYSCALL + INT3, USER_CODE, rax=NUMBER)
    assert in_the_kernel(guest)
    assert caplog.records[0].levelno == logging.ERROR


def test_ctrl_c_in_a_handler_ends_the_run_and_the_guest_can_go_on(guest: MicroGuest) -> None:
    def handler(call: SyscallCall) -> int:
        raise KeyboardInterrupt

    intercept(guest, {NUMBER: handler})
    guest.put(SYSCALL, USER_CODE, rax=NUMBER)
    with pytest.raises(KeyboardInterrupt):
        guest.go()
    assert guest.registers.rip == ENTRY
    assert guest.go() is Exit.HALT
    assert in_the_kernel(guest)


# -- stops ---------------------------------------------------------------------------------------------------------

ANSWERED, PASSED = 100, 101
# syscall; xor al, 1; dec rbx; jnz to it; int3
CALLS = SYSCALL + b"\x34\x01\x48\xff\xcb\x75\xf7" + INT3
KERNEL = b"\x48\xff\x04\x25" + struct.pack("<I", DATA) + b"\x48\x0f\x07"        # inc qword [DATA]; sysretq
TURNS = 40_000


@pytest.mark.parametrize("stopper", STOPPERS.values(), ids=STOPPERS)
def test_stops_lose_and_repeat_no_call(stopper: Stopper) -> None:
    seen = [0, 0]

    def answered(call: SyscallCall) -> int:
        seen[0] += 1
        if seen[0] % 64 == 0:
            guest.cpu.stop()
        return ANSWERED

    def passed(call: SyscallCall) -> SyscallResult:
        seen[1] += 1
        if seen[1] % 64 == 0:
            guest.cpu.stop()
        return PASS

    with MicroGuest() as guest:
        intercept(guest, {ANSWERED: answered, PASSED: passed})
        guest.cpu.write_msr(MSR_LSTAR, CODE)
        guest.memory.write(CODE, KERNEL)
        guest.memory.write(DATA, bytes(8))
        guest.put(CALLS, USER_CODE, rax=ANSWERED, rbx=TURNS)
        assert stopper(guest, 10.0) > 100
        assert (guest.event.vector, guest.event.rip) == (BP, USER_CODE + len(CALLS))
        assert seen == [TURNS // 2, TURNS // 2]
        assert guest.quad(DATA) == TURNS // 2
        assert counts(guest) == (TURNS // 2, TURNS // 2)
