"""Cost of a byte on the console: by the full path through buses and UART, by the putchar bypass, by hvc0.

    python -m bench.serial [--rounds N]

`full_ns` and `bypass_ns` are the host's cost of one OUT that the CPU hands over: a write through the port bus to the
UART, called from Python, and the bypass' machine code, called from machine code. `guest_full_ns` and `guest_bypass_ns`
are what a loop of OUT instructions in a guest takes a byte, loop and delivery of the bytes included. `guest_hvc_ns` is
the same for a loop that writes to a virtio console, with 2 KiB a request as Linux' terminals do, `guest_hvc_single_ns`
with one byte a request; `hvc_gain` and `hvc_single_gain` are how many times cheaper that is than the UART's full path,
`hvc_bypass_gain` than the bypass. Before that it is checked that neither the guest nor the other end of the serial
line can tell bypass and full path apart; if they can, exit status 1.
"""

from __future__ import annotations

import argparse
import mmap
import random
import struct
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from bench.common import Report, in_turn, ratio_of_medians
from bench.hvc_guest import HVC_WRITE, HvcGuest
from devices.uart16550a import COM1, Uart16550A, UartState
from emu.bus import PortBus
from emu.cpu.abi import ffi
from emu.cpu.bypass import Bypass
from emu.cpu.library import load
from emu.cpu.platform import Exit
from emu.micro import DATA as GUEST_RESULTS
from emu.micro import MicroGuest

ROUNDS = 20
FULL_BYTES, BYPASS_BYTES = 40_000, 400_000
HVC_WRITES = 2_000
RANDOM_PROGRAMS, PROGRAM_LENGTH = 300, 200
TIMEOUT_S = 60.0

THR, IER, FCR, LCR, MCR, LSR, MSR, SCR = range(8)
DLAB, BREAK, EIGHT_BITS = 0x80, 0x40, 0x03
OUT2, RTS, DTR, LOOP = 0x08, 0x02, 0x01, 0x10
THRI = 0x02
FIFO = 0x01

# al = cl; out dx, al; dec ecx; jnz to the start; hlt
OUT_LOOP = bytes.fromhex("88c8 ee ffc9 75f9 f4")
# void(size_t rdi count, void *rsi callback, void *rdx context): call a uc_cb_insn_out_t as libunicorn does
CALL_LOOP = bytes.fromhex(
    "53"            # push rbx
    "4154"          # push r12
    "4155"          # push r13            ; the stack is aligned now
    "4889fb"        # mov rbx, rdi
    "4989f4"        # mov r12, rsi
    "4989d5"        # mov r13, rdx
    "31ff"          # again: xor edi, edi ; the engine: not looked at
    "bef8030000"    # mov esi, 0x3f8
    "ba01000000"    # mov edx, 1
    "b941000000"    # mov ecx, 0x41
    "4d89e8"        # mov r8, r13
    "41ffd4"        # call r12
    "48ffcb"        # dec rbx
    "75e4"          # jnz again
    "415d"          # pop r13
    "415c"          # pop r12
    "5b"            # pop rbx
    "c3"            # ret
)

Access = tuple[int, "int | None"]
"""A register of the UART, and the byte written; None reads it."""

CASES: dict[str, list[Access]] = {
    "plain text": [(THR, byte) for byte in b"hello, world\r\n"],
    "divisor latch": [(THR, 0x41), (LCR, DLAB), (THR, 0x0C), (IER, 0), (THR, None), (LCR, EIGHT_BITS), (THR, 0x42)],
    "loopback": [(MCR, LOOP), (THR, 0x43), (LSR, None), (THR, None), (MCR, OUT2), (THR, 0x44), (LSR, None)],
    "loopback overrun": [(MCR, LOOP), *[(THR, byte) for byte in range(20)], (LSR, None), (MCR, 0), (THR, 0x45)],
    "break": [(LCR, BREAK), (THR, 0x46), (LCR, EIGHT_BITS), (THR, 0x47)],
    "transmitter interrupt": [(MCR, OUT2), (IER, THRI), (FCR, None), (THR, 0x48), (FCR, None), (IER, 0), (THR, 0x49)],
}


class Line:
    """An interrupt request that remembers how it changed (devices.IrqLine)."""

    def __init__(self) -> None:
        self.changes: list[bool] = []

    def set(self, level: bool) -> None:
        """Drive it."""
        if level != (bool(self.changes) and self.changes[-1]):
            self.changes.append(level)


