"""The machine code for aarch64 hosts is what its listing says, and does what that for x86-64 hosts does."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from importlib import resources

import capstone
import pytest

from emu.cpu.abi import ffi
from emu.cpu.bypass import NO_PORT
from emu.cpu.cpu import BLOCKS
from emu.cpu.layout import AARCH64_BUILDS
from emu.cpu.library import FUNCTIONS, OFFSETS
from emu.cpu.thunks import assemble, read_listing
from tests.cpu.thunk_hosts import CODE, DATA, END, WIDTHS, Aarch64Host, Host, Outcome, X86Host

LISTING = "thunks_aarch64.lst"
ROUTINES = read_listing("aarch64")
VALUES = {name: 0x7B00_0000_0000_0000 + i for i, name in enumerate(FUNCTIONS)}
VALUES |= {name: 0x7A00_0000 + i for i, name in enumerate(OFFSETS)}
VALUES |= {name: 0x7900_0000_0000_0000 + i for i, name in enumerate(ROUTINES)}
ADDRESSES = {*FUNCTIONS, *ROUTINES}
INSTRUCTION = re.compile(r"  ([0-9a-f]{3})  ((?:[0-9a-f]{2} ){4}) ([^;]+?) *(?:; (.*))?")
LITERAL = re.compile(r"  ([0-9a-f]{3})  <(\w+):([48])>  (\.quad|\.word) (\w+)")
(LAYOUT,) = AARCH64_BUILDS.values()

# -- the listing -----------------------------------------------------------------------------------------------------


def instructions(routine: str) -> list[re.Match[str]]:
    """A routine's lines, literals left out."""
    return [match for line in ROUTINES[routine] if (match := INSTRUCTION.fullmatch(line))]


def literals(routine: str) -> dict[str, str]:
    """Names of a routine's literals by their offset."""
    return {match[1]: match[2] for line in ROUTINES[routine] if (match := LITERAL.fullmatch(line))}


@pytest.mark.parametrize("routine", ROUTINES)
def test_every_instruction_is_what_the_listing_says(routine: str) -> None:
    engine = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    listed = instructions(routine)
    decoded = list(engine.disasm(assemble(ROUTINES[routine], VALUES)[: 4 * len(listed)], 0))
    seen = [(f"{i.address:03x}", f"{i.mnemonic} {i.op_str}".strip()) for i in decoded]
    assert seen == [(match[1], match[3]) for match in listed]


