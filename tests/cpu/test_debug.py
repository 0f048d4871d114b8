"""Breakpoints, watches and steps: where they stop, and that the guest does not notice."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from emu.cpu.debug import DebugAccess, Stop
from emu.cpu.platform import Exit
from emu.micro import CODE, DATA, DB, IF, PF, RF, STUBS, TF, UNMAPPED, USER_CODE, MicroGuest
from tests.cpu.moving import Movable, Outcome, outcome
from tests.cpu.programs import MODES, RAISE, Generator, Mode

PATIENCE_NS = 60_000_000_000
MSR = 0x4B56_4DFF
PROGRAM = """
    0f 20 e0                       mov rax, cr4
    0d 00 06 00 00                 or eax, 0x600           ; OSFXSR, OSXMMEXCPT
    0f 22 e0                       mov cr4, rax
    31 c0                          xor eax, eax
    b9 28 00 00 00                 mov ecx, 40
    bf 00 00 03 00                 mov edi, DATA
    48 01 c8                       add rax, rcx            ; again
    48 11 c3                       adc rbx, rax
    9c                             pushf
    5a                             pop rdx
    48 89 17                       mov [rdi], rdx
    cd 80                          int 0x80
    cc                             int3
    51                             push rcx
    57                             push rdi
    53                             push rbx
    be 00 00 03 00                 mov esi, DATA
    bf 00 20 03 00                 mov edi, DATA + 0x2000
    b9 05 00 00 00                 mov ecx, 5
    f3 a4                          rep movsb
    31 c0                          xor eax, eax
    0f a2                          cpuid
    5b                             pop rbx
    5f                             pop rdi
    59                             pop rcx
    e7 99                          out 0x99, eax
    ff 05 02 00 00 00              inc dword [rip + 2]     ; the operand of the next
    41 b8 00 01 00 00              mov r8d, 0x100
    4c 01 c0                       add rax, r8
    f2 48 0f 2a c0                 cvtsi2sd xmm0, rax
    f2 0f 58 c8                    addsd xmm1, xmm0
    df 2f                          fild qword [rdi]
    dd 9f 00 10 00 00              fstp qword [rdi + 0x1000]
    83 c7 08                       add edi, 8
    8c d0                          mov eax, ss
    fb                             sti
    8e d0                          mov ss, eax
    fa                             cli
    51                             push rcx
    b9 ff 4d 56 4b                 mov ecx, MSR
    0f 32                          rdmsr
    0f 30                          wrmsr
    59                             pop rcx
    ff c9                          dec ecx
    75 9d                          jne again
    f4                             hlt
