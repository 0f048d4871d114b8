"""A CPU that is saved, and another that is built from that, cannot be told apart by the guest."""

from __future__ import annotations

import pickle
import random
import struct
import subprocess
import sys
import time
from dataclasses import astuple, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unicorn import x86_const

from emu import micro
from emu.cpu.platform import Exit
from emu.cpu.registers import GENERAL
from emu.cpu.state import CpuState, Fpu, Segment
from emu.micro import MicroGuest
from tests.cpu.moving import Movable, Outcome, outcome
from tests.cpu.programs import FINISH, MARK, MODES, RAISE, VECTOR, Generator, Mode

KERNEL_64 = MODES[0]
NEVER = range(1 << 20)
HERE, LATER = bytes((0xE6, MARK)), bytes((0xE6, MARK, 0xEB, 0))     # out MARK, al; the second with a jmp behind it
INTERRUPT = bytes((0xE6, RAISE))
NO_FPU = 7                              # #NM
CHECKED_MSRS = 0x174, 0x17B, *range(0x400, 0x428)      # SYSENTER_CS has 16 bits; machine check banks


def start(mode: Mode, code: bytes, data: bytes = b"", stays: range = range(0)) -> Movable:
    """A guest at the program's start."""
    guest = Movable(frozenset({VECTOR}), stays=stays)
    mode.prepare(guest.memory, code, data)
    state = mode.enter(guest.cpu.save())
    guest.cpu.restore(replace(state, xmm=tuple(random.Random(code).getrandbits(128) for _ in state.xmm)))
    return guest


def finish(guest: Movable) -> tuple[Outcome, int]:
    """Run to the end, moving at every stop; and how often it moved."""
    moves = 0
    while True:
        assert guest.go() is Exit.KICK, (guest.cpu.registers.dump(), guest.events)
        if guest.is_over:
            end = outcome(guest)
            guest.close()
            return end, moves
        hidden, before = guest.cpu._hflags[0], guest.cpu.save()
        guest = guest.moved()
        assert guest.cpu._hflags[0] == hidden
        assert replace(guest.cpu.save(), tsc=0) == replace(before, tsc=0)
        moves += 1


def stopped(code: bytes, data: bytes = b"") -> Movable:
    """A guest that has run `code` in 64-bit mode as far as its first MARK."""
    guest = start(KERNEL_64, code + FINISH, data)
    assert guest.go() is Exit.KICK
    assert not guest.is_over
    return guest


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_a_program_that_moves_ends_as_one_that_does_not(mode: Mode, seed: int, size: int) -> None:
    choices = random.Random(seed)
    code, data = Generator(mode, choices).program(size), choices.randbytes(0x3000)
    unmoved, _ = finish(start(mode, code, data, stays=NEVER))
    moved, _ = finish(start(mode, code, data))
    assert moved == unmoved


def test_random_programs_move_and_are_interrupted() -> None:
    """Else the test above would show nothing."""
    guest = start(KERNEL_64, Generator(KERNEL_64, random.Random(1)).program(100), bytes(0x3000))
    end, moves = finish(guest)
    assert moves > 10
    assert end.events


def test_it_can_move_at_any_time() -> None:
    """Stopped by the clock, in the middle of REP MOVS and of a loop that adds to memory."""
    loop = (
        b"\xbe\x00\x00\x03\x00"                # mov esi, DATA
        b"\xbf\x00\x08\x03\x00"                # mov edi, DATA + 0x800
        b"\xb9\x00\x08\x00\x00"                # mov ecx, 0x800
        b"\xf3\xa4"                            # rep movsb
        b"\x48\x01\x0c\x25\x00\x10\x03\x00"    # add [DATA + 0x1000], rcx
        b"\x48\xff\x04\x25\x00\x18\x03\x00"    # inc qword [DATA + 0x1800]
        b"\xff\xca"                            # dec edx
        b"\x75\xdb"                            # jnz to the start
    )
    guest = start(KERNEL_64, b"\xba\x00\x04\x00\x00" + loop + FINISH, bytes(range(256)) * 8)
    moves = 0
    while not guest.is_over:
        guest.cpu.run(time.monotonic_ns() + random.randrange(300_000))
        if not guest.is_over:
            guest, moves = guest.moved(), moves + 1
    assert moves
    assert guest.quad(micro.DATA + 0x1800) == 0x400
    assert guest.memory.read(micro.DATA + 0x800, 0x800) == bytes(range(256)) * 8
    guest.close()


