"""Programs that rely on exceptions and system calls arriving exactly, as seen from a shell."""

from __future__ import annotations

import re

import capstone
import pytest

from bench.trouble import complaints
from emu.machine import Machine
from tests.integration.programs import (
    BREAKPOINT,
    CODE,
    COUNTER,
    COUNTING_LOOP,
    COUNTING_TURNS,
    DIVIDE,
    ILLEGAL,
    INT_80,
    NULL_POINTER,
    PROGRAMS,
    SURVIVOR,
    SYSCALL_32,
    Program,
)

pytestmark = pytest.mark.integration

START = CODE[64]
FATAL = {
    # what the kernel says of it, with the address that belongs there; 128 + the signal
    "SIGILL": (ILLEGAL, rf"traps: fatal\[\d+\] trap invalid opcode ip:{START + 1:x} ", 132),
    "SIGSEGV": (NULL_POINTER, rf"fatal\[\d+\]: segfault at 8 ip 0*{START + 3:x} .*error 4 ", 139),
    "SIGFPE": (DIVIDE, rf"traps: fatal\[\d+\] trap divide error ip:{START + 3:x} ", 136),
    "SIGTRAP": (BREAKPOINT, rf"traps: fatal\[\d+\] trap int3 ip:{START + 2:x} ", 133),
}


@pytest.fixture
def shell(machine: Machine) -> Machine:
    """The machine, without messages of earlier tests; a test takes those that it asked for."""
    assert complaints(machine.run("dmesg -c", timeout=60).stdout) == []
    return machine


@pytest.mark.parametrize("name", PROGRAMS)
def test_listings_are_what_their_bytes_mean(name: str) -> None:
    program = PROGRAMS[name]
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if program.bits == 64 else capstone.CS_MODE_32)
    decoded = engine.disasm(program.code, CODE[program.bits])
    assert [(bytes(i.bytes), f"{i.mnemonic} {i.op_str}".strip()) for i in decoded] == program.lines()


@pytest.mark.parametrize("signal", FATAL)
def test_fatal_exception_is_the_right_signal_at_the_right_address(signal: str, shell: Machine) -> None:
    program, message, status = FATAL[signal]
    program.install(shell, "/tmp/fatal")
    assert shell.run("/tmp/fatal", timeout=60).status == status
    messages = shell.run("dmesg -c", timeout=60).stdout
    assert re.search(message, messages), messages


def test_program_goes_on_behind_an_undefined_instruction(shell: Machine) -> None:
    SURVIVOR.install(shell, "/tmp/survivor")
    assert shell.run("/tmp/survivor", timeout=60).status == 42


@pytest.mark.parametrize("program", [INT_80, SYSCALL_32], ids=["int 0x80", "SYSCALL"])
def test_statically_linked_32_bit_programs_run(program: Program, shell: Machine) -> None:
    program.install(shell, "/tmp/program32")
    result = shell.run("/tmp/program32", timeout=60)
    assert (result.status, result.stdout_bytes, result.stderr_bytes) == (42, program.data, b"")
    loop = "for i in $(seq 100); do /tmp/program32; [ $? = 42 ] || echo wrong; done | uniq -c"
    assert shell.run(loop, timeout=60).stdout.split(maxsplit=1) == ["100", program.data.decode()]


def test_breakpoints_of_the_kernel_in_a_program_are_hit_each_time_and_change_nothing(shell: Machine) -> None:
    """A uprobe: INT3 in the program, then its instruction elsewhere with the trap flag set."""
    COUNTER.install(shell, "/tmp/counter")
    offset = COUNTING_LOOP - 0x400000
    shell.run("mount -t tracefs tracefs /sys/kernel/tracing", timeout=60)
    script = f"""
        cd /sys/kernel/tracing
        echo p:tests/turn /tmp/counter:{offset:#x} turns=%di:u32 >uprobe_events
        echo 1 >events/tests/enable
        /tmp/counter; echo status $?
        echo 0 >events/tests/enable
        sed -n 's/.*turn: (0x\\([0-9a-f]*\\)) /\\1 /p' trace
        echo >uprobe_events
    """
    result = shell.run(script, check=True, timeout=60)
    turns = [f"{COUNTING_LOOP:x} turns={turn}" for turn in range(COUNTING_TURNS)]
    assert result.stdout.splitlines() == [f"status {COUNTING_TURNS}", *turns]
