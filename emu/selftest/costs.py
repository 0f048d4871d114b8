"""What the ways from the guest to the machine and back cost on this host, as the guest sees it.

Each is a loop of a micro guest that does one thing over and over between two RDTSCs; the time of an empty loop is
subtracted. Rounds are short and many, so that a busy host spoils some of them and not the median.
"""

from __future__ import annotations

import statistics
import struct
import time
from collections.abc import Callable

from devices.frozen import frozen
from devices.uart16550a import COM1, Uart16550A
from emu.bus import MsrBus, PortBus
from emu.clock import GuestClock
from emu.cpu.bypass import Bypass
from emu.cpu.constants import MSR_LSTAR, MSR_SFMASK
from emu.cpu.platform import Exit
from emu.errors import EmuError
from emu.micro import CODE, DATA, PF, STUBS, UNMAPPED, USER_CODE, MicroGuest
from emu.selftest.check import Listing
from hypercalls.call import Call, CallMemory
from hypercalls.dispatch import Dispatcher
from hypercalls.fake import FakeMachine
from hypercalls.numbers import FIRST_USER
from hypercalls.registry import hypercall

__all__ = ["COSTS", "Cost", "Guest", "Scenario", "measure", "program_of"]

ROUNDS = 61
ROUND_CYCLES = 2_500_000                # a millisecond or so: few are spoilt where many processes run
LOOP_ROUNDS, LOOP_TURNS = 15, 100_000
FIRST_TURNS = 200
TIMEOUT_S = 10.0

PORT = 0x99
VECTOR = 0x21
STUB_BYTES = 16

# Parts of the programs. R15 counts turns, R8 and R9 are the TSC before and behind them
START = Listing("""
  000  0f 31        rdtsc
  002  48 c1 e2 20  shl rdx, 0x20
  006  48 09 d0     or rax, rdx
  009  49 89 c0     mov r8, rax
""")
END = Listing("""
  000  0f 31        rdtsc
  002  48 c1 e2 20  shl rdx, 0x20
  006  48 09 d0     or rax, rdx
  009  49 89 c1     mov r9, rax
  00c  f4           hlt            ; in ring 3 #GP, whose handler halts
""")
NOTHING = Listing("")
OUT = Listing("""
  000  e6 <PORT:1>  out PORT, al
""", PORT=PORT)
UART_PORT = Listing("""
  000  66 ba <COM1:2>  mov dx, COM1
""", COM1=COM1)
OUT_DX = Listing("""
  000  ee  out dx, al
""")
MSR_NUMBER = Listing("""
  000  b9 <MSR:4>  mov ecx, MSR
""", MSR=FIRST_USER)
WRMSR = Listing("""
  000  0f 30  wrmsr
""")
READ = Listing("""
  000  48 8b 04 25 <UNMAPPED:4>  mov rax, qword ptr [UNMAPPED]
""", UNMAPPED=UNMAPPED)
SKIP_READ = Listing("""
  000  48 83 c4 08     add rsp, 8              ; the error code
  004  48 83 04 24 08  add qword ptr [rsp], 8  ; RIP behind the read
  009  48 cf           iretq
""")
SYSCALL = Listing("""
  000  0f 05  syscall
""")
SYSRET = Listing("""
  000  48 0f 07  sysretq
""")
CPUID = Listing("""
  000  31 c0  xor eax, eax
  002  0f a2  cpuid
""")
WAIT = Listing("""
  000  fb     sti
  001  eb fe  jmp 1
""")
TAKE = Listing("""
  000  49 ff cf    dec r15
  003  74 02       je 7
  005  48 cf       iretq
  007  b8 <END:4>  mov eax, END
  00c  ff e0       jmp rax
""", END=DATA)


@frozen
class Cost:
    """What one turn costs, less the loop around it.

    Attributes:
        name: one of `COSTS`.
        ns_median: nanoseconds, the median of the rounds.
        ns_spread: their interquartile range: half of them lie in a band of this width.
        cycles_median: the same median in cycles of the host's time-stamp counter.
    """

    name: str
    ns_median: float
    ns_spread: float
    cycles_median: float


@hypercall(FIRST_USER, "PV_EMPTY")
def _pv_empty(_call: Call) -> None:
    """Do nothing."""


class Guest(MicroGuest):
    """A guest in front of buses as the machine has them; its interrupt line stays as it is."""

    def __post_init__(self) -> None:
        ports, msrs, clock = PortBus(), MsrBus(), GuestClock()
        self.ports, self.msr_bus = ports, msrs
        self.port_in, self.port_out = ports.read, ports.write      # type: ignore[method-assign]
        self.rdmsr, self.wrmsr = msrs.read, msrs.write             # type: ignore[method-assign]
        super().__post_init__()
        calls = CallMemory(self.memory, self.memory)
        msrs.add("PV_EMPTY", FIRST_USER, *Dispatcher(calls, clock, FakeMachine(), self.registers.dump).bind(_pv_empty))

    def acknowledge(self) -> int:
        return VECTOR