# -- what is between two instructions ------------------------------------------------------------------------------


def test_shadow_of_sti_moves() -> None:
    """The interrupt comes behind the instruction after STI, not before it."""
    guest = stopped(INTERRUPT + HERE + b"\xfb\x90\x90")         # sti; nop; nop
    assert guest.cpu.save().interrupt_shadow
    assert guest.cpu.registers.rip == micro.CODE + 5
    (event,) = finish(guest.moved())[0].events
    assert event.rip == micro.CODE + 6


def test_shadow_of_mov_ss_moves() -> None:
    guest = stopped(b"\xfb\x90\x8c\xd0" + HERE + INTERRUPT + b"\x8e\xd0\x90\x90")   # sti; nop; mov eax, ss; mov ss, eax
    assert guest.cpu.save().interrupt_shadow
    (event,) = finish(guest.moved())[0].events
    assert event.rip == micro.CODE + 11


def test_interrupt_that_waits_for_sti_moves() -> None:
    guest = stopped(INTERRUPT + LATER + b"\xfb\x90\x90")
    assert guest.cpu.save().interrupt_line
    end, _ = finish(guest.moved())
    assert [event.vector for event in end.events] == [VECTOR]
    assert not end.state.interrupt_line


def test_rep_moves_between_iterations() -> None:
    rep_outsb = b"\xb9\x05\0\0\0\xbe\0\0\x03\0\xba" + struct.pack("<I", MARK) + b"\xf3\x6e"
    guest = stopped(rep_outsb, b"abcde")
    state = guest.cpu.save()
    assert (state.rip, state.general[1]) == (micro.CODE + 15, 4)
    end, moves = finish(guest.moved())
    assert moves == 4
    assert bytes(value for port, _, value in end.outs if port == MARK) == b"abcde"


def test_halted_cpu_goes_on_behind_hlt() -> None:
    guest = start(KERNEL_64, b"\xf4" + FINISH)
    assert not guest.cpu.halted
    assert guest.go() is Exit.HALT
    assert guest.cpu.save().halted
    moved = guest.moved()
    assert moved.cpu.halted
    finish(moved)


def test_masked_nmi_moves_and_iret_ends_it() -> None:
    with stopped(HERE + b"\xeb\x00") as guest:
        state = guest.cpu.save()
        assert not state.nmi_masked
        guest.cpu.restore(replace(state, nmi_masked=True))
        assert guest.cpu.save().nmi_masked
        guest.put(FINISH)                       # by IRETQ
        guest.go()
        assert not guest.cpu.save().nmi_masked


# -- registers with an effect of their own -------------------------------------------------------------------------


def test_time_stamp_counter_goes_on() -> None:
    code = LATER + b"\x0f\x31" + FINISH         # rdtsc
    for at in 10**15, 2**64 - 10**15, 5:
        with stopped(code) as guest:
            guest.cpu.restore(replace(guest.cpu.save(), tsc=at))
            guest.go()
            now = guest.registers.rdx << 32 | guest.registers.rax
            assert 0 < now - at < 10**13        # an hour
            assert now < guest.cpu.tsc() < now + 10**13


def test_a_counter_about_to_wrap_wraps() -> None:
    with stopped(LATER) as guest:
        guest.cpu.restore(replace(guest.cpu.save(), tsc=2**64 - 1))
        assert guest.cpu.tsc() < 10**13


