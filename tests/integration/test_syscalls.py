"""System calls of a booted guest's programs, answered by the host."""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Iterator

import capstone
import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.machine import Machine
from emu.stats import Kind
from hypercalls.examples import readonly_syscalls
from hypercalls.loading import objects_of
from hypercalls.syscalls import PASS, Syscall, SyscallCall, SyscallResult
from tests.integration.programs import CODE
from tests.integration.script import CONSTANTS, FREE, MMAP, Step, play, program

pytestmark = pytest.mark.integration

EXAMPLES = objects_of(readonly_syscalls, Syscall)
MARKED = 400                            # no call of x86-64 Linux has this number
MARK = 0x5EED_0000_0000
PRIORITY_MAX, PRIORITY_MIN, CLOCK_GETRES, GETCPU, GETRANDOM = 146, 147, 229, 309, 318
PRCTL, SET_SECCOMP, FILTER = 157, 22, 2
NO_SYSTEM_CALL = 2**64 - errno.ENOSYS


class Switch:
    """Handlers that can be turned off, and what they did for the program under test.

    Attributes:
        on: answer, or pass everything on.
        counts: answers by name.
    """

    def __init__(self) -> None:
        self.on = True
        self.counts: Counter[str] = Counter()

    def behind(self, one: Syscall) -> Syscall:
        """A handler behind this switch."""

        def handler(call: SyscallCall) -> SyscallResult:
            result = one(call) if self.on else PASS
            self.counts[one.name] += result is not PASS
            return result

        return Syscall(one.number, one.name, handler)


switch = Switch()
marked = Syscall(MARKED, "marked", lambda call: MARK + call.arguments[0])


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine whose programs' calls go to the example, and to a handler with an answer of its own."""
    syscalls = [switch.behind(one) for one in (*EXAMPLES, marked)]
    with emu.boot(kernel="cloud", append=LOUD_SETTINGS, syscalls=syscalls) as machine:
        machine.wait_prompt()
        yield machine
        assert complaints(machine.run("dmesg", timeout=60).stdout) == []


@pytest.fixture(autouse=True)
def fresh() -> None:
    """The handlers answer, and have not answered anything yet."""
    switch.on = True
    switch.counts.clear()


def test_the_script_s_listing_is_what_its_bytes_mean() -> None:
    listing = program([])
    decoded = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm(listing.code, CODE[64])
    assert [(bytes(i.bytes), f"{i.mnemonic} {i.op_str}".strip()) for i in decoded] == listing.lines()


SAME = [
    *(Step(number, (policy,)) for number in (PRIORITY_MAX, PRIORITY_MIN) for policy in (*range(8), 1 << 32, 2**64 - 1)),
    *(Step(CLOCK_GETRES, (clock, FREE + 16 * i)) for i, clock in enumerate((*range(13), 1 << 32 | 2))),
    Step(CLOCK_GETRES, (2, 0)),
    Step(GETCPU, (FREE + 0x200, FREE + 0x204, 0)),
    Step(GETCPU, (FREE + 0x208, 0, 0)),
    Step(GETCPU, (0, FREE + 0x20C, 0)),
    Step(GETCPU, (1, 0, 0)),
    Step(CLOCK_GETRES, (3, 2**64 - 4096)),
    Step(GETRANDOM, (FREE, 0, 0)),
    Step(GETRANDOM, (FREE + 0x1000, 0x1_0000, 0)),
    Step(GETRANDOM, (1 << 47, 16, 0)),
    Step(GETRANDOM, (FREE, 16, 0x80)),
]


def test_the_host_s_answers_are_the_kernel_s(machine: Machine) -> None:
    switch.on = False
    by_the_kernel, output = play(machine, SAME, (FREE, 0x300))
    assert not switch.counts.total()
    switch.on = True
    by_the_host, same_output = play(machine, SAME, (FREE, 0x300))
    assert [result for result, _ in by_the_host] == [result for result, _ in by_the_kernel]
    assert same_output == output
    assert {name for name, count in switch.counts.items() if count} >= {one.name for one in EXAMPLES}