class _NoLine:
    """An interrupt request that leads nowhere (devices.IrqLine)."""

    def set(self, level: bool) -> None:
        pass


def _no_preparation(guest: Guest) -> None:
    pass


def _add_uart(guest: Guest) -> None:
    guest.ports.add("com1", Uart16550A(_NoLine(), lambda data: None))


def _add_bypassed_uart(guest: Guest) -> None:
    guest.ports.add("com1", Uart16550A(_NoLine(), lambda data: None, Bypass(guest.cpu.context, COM1)))


def _skip_faults(guest: Guest) -> None:
    guest.memory.write(STUBS + STUB_BYTES * PF, SKIP_READ.code)


def _answer_syscalls(guest: Guest) -> None:
    guest.cpu.write_msr(MSR_LSTAR, DATA)
    guest.cpu.write_msr(MSR_SFMASK, 0)
    guest.memory.write(DATA, SYSRET.code)


def _raise_interrupts(guest: Guest) -> None:
    guest.memory.write(STUBS + STUB_BYTES * VECTOR, TAKE.code)
    guest.memory.write(DATA, END.code)
    guest.cpu.set_interrupt_line(True)


@frozen
class Scenario:
    """How a cost is measured.

    Attributes:
        what: what one turn is, in words.
        turn: its instructions.
        before: instructions before the first turn.
        at: where they are; it decides the ring.
        prepare: makes the guest ready.
    """

    what: str
    turn: Listing = NOTHING
    before: Listing = NOTHING
    at: int = CODE
    prepare: Callable[[Guest], None] = _no_preparation


COSTS = {
    "exit": Scenario("an OUT to a port that nobody claims: into Python and back", OUT),
    "uart byte": Scenario("a byte to the serial port, by bus and UART", OUT_DX, UART_PORT, prepare=_add_uart),
    "bypassed byte": Scenario("the same by the putchar bypass", OUT_DX, UART_PORT, prepare=_add_bypassed_uart),
    "hypercall": Scenario("a WRMSR whose handler does nothing", WRMSR, MSR_NUMBER),
    "interrupt": Scenario("an interrupt: vector from Python, handler, IRETQ", before=WAIT, prepare=_raise_interrupts),
    "page fault": Scenario("a read of no page, handler, IRETQ", READ, prepare=_skip_faults),
    "syscall": Scenario("SYSCALL and SYSRET", SYSCALL, at=USER_CODE, prepare=_answer_syscalls),
    "cpuid": Scenario("CPUID, answered in machine code", CPUID),
}
"""What can be measured, by name."""


def program_of(scenario: Scenario) -> bytes:
    """A loop of its turns, as many as R15 says."""
    turn = scenario.turn.code
    close = b"\x49\xff\xcf\x0f\x85" + struct.pack("<i", -len(turn) - 9)          # dec r15; jnz to the turn
    return START.code + scenario.before.code + turn + close + END.code


def _cycles(guest: Guest, program: bytes, at: int, turns: int) -> float:
    """Run a program; TSC cycles a turn."""
    guest.put(program, at, r15=turns, rax=0)
    if guest.go(TIMEOUT_S) is not Exit.HALT:
        raise EmuError(f"{turns:,} turns of a cost's loop do not end in {TIMEOUT_S:g} s")
    return (guest.registers.r9 - guest.registers.r8) / turns


def _now(guest: Guest) -> tuple[int, int]:
    """Host nanoseconds and TSC at one moment: of five readings the one least disturbed."""
    readings = []
    for _ in range(5):
        before, tsc, after = time.monotonic_ns(), guest.cpu.tsc(), time.monotonic_ns()
        readings.append((after - before, (before + after) // 2, tsc))
    _, ns, tsc = min(readings)
    return ns, tsc


def measure(name: str) -> Cost:
    """Measure a cost, in about a tenth of a second.

    Args:
        name: one of `COSTS`.

    Raises:
        ValueError: there is no such cost.
        EmuError: the loop does not end.
        UnsupportedHost: this host, or its libunicorn, is not a known one.
    """
    if name not in COSTS:
        raise ValueError(f"no cost is called {name}; there are {', '.join(COSTS)}")
    scenario = COSTS[name]
    with Guest() as guest:
        started_ns, started_tsc = _now(guest)
        loop = program_of(Scenario("an empty loop"))
        empty = statistics.median(_cycles(guest, loop, CODE, LOOP_TURNS) for _ in range(LOOP_ROUNDS))
        scenario.prepare(guest)
        program = program_of(scenario)
        first = [_cycles(guest, program, scenario.at, FIRST_TURNS) for _ in range(2)]
        turns = max(FIRST_TURNS, int(ROUND_CYCLES / min(first)))
        cycles = [_cycles(guest, program, scenario.at, turns) - empty for _ in range(ROUNDS)]
        ended_ns, ended_tsc = _now(guest)
    ns_a_cycle = (ended_ns - started_ns) / (ended_tsc - started_tsc)
    quarter, median, three_quarters = statistics.quantiles(cycles, n=4)
    return Cost(name, median * ns_a_cycle, (three_quarters - quarter) * ns_a_cycle, median)
