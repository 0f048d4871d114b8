"""Debian's gdb on a booted Linux: its kernel, a program, and a guest that goes on as if nothing had been."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import emu
from bench.trouble import complaints
from emu.gdb import GdbServer
from emu.gdb.symbols import Symbol, kernel_symbols, write_symbols
from emu.machine import Machine
from emu.run_loop import StopReason
from tests.integration.programs import CODE, Program
from tests.multiboot.images import BASE
from tests.process.small_guest import small_kernel

GDB = shutil.which("gdb")
PATIENCE_S = 120.0

LOOPER = Program(64, """
    55                        push rbp                       ; main
    48 89 e5                  mov rbp, rsp
    e8 0e 00 00 00            call outer
    90 90 90 90 90 90 90 90   nop
    90 90 90 90 90 90         nop
    55                        push rbp                       ; outer, at 0x17
    48 89 e5                  mov rbp, rsp
    e8 03 00 00 00            call inner
    5d                        pop rbp
    c3                        ret
    90                        nop
    55                        push rbp                       ; inner, at 0x23
    48 89 e5                  mov rbp, rsp
    48 ff c0                  inc rax
    eb fb                     jmp to it
""")
FUNCTIONS = {"main": 0, "outer": 0x17, "inner": 0x23}

pytestmark = pytest.mark.skipif(GDB is None, reason="gdb is not installed")


class Session:
    """A gdb in batch mode beside a machine that is driven here."""

    def __init__(self, machine: Machine, *commands: str) -> None:
        self.machine = machine
        words = [word for command in commands for word in ("-ex", command)]
        assert GDB is not None
        self.process = subprocess.Popen(
            [GDB, "-nx", "-batch", "-ex", "set confirm off", "-ex", f"set remotetimeout {PATIENCE_S:.0f}", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.output = ""
        self.is_over = False
        machine.watch_fd(self.process.stdout.fileno(), self._read)

    def _read(self) -> None:
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 65536)
        if not data:
            self.is_over = True
            self.machine.unwatch_fd(self.process.stdout.fileno())
        self.output += data.decode(errors="replace")

    def wait(self, until: Callable[[], bool] | None = None) -> str:
        """Drive the machine until gdb has ended, or a condition holds; what gdb has said."""
        assert self.machine.drive(until or (lambda: self.is_over), PATIENCE_S), self.output
        return self.output

    def says(self, text: str) -> None:
        """Wait until it has said something."""
        self.wait(lambda: text in self.output or self.is_over)
        assert text in self.output, self.output

    def close(self) -> None:
        if not self.is_over:
            self.process.kill()
            self.machine.unwatch_fd(self.process.stdout.fileno())       # type: ignore[union-attr]
        self.process.wait()
        self.process.stdout.close()     # type: ignore[union-attr]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Not shared with other modules, since it is debugged; and powered off in the end."""
    with emu.boot(kernel="cloud") as machine:
        machine.wait_prompt()
        yield machine
        machine.console.sendline("poweroff")
        assert machine.run_to_end(PATIENCE_S) is StopReason.POWER_OFF


