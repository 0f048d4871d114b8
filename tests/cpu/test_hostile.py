"""A hostile guest cannot hurt the host: it goes on, or stops with a reason, and the process lives."""

from __future__ import annotations

import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from emu import micro
from emu.cpu.platform import Exit
from emu.memory import GuestMemory
from emu.micro import MicroGuest
from tests.cpu.attacks import MASK_64, RAX, RCX, attack, load, push
from tests.cpu.hostile import Attack
from tests.support.remedies import run_alone

PATIENCE_S = 30.0                       # an attack takes 10 ms; a host that hangs takes for ever
OUTCOMES = (
    *("still runs", "triple fault", "the guest halted with interrupts off", "the CPU could not go on"),
    "the guest reset the machine",
)

class Worker:
    """A process that runs attacks; when one has killed it, that is said, and another takes its place."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.cpu.hostile"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def begin(self, hostile: Attack) -> None:
        """Start an attack."""
        assert self._process.stdin is not None
        self._line = hostile.line()
        self._process.stdin.write(self._line + "\n")

    def end(self) -> str:
        """How it ended, which is also checked."""
        assert self._process.stdout is not None
        outcome = ""
        if answered := bool(select.select([self._process.stdout], [], [], PATIENCE_S)[0]):
            outcome = self._process.stdout.readline().rstrip("\n")
        if not outcome:
            what = f"died of {self._process.wait()}" if answered else "hangs"
            self.close()
            self._start()
            pytest.fail(f"the host process {what}; python -m tests.cpu.hostile does it again with: {self._line}")
        assert outcome.startswith(OUTCOMES), outcome
        return outcome

    def outcome(self, hostile: Attack) -> str:
        """Both."""
        self.begin(hostile)
        return self.end()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    process = Worker()
    yield process
    process.close()


def play(examples: int, derandomize: bool) -> None:
    """Run random attacks, two at a time, in processes of their own."""
    workers = Worker(), Worker()

    @settings(
        max_examples=examples // len(workers),
        derandomize=derandomize,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(st.tuples(*[st.binary(min_size=240, max_size=240) for _ in workers]))
    def run(attacks: tuple[bytes, ...]) -> None:
        for worker, data in zip(workers, attacks, strict=True):
            worker.begin(attack(data))
        for worker in workers:
            worker.end()

    try:
        run()
    finally:
        for worker in workers:
            worker.close()


@pytest.mark.timeout(900)
def test_ten_thousand_random_guests_leave_the_host_alone() -> None:
    play(10_000, derandomize=True)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_half_a_million_random_guests_leave_the_host_alone() -> None:
    play(500_000, derandomize=False)


# -- attacks by name -----------------------------------------------------------------------------------------------

TO_RING_3 = b"".join(
    push(part) for part in (micro.USER_DS, micro.USER_TOP, 2, micro.USER_CS, micro.USER_CODE)
) + b"\x48\xcf"                         # iretq
LTR_NULL = b"\x31\xc0\x0f\x00\xd8"       # xor eax, eax; ltr ax: libunicorn takes it, and has no stack then
UD2 = b"\x0f\x0b"

# mov dr0, 0x20100; mov dr7, 1; retf to 0x38:0x100, where 0x38 is 32-bit code with base 0x20000: the breakpoint's linear
# address is not RIP, so that libunicorn does not know it as the guest's own, and waits for a debugger
BREAKPOINT_UNDER_A_BASE = (
    load(RAX, 0x20100) + b"\x0f\x23\xc0" + load(RAX, 1) + b"\x0f\x23\xf8" + push(0x38) + push(0x100) + b"\x48\xcb"
)
CODE_WITH_BASE = (micro.GDT + 0x38, struct.pack("<Q", 0x00CF_9B02_0000_FFFF).hex())
AT_THE_BREAKPOINT = (0x20100, "90f4")   # nop; hlt

NO_IDT = b"\x6a\x00\x6a\x00\x0f\x01\x1c\x24"      # push 0; push 0; lidt [rsp]
VMCB_MAPPED = (micro.PD + 8 * 5, struct.pack("<Q", micro.VMCB | 0x87).hex())        # at virtual 0xa00000
FILL_VMCB = (                           # rep stosq: all of the trap door's pages
    load(7, 0xA0_0000) + load(RCX, 0x800) + load(RAX, MASK_64) + b"\xf3\x48\xab"
)

NAMED = {
    "a null TSS": (Attack((LTR_NULL + TO_RING_3).hex(), patches=[(micro.USER_CODE, UD2.hex())]), "triple fault"),
    "a breakpoint under a code segment's base": (
        Attack(BREAKPOINT_UNDER_A_BASE.hex(), patches=[CODE_WITH_BASE, AT_THE_BREAKPOINT], resume=False),
        "the guest halted",
    ),
    "no IDT": (Attack((NO_IDT + UD2).hex()), "triple fault"),
    "page tables far away": (Attack((load(RAX, 1 << 51) + b"\x0f\x22\xd8").hex()), "triple fault"),
    "page tables at the end of all addresses": (
        Attack((load(RAX, MASK_64 - 0xFFF) + b"\x0f\x22\xd8" + load(RAX, MASK_64) + b"\xff\xe0").hex()),
        "triple fault",
    ),
    "a jump to a device": (Attack((load(RAX, micro.MMIO) + b"\xff\xe0").hex()), "the CPU could not go on"),
    "a jump to nowhere": (Attack((load(RAX, micro.UNMAPPED) + b"\xff\xe0").hex()), "the guest halted"),
    "the trap door overwritten": (
        Attack((FILL_VMCB + b"\x0f\xa2" + load(RCX, 0x10) + b"\x0f\x32\xfa\xf4").hex(), patches=[VMCB_MAPPED]),
        "the guest halted",
    ),
    "a jump into the trap door": (
        Attack((load(RAX, 0xA0_0000) + b"\xff\xe0").hex(), patches=[VMCB_MAPPED]),
        "the CPU could not go on",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_attack_ends_with_a_reason(worker: Worker, name: str) -> None:
    hostile, outcome = NAMED[name]
    hostile = replace(hostile, seconds=PATIENCE_S / 2)      # each ends by itself; on a busy host 10 ms may be too few
    assert worker.outcome(hostile).startswith(outcome)


@pytest.mark.parametrize("stack", [micro.UNMAPPED, micro.MMIO + 0x800, 0xA0_0800, 1 << 47, MASK_64 - 7, 0, 8])
def test_every_tss_stack_bad(worker: Worker, stack: int) -> None:
    tss = (micro.TSS + 4, struct.pack("<3Q", stack, stack, stack).hex())
    ist = (micro.TSS + 0x24, struct.pack("<7Q", *[stack] * 7).hex())
    worker.outcome(Attack(UD2.hex(), ring=3, patches=[tss, ist, VMCB_MAPPED]))


def test_every_software_interrupt_from_ring_3(worker: Worker) -> None:
    for vector in range(256):
        worker.outcome(Attack(bytes((0xCD, vector)).hex(), ring=3))


def run_attack(name: str, without: str) -> str:
    """A script that runs an attack by name without a remedy."""
    return (
        "from tests.support.remedies import leave_out\n"
        f"leave_out({without!r})\n"
        "from tests.cpu.hostile import run\n"
        "from tests.cpu.test_hostile import NAMED\n"
        f"print(run(NAMED[{name!r}][0]))\n"
    )


def test_a_null_tss_ends_the_process_without_the_remedy() -> None:
    assert run_alone(run_attack("a null TSS", "ABORT")).returncode == -signal.SIGABRT


def test_a_breakpoint_under_a_base_hangs_the_process_without_the_remedy() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_alone(run_attack("a breakpoint under a code segment's base", "DEBUG_EXCEPTION"), timeout=3.0)


class RamAfterSecret(GuestMemory):
    """RAM that does not start at the start of its host mapping: what stands before it is the host's."""

    def __init__(self, size: int) -> None:
        super().__init__(size + 4096)
        self.size = self.low_size = size
        self.before = self._view[:4096]
        self._view = self._view[4096:]