class UartGuest(MicroGuest):
    """A few instructions in front of a UART, with the bypass or without."""

    def __init__(self, bypassed: bool) -> None:
        self.ports = PortBus()
        super().__init__()
        self.sent = bytearray()
        self.line = Line()
        self.bypass = Bypass(self.cpu.context, COM1) if bypassed else None
        self.uart = Uart16550A(self.line, self.sent.extend, self.bypass)
        self.ports.add("com1", self.uart)

    def port_in(self, port: int, size: int) -> int:
        """IN, from the bus."""
        return self.ports.read(port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT, to the bus."""
        self.ports.write(port, size, value)

    def out_loop(self, count: int) -> float:
        """Let the guest send `count` bytes; nanoseconds each.

        Raises:
            AssertionError: other bytes arrived than were sent.
        """
        self.put(OUT_LOOP, rcx=count, rdx=COM1)
        started = time.perf_counter_ns()
        ended = self.go(TIMEOUT_S)
        self.uart.flush_bypass()
        spent = time.perf_counter_ns() - started
        assert ended is Exit.HALT and self.sent == bytes(number & 0xFF for number in range(count, 0, -1))
        self.sent.clear()
        return spent / count

    def perform(self, program: list[Access]) -> tuple[bytes, bytes, list[bool], UartState]:
        """Let the guest do a program; what was sent, what was read, the interrupt line's changes and the UART's end."""
        self.put(_machine_code(program), rdi=GUEST_RESULTS)
        assert self.go(TIMEOUT_S) is Exit.HALT
        reads = sum(value is None for _, value in program)
        state = self.uart.save()
        return bytes(self.sent), self.memory.read(GUEST_RESULTS, reads), self.line.changes, state


def _machine_code(program: list[Access]) -> bytes:
    code = b""
    for register, value in program:
        code += b"\x66\xba" + struct.pack("<H", COM1 + register)        # mov dx, port
        code += b"\xec\xaa" if value is None else bytes((0xB0, value, 0xEE))    # in al, dx; stosb / mov al; out dx, al
    return code + b"\xf4"                                               # hlt


def _random_program(source: random.Random) -> list[Access]:
    likely: dict[int, Callable[[], int]] = {
        THR: partial(source.randrange, 256),
        IER: partial(source.randrange, 16),
        FCR: partial(source.choice, (0, FIFO, FIFO | 0x06, 0xC1)),
        LCR: partial(source.choice, (EIGHT_BITS, EIGHT_BITS, EIGHT_BITS, DLAB | EIGHT_BITS, BREAK)),
        MCR: partial(source.choice, (OUT2 | RTS | DTR, OUT2, 0, LOOP, LOOP | OUT2)),
        SCR: partial(source.randrange, 256),
    }
    registers = [THR] * 8 + list(likely)
    program: list[Access] = []
    while len(program) < PROGRAM_LENGTH:
        if source.random() < 0.3:
            program.append((source.choice((THR, IER, FCR, LCR, MCR, LSR, LSR, LSR, MSR, SCR)), None))
        else:
            register = source.choice(registers)
            program.append((register, likely[register]()))
    return program


@dataclass(frozen=True)
class Comparison:
    """How the two paths were compared: programs in all, and the names of those they did not agree on."""

    programs: int
    different: list[str]


def compare_paths() -> Comparison:
    """Run every case, and random programs, on both paths."""
    source = random.Random(16550)
    programs = CASES | {f"random program {number}": _random_program(source) for number in range(RANDOM_PROGRAMS)}
    different = []
    for name, program in programs.items():
        with closing(UartGuest(bypassed=True)) as bypassed, closing(UartGuest(bypassed=False)) as full:
            if bypassed.perform(program) != full.perform(program):
                different.append(name)
    return Comparison(len(programs), different)


def _bus_write(guest: UartGuest) -> float:
    """Nanoseconds of a write through the bus."""
    write = guest.ports.write
    started = time.perf_counter_ns()
    for _ in range(FULL_BYTES):
        write(COM1, 1, 0x41)
    spent = time.perf_counter_ns() - started
    assert len(guest.sent) == FULL_BYTES
    guest.sent.clear()
    return spent / FULL_BYTES


class CallLoop:
    """A loop in machine code that calls the bypass' machine code."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._page[: len(CALL_LOOP)] = CALL_LOOP
        self._run = ffi.cast("void(*)(size_t, void *, void *)", ffi.from_buffer(self._page))
        self._callback = ffi.cast("void *", load().thunks["PORT_OUT"])

    def __call__(self, guest: UartGuest) -> float:
        """Nanoseconds of a call, delivery of what the bypass collects included."""
        started = time.perf_counter_ns()
        self._run(BYPASS_BYTES, self._callback, guest.cpu.context)
        guest.uart.flush_bypass()
        spent = time.perf_counter_ns() - started
        assert len(guest.sent) == BYPASS_BYTES
        guest.sent.clear()
        return spent / BYPASS_BYTES


def main() -> None:
    """Compare, measure, print and write bench/out/serial.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each measurement ({ROUNDS})")
    rounds = parser.parse_args().rounds
    comparison = compare_paths()
    report = Report("serial", "host and guest cost of a byte on the console, rounds in turn")
    guests = closing(UartGuest(bypassed=True)), closing(UartGuest(bypassed=False)), closing(HvcGuest())
    with guests[0] as bypassed, guests[1] as full, guests[2] as hvc:
        contestants: dict[str, Callable[[], float]] = {
            "full_ns": partial(_bus_write, full),
            "bypass_ns": partial(CallLoop(), bypassed),
            "guest_full_ns": partial(full.out_loop, FULL_BYTES),
            "guest_bypass_ns": partial(bypassed.out_loop, BYPASS_BYTES),
            "guest_hvc_ns": partial(hvc.write_loop, HVC_WRITES, HVC_WRITE),
            "guest_hvc_single_ns": partial(hvc.write_loop, HVC_WRITES, 1),
        }
        in_turn(1, contestants)
        times = in_turn(rounds, contestants)
    for name, samples in times.items():
        report.samples(name, samples, "ns")
    report.figure("bypass_ratio", ratio_of_medians(times["guest_bypass_ns"], times["guest_full_ns"]))
    report.figure("hvc_gain", ratio_of_medians(times["guest_full_ns"], times["guest_hvc_ns"]))
    report.figure("hvc_bypass_gain", ratio_of_medians(times["guest_bypass_ns"], times["guest_hvc_ns"]))
    report.figure("hvc_single_gain", ratio_of_medians(times["guest_full_ns"], times["guest_hvc_single_ns"]))
    report.figure("programs_compared", comparison.programs)
    report.figure("identical", not comparison.different)
    report.finish()
    if comparison.different:
        sys.exit(f"bench.serial: the bypass differs from the full path: {', '.join(comparison.different)}")


if __name__ == "__main__":
    main()
