"""Takes each remedy away in turn, in a process of its own, and runs the check that is to notice: a line of JSON each.

`python -m tests.selftest.broken` prints what every check says then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from emu.cpu import abi, constants, cpu, cpuid, entry, kicker, layout, thunks
from emu.cpu.abi import ffi
from emu.cpu.cpu import Cpu
from emu.cpu.library import load
from emu.micro import UNMAPPED, host_address
from emu.selftest import check, exceptions, exits, hostile, library, stops
from emu.selftest.runner import Runner
from emu.selftest.traps import GROUPS
from tests.cpu.test_stops import hooks_in_another_order
from tests.support.remedies import leave_out

PATIENCE_S = 0.15                       # for guests that do not end
LIMIT_S = 20.0
HANG_S = 1.0                            # for those that are to hang

HOOK_MEM_WRITE = 1 << 11                # UC_HOOK_MEM_WRITE
REGISTER_FS, REGISTER_GS = 32, 33       # UC_X86_REG_FS and GS

CHECKS = {check.name: check for group in GROUPS for check in group.checks}
PATIENT = (check, exceptions, exits, hostile, stops)    # modules that wait

Damage = Callable[[], object]


# -- ways to do damage ---------------------------------------------------------------------------------------------


def instead(owner: object, name: str, value: object) -> Damage:
    """Give an attribute of a module or class another value."""
    return lambda: setattr(owner, name, value)


def thunk(routine: str, old: str, new: str) -> Damage:
    """Change an instruction of the machine code; `old` are the bytes of its line, or the first of them."""

    def damage() -> None:
        routines = thunks.read_listing()
        lines = routines[routine]
        (at,) = [at for at, line in enumerate(lines) if line[7:].startswith(old)]
        lines[at] = lines[at][:7] + new + lines[at][7 + len(old) :]
        thunks.read_listing = lambda: routines

    return damage


def jump_behind(routine: str, text: str, condition: str) -> Damage:
    """Change the conditional jump that stands behind an instruction.

    Args:
        routine: where.
        text: the instruction.
        condition: "always" or "never".
    """

    def damage() -> None:
        routines = thunks.read_listing()
        lines = routines[routine]
        (at,) = [at + 1 for at, line in enumerate(lines) if text in line]
        match = re.match(r"(  [0-9a-f]{3}  )((?:[0-9a-f]{2} )+)", lines[at])
        assert match is not None
        code = match[2].split()
        short = len(code) == 2
        assert short or condition == "never", "a near jump would have to grow"
        code = ["eb", code[1]] if condition == "always" else ["90"] * len(code)
        lines[at] = match[1] + " ".join(code)
        thunks.read_listing = lambda: routines

    return damage


def nops(count: int) -> str:
    """So many bytes that do nothing."""
    return " ".join(["90"] * count)


def routine(name: str, *lines: str) -> Damage:
    """Put other machine code in a routine's place."""

    def damage() -> None:
        routines = thunks.read_listing() | {name: [f"  000  {line}" for line in lines]}
        thunks.read_listing = lambda: routines

    return damage


def row(**offsets: int) -> Damage:
    """Shift offsets of the layout."""

    def damage() -> None:
        path = abi.library_path()
        known = layout.layout_of(path)
        changed = {name: getattr(known, name) + by for name, by in offsets.items()}
        layout.known_builds()[layout.build_id(path)] = replace(known, **changed)

    return damage


def without(*slots: str) -> Damage:
    """Leave functions of libunicorn as they are."""
    return lambda: leave_out(*slots)


def without_intercept(code: int) -> Damage:
    """Take an intercept out of the trap door."""
    return lambda: setattr(cpu, "_INTERCEPTS", tuple(one for one in cpu._INTERCEPTS if one != code))


def without_control(number: int) -> Damage:
    """Leave a setting of libunicorn at its default."""

    def damage() -> None:
        control = Cpu._control
        Cpu._control = lambda self, one, value: None if one == number else control(self, one, value)

    return damage


def shifted_slots() -> None:
    """Name the places next to those that are replaced."""
    path = abi.library_path()
    known = layout.layout_of(path)
    slots = tuple((name, slot + 8) for name, slot in known.slots)
    layout.known_builds()[layout.build_id(path)] = replace(known, slots=slots)


def stop_anywhere() -> None:
    """Let TCG stop after any access, as it comes."""
    leave_out("GENERATE_CALL", "GENERATE_EXIT")
    open_ = Cpu._open

    def opened(self: Cpu) -> None:
        open_(self)
        offset = self._library.layout.no_exit_request
        ffi.cast("uint8_t *", host_address(self._uc) + offset)[0] = 0

    Cpu._open = opened