def test_a_page_walk_cannot_leave_ram_at_its_lower_end() -> None:
    """With CR4.LA57 set, all 64 bits of CR3 count: at -4096 the last entry stands eight bytes before address 0."""
    memory = RamAfterSecret(64 << 20)
    high = MASK_64 - (1 << 31) + 1 + micro.CODE         # by entries 511, 511, 510, 0 and 0x20
    with MicroGuest(memory=memory) as guest:
        guest.write_quads(micro.PML4 + 8 * 511, micro.DATA | 7)
        guest.write_quads(micro.DATA + 8 * 511, micro.PDPT | 7)
        guest.write_quads(micro.PDPT + 8 * 510, micro.PD | 7)
        guest.write_quads(0x100, micro.CODE | 7)        # CODE itself, once the tables count as one level further down
        memory.before[-8:] = struct.pack("<Q", micro.DATA | 7)
        code = (
            b"\x0f\x20\xe0"                      # mov rax, cr4
            b"\x0f\xba\xe8\x0c"                  # bts eax, 12
            b"\x0f\x22\xe0"                      # mov cr4, rax
            + load(RCX, high + 22)
            + b"\xff\xe1"                        # jmp rcx
            b"\x48\xc7\xc0\x00\xf0\xff\xff"      # mov rax, -4096
            b"\x0f\x22\xd8"                      # mov cr3, rax
            b"\xf4"                              # hlt: fetched through what stands before RAM, or not at all
        )
        assert guest.run(code) is Exit.SHUTDOWN
        assert guest.registers.rip == high + 32