def test_model_specific_registers_move() -> None:
    """Written and read by the guest; but for those that take no value but 0 and all ones."""
    with MicroGuest() as any_guest:
        numbers = [number for number, _ in any_guest.cpu.save().msrs if number not in CHECKED_MSRS]
    values = [~number & 0xFFFF_FFFF for number in numbers]
    write = b"".join(struct.pack("<BIBIH", 0xB9, n, 0xB8, ~n & 0xFFFF_FFFF, 0x300F) for n in numbers)
    read = b"".join(struct.pack("<BIHB", 0xB9, n, 0x320F, 0xAB) for n in numbers)       # mov ecx, n; rdmsr; stosd
    guest = stopped(b"\xba\x77\0\0\0" + write + LATER + b"\xbf\0\0\x03\0" + read)
    end, _ = finish(guest.moved())
    assert list(struct.unpack_from(f"<{len(numbers)}I", end.memory, micro.DATA)) == values


def test_rounding_modes_move() -> None:
    """The x87 control word and MXCSR have an effect, and not only a value."""
    code = (
        b"\xd9\x2c\x25\x00\x00\x03\x00"             # fldcw [DATA]: upwards, single precision
        b"\x0f\xae\x14\x25\x04\x00\x03\x00"         # ldmxcsr [DATA + 4]: upwards
        + LATER
        + b"\xd9\x04\x25\x08\x00\x03\x00"           # fld dword [DATA + 8]: 0.25
        b"\xd9\xfc"                                 # frndint
        b"\xdb\x1c\x25\x10\x00\x03\x00"             # fistp dword [DATA + 16]
        b"\xf3\x0f\x2d\x04\x25\x08\x00\x03\x00"     # cvtss2si eax, [DATA + 8]
    )
    guest = stopped(code, struct.pack("<IIf", 0x87F, 0x5F80, 0.25))
    end, _ = finish(guest.moved())
    assert end.state.general[0] == 1
    assert end.memory[micro.DATA + 16] == 1


def test_breakpoints_move_and_go() -> None:
    with stopped(LATER + b"\x90") as guest:
        plain = guest.cpu.save()
        armed = replace(plain, dr=(plain.rip, 0, 0, 0, 0xFFFF_0FF0, 0x401))
        guest.cpu.restore(replace(armed, dr=(plain.rip + 1, *armed.dr[1:])))
        guest.cpu.restore(armed)
        assert guest.cpu.save().dr == armed.dr
        assert guest.go() is Exit.HALT
        assert (guest.event.vector, guest.event.rip) == (micro.DB, plain.rip)
        guest.cpu.restore(plain)
        assert guest.go() is Exit.KICK
        assert guest.is_over


@pytest.mark.parametrize(("cr0", "vector"), [(1 << 2, micro.UD), (1 << 3, NO_FPU), (0, None)])
def test_switched_off_fpu_moves(cr0: int, vector: int | None) -> None:
    with stopped(LATER + b"\x0f\x58\xc1") as guest:            # addps xmm0, xmm1
        state = guest.cpu.save()
        guest.cpu.restore(replace(state, cr0=state.cr0 | cr0))
        guest.go()
        assert [event.vector for event in guest.events] == ([vector] if vector else [])


def test_old_translations_of_addresses_are_forgotten() -> None:
    load = b"\xa1" + struct.pack("<Q", micro.ALIAS + micro.DATA)        # mov eax, [ALIAS + DATA]
    with stopped(load + LATER, b"old") as guest:
        again = replace(guest.cpu.save(), rip=micro.CODE)
        guest.memory.write(micro.DATA + 0x1000, b"new")
        guest.write_quads(micro.PT_ALIAS + (micro.DATA >> 9), micro.DATA + 0x1000 | micro.PRESENT)
        guest.cpu.restore(again)
        guest.go()
        assert guest.registers.rax.to_bytes(4, "little") == b"new\0"


def test_a_new_cpu_has_a_sane_floating_point_unit() -> None:
    with MicroGuest() as guest:
        state = guest.cpu.save()
    assert (state.fpu.control, state.fpu.tags, state.mxcsr) == (0x37F, 0, 0x1F80)