def no_hook(left_out: str) -> Damage:
    """Install all hooks but one."""

    def damage() -> None:
        add = Cpu._add_hook

        def add_others(self: Cpu, kind: int, name: str, *instruction: int) -> None:
            if name != left_out:
                add(self, kind, name, *instruction)

        Cpu._add_hook = add_others

    return damage


def memory_hook() -> None:
    """Install a hook for stores that returns at once."""
    routine("NOTHING", "c3 ")()
    add = Cpu._add_hooks

    def add_one_more(self: Cpu) -> None:
        add(self)
        self._add_hook(HOOK_MEM_WRITE, "NOTHING")

    Cpu._add_hooks = add_one_more


def deliver_from_python() -> None:
    """Call what may longjmp from a Python callback."""

    def deliver(self: Cpu, number: int, _length: int) -> int:
        vector = self._platform.acknowledge()
        address = abi.Symbols(abi.library_path())["do_interrupt_x86_hardirq"]
        ffi.cast("void(*)(uint64_t, int, int)", address)(self._env, vector, 1)
        return 0

    Cpu._on_vmexit = deliver


def request_without_break() -> None:
    """Ask for an interrupt, and let translated blocks go on jumping to each other."""

    def request(self: Cpu, level: bool) -> None:
        self._interrupt_request[0] = self._interrupt_request[0] & ~cpu.INTERRUPT_WINDOW | cpu.INTERRUPT_WINDOW * level

    Cpu.set_interrupt_line = request


def narrow_feature_words() -> None:
    """Write CPUID's feature words as if they were 32 bits wide."""

    def present(self: Cpu) -> None:
        words = ffi.cast("uint32_t *", self._env + self._library.layout.cpuid_features)
        adjusted = cpuid.adjust({name: words[i] for i, name in enumerate(layout.FEATURE_WORDS)})
        for i, name in enumerate(layout.FEATURE_WORDS):
            words[i] = adjusted[name]

    Cpu._present_features = present


def vector_0_for_none() -> None:
    """Inject an interrupt although none is left."""
    Cpu._on_vmexit = lambda self, number, length: cpu.INJECT_INTERRUPT | (self._platform.acknowledge() or 0)


class RunningTo:
    """libunicorn's functions, with runs that have an address to end at."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def uc_emu_start(self, uc: object, begin: int, _until: int, timeout: int, count: int) -> int:
        return int(self._api.uc_emu_start(uc, begin, UNMAPPED, timeout, count))


def run_to_an_address() -> None:
    """Run as libunicorn's users do: to an address."""
    without_control(constants.CONTROL_USE_EXITS)()
    load().api = RunningTo(load().api)


def segments_by_the_api() -> None:
    """Set segment registers as libunicorn's users do."""

    def set_segments(machine: Cpu, code: int, gdt: tuple[int, int]) -> None:
        machine.write_table(constants.REGISTER_GDTR, gdt)
        for register in (REGISTER_FS, REGISTER_GS):
            machine.write_register(register, entry.DATA)
        machine.registers.set_segment("cs", entry.CODE, 0, entry.LIMIT, code)

    entry._set_segments = set_segments


def do_nothing(*_arguments: object) -> None:
    """In place of a remedy."""


# Delivery as do_interrupt_x86_hardirq does it, with `old_exception` left as it is
DELIVER_OTHERWISE = (
    "53 ",                                          # push rbx
    "48 8b 7a 08 ",                                 # mov rdi, [rdx + 8]: context.env
    "31 d2 ",                                       # xor edx, edx
    "48 b8 <do_interrupt_x86_hardirq:8> ",          # mov rax, it
    "ff d0 ",                                       # call rax
    "5b ",                                          # pop rbx
    "c3 ",                                          # ret
)


@dataclass(frozen=True)
class Broken:
    """A remedy taken away.

    Attributes:
        check: name of the check that is to notice.
        damage: takes it away.
        says: part of what the check is to say.
        hangs: whether it does not end.
        spins: whether its guest does not, and is waited for in vain.
    """

    check: str
    damage: Damage
    says: str
    hangs: bool = False
    spins: bool = False


UNDELIVERED = routine("EXCEPTION", "c3 ")

CLEAR_IS_INT = "c7 80 <exception_is_int:4> 00 00 00 00"
IOW = "48 b8 <helper_check_iow:8>"

