"""Machines as guests of their Python process: several of them, threads, signals, terminals, memory, and counts."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import emu
from emu.machine import Machine
from emu.stats import Kind
from tests.support.descriptors import open_files

pytestmark = pytest.mark.integration

END_S = 60.0                            # by itself what is waited for goes on for ever
SOON_S = END_S / 2


# ---- counts


def gained(machine: Machine, handler: str, work: Callable[[], object]) -> int:
    """By how much a count of machine code's grows."""
    before = machine.stats()
    work()
    return (machine.stats() - before).count(Kind.NATIVE, handler)


def test_system_calls_are_counted(machine: Machine) -> None:
    def least(count: int) -> int:
        """System calls of a dd of that many blocks; what runs besides only adds, and more on a busy host."""
        script = f"dd if=/dev/zero of=/dev/null bs=1 count={count} 2>/dev/null"
        return min(gained(machine, "syscall", lambda: machine.run(script, timeout=60)) for _ in range(3))

    assert 9_900 < least(5001) - least(1) < 11_500


def test_bytes_are_counted_on_whichever_way_they_take(machine: Machine) -> None:
    def bytes_out() -> int:
        stats = machine.stats()
        return stats.count(Kind.PORT_OUT, "com1") + stats.count(Kind.NATIVE, "serial byte")

    machine.run("true", timeout=60)
    before = bytes_out()
    machine.console.sendline("head -c 20000 /dev/zero | tr '\\0' x; echo; echo through")
    machine.console.expect("x\r\nthrough")
    assert 20_000 <= bytes_out() - before < 60_000


def test_waiting_is_idle_time(machine: Machine) -> None:
    """For almost all of one of several sleeps: a busy host takes from it, and adds to it."""

    def idle_ns() -> int:
        before, started = machine.stats(), time.monotonic_ns()
        machine.run("sleep 1", timeout=60)
        meanwhile, took = machine.stats() - before, time.monotonic_ns() - started
        assert 0 < meanwhile.run_ns < took - meanwhile.idle_ns
        assert meanwhile.count(Kind.RUN_END, "hlt") > 0
        return meanwhile.idle_ns

    assert any(0.9e9 < idle_ns() < 1.2e9 for _ in range(10))


def test_rows_have_the_most_frequent_first(machine: Machine) -> None:
    numbers = [row.count for row in machine.stats().rows()]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] > 1000


# ---- several machines, and threads


@pytest.fixture(scope="module")
def second() -> Iterator[Machine]:
    """Another machine of this process."""
    with emu.boot(kernel="cloud") as machine:
        machine.wait_prompt()
        yield machine


def test_two_machines_are_used_in_turn(machine: Machine, second: Machine) -> None:
    for name, each in (("first", machine), ("second", second)):
        each.run(f"echo {name} >/tmp/name", check=True, timeout=60)
    machine.console.sendline("sleep 1; echo slept")
    for _ in range(5):
        assert second.run("cat /tmp/name", timeout=60).stdout == "second\n"
    machine.console.expect("slept\r\n")
    for _ in range(5):
        for name, each in (("first", machine), ("second", second)):
            assert each.run("cat /tmp/name", timeout=60).stdout == f"{name}\n"


def test_two_machines_run_at_once_in_threads(machine: Machine, second: Machine) -> None:
    script = "for i in $(seq 60); do seq $i 500 | md5sum; done | md5sum"
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(each.run, script, timeout=60) for each in (machine, second)]
        first, other = (answer.result().stdout for answer in answers)
    assert first == other == machine.run(script, timeout=60).stdout


def test_machine_in_a_thread_while_another_thread_computes() -> None:
    """Each exit needs the interpreter's lock, which the other thread would keep for 5 ms."""

    def boot() -> tuple[float, str]:
        started = time.monotonic()
        with emu.boot(kernel="cloud") as machine:
            machine.wait_prompt()
            return time.monotonic() - started, machine.run("echo here", timeout=60).stdout

    def is_quick() -> bool:
        alone_s, _ = boot()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(boot)
            computed = 0
            while not answer.done():
                computed += sum(range(1000))
        busy_s, said = answer.result()
        assert said == "here\n" and computed > 0
        return busy_s < 6 * alone_s     # without finer switching it is ten times and more

    interval = sys.getswitchinterval()
    assert any(is_quick() for _ in range(3))    # the host may have been busy with others the second time alone
    assert sys.getswitchinterval() == interval


# ---- Ctrl-C


def interrupted_after(seconds: float, work: Callable[[], object]) -> float:
    """Have the process get SIGINT while it works; how long it took to be a KeyboardInterrupt."""
    sent = 0.0

    def send() -> None:
        nonlocal sent
        sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds, send)
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()               # in here: on a busy host the signal may come before the work begins
            work()
        return time.monotonic() - sent
    finally:
        timer.join()


@pytest.mark.parametrize("busy", [
    "sleep 1000",
    "while :; do :; done",
    "cat /dev/zero >/dev/null",
    "while :; do echo something that goes through the serial port; done",
])  # fmt: skip
def test_interrupt_ends_the_wait_at_once_and_the_machine_goes_on(machine: Machine, busy: str) -> None:
    machine.run("true", timeout=60)
    machine.console.sendline(busy)
    machine.drive(lambda: False, 0.2)
    for number in range(20):
        assert interrupted_after(0.01 + 0.0037 * number, lambda: machine.drive(lambda: False, END_S)) < SOON_S
    machine.console.sendcontrol("c")
    assert machine.run("echo on", timeout=60).stdout == "on\n"