def test_a_call_of_the_table_is_the_host_s_and_all_others_the_kernel_s(machine: Machine) -> None:
    context = machine.board.cpu.context
    calls = [Step(MARKED, (7,), 20_000), Step(MARKED + 1), Step(1 << 32 | MARKED)]
    before = context.intercepted, context.syscalls
    (mine, next_, wide), _ = play(machine, calls)
    answered, reached = context.intercepted - before[0], context.syscalls - before[1]
    assert mine[0] == MARK + 7
    assert next_[0] == wide[0] == NO_SYSTEM_CALL
    assert switch.counts["marked"] == 20_000
    assert answered >= 20_000 > reached              # others of the guest's programs are among both
    switch.on = False
    assert play(machine, calls)[0][0][0] == NO_SYSTEM_CALL


def test_a_filter_in_the_guest_s_kernel_does_not_see_them(machine: Machine) -> None:
    """A seccomp filter has getcpu fail: whoever comes to the kernel with it is told so."""
    instructions = (
        (0x20, 0, 0, 0),                # load the number
        (0x15, 0, 1, GETCPU),           # is it getcpu?
        (0x06, 0, 0, 0x5_0000 | 99),    # then errno 99
        (0x06, 0, 0, 0x7FFF_0000),      # else allow it
    )
    bpf = b"".join(struct.pack("<HBBI", *one) for one in instructions)
    constants = struct.pack("<QQ", len(instructions), CONSTANTS + 16) + bpf
    steps = [Step(PRCTL, (SET_SECCOMP, FILTER, CONSTANTS)), Step(GETCPU, (FREE, 0, 0), 100)]
    results, _ = play(machine, steps, constants=constants)
    assert [result for result, _ in results] == [0, 0]
    switch.on = False
    results, _ = play(machine, steps, constants=constants)
    assert [result for result, _ in results] == [0, 2**64 - 99]


def test_memory_that_is_not_there_yet_is_brought_in_by_the_kernel(machine: Machine) -> None:
    far = 0x2000_0000
    steps = [
        Step(MMAP, (far, 0x10_0000, 3, 0x32, 2**64 - 1, 0)),
        Step(GETRANDOM, (far, 0x8000, 0)),              # nothing of it was touched: the kernel's
        Step(GETRANDOM, (far, 0x8000, 0)),
        Step(GETRANDOM, (far + 0x7000, 0x2000, 0)),     # the second page was not
        Step(GETCPU, (far + 0x4_0000, far + 0x5_0000, 0)),
        Step(GETCPU, (far + 0x4_0000, far + 0x5_0000, 0)),
    ]
    results, output = play(machine, steps, (far, 0xA000))
    assert [result for result, _ in results] == [far, 0x8000, 0x8000, 0x2000, 0, 0]
    assert switch.counts["getcpu"] == 1 and switch.counts["getrandom"] >= 1
    assert all(any(output[page : page + 0x1000]) for page in range(0, 0x9000, 0x1000))
    assert not any(output[0x9000:])


def test_a_child_s_memory_is_not_its_parent_s(machine: Machine) -> None:
    """After fork the pages are shared until somebody writes: the host must not write to both."""
    # fork; whoever it is: getrandom into the page that both have; the child ends, the parent waits, and shows its own
    fork, wait4 = 57, 61
    steps = [
        Step(GETRANDOM, (FREE, 0x1000, 0)),
        Step(fork),
        Step(GETRANDOM, (FREE, 0x800, 0)),
        Step(wait4, (2**64 - 1, 0, 0, 0)),
    ]
    program(steps, (FREE, 0x1000)).install(machine, "/tmp/script")
    written = machine.run("/tmp/script", check=True, timeout=60).stdout_bytes
    size = 16 * (len(steps) + 1)
    child, parent = written[size : size + 0x1000], written[2 * size + 0x1000 :]
    assert len(parent) == len(child) == 0x1000
    assert child[0x800:] == parent[0x800:]
    assert child[:0x800] != parent[:0x800]


def test_ordinary_programs_see_no_difference(machine: Machine) -> None:
    command = "chrt -m; nproc; uname -s; head -c 100000 /dev/urandom | wc -c; seq 100 | shuf | sort -n | md5sum"
    with_host = machine.run(command, check=True, timeout=60).stdout
    switch.on = False
    assert machine.run(command, check=True, timeout=60).stdout == with_host
    assert "100000\n" in with_host


def test_calls_are_in_the_statistics(machine: Machine) -> None:
    before = machine.stats()
    play(machine, [Step(MARKED, (), 100)])
    since = machine.stats() - before
    assert since.count(Kind.SYSCALL, "marked") == 100
    assert since.count(Kind.NATIVE, "syscall intercepted") >= 100
