"""A Linux program that makes any system calls, from a table, and tells what each returned and how long it took."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from emu.machine import Machine
from tests.integration.programs import BASE, DATA_OFFSET, Program

__all__ = ["CONSTANTS", "FREE", "MMAP", "WRITE", "Step", "play", "program"]

ROOM, ROOM_SIZE = 0x1000_0000, 0x20_0000        # memory that every script has: results first, then what it likes
FREE = ROOM + 0x1_0000
TABLE_SIZE = 0x2000
CONSTANTS = BASE[64] + DATA_OFFSET + TABLE_SIZE         # read-only data of a script

WRITE, MMAP, EXIT = 1, 9, 60
READ_WRITE, PRIVATE_FIXED_ANONYMOUS, POPULATE = 3, 0x32, 0x8000

LISTING = """
    bb 00 02 40 00            mov ebx, 0x400200             ; the table
    bd 00 00 00 10            mov ebp, 0x10000000           ; results; the first call makes room for them
    44 8b 23                  mov r12d, dword ptr [rbx]     ; 0x400082, for each step: how often
    0f 31                     rdtsc
    48 c1 e2 20               shl rdx, 0x20
    48 09 d0                  or rax, rdx
    49 89 c5                  mov r13, rax
    48 8b 43 08               mov rax, qword ptr [rbx + 8]  ; 0x400091
    48 8b 7b 10               mov rdi, qword ptr [rbx + 0x10]
    48 8b 73 18               mov rsi, qword ptr [rbx + 0x18]
    48 8b 53 20               mov rdx, qword ptr [rbx + 0x20]
    4c 8b 53 28               mov r10, qword ptr [rbx + 0x28]
    4c 8b 43 30               mov r8, qword ptr [rbx + 0x30]
    4c 8b 4b 38               mov r9, qword ptr [rbx + 0x38]
    0f 05                     syscall
    41 ff cc                  dec r12d
    75 dd                     jne 0x400091
    48 89 45 00               mov qword ptr [rbp], rax
    0f 31                     rdtsc
    48 c1 e2 20               shl rdx, 0x20
    48 09 d0                  or rax, rdx
    4c 29 e8                  sub rax, r13
    48 89 45 08               mov qword ptr [rbp + 8], rax
    48 83 c5 10               add rbp, 0x10
    48 83 c3 40               add rbx, 0x40
    eb b0                     jmp 0x400082
"""


@dataclass(frozen=True)
class Step:
    """A system call.

    Args:
        number: in RAX.
        arguments: up to six.
        times: how often it is made.
    """

    number: int
    arguments: tuple[int, ...] = ()
    times: int = 1


def program(steps: Sequence[Step], output: tuple[int, int] | None = None, constants: bytes = b"") -> Program:
    """The program.

    Args:
        steps: its calls, in order.
        output: address and size of what it writes to its output behind the results.
        constants: what lies at CONSTANTS.
    """
    room = Step(MMAP, (ROOM, ROOM_SIZE, READ_WRITE, PRIVATE_FIXED_ANONYMOUS | POPULATE, 2**64 - 1, 0))
    results = Step(WRITE, (1, ROOM, 16 * (len(steps) + 1)))
    more = [Step(WRITE, (1, *output))] if output else []
    table = b"".join(
        struct.pack("<8Q", step.times, step.number, *step.arguments, *(0,) * (6 - len(step.arguments)))
        for step in (room, *steps, results, *more, Step(EXIT))
    )
    return Program(64, LISTING, table.ljust(TABLE_SIZE, b"\0") + constants)


def play(
    machine: Machine, steps: Sequence[Step], output: tuple[int, int] | None = None, constants: bytes = b""
) -> tuple[list[tuple[int, int]], bytes]:
    """Run a script in a guest.

    Returns:
        For each step the last result and the TSC cycles of all its times; and the bytes of `output`.
    """
    program(steps, output, constants).install(machine, "/tmp/script")
    written = machine.run("/tmp/script", check=True, timeout=60).stdout_bytes
    values = struct.unpack_from(f"<{2 * len(steps) + 2}Q", written)
    return list(zip(values[2::2], values[3::2], strict=True)), written[8 * len(values) :]