@pytest.mark.parametrize("routine", ROUTINES)
def test_literals_are_aligned_named_and_behind_the_code(routine: str) -> None:
    at = 4 * len(instructions(routine))
    for line in ROUTINES[routine][at // 4 :]:
        match = LITERAL.fullmatch(line)
        assert match is not None, line
        assert (int(match[1], 16), match[2]) == (at, match[5])
        assert at % int(match[3]) == 0
        assert (match[3], match[4]) == (("8", ".quad") if match[2] in ADDRESSES else ("4", ".word"))
        at += int(match[3])
    assert len(assemble(ROUTINES[routine], VALUES)) == at


@pytest.mark.parametrize("routine", ROUTINES)
def test_a_literal_is_loaded_by_the_name_the_comment_gives(routine: str) -> None:
    names, used = literals(routine), set()
    for match in instructions(routine):
        if load := re.fullmatch(r"ldr(?:sw)? [wx]\d+, #0x([0-9a-f]+)", match[3]):
            name = names[f"{int(load[1], 16):03x}"]
            used.add(name)
            assert re.match(r"\w+", match[4] or "")[0] == name      # type: ignore[index]
            assert match[3].startswith("ldr x") == (name in ADDRESSES)
    assert used == set(names.values())


def test_every_line_of_the_listing_is_a_comment_a_heading_a_label_an_instruction_or_a_literal() -> None:
    for line in resources.files("emu.cpu").joinpath(LISTING).read_text().splitlines():
        is_line = INSTRUCTION.fullmatch(line) or LITERAL.fullmatch(line)
        assert not line or line[0] in ";[" or re.fullmatch(r"\w+:(?:  ;.*)?", line) or is_line, line


def test_branches_go_to_labels() -> None:
    labels: set[tuple[str, str]] = set()
    targets: set[tuple[str, str]] = set()
    routine, labelled = "", False
    for line in resources.files("emu.cpu").joinpath(LISTING).read_text().splitlines():
        if line.startswith("["):
            routine = line
        elif re.match(r"\w+:", line):
            labelled = True
        elif match := INSTRUCTION.fullmatch(line):
            if labelled:
                labels.add((routine, f"{int(match[1], 16):#x}"))
            labelled = False
            if branch := re.fullmatch(r"(?:b|b\.\w+|cbn?z \w+,|tbn?z \w+, #\w+,) #(0x[0-9a-f]+|0)", match[3]):
                targets.add((routine, branch[1]))
    assert targets
    assert targets <= labels


def test_the_platform_register_is_left_alone() -> None:
    assert not [m[3] for routine in ROUTINES for m in instructions(routine) if re.search(r"\b[wx]18\b", m[3])]


def test_it_has_the_routines_and_knows_the_names_of_the_other_listing() -> None:
    """Each routine calls the same functions, and uses the same private offsets."""

    def names(listing: dict[str, list[str]]) -> dict[str, set[str]]:
        return {routine: set(re.findall(r"<(\w+):\d>", "\n".join(lines))) for routine, lines in listing.items()}

    assert names(ROUTINES) == names(read_listing("x86_64"))


def test_context_fields_named_in_the_listing_are_where_it_says() -> None:
    fields = dict(ffi.typeof("struct context").fields)
    text = "\n".join(line for lines in ROUTINES.values() for line in lines)
    found = re.findall(r"(?:\[x\d+(?:, #(\w+))?\]|add x\d+, x\d+, #(\w+))  +; context\.(\w+)", text)
    assert len(found) == text.count("; context.")
    for load, add, name in found:
        assert fields[name].offset == int(load or add or "0", 0), name


# -- what the routines do --------------------------------------------------------------------------------------------

UC, CPU, TCG, CONTEXT, TLB, RAM, CODE_PAGES, BUFFER, LABEL, SLOT, SIGINFO, BLOCK, POINTS, SIZE = (
    *(0, 0x2000, 0xE000, 0x1A000, 0x1B000, 0x1C000, 0x20000, 0x20100, 0x20200, 0x20300, 0x20400, 0x20500, 0x20800),
    0x20900,
)
"""Offsets from DATA."""

ENV = CPU + LAYOUT.env
THR, LSR = 0x3F8, 0x3FD
RETURNED = {"UNDEFINED": 1, "READ_CONTROL": 8, "READ_FLAGS": 8, "PORT_IN": 4, "LOAD_PHYSICAL_64": 8, "FIND_BLOCK": 8}
"""Width of what a routine returns; the others return nothing."""

NUMBERS = 0, 1, 63, 64, 511, 511, 512, 0x4000_0000, 0x4000_0001, 0x4000_FFFF, 0x4001_0000, 1 << 63
"""In RAX: of system calls and of CPUID's leaves."""

MOSTLY_0 = *12 * (0,), 1

Draw = random.Random
ROUNDS = 40
MORE_ROUNDS = {
    "EXCEPTION": 250, "SYSCALL": 120, "PORT_OUT": 100, "STORE_16": 80, "STORE_64": 60, "FIND_BLOCK": 280,
    "FLUSH_BLOCKS": 6, "STEP": 120,
}
"""For what has many paths, or one that is long."""


class Case:
    """One call: what stands in memory, and what the functions answer, drawn so that each path is taken often."""

    def __init__(self, host: Host, seed: int) -> None:
        self.draw = draw = Draw(seed)
        self.seed = seed
        self.host = host
        self.memory = bytearray(draw.randbytes(SIZE))
        context = {
            0x00: DATA + CPU, 0x08: DATA + ENV, 0x10: host.stub("vmexit"), 0x18: host.stub("port_in"),
            0x20: host.stub("port_out"), 0x28: DATA + BUFFER, 0x30: draw.choice((0, 0x7F, 0x80)) | 0x80 << 32,
            0x38: draw.choice((THR, THR, NO_PORT)) | draw.choice((LSR, LSR, NO_PORT)) << 32,
            0x40: 0x60 | draw.choice((0, 1)) << 32, 0x70: DATA + RAM, 0x78: 0x3000, 0xC0: DATA + CODE_PAGES,
            0xC8: 0x2000, 0xD0: draw.choice((0, DATA + LABEL, DATA + LABEL)), 0xE0: host.stub("syscall"),
            0x128: DATA + SIZE, 0x130: draw.choice((0, 1)) << 32, 0x138: DATA + UC, 0x140: draw.choice((0, 1, 7)),
            0x148: DATA + POINTS, 0x150: draw.randrange(3) | draw.randrange(3) << 32, 0x158: DATA + POINTS,
        }
        for offset, value in context.items():
            self.put(CONTEXT + offset, value)
        self.put(UC + LAYOUT.uc_cpu, DATA + CPU)
        self.put(TCG + LAYOUT.tcg_uc, DATA + UC)
        self.put(CPU + LAYOUT.opaque, draw.choice((0, *5 * (DATA + CONTEXT,))))
        self.put(CPU + LAYOUT.exception_is_int, draw.choice((0, 1)), 4)
        self.put(CPU + LAYOUT.error_code, draw.choice((0, 2, 3, 0x82, draw.getrandbits(32))), 4)
        self.put(ENV, draw.choice(NUMBERS))
        self.put(ENV + LAYOUT.star_high, draw.getrandbits(32) | draw.choice((0, 0xFFFF)), 4)
        self.put(ENV + LAYOUT.df, draw.choice((1, 0xFFFF_FFFF)), 4)
        self.put(ENV + LAYOUT.efer, draw.getrandbits(64) | draw.choice((0, 1, 1)))
        self.put(ENV + LAYOUT.hflags, draw.getrandbits(32) & ~3 | draw.choice((0, 3, 0xC003, 0xC003)), 4)
        self.memory[CONTEXT + 0xE8 : CONTEXT + 0x128] = draw.choice((draw.randbytes(64), b"\xff" * 64))
        self.put(ENV + LAYOUT.eflags, draw.getrandbits(22))

    def put(self, offset: int, value: int, size: int = 8) -> None:
        self.memory[offset : offset + size] = value.to_bytes(size, "little")

    def word(self, value: int) -> int:
        """A 32-bit argument in a 64-bit register."""
        return value | self.draw.getrandbits(32) << 32

    def arguments(self, routine: str) -> list[int]:
        """What the routine is called with; memory is made to fit."""
        return ARGUMENTS[routine](self) if routine in ARGUMENTS else self.store()

    def store(self) -> list[int]:
        """The store helpers: (env, address, value, index, retaddr)."""
        draw = self.draw
        page, place, mode = draw.getrandbits(52) << 12, draw.randrange(4), draw.randrange(3)
        address = page | draw.choice((0, 0x123, 0xFF8, 0xFF9, 0xFFC, 0xFFD, 0xFFE, 0xFFF))
        self.put(ENV + LAYOUT.tlb_mask + 16 * mode, 0xFC0)
        self.put(ENV + LAYOUT.tlb_table + 16 * mode, DATA + TLB)
        entry = TLB + (address >> 6 & 0xFC0)
        self.put(entry + 8, page | draw.choice((0x400, 0x400, 0x400, 0x600, 0)))
        self.put(entry + 0x20, DATA + RAM + 0x1000 * place - page & WIDTHS[8])
        self.put(CODE_PAGES + place, draw.choice((0, 0, 0, 1)), 1)
        return [DATA + ENV, address, draw.getrandbits(64), self.word(draw.getrandbits(28) << 4 | mode), END]

    def lookup(self) -> list[int]:
        """(env), and blocks for where it is: in libunicorn's quick table, and in the context's."""
        draw = self.draw
        self.put(ENV + LAYOUT.hflags, draw.choice((0, 3, 0x80_0000, 0x80_0000)) | draw.getrandbits(32) & ~0x84_0003, 4)
        cs_base, eip, place = draw.getrandbits(63), draw.getrandbits(63), draw.randrange(4)
        pc = cs_base + eip
        page = pc & ~0xFFF
        self.put(ENV + LAYOUT.cs_base, cs_base)
        self.put(ENV + LAYOUT.eip, eip)
        for mode in range(3):
            tlb = TLB + 0x400 * mode
            self.put(ENV + LAYOUT.tlb_mask + 16 * mode, 0x3C0)
            self.put(ENV + LAYOUT.tlb_table + 16 * mode, DATA + tlb)
            self.put(tlb + (pc >> 6 & 0x3C0) + 0x10, page | draw.choice((0, 0, 0, 0x800)))
            self.put(tlb + (pc >> 6 & 0x3C0) + 0x20, DATA + RAM + 0x1000 * place - page & WIDTHS[8])
        eflags, hflags = (self.memory[ENV + at : ENV + at + 4] for at in (LAYOUT.eflags, LAYOUT.hflags))
        flags = int.from_bytes(eflags, "little") & 0x7_3100 | int.from_bytes(hflags, "little")
        mixed = pc ^ pc >> 6
        quick = CPU + LAYOUT.jump_cache + 8 * (mixed >> 6 & 0xFC0 | mixed & 0x3F)
        kept = SIZE + 8 * ((pc >> 2 ^ pc >> 18) & 0xFFFF)
        self.memory += bytes(BLOCKS * 8)
        for entry, block in (quick, BLOCK), (kept, BLOCK + 0x100):
            self.put(entry, draw.choice((0, DATA + block, DATA + block)))
            self.put(block, pc ^ draw.choice(MOSTLY_0))
            self.put(block + 8, cs_base ^ draw.choice(MOSTLY_0))
            self.put(block + 0x10, flags ^ draw.choice(MOSTLY_0), 4)
            self.put(block + 0x18, draw.getrandbits(32) & ~0x4_0000 | draw.choice(MOSTLY_0) << 18, 4)
            self.put(block + LAYOUT.tb_page, 0x1000 * (place ^ draw.choice(MOSTLY_0)))
            self.put(block + LAYOUT.tb_second_page, WIDTHS[8] ^ draw.choice(MOSTLY_0))
        return [DATA + ENV]

    def flush(self) -> list[int]:
        """(cpu), and a table with something in it."""
        self.memory += self.draw.randbytes(BLOCKS * 8)
        return [DATA + CPU]

    def debugged(self) -> list[int]:
        """(cpu), at one of the breakpoints or at none."""
        at = self.draw.getrandbits(63)
        self.put(ENV + LAYOUT.cs_base, self.draw.choice((0, 16)))
        self.put(ENV + LAYOUT.eip, at)
        for number in range(2):
            self.put(POINTS + 8 * number, at + self.draw.choice((0, 8, 16)))
        return [DATA + CPU]

    def watched(self) -> list[int]:
        """(uc, 0): words that have changed or not."""
        draw = self.draw
        self.put(ENV - 0x10, draw.choice((0, 0, 0, 1, 0xFFFF_0000)), 4)
        for number in range(2):
            value, mask = draw.getrandbits(64), draw.choice((0xFF << 24, WIDTHS[8]))
            self.put(RAM + 8 * number, value)
            before = value ^ draw.choice((0, 0, ~mask, 1 << 24)) & WIDTHS[8]
            for at, word in enumerate((DATA + RAM + 8 * number, mask, before)):
                self.put(POINTS + 24 * number + 8 * at, word)
        return [DATA + UC, self.word(0)]

    def port(self) -> list[int]:
        """(uc, port, size), and for OUT value."""
        port = self.draw.choice((THR, LSR, THR, LSR, self.draw.getrandbits(16)))
        return [DATA + UC, self.word(port), self.word(self.draw.choice((1, 1, 2, 4)))]

    def signal(self) -> list[int]:
        """(signal, siginfo, ucontext)."""
        self.put(SLOT, self.draw.choice((0, DATA + UC)))
        self.put(SIGINFO + 0x18, self.draw.choice((0, DATA + SLOT)))
        return [self.word(64), DATA + SIGINFO, 0]

    def ram_address(self) -> int:
        """Inside, at the edges, and outside of the guest's RAM."""
        return self.draw.choice((0, 8, 0x1FF8, 0x1FF9, 0x1FFF, 0x2000, 0x2FFF, 0x3000, 1 << 40, 1 << 63, WIDTHS[8] - 7))

    def answer(self) -> Callable[[str], tuple[int, dict[int, int]]]:
        """What the functions do; the same for each host that asks."""
        draw = Draw(self.seed)
        code = draw.choice(((0x0F, 0x0F, 0xCC, 0xCE, 0xF1, 0x66), (0xCC, 0xCE, 0x66)))

        def answer(name: str) -> tuple[int, dict[int, int]]:
            garbage = draw.getrandbits(64)
            changed = {DATA + ENV + LAYOUT.eip: draw.getrandbits(64)}
            if name == "cpu_ldub_code":
                return garbage & ~0xFF | draw.choice(code), changed
            if name == "vmexit":
                return draw.choice((0, 0x121, 0x20D, garbage << 32 & WIDTHS[8] | 0x20E, garbage)), changed
            if name == "tb_htable_lookup":
                return draw.choice((0, DATA + BLOCK + 0x200)), changed
            if name == "syscall":
                hflags = DATA + ENV + LAYOUT.hflags
                return garbage & ~1 & ~WIDTHS[4] | draw.choice((0, 1)), changed | {hflags: draw.getrandbits(64)}
            return garbage, changed

        return answer


EXCEPTIONS = 0, 3, 4, 4, 8, 0xB, 0xC, 0xD, 0xD, 0xE, 0x80, 0xFF, 0x100, 0x164, 0x164, 0x172, 0x172, 0x172, 0x17C, 0x17F
ARGUMENTS: dict[str, Callable[[Case], list[int]]] = {
    "EXCEPTION": lambda c: [DATA + UC, c.word(c.draw.choice(EXCEPTIONS)), DATA + CONTEXT],
    "UNDEFINED": lambda c: [DATA + UC, DATA + CONTEXT],
    "SYSCALL": lambda c: [DATA + UC, DATA + CONTEXT],
    "SYSENTER": lambda c: [DATA + ENV, c.word(2)],
    "WRITE_CONTROL": lambda c: [DATA + ENV, c.word(c.draw.choice((0, 8, 8, 8))), c.draw.choice((0, 15, 16, 1 << 63))],
    "READ_CONTROL": lambda c: [DATA + ENV, c.word(c.draw.choice((0, 8, 8)))],
    "READ_FLAGS": lambda c: [DATA + ENV],
    "PORT_OUT": lambda c: [*c.port(), c.word(c.draw.getrandbits(32)), DATA + CONTEXT],
    "PORT_IN": lambda c: [*c.port(), DATA + CONTEXT],
    "KICK": Case.signal,
    "PAGE_WRITTEN": lambda c: [DATA + UC, *(c.draw.getrandbits(64) for _ in range(4))],
    "PROTECT_CODE": lambda c: [DATA + UC, c.ram_address()],
    "UNPROTECT_CODE": lambda c: [DATA + UC, c.ram_address()],
    "RESET_DIRTY_BY_ADDRESS": lambda c: [DATA + CPU, c.draw.getrandbits(64), c.draw.getrandbits(64)],
    "LOAD_PHYSICAL_64": lambda c: [DATA + CPU, c.ram_address()],
    "FIND_BLOCK": Case.lookup,
    "FLUSH_BLOCKS": Case.flush,
    "ABORT": lambda c: [DATA + CPU, c.draw.getrandbits(64)],
    "DEBUG_EXCEPTION": Case.debugged,
    "STEP": Case.watched,
    "GENERATE_CALL": lambda c: [
        DATA + TCG, c.draw.choice((c.host.starts["STEP"], c.host.stub("helper_read_eflags"))),
        c.draw.getrandbits(64), c.word(2), c.draw.getrandbits(64),
    ],
    "GENERATE_EXIT": lambda c: [DATA + TCG, c.draw.getrandbits(64), c.word(c.draw.choice((0, 3, 3, 3)))],
}


@pytest.fixture(scope="module")
def hosts() -> tuple[X86Host, Aarch64Host]:
    return X86Host(LAYOUT), Aarch64Host(LAYOUT)


def outcome(host: Host, routine: str, seed: int) -> Outcome:
    """What a routine does in the case of that number; where in translated code it was called is not the same."""
    case = Case(host, seed)
    arguments = case.arguments(routine)
    done = host.run(routine, arguments, bytes(case.memory), case.answer())
    for call in done.calls:
        if call.name == "raise_exception_err_ra":
            assert END - 2 <= call.arguments[3] <= END
            call.arguments = call.arguments[:3]
        if host.starts["STEP"] in call.arguments:       # which is not at the same place in each
            call.arguments = call.arguments[:1] + call.arguments[2:]
    if done.returned is not None:
        done.returned &= WIDTHS[RETURNED[routine]] if routine in RETURNED else 0
    return done


@pytest.mark.parametrize("routine", ROUTINES)
def test_it_does_what_the_routine_for_x86_64_does(routine: str, hosts: tuple[X86Host, Aarch64Host]) -> None:
    """The same calls with the same arguments, the same memory at each of them and in the end, the same result."""
    model, host = hosts
    host.executed.clear()
    for seed in range(MORE_ROUNDS.get(routine, ROUNDS)):
        assert outcome(host, routine, seed) == outcome(model, routine, seed), seed
    start = host.starts[routine]
    never = {match[3] for match in instructions(routine) if start + int(match[1], 16) not in host.executed}
    assert never <= {"brk #1", "nop"}
    assert start >= CODE
