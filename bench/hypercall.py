"""What a hypercall costs the guest that makes it: round trips by a loop of instructions, in nanoseconds and TSC cycles.

    python -m bench.hypercall [--rounds N]

A machine without a kernel runs WRMSR in a loop and reads its time-stamp counter before and behind it. `empty_us` is a
handler that does nothing, `console_byte_us` PV_CONSOLE with a byte, `console_buffer_us_per_byte` with 4 KiB,
`read_100_us` and `read_64k_us` PV_READ of files of that size. Beside them, in the same loop: `uart_byte_us`, an OUT to
the serial port that the putchar bypass takes, and `uart_exit_us`, one that the UART has to be asked about;
`hvc_write_us`, a write of 2 KiB to a virtio console as Linux' driver makes it (bench/hvc_guest.py).

`p9_100_us` and `p9_64k_us` are open, read and close of the same files over 9p, in a booted Linux: by a shell that runs
the small one as a script, and by dd of the large one, less the same with files that are in the guest's memory.
`pv_read_ratio` is `read_100_us` over `p9_100_us`.

`clock_us` and `clock_qemu_us` are one turn of a loop in a Linux guest's program that reads the clock through the vDSO,
here and under QEMU's TCG with the same kernel and root, and `clock_alone_us` what is left without the loop, which
varies more than that is; `clock_exits` and `clock_syscalls` are how many exits and system
calls 200,000 of them caused here, beyond what the same loop without them does.
"""

from __future__ import annotations

import argparse
import statistics
import struct
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path

from bench.clock import clock_figures
from bench.common import Report, in_turn, ratio_of_medians
from bench.hvc_guest import HVC_WRITE, HvcGuest
from devices.uart16550a import COM1
from emu import micro
from emu.fittings import Fittings, Share
from emu.launch import boot
from emu.machine import Machine
from emu.memory import KIB, MIB
from emu.run_loop import StopReason
from hypercalls import Call, hypercall
from hypercalls.buffer import buffer_value
from hypercalls.files import REQUEST
from hypercalls.numbers import FIRST_USER, PV_CONSOLE, PV_READ

ROUNDS, CLOCK_ROUNDS = 15, 5
COUNT, BUFFER_COUNT, FILE_COUNT, HVC_COUNT = 20_000, 4_000, 2_000, 1_000
SMALL_TURNS, LARGE_TURNS = 300, 50
TIMEOUT_S = 60.0
BUFFER, BUFFER_SIZE = 0x10_0000, 4 * KIB
SMALL_BLOCK, LARGE_BLOCK = 0x5_0000, 0x5_0100
SMALL, LARGE = 100, 64 * KIB
SCR = 7                                 # the UART's scratch register

WRMSR, OUT, NOP = b"\x0f\x30", b"\xee", b"\x90"

# The loop's two ends; between them stands one instruction. EAX, ECX and EDX are its operands.
LOOP = (
    "0f31"              # rdtsc
    "48c1e220"          # shl rdx, 32
    "4809d0"            # or rax, rdx
    "4989c4"            # mov r12, rax
    "b8{eax}"           # mov eax, imm32
    "ba{edx}"           # mov edx, imm32
    "b9{ecx}"           # mov ecx, imm32
    "41b8{count}"       # mov r8d, imm32
    "{instruction}"     # again:
    "49ffc8"            # dec r8
    "75{back}"          # jnz again
    "0f31"              # rdtsc
    "48c1e220"          # shl rdx, 32
    "4809d0"            # or rax, rdx
    "4c29e0"            # sub rax, r12
    "48a3{result}"      # mov [result], rax
    "f4"                # hlt
)
RESULT = micro.DATA


@hypercall(FIRST_USER, "PV_EMPTY")
def pv_empty(_call: Call) -> None:
    """Do nothing.

    Guest ABI: WRMSR of any value.
    """


def program(instruction: bytes, count: int, eax: int = 0, edx: int = 0, ecx: int = 0) -> bytes:
    """A loop of one instruction that ends by storing how many TSC cycles it took.

    Args:
        instruction: at most 100 bytes; it keeps EAX, ECX, EDX, R8 and R12.
        count: how often.
        eax, edx, ecx: its operands.
    """
    dword = struct.Struct("<I")
    words = {"eax": eax, "edx": edx, "ecx": ecx, "count": count}
    return bytes.fromhex(
        LOOP.format(
            **{name: dword.pack(value).hex() for name, value in words.items()},
            instruction=instruction.hex(),
            back=f"{-(len(instruction) + 5) & 0xFF:02x}",
            result=struct.pack("<Q", RESULT).hex(),
        )
    )