"""
LOOP = b"\x31\xc0" + b"\xff\xc0" * 3 + b"\xeb\xf8"          # xor eax, eax; 3 times inc eax; jmp to the first of them


def code_of(listing: str) -> bytes:
    return b"".join(bytes.fromhex(line.split("   ")[0]) for line in re.findall(r"^    (.+)", listing, re.MULTILINE))


def soon() -> int:
    return time.monotonic_ns() + PATIENCE_NS


@pytest.fixture
def guest() -> Iterator[MicroGuest]:
    with MicroGuest(resume=(3, 0x80, DB), msrs={MSR: 5}) as guest:
        yield guest


def enter(guest: MicroGuest, access: DebugAccess) -> None:
    """Do the IRETQ that `put` has prepared."""
    assert access.step() == (Exit.KICK, Stop.STEPPED)


# -- steps -----------------------------------------------------------------------------------------------------------


def finished(guest: MicroGuest) -> tuple[object, ...]:
    """All that a guest is; time aside."""
    return replace(guest.cpu.save(), tsc=0), guest.memory.read(0, guest.memory.size), guest.outs, guest.events


def test_a_thousand_steps_leave_the_same_state_as_none() -> None:
    """Traps, ports, MSRs, strings, the FPU, shadows, and code that changes itself."""
    ends = []
    for is_stepped in False, True:
        with MicroGuest(resume=(3, 0x80), msrs={MSR: 5}) as guest:
            guest.put(code_of(PROGRAM))
            if is_stepped:
                access, steps = DebugAccess(guest.cpu), 0
                while (stop := access.step()) == (Exit.KICK, Stop.STEPPED):
                    steps += 1
                assert stop[0] is Exit.HALT
                assert steps > 1000
            else:
                assert guest.go() is Exit.HALT
            ends.append(finished(guest))
    assert ends[0] == ends[1]


class Uninterrupted(Movable):
    """One whose program asks for no interrupts: those come between two blocks, which steps change."""

    def port_out(self, port: int, size: int, value: int) -> None:
        if port != RAISE:
            super().port_out(port, size, value)


def random_program(mode: Mode, seed: int, is_stepped: bool) -> Outcome:
    choices = random.Random(seed)
    code, data = Generator(mode, choices).program(120), choices.randbytes(0x3000)
    with Uninterrupted(stays=range(10_000)) as guest:
        mode.prepare(guest.memory, code, data)
        guest.cpu.restore(mode.enter(guest.cpu.save()))
        access = DebugAccess(guest.cpu)
        while not guest.is_over:
            if is_stepped:
                assert access.step() == (Exit.KICK, Stop.STEPPED)
            else:
                assert guest.go() is Exit.KICK, guest.cpu.error
        return outcome(guest)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_random_programs_come_to_the_same_end_in_steps(mode: Mode) -> None:
    for seed in range(4):
        assert random_program(mode, seed, True) == random_program(mode, seed, False), seed


def test_each_step_is_one_instruction(guest: MicroGuest) -> None:
    guest.put(LOOP)
    access = DebugAccess(guest.cpu)
    seen = []
    for _ in range(7):
        enter(guest, access)
        seen.append(guest.registers.rip - CODE)
    assert seen == [0, 2, 4, 6, 8, 2, 4]
    assert guest.registers.rax == 4


def test_a_step_into_a_fault_ends_at_the_handler(guest: MicroGuest) -> None:
    guest.put(b"\xa0" + UNMAPPED.to_bytes(8, "little"))                     # mov al, [UNMAPPED]
    access = DebugAccess(guest.cpu)
    enter(guest, access)
    assert access.step() == (Exit.KICK, Stop.STEPPED)
    assert guest.registers.rip == STUBS + 16 * PF


def test_a_step_over_hlt_halts(guest: MicroGuest) -> None:
    guest.put(b"\xf4\x90")
    access = DebugAccess(guest.cpu)
    enter(guest, access)
    assert access.step()[0] is Exit.HALT
    assert (guest.cpu.halted, guest.registers.rip) == (True, CODE + 1)


def test_a_step_takes_no_interrupt_and_keeps_it(guest: MicroGuest) -> None:
    guest.put(b"\x90" * 8, rflags=IF | 2)
    guest.vectors.append(0x40)
    access = DebugAccess(guest.cpu)
    enter(guest, access)
    guest.cpu.set_interrupt_line(True)
    assert access.step() == (Exit.KICK, Stop.STEPPED)
    assert guest.registers.rip == CODE + 1
    assert access.deliver() == (Exit.KICK, Stop.STEPPED)
    assert guest.registers.rip == STUBS + 16 * 0x40


def test_a_guest_that_steps_itself_goes_on_doing_so(guest: MicroGuest) -> None:
    """TF: a #DB behind each instruction, also behind those that a debugger steps over."""
    guest.put(b"\x90\x90\x90\xf4", rflags=TF | 2)
    access = DebugAccess(guest.cpu)
    while access.step()[0] is not Exit.HALT:
        pass
    assert [(event.vector, event.rip - CODE) for event in guest.events] == [(DB, 1), (DB, 2), (DB, 3)]


def test_a_store_to_the_page_that_it_stands_in_is_one_step(guest: MicroGuest) -> None:
    """libunicorn runs such an instruction again, in a block of its own."""
    guest.put(b"\xff\x05\x06\x00\x00\x00\x90\x90" + bytes(8))               # inc dword [rip + 6]; nop; nop
    access = DebugAccess(guest.cpu)
    enter(guest, access)
    for _ in range(3):
        guest.registers.rip = CODE
        assert access.step() == (Exit.KICK, Stop.STEPPED)
        assert guest.registers.rip == CODE + 6
    assert guest.quad(CODE + 12) == 3


# -- breakpoints -----------------------------------------------------------------------------------------------------


def test_a_breakpoint_stops_before_its_instruction_also_in_the_midst_of_translated_code(guest: MicroGuest) -> None:
    guest.put(LOOP)
    guest.go(0.01)
    access = DebugAccess(guest.cpu)
    access.set_breakpoints([CODE + 4])
    for _ in range(3):
        assert access.run(soon()) == (Exit.KICK, Stop.BREAKPOINT)
        assert guest.registers.rip == CODE + 4
        before = guest.registers.rax
        assert access.step() == (Exit.KICK, Stop.STEPPED)                   # with the breakpoint in place
        assert (guest.registers.rip, guest.registers.rax) == (CODE + 6, before + 1)
    assert guest.memory.read(CODE, len(LOOP)) == LOOP
    access.close()
    assert access.run(time.monotonic_ns() + 1_000_000) == (Exit.KICK, None)


def test_a_breakpoint_stops_where_the_guests_own_would_be_passed_over(guest: MicroGuest) -> None:
    """RF suppresses a CPU's breakpoints for one instruction."""
    guest.put(LOOP, rflags=RF | 2)
    access = DebugAccess(guest.cpu)
    access.set_breakpoints([CODE])
    assert access.run(soon()) == (Exit.KICK, Stop.BREAKPOINT)
    assert guest.registers.rip == CODE