def distinct(state: CpuState) -> CpuState:
    """`state` with another value in every field."""
    bits = random.Random(4).getrandbits
    segments = tuple(Segment(bits(16), bits(64), bits(32), bits(32)) for _ in range(8))
    pointers = (bits(16), bits(64)), (bits(16), bits(64))
    return replace(
        state,
        general=tuple(bits(64) for _ in range(16)),
        rip=bits(64),
        rflags=0xCD7,
        segments=segments,
        gdtr=(bits(64), bits(16)),
        idtr=(bits(64), bits(16)),
        cr2=bits(64),
        cr3=bits(64),
        dr=(*(bits(64) for _ in range(5)), 0x400),
        msrs=tuple((number, bits(64)) for number, _ in state.msrs),
        fpu=Fpu(bits(16), bits(16), bits(8), tuple(bits(80) for _ in range(8)), bits(11), *pointers),
        mxcsr=bits(16),
        xmm=tuple(bits(128) for _ in range(16)),
    )


def test_state_is_what_the_public_interface_says() -> None:
    """Every offset of the layout but the MSRs', which are tried by a guest above."""
    with MicroGuest() as guest:
        state = distinct(guest.cpu.save())
        guest.cpu.restore(state)
        assert replace(guest.cpu.save(), tsc=0) == replace(state, tsc=0)

        def read(form: str, names: str) -> list[Any]:
            memory, found = bytearray(64), []
            for name in names.split():
                number = getattr(x86_const, f"UC_X86_REG_{name}")
                assert guest.cpu._api.uc_reg_read(guest.cpu._uc, number, micro.ffi.from_buffer(memory)) == 0
                found.append(struct.unpack_from(form, memory))
            return [values[0] if len(values) == 1 else values for values in found]

        def read_wide(form: str, name: str, count: int) -> tuple[int, ...]:
            words = read(form, " ".join(f"{name}{n}" for n in range(count)))
            return tuple(low | high << 64 for low, high in words)

        fpu = state.fpu
        assert read("<Q", " ".join(GENERAL).upper()) == [*state.general]
        assert read("<Q", "RIP RFLAGS") == [state.rip, state.rflags]
        assert read("<8xQI", "GDTR IDTR") == [state.gdtr, state.idtr]
        assert read("<H6xQII", "LDTR TR") == [astuple(segment) for segment in state.segments[6:]]
        assert read("<H", "ES CS SS DS FS GS") == [segment.selector for segment in state.segments[:6]]
        assert read("<Q", "FS_BASE GS_BASE") == [segment.base for segment in state.segments[4:6]]
        assert read("<Q", "CR0 CR2 CR3 CR4") == [state.cr0, state.cr2, state.cr3, state.cr4]
        assert read("<Q", "DR0 DR1 DR2 DR3 DR6 DR7") == [*state.dr]
        assert read("<H", "FPCW FPSW FOP FCS FDS") == [fpu.control, fpu.status, fpu.opcode, fpu.code[0], fpu.data[0]]
        assert read("<Q", "FIP FDP") == [fpu.code[1], fpu.data[1]]
        (tags,) = read("<H", "FPTAG")
        assert [tags >> 2 * n & 3 != 3 for n in range(8)] == [bool(fpu.tags >> n & 1) for n in range(8)]
        assert read_wide("<QH", "FP", 8) == fpu.registers
        assert read("<I", "MXCSR") == [state.mxcsr]
        assert read_wide("<QQ", "XMM", 16) == state.xmm


# -- elsewhere -----------------------------------------------------------------------------------------------------

ELSEWHERE = """
import pickle, sys
from tests.cpu.moving import Movable, outcome
state, memory = pickle.load(sys.stdin.buffer)
guest = Movable(stays=range(1000))
guest.memory.write(0, memory)
guest.cpu.restore(state)
while not guest.is_over:
    guest.go()
pickle.dump(outcome(guest), sys.stdout.buffer)
"""


def test_it_goes_on_in_another_process() -> None:
    code, data = Generator(KERNEL_64, random.Random(5)).program(80), random.Random(5).randbytes(0x3000)
    here, _ = finish(start(KERNEL_64, code, data, stays=NEVER))
    guest = start(KERNEL_64, code, data)
    guest.go()
    told = pickle.dumps((guest.cpu.save(), guest.memory.read(0, len(here.memory))))
    guest.close()
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], input=told, capture_output=True, timeout=60, check=True)
    there = pickle.loads(done.stdout)
    assert there.state == here.state
    assert there.memory == here.memory