class Loops:
    """Loops in machines without a kernel, a new one for each.

    Args:
        directory: for PV_READ; it has files named `small` and `large`.
    """

    def __init__(self, directory: Path) -> None:
        self._fittings = Fittings(hypercalls=(pv_empty,), files=Share(directory, read_only=True), channel=False)

    def __call__(self, instruction: bytes, count: int, eax: int = 0, edx: int = 0, ecx: int = 0) -> float:
        """Microseconds for each turn, less those of a turn without the instruction."""
        with_it, without = (self._turn(code, count, eax, edx, ecx) for code in (instruction, NOP))
        return with_it - without

    def wrmsr(self, number: int, value: int, count: int) -> float:
        """The same for WRMSR."""
        return self(WRMSR, count, value & 0xFFFF_FFFF, value >> 32, number)

    def _turn(self, instruction: bytes, count: int, eax: int, edx: int, ecx: int) -> float:
        with Machine(64 * MIB, self._fittings) as machine:
            memory = machine.memory
            machine.start(micro.install(memory, program(instruction, count, eax, edx, ecx)))
            memory.write(BUFFER, b"x" * LARGE)
            for block, name in ((SMALL_BLOCK, b"small"), (LARGE_BLOCK, b"large")):
                path = block + REQUEST.size
                memory.write(block, REQUEST.pack(path, len(name), 0, 0, BUFFER, LARGE, 0) + name)
            assert machine.run_to_end(TIMEOUT_S) is StopReason.HALTED, machine.stop_detail
            cycles = int.from_bytes(memory.read(RESULT, 8), "little")
            return cycles / count / machine.board.kvmclock.hz * 1e6


def hvc_write(guest: HvcGuest) -> float:
    """Microseconds of a write of HVC_WRITE bytes."""
    return guest.write_loop(HVC_COUNT, HVC_WRITE) * HVC_WRITE / 1e3


class Files9p:
    """Open, read and close of a file over 9p, by a booted Linux."""

    def __init__(self, directory: Path) -> None:
        self._machine = boot(kernel="generic", shares={"data": Share(directory, read_only=True)})
        self._machine.wait_ready()
        self._machine.run("cp /mnt/data/* /tmp", check=True)

    def small(self) -> float:
        """Microseconds by a shell that runs the file, which is a comment: one open, read and close."""
        job = "i=0; while [ $i -lt %d ]; do . %s/small; i=$((i+1)); done"
        return self._difference(job, SMALL_TURNS)

    def large(self) -> float:
        """Microseconds by dd, with a process each time."""
        job = "i=0; while [ $i -lt %d ]; do dd if=%s/large of=/dev/null bs=64k 2>/dev/null; i=$((i+1)); done"
        return self._difference(job, LARGE_TURNS)

    def _difference(self, job: str, turns: int) -> float:
        return (self._seconds(job % (turns, "/mnt/data")) - self._seconds(job % (turns, "/tmp"))) / turns * 1e6

    def _seconds(self, job: str) -> float:
        started = time.perf_counter()
        self._machine.run(job, check=True, timeout=TIMEOUT_S)
        return time.perf_counter() - started

    def close(self) -> None:
        """End the guest."""
        self._machine.close()


def main() -> None:
    """Measure, print and write bench/out/hypercall.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each measurement ({ROUNDS})")
    rounds = parser.parse_args().rounds
    report = Report("hypercall", "round trips as the guest sees them, rounds in turn")
    with tempfile.TemporaryDirectory() as name, closing(HvcGuest()) as hvc:
        directory = Path(name)
        (directory / "small").write_bytes(b"#" * (SMALL - 1) + b"\n")
        (directory / "large").write_bytes(b"l" * LARGE)
        loops = Loops(directory)
        with closing(Files9p(directory)) as files:
            times = in_turn(rounds, {
                "empty_us": partial(loops.wrmsr, FIRST_USER, 0, COUNT),
                "console_byte_us": partial(loops.wrmsr, PV_CONSOLE, 0x41, COUNT),
                "console_buffer_us": partial(loops.wrmsr, PV_CONSOLE, buffer_value(BUFFER, BUFFER_SIZE), BUFFER_COUNT),
                "read_100_us": partial(loops.wrmsr, PV_READ, SMALL_BLOCK, FILE_COUNT),
                "read_64k_us": partial(loops.wrmsr, PV_READ, LARGE_BLOCK, FILE_COUNT),
                "uart_byte_us": partial(loops, OUT, COUNT, 0x41, COM1),
                "uart_exit_us": partial(loops, OUT, COUNT, 0x41, COM1 + SCR),
                "hvc_write_us": partial(hvc_write, hvc),
                "p9_100_us": files.small,
                "p9_64k_us": files.large,
            })
    for key, samples in times.items():
        report.samples(key, samples, "us")
    report.figure("console_buffer_us_per_byte", statistics.median(times["console_buffer_us"]) / BUFFER_SIZE, "us")
    report.figure("hvc_us_per_byte", statistics.median(times["hvc_write_us"]) / HVC_WRITE, "us")
    report.figure("pv_read_ratio", ratio_of_medians(times["read_100_us"], times["p9_100_us"]))
    report.figure("pv_read_64k_ratio", ratio_of_medians(times["read_64k_us"], times["p9_64k_us"]))
    clock_figures(report, min(rounds, CLOCK_ROUNDS))
    report.finish()


if __name__ == "__main__":
    main()