def test_interrupt_in_the_midst_of_a_device_s_work_leaves_it_whole(machine: Machine) -> None:
    def interrupt(_data: bytes) -> None:
        signal.raise_signal(signal.SIGINT)

    machine.run("true", timeout=60)
    machine.console.sendline("stty -echo; echo ready; read -r _; seq 2000; echo sum $((40 + 2))")
    machine.console.expect("ready\r\n", timeout=60)
    machine.serial_sinks.append(interrupt)
    machine.console.sendline()
    try:
        for _ in range(20):
            with pytest.raises(KeyboardInterrupt):
                machine.drive(lambda: False, 20)
    finally:
        machine.serial_sinks.remove(interrupt)
    machine.console.expect("sum 42\r\n", timeout=60)
    assert machine.console.before.endswith("".join(f"{n}\r\n" for n in range(1, 2001)))
    machine.console.sendline("stty echo")


def test_interrupt_reaches_the_handler_that_the_program_has_set(machine: Machine) -> None:
    numbers: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _frame: numbers.append(number))
    try:
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        assert machine.drive(lambda: bool(numbers), 20)
        timer.join()
        handler = signal.getsignal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert numbers == [signal.SIGINT] * 2
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, usual)
    assert signal.getsignal(signal.SIGINT) is usual


def test_interrupted_run_leaves_a_console_that_can_be_used(machine: Machine) -> None:
    interrupted_after(0.3, lambda: machine.run("sleep 1000"))
    machine.console.sendcontrol("c")
    assert machine.run("echo on", timeout=60).stdout == "on\n"


# ---- `emu boot` on a terminal


class Terminal:
    """`emu boot` with a terminal of its own."""

    def __init__(self, *options: str) -> None:
        self.master, self.slave = pty.openpty()
        self.modes = termios.tcgetattr(self.slave)
        self.shown = bytearray()
        command = [sys.executable, "-m", "emu", "boot", "--kernel", "cloud", *options]
        self.process = subprocess.Popen(command, stdin=self.slave, stdout=self.slave, stderr=self.slave)

    def expect(self, text: bytes, seconds: float = 90.0) -> None:
        """Read until it is shown."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            left = end - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], bytes(self.shown)
            self.shown += os.read(self.master, 65536)

    @property
    def raw(self) -> bool:
        """Whether keys go through one by one, unseen."""
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_emu_boot_at_once_with_the_terminal_as_it_was(terminal: Terminal, number: signal.Signals) -> None:
    terminal.expect(b"~ # ")
    assert terminal.raw
    terminal.process.send_signal(number)
    assert terminal.process.wait(END_S) == 128 + number
    assert termios.tcgetattr(terminal.slave) == terminal.modes


def test_signal_while_the_kernel_boots_ends_emu_boot_at_once(terminal: Terminal) -> None:
    terminal.expect(b"booting")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(END_S) == 128 + signal.SIGTERM
    assert termios.tcgetattr(terminal.slave) == terminal.modes


def test_keys_go_to_the_guest_control_c_too_and_the_escape_leaves(terminal: Terminal) -> None:
    terminal.expect(b"~ # ")
    # Said by what Ctrl-C is to end: before it runs, the shell has not given it the terminal yet.
    os.write(terminal.master, b"sh -c 'echo sum $((40 + 1)); exec sleep 1000'\r")
    terminal.expect(b"sum 41\r\n")
    os.write(terminal.master, b"\x03")
    terminal.shown.clear()
    os.write(terminal.master, b"echo on $((40 + 2))\r")
    terminal.expect(b"on 42\r\n")
    os.write(terminal.master, b"\x1d")
    assert terminal.process.wait(END_S) == 0
    assert termios.tcgetattr(terminal.slave) == terminal.modes


def test_emu_boot_ends_with_its_guest(terminal: Terminal) -> None:
    terminal.expect(b"~ # ")
    os.write(terminal.master, b"exit\r")
    assert terminal.process.wait(END_S) == 0
    assert termios.tcgetattr(terminal.slave) == terminal.modes


# ---- nothing is left behind


def footprint() -> tuple[int, int, int]:
    """Open files; memory that is resident and that is reserved, in KiB."""
    files = len(open_files())
    with open("/proc/self/status") as file:
        sizes = {line.split()[0]: int(line.split()[1]) for line in file if line.startswith(("VmRSS:", "VmSize:"))}
    return files, sizes["VmRSS:"], sizes["VmSize:"]


def test_machines_that_were_closed_leave_nothing_behind() -> None:
    def use() -> None:
        with emu.boot(kernel="cloud") as machine:
            machine.console.open_pty()
            machine.drive(lambda: False, 0.03)

    for _ in range(5):
        use()
    files, resident, reserved = footprint()
    for _ in range(30):
        use()
    files_after, resident_after, reserved_after = footprint()
    assert files_after == files
    assert resident_after < resident + 32 * 1024        # one machine's pages so far are 30 MiB
    assert reserved_after < reserved + 128 * 1024       # one machine reserves 512 MiB