BROKEN = (
    # libunicorn
    Broken("its package", instead(abi, "UNICORN_VERSION", "9.9.9"), "unicorn 2.1.4 is installed, and is not known"),
    Broken("its file", instead(abi, "library_path", lambda: __file__), "is not a 64-bit ELF library"),
    Broken("its checksum", instead(library, "_recorded", lambda: "another"), "the file is not the one"),
    Broken("its build", layout.known_builds().clear, "is not known"),
    Broken("loading it", instead(library, "FUNCTIONS", ("no_such_function",)), "does not export no_such_function"),
    Broken("its layout", row(cc_src=8, tlb=16), "differs in tlb, cc_src"),
    Broken("its layout", without("RESET_DIRTY_BY_ADDRESS"), "differs in slots"),
    Broken("its link table", shifted_slots, "there is not the address of tcg_gen_callN"),
    Broken("its start-up test", row(lstar=8), "does not behave as"),
    # exceptions
    Broken("exceptions", UNDELIVERED, "the guest still runs", spins=True),
    Broken("undefined instructions", no_hook("UNDEFINED"), "Invalid instruction"),
    Broken("INT1", jump_behind("UNDEFINED", "cmp al, 0xf1", "always"), "vector and RIP: (6, 0x20000), not"),
    Broken("second page fault", routine("EXCEPTION", *DELIVER_OTHERWISE), "exception 8 at"),
    Broken("PUSHF", without("READ_FLAGS"), "RFLAGS: 0x10003, not 3"),
    Broken("software interrupts", thunk("EXCEPTION", CLEAR_IS_INT, nops(10)), "still runs", spins=True),
    Broken("INT n that cannot be delivered", thunk("EXCEPTION", "48 29 90 <eip:4>", nops(7)), "(0xe, 0x40002), not"),
    Broken("INT n without a gate", jump_behind("EXCEPTION", "test eax, 0xfffffffd", "always"), "(0xb, 0x502), not"),
    Broken("double faults", UNDELIVERED, "still runs", spins=True),
    Broken("interrupts on a bad stack", deliver_from_python, "crashed by signal"),
    Broken("triple faults", instead(cpu, "HF_GUEST", 0), "ended by stopped from outside", spins=True),
    # system calls and privileges
    Broken("SYSCALL", thunk("SYSCALL", "21 d0", nops(2)), "RFLAGS, but for those of INC: 0x603"),
    Broken("SYSRET", no_hook("SYSCALL"), "calls: 0, not 1"),
    Broken("SYSCALL of a 32-bit program", jump_behind("SYSCALL", "test esi, 0x8000 ", "always"), "RIP: 0x30004, not"),
    Broken("SYSCALL in legacy mode", jump_behind("SYSCALL", "test esi, 0x4000 ", "never"), "RIP: 0x30104, not 0x30204"),
    Broken("SYSCALL before EFER allows it", jump_behind("SYSCALL", "[rbx + efer], 1", "never"), "no exception"),
    Broken("SYSENTER", without("SYSENTER"), "not (6, 0x40001)"),
    Broken("port I/O of programs", jump_behind("PORT_OUT", "and r9d, 3", "never"), "(0xd, 0x40001), not"),
    Broken("port I/O of programs", jump_behind("PORT_IN", "and r9d, 3", "never"), "(6, 0x40002), not"),
    Broken("the port permission map", thunk("PORT_IN", IOW, IOW.replace("iow", "iob")), "accesses that came through"),
    # stops and interrupts
    Broken("a stop inside an instruction", stop_anywhere, "stores of one INC: 2, not 1"),
    Broken("counting under stops", stop_anywhere, "not 2,000,000 and 2,000,000"),
    Broken("SYSCALL while a stop is due", instead(Cpu, "_add_hooks", hooks_in_another_order), "not 0x30001"),
    Broken("CPUID, RDTSC and SYSENTER then", without("SYSENTER"), "not ((6, 0x40002))"),
    Broken("CPUID, RDTSC and SYSENTER then", without_intercept(constants.EXIT_CPUID), "EAX of leaf 0x40000000: 0"),
    Broken("coming back in time", routine("KICK", "c3 "), "did not end within", hangs=True),
    Broken("a stop before the run", instead(kicker, "REPEAT_NS", 0), "did not end within", hangs=True),
    Broken("the interrupt window", without_intercept(constants.EXIT_VINTR), "(0, 0x20006), not (0x21, 0x20006)"),
    Broken("an interrupt in a halt", without_intercept(constants.EXIT_VINTR), "((0, 0x20002)), not ((0x21, 0x20002))"),
    Broken("an interrupt out of an exit", request_without_break, "still runs", spins=True),
    Broken("an interrupt that has gone", vector_0_for_none, "exception 0 at 0x20002"),
    Broken("interrupts between runs", row(interrupt_request=4), "interrupts taken: 0, not 1", spins=True),
    # code that changes
    Broken("code rewritten by the guest", routine("PAGE_WRITTEN", "c3 "), "page: result of turn 2: 1, not 2"),
    Broken("code rewritten through another address", without("PROTECT_CODE"), "page: result of turn 2: 1, not 2"),
    Broken("code rewritten by the host", instead(Cpu, "drop_code", do_nothing), "results: (1, 1, 1), not (1, 2, 3)"),
    Broken("code rewritten in an exit", instead(Cpu, "drop_code", do_nothing), "EAX: 1, not 7"),
    Broken("first stores to a page", jump_behind("STORE_16", "cmp r9d, 0xffe", "never"), "2 bytes, 1 of them on the"),
    # exits
    Broken("MSRs", without_intercept(constants.EXIT_MSR), "RDMSR: RAX and RDX: (0, 0)"),
    Broken("MSRs that nobody answers", jump_behind("EXCEPTION", "test eax, 0x300", "always"), "still runs", spins=True),
    Broken("MSRs of libunicorn's own", instead(Cpu, "trap_msr", do_nothing), "MSR 0x10: 0, not 0x4d"),
    Broken("CPUID", without_intercept(constants.EXIT_CPUID), "leaf 0x40000000: (0, 0, 0, 0)"),
    Broken("the CPU's model", without_control(constants.CONTROL_CPU_MODEL), "GenuineIntel"),
    Broken("the CPU's features", narrow_feature_words, "bits that are to be there"),
    Broken("the CPU's features", instead(cpuid, "adjust", lambda features: features), "bits that are to be hidden"),
    Broken("single step over CPUID and MSRs", jump_behind("EXCEPTION", "test r12d, r12d", "always"), "not ((1, 2), "),
    Broken("registers in an exit", row(cr=8), "RIP, RFLAGS and CR2 of an exit"),
    Broken("port I/O", thunk("PORT_OUT", "41 ff 60 20", "41 ff 60 18"), "INs: "),
    Broken("CR8", without("READ_CONTROL", "WRITE_CONTROL"), "(0, 0), not (0, 0xb, 0xb)"),
    Broken("RDTSC", row(tsc_offset=8), "the guest reads"),
    Broken("leaving a run", run_to_an_address, "CR2: 0x8fffff, not 0x1000"),
    Broken("code at address 0", without_control(constants.CONTROL_USE_EXITS), "exception 14 at 0"),
    Broken("HLT", row(halted=4), "end of a run without HLT: HLT"),
    Broken("open bus", instead(Cpu, "map_mmio", do_nothing), "UC_ERR_READ_UNMAPPED"),
    Broken("an error in a device", instead(Cpu, "_on_error", do_nothing), "the guest ended by", spins=True),
    Broken("the serial bypass", thunk("PORT_OUT", "41 88 0c 01", nops(4)), "bytes taken: false"),
    # hostile guests
    Broken("a bad task segment", without("ABORT"), "crashed by signal 6 (SIGABRT)"),
    Broken("a breakpoint under a base", without("DEBUG_EXCEPTION"), "did not end within", hangs=True),
    Broken("a breakpoint", UNDELIVERED, "still runs", spins=True),
    Broken("page tables outside of RAM", jump_behind("LOAD_PHYSICAL_64", "sub rdx, rsi", "never"), "crashed by signal"),
    Broken("the trap door overwritten", without_intercept(constants.EXIT_CPUID), "CPUID's answer behind it: 00"),
    Broken("a start without descriptors", segments_by_the_api, "crashed by signal"),
    # speed
    Broken("stores", memory_hook, "times an addition's time"),
    Broken("stores to executable pages", without("STORE_8", "STORE_16", "STORE_32", "STORE_64"), "times an addition's"),
    Broken("the exit check of a block", without("GENERATE_CALL", "GENERATE_EXIT"), "label left over"),
    Broken("page walks", without("LOAD_PHYSICAL_64"), "what was read: 0, not 0x5eed"),
    Broken("the translation buffer", without_control(constants.CONTROL_TCG_BUFFER_SIZE), "MiB of address space"),
)


def outcome(broken: Broken) -> dict[str, Any]:
    """Do the damage in a child process, and run the check there: how it ends, as `Outcome` has it."""
    run = CHECKS[broken.check].run

    def task() -> None:
        for module in PATIENT if broken.spins else ():
            module.PATIENCE_S = PATIENCE_S
        broken.damage()
        run()

    (ended,) = Runner(HANG_S if broken.hangs else LIMIT_S).run([task])
    return asdict(ended)


def main() -> None:
    """Print the outcome of each."""
    for broken in BROKEN:
        print(json.dumps(outcome(broken)), flush=True)


if __name__ == "__main__":
    main()