@pytest.fixture(scope="module")
def symbols(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gdb") / "kernel.symbols"
    write_symbols(path, kernel_symbols(machine))
    return path


@pytest.fixture
def server(machine: Machine) -> Iterator[GdbServer]:
    with GdbServer(machine, 0) as server:
        yield server


@pytest.fixture
def gdb(machine: Machine, server: GdbServer, symbols: Path) -> Iterator[Callable[..., Session]]:
    """Makes sessions that know the kernel's symbols and are connected."""
    sessions: list[Session] = []

    def make(*commands: str) -> Session:
        sessions.append(Session(machine, f"file {symbols}", f"target remote {server.address}", *commands))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def test_a_kernel_function_is_stopped_at_its_arguments_shown_and_stepped(
    machine: Machine, gdb: Callable[..., Session]
) -> None:
    session = gdb(
        "break do_sys_openat2 if $_streq((char *) $rsi, \"/etc/hostname\")", "echo ready\\n", "continue",
        "printf \"directory %d\\n\", (int) $rdi", "x/s $rsi", "info registers rip cr3 gs_base", "bt 2",
        "stepi", "stepi", "x/i $pc", "delete", "detach",
    )  # fmt: skip
    session.says("ready")
    assert machine.run("cat /etc/hostname", timeout=PATIENCE_S).status == 0
    output = session.wait()
    assert "Breakpoint 1, 0xffffffff" in output and "in do_sys_openat2 ()" in output, output
    assert "directory -100" in output
    assert '"/etc/hostname"' in output
    assert "<do_sys_openat2+" in output
    assert "detached" in output


def test_a_thousand_steps_of_the_kernel_leave_a_guest_that_goes_on(
    machine: Machine, gdb: Callable[..., Session]
) -> None:
    """In the midst of a system call, with its interrupts waiting meanwhile."""
    before = float(machine.run("cut -d' ' -f1 /proc/uptime").stdout)
    session = gdb("break do_sys_openat2", "echo ready\\n", "continue", "delete", "stepi 1000", "x/i $pc", "detach")
    session.says("ready")
    assert machine.run("cat /etc/hostname").stdout == "localhost\n"
    assert "Breakpoint 1" in session.wait() and "=> 0x" in session.output, session.output
    assert float(machine.run("cut -d' ' -f1 /proc/uptime").stdout) - before < PATIENCE_S
    assert complaints(machine.run("dmesg", timeout=PATIENCE_S).stdout) == []


def test_a_watchpoint_stops_where_the_kernel_writes(machine: Machine, gdb: Callable[..., Session]) -> None:
    session = gdb("watch *(int *) &panic_timeout", "echo ready\\n", "continue", "bt 3", "delete", "detach")
    session.says("ready")
    done = machine.run("echo 77 >/proc/sys/kernel/panic; cat /proc/sys/kernel/panic", timeout=PATIENCE_S)
    assert done.stdout == "77\n"
    output = session.wait()
    assert "Old value = -1" in output and "New value = 77" in output, output
    assert "proc_dointvec" in output


def test_a_running_program_is_interrupted_and_its_callers_shown(
    machine: Machine, gdb: Callable[..., Session], tmp_path: Path
) -> None:
    LOOPER.install(machine, "/tmp/looper")
    write_symbols(tmp_path / "looper", [Symbol(CODE[64] + at, "T", name) for name, at in FUNCTIONS.items()])
    job = machine.start_job("exec /tmp/looper")
    session = gdb(f"add-symbol-file {tmp_path / 'looper'}", "echo ready\\n", "continue", "bt 3", "detach")
    session.says("ready")
    before = machine.run_ns
    session.wait(lambda: machine.run_ns > before)       # gdb has let it go on
    end = CODE[64] + len(LOOPER.code)
    session.wait(lambda: CODE[64] + FUNCTIONS["inner"] < machine.board.cpu.registers.rip < end)
    os.kill(session.process.pid, signal.SIGINT)
    output = session.wait()
    assert "SIGINT" in output, output
    for number, name in enumerate(("inner", "outer", "main")):
        assert re.search(rf"^#{number} .* in {name} \(\)", output, re.MULTILINE), output
    job.kill()
    assert machine.run("echo on").stdout == "on\n"


def test_a_bare_kernel_is_debugged_from_its_first_instruction_from_the_command_line(tmp_path: Path) -> None:
    """It starts in 32-bit mode, and gdb is told so."""
    kernel, path = small_kernel(tmp_path), tmp_path / "gdb"
    words = [sys.executable, "-m", "emu", "boot", "--kernel", str(kernel), "--gdb", str(path), "--wait"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as guest:
        assert guest.stderr is not None and guest.stdin is not None
        assert guest.stderr.readline().decode().endswith(f"target remote {path}; the guest waits for it\n")
        commands = [f"target remote {path}", "info registers eip", "stepi", "x/i $pc", "p $edx", "p/x $cr0 & 1", "kill"]
        options = [word for command in commands for word in ("-ex", command)]
        assert GDB is not None
        done = subprocess.run(
            [GDB, "-nx", "-batch", *options],
            capture_output=True, text=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert guest.wait(PATIENCE_S) == 0
    assert f"eip            {BASE + 32:#x}" in done.stdout, done
    assert "mov    $0x3,%al" in done.stdout and "= 1020" in done.stdout and "= 0x1" in done.stdout, done