def test_a_breakpoint_in_ring_3_and_one_at_a_handler(guest: MicroGuest) -> None:
    guest.put(b"\x90\xcd\x80\x90\xeb\xfe", USER_CODE)                       # nop; int 0x80; nop; jmp to itself
    access = DebugAccess(guest.cpu)
    access.set_breakpoints([USER_CODE + 3, STUBS + 16 * 0x80])
    for place, ring in ((STUBS + 16 * 0x80, 0), (USER_CODE + 3, 3)):
        assert access.run(soon()) == (Exit.KICK, Stop.BREAKPOINT)
        assert (guest.registers.rip, guest.registers.cpl) == (place, ring)
        assert access.step() == (Exit.KICK, Stop.STEPPED)


def test_the_guests_own_breakpoint_at_the_same_place_still_traps(guest: MicroGuest) -> None:
    set_up = b"\xb8" + (CODE + 32).to_bytes(4, "little") + b"\x0f\x23\xc0"  # mov eax, ...; mov dr0, rax
    set_up += b"\xb8\x02\x00\x00\x00\x0f\x23\xf8\xeb\xfe"                   # mov eax, 2; mov dr7, rax; jmp to itself
    guest.put(set_up.ljust(32, b"\x90") + b"\x90\xf4")
    access = DebugAccess(guest.cpu)
    while guest.registers.rip != CODE + len(set_up) - 2:
        access.run(time.monotonic_ns() + 10_000_000)
    access.set_breakpoints([CODE + 32])
    guest.registers.rip = CODE + 31
    assert access.run(soon()) == (Exit.KICK, Stop.BREAKPOINT)
    assert guest.events == []
    assert access.step() == (Exit.KICK, Stop.STEPPED)
    assert guest.registers.rip == STUBS + 16 * DB
    access.close()
    while not guest.events:
        guest.go(0.01)
    assert (guest.events[0].vector, guest.events[0].rip) == (DB, CODE + 32)


# -- watches ---------------------------------------------------------------------------------------------------------


def test_a_watch_stops_behind_the_instruction_that_changes_it(guest: MicroGuest) -> None:
    place = DATA + 5
    guest.put(b"\x90\xfe\x04\x25" + place.to_bytes(4, "little") + b"\x90\xeb\xf5")  # nop; inc byte [place]; nop; jmp
    access = DebugAccess(guest.cpu)
    access.set_watches([[(DATA + 0x100, 8)], [(DATA + 3, 10)]])             # the second in two words of the host
    for count in range(1, 4):
        assert access.run(soon()) == (Exit.KICK, Stop.WATCH)
        assert access.changed() == [1]
        assert access.changed() == []
        assert (guest.registers.rip, guest.memory.read(place, 1)[0]) == (CODE + 8, count)
    guest.memory.write(DATA + 0x100, b"\1")
    assert access.changed() == [0]


def test_bytes_beside_a_watch_do_not_stop(guest: MicroGuest) -> None:
    guest.put(b"\xfe\x04\x25" + (DATA + 5).to_bytes(4, "little") + b"\xeb\xf7")     # inc byte [DATA + 5]; jmp to it
    access = DebugAccess(guest.cpu)
    access.set_watches([[(DATA, 5)], [(DATA + 6, 2)], [(guest.memory.size - 1, 1)]])
    assert access.run(time.monotonic_ns() + 10_000_000) == (Exit.KICK, None)
    assert access.changed() == []


def test_a_breakpoint_stops_while_something_is_watched(guest: MicroGuest) -> None:
    guest.put(LOOP)
    access = DebugAccess(guest.cpu)
    access.set_watches([[(DATA, 8)]])
    access.set_breakpoints([CODE + 6])
    for _ in range(2):
        assert access.run(soon()) == (Exit.KICK, Stop.BREAKPOINT)
        assert guest.registers.rip == CODE + 6
        assert access.step() == (Exit.KICK, Stop.STEPPED)


def test_a_watched_program_comes_to_the_same_end() -> None:
    ends = []
    for is_watched in False, True:
        with MicroGuest(resume=(3, 0x80), msrs={MSR: 5}) as guest:
            guest.put(code_of(PROGRAM))
            access = DebugAccess(guest.cpu)
            if is_watched:
                access.set_watches([[(DATA + 0x8000, 8)]])
            assert access.run(soon()) == (Exit.HALT, None)
            ends.append(finished(guest))
    assert ends[0] == ends[1]


def test_nothing_is_left_behind(guest: MicroGuest) -> None:
    """Once nobody debugs, blocks have many instructions again and no bit of the flags says otherwise."""
    guest.put(LOOP)
    access = DebugAccess(guest.cpu)
    access.set_breakpoints([CODE + 4])
    access.set_watches([[(DATA, 8)]])
    access.run(soon())
    access.step()
    access.close()
    inside = guest.cpu.inside()
    assert inside.hflags[0] < 1 << 30
    assert inside.cflags_next_tb[0] == 0xFFFF_FFFF
    assert (guest.cpu.context.stepping, guest.cpu.context.watch_count, guest.cpu.context.breakpoint_count) == (0, 0, 0)
