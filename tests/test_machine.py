"""The machine's run loop, with guests of a few instructions."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from emu import micro
from emu.errors import EmuError, GuestStopped
from emu.fittings import DebugExit, Fittings
from emu.loader import BootState
from emu.machine import Machine
from emu.memory import MIB, GuestMemory
from emu.micro import CODE, FIXED, IF
from emu.run_loop import StopReason
from emu.stats import OUTSIDE, UNCLAIMED, Kind

SPIN = b"\xeb\xfe"                      # jmp $
IDLE = b"\xfb\xf4\xeb\xfc"              # sti; hlt; jmp to it
STOP = b"\xfa\xf4"                      # cli; hlt
END_S = 60.0                            # for what takes milliseconds on a host that is not busy
SOON_S = END_S / 2                      # what only ends with its time takes longer


def out(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al"""
    return b"\x66\xba" + port.to_bytes(2, "little") + b"\xb0" + bytes((value,)) + b"\xee"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(64 * MIB) as made:
        yield made


def start(machine: Machine, code: bytes, rflags: int = FIXED, resume: frozenset[int] = frozenset()) -> None:
    """Load a program, ready to run."""
    machine.start(micro.install(machine.memory, code, rflags=rflags, resume=resume))


# -- how it ends ---------------------------------------------------------------------------------------------------

NO_IDT = b"\x6a\x00\x6a\x00\x0f\x01\x1c\x24\x0f\x0b"        # push 0; push 0; lidt [rsp]; ud2
TO_A_DEVICE = b"\xb8" + micro.MMIO.to_bytes(4, "little") + b"\xff\xe0"       # mov eax, MMIO; jmp rax


@pytest.mark.parametrize(
    ("code", "reason", "detail"),
    [
        (b"\x90" + STOP, StopReason.HALTED, f"at {CODE + 3:#x}"),
        (NO_IDT, StopReason.TRIPLE_FAULT, f"at {CODE + 8:#x}"),
        (TO_A_DEVICE, StopReason.CPU_ERROR, f"at {micro.MMIO:#x}"),
        (out(0x64, 0xFE) + SPIN, StopReason.RESET, "the guest reset the machine"),
    ],
)
def test_a_guest_that_stops_says_why_and_where(machine: Machine, code: bytes, reason: StopReason, detail: str) -> None:
    start(machine, code)
    assert machine.run_to_end(END_S) is reason
    assert machine.stop_reason is reason
    assert detail in machine.stop_detail
    assert str(reason) in machine.stop_detail
    assert "\n" not in machine.stop_detail


def test_a_stopped_guest_cannot_be_driven(machine: Machine) -> None:
    start(machine, STOP)
    machine.run_to_end(END_S)
    with pytest.raises(GuestStopped, match="halted with interrupts off"):
        machine.drive(lambda: False, END_S)
    assert machine.drive(lambda: True)


def test_a_request_from_another_thread_ends_a_loop_at_once(machine: Machine) -> None:
    start(machine, SPIN)
    threading.Timer(0.05, machine.request_stop).start()
    started = time.monotonic()
    assert machine.run_to_end(END_S) is StopReason.REQUESTED
    assert time.monotonic() - started < SOON_S


def test_a_request_wakes_an_idle_guest(machine: Machine) -> None:
    start(machine, IDLE)
    threading.Timer(0.05, machine.request_stop).start()
    started = time.monotonic()
    assert machine.run_to_end(END_S) is StopReason.REQUESTED
    assert time.monotonic() - started < SOON_S


def test_a_request_before_the_first_run_counts(machine: Machine) -> None:
    start(machine, SPIN)
    machine.request_stop()
    assert machine.run_to_end(END_S) is StopReason.REQUESTED


@pytest.mark.parametrize("code", [SPIN, IDLE])
def test_a_signal_handlers_exception_comes_out_and_the_guest_can_go_on(machine: Machine, code: bytes) -> None:
    """Ctrl-C, in a guest that computes and in one that sleeps."""

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    start(machine, code)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)      # in here: on a busy host it may come before the run
            machine.drive(lambda: False, END_S)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not machine.drive(lambda: False, 0.02)
    assert machine.stop_reason is None


# -- driving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [SPIN, IDLE])
def test_drive_ends_after_its_time(machine: Machine, code: bytes) -> None:
    start(machine, code)
    started = time.monotonic()
    assert machine.drive(lambda: False, 0.1) is False
    assert 0.1 <= time.monotonic() - started < SOON_S
    assert machine.run_to_end(0.01) is None


def test_drive_looks_at_its_condition_while_the_guest_computes(machine: Machine) -> None:
    start(machine, SPIN)
    end = time.monotonic() + 0.05
    assert machine.drive(lambda: time.monotonic() > end, END_S) is True
    assert time.monotonic() < end + SOON_S


def test_a_condition_that_holds_runs_nothing(machine: Machine) -> None:
    start(machine, out(0x3F8, 65) + STOP)
    assert machine.drive(lambda: True)
    assert machine.stop_reason is None
    assert machine.board.cpu.registers.rip == micro.ENTRY


def test_an_idle_guest_costs_next_to_nothing(machine: Machine) -> None:
    """A quiet tenth of a second in ten will do: others' threads and a busy host can only add."""

    def cost() -> float:
        before = time.process_time()
        machine.drive(lambda: False, 0.1)
        return time.process_time() - before

    start(machine, IDLE)
    machine.drive(lambda: False, 0.02)
    assert any(cost() < 0.01 for _ in range(10))


def test_the_switch_interval_is_short_while_it_runs_and_put_back(machine: Machine) -> None:
    usual = sys.getswitchinterval()
    seen: list[float] = []
    start(machine, SPIN)
    machine.drive(lambda: seen.append(sys.getswitchinterval()) is not None or len(seen) > 2, END_S)
    assert all(interval < usual for interval in seen)
    assert sys.getswitchinterval() == usual


def test_files_are_watched_while_the_guest_computes_and_while_it_sleeps(machine: Machine) -> None:
    for code in (SPIN, IDLE):
        reader, writer = os.pipe()
        got: list[bytes] = []
        start(machine, code)
        machine.watch_fd(reader, lambda reader=reader, got=got: got.append(os.read(reader, 100)))     # type: ignore[misc]
        threading.Timer(0.05, os.write, (writer, b"hello")).start()
        assert machine.drive(lambda got=got: bool(got), END_S)                                        # type: ignore[misc]
        assert got == [b"hello"]
        machine.unwatch_fd(reader)
        machine.unwatch_fd(reader)
        os.write(writer, b"unheard")
        assert not machine.drive(lambda got=got: len(got) > 1, 0.05)                                  # type: ignore[misc]
        os.close(reader)
        os.close(writer)


def test_two_machines_in_turn_do_not_disturb_each_other(machine: Machine) -> None:
    with Machine(64 * MIB) as other:
        start(machine, b"\x48\xff\xc3\xeb\xfb", rflags=FIXED | IF)       # inc rbx; jmp to it
        start(other, b"\x48\xff\xcb\xeb\xfb", rflags=FIXED | IF)         # dec rbx; jmp to it
        for each in (machine, other):
            each.board.cpu.registers.rbx = 1 << 40
        for _ in range(5):
            machine.drive(lambda: False, 0.01)
            other.drive(lambda: False, 0.01)
        assert machine.board.cpu.registers.rbx > 1 << 40 > other.board.cpu.registers.rbx


def test_closing_twice_is_closing_once(machine: Machine) -> None:
    machine.close()
    machine.close()


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(EmuError, match="64 MiB to 8 GiB"):
        Machine(1 * MIB)


def test_a_guest_ends_the_machine_by_the_debug_exit_where_that_is_plugged_in() -> None:
    with Machine(64 * MIB, Fittings(debug_exit=DebugExit(0x501, 2))) as machine:
        start(machine, out(0x502, 5) + STOP)
        assert machine.run_to_end(END_S) is StopReason.EXIT
        assert machine.exit_status == 11


def test_there_is_no_debug_exit_otherwise(machine: Machine) -> None:
    start(machine, out(0xF4, 5) + STOP)
    assert machine.run_to_end(END_S) is StopReason.HALTED
    assert machine.exit_status is None


# -- devices -------------------------------------------------------------------------------------------------------


def test_what_the_guest_sends_reaches_every_sink_in_order(machine: Machine) -> None:
    first, second = bytearray(), bytearray()
    machine.serial_sinks += [first.extend, second.extend]
    start(machine, b"".join(out(0x3F8, byte) for byte in b"hello") + STOP)
    machine.run_to_end(END_S)
    assert first == second == b"hello"


def test_the_guest_reads_what_is_sent_to_it(machine: Machine) -> None:
    got = bytearray()
    machine.serial_sinks.append(got.extend)
    echo = (
        b"\x66\xba\xfd\x03"             # mov dx, 0x3fd
        b"\xec\xa8\x01\x74\xfb"         # in al, dx; test al, 1; jz to in
        b"\xb2\xf8\xec"                 # mov dl, 0xf8; in al, dx
        b"\xfe\xc0\xee"                 # inc al; out dx, al
        b"\xeb\xef"                     # jmp to the first
    )
    start(machine, out(0x3FC, 3) + echo)         # DTR and RTS: go ahead
    assert not machine.drive(lambda: bool(got), 0.02)
    machine.serial_send(b"HAL")
    assert machine.drive(lambda: len(got) == 3, END_S)
    assert got == b"IBM"


def test_an_error_in_a_sink_comes_out_of_drive(machine: Machine) -> None:
    def full(_data: bytes) -> None:
        raise OSError("disk full")

    machine.serial_sinks.append(full)
    start(machine, out(0x3F8, 65) + SPIN)
    with pytest.raises(OSError, match="disk full"):
        machine.drive(lambda: False, END_S)


PICS = (
    *((0x20, 0x11), (0x21, 0x20), (0x21, 0x04), (0x21, 0x01), (0x21, 0xFE)),     # master: vectors from 0x20, only IRQ 0
    *((0xA0, 0x11), (0xA1, 0x28), (0xA1, 0x02), (0xA1, 0x01), (0xA1, 0xFF)),     # slave: all masked
)
TICKS = 20
RELOAD = 1193                           # a millisecond


def ticking(loop: bytes) -> bytes:
    """Interrupt controllers and timer set up: 1000 interrupts a second on vector 0x20, while `loop` runs."""
    timer = out(0x43, 0x34) + out(0x40, RELOAD & 0xFF) + out(0x40, RELOAD >> 8)
    return b"".join(out(port, value) for port, value in PICS) + timer + loop


HANDLER = (                             # as long as a stub
    b"\x48\xff\x04\x25" + micro.DATA.to_bytes(4, "little")      # inc qword [DATA]
    + b"\x50\xb0\x20\xe6\x20\x58"                               # push rax; mov al, 0x20; out 0x20, al (EOI); pop rax
    + b"\x48\xcf"                                               # iretq
)  # fmt: skip


@pytest.mark.parametrize("loop", [b"\xfb" + SPIN, IDLE])
def test_timer_interrupts_reach_a_guest_that_computes_and_one_that_sleeps(machine: Machine, loop: bytes) -> None:
    start(machine, ticking(loop))
    machine.memory.write(micro.STUBS + 16 * 0x20, HANDLER)
    started = time.monotonic()
    assert machine.drive(lambda: machine.memory.read(micro.DATA, 1)[0] >= TICKS, END_S)
    took = time.monotonic() - started
    assert TICKS * 0.0009 < took < SOON_S


def test_stats_count_what_happened(machine: Machine) -> None:
    start(machine, out(0x61, 0) + b"\x0f\xa2\x0f\x0b" + STOP, resume=frozenset())       # out; cpuid; ud2
    machine.run_to_end(END_S)
    stats = machine.stats()
    assert stats.count(Kind.NATIVE, "cpuid") == stats.count(Kind.NATIVE, "undefined") == 1
    assert stats.count(Kind.RUN_END, "hlt") >= 1
    assert not stats.timed and not any(row.has_times for row in stats.rows())


def times(count: int, body: bytes) -> bytes:
    """mov ebx, count; the body; dec ebx; jnz to the body"""
    return b"\xbb" + count.to_bytes(4, "little") + body + b"\xff\xcb\x75" + bytes((-len(body) - 4 & 0xFF,))


READ_PORT = b"\xe4\x61"                                                  # in al, 0x61
READ_NOBODY = b"\xa1" + micro.DEVICES.to_bytes(8, "little")                # mov eax, [PCI memory without a function]
READ_IOAPIC = b"\xa1" + (micro.DEVICES + 0x40_0000).to_bytes(8, "little")  # mov eax, [I/O APIC]
WRITE_DEADLINE = b"\xb9\xe0\x06\0\0\x31\xc0\x31\xd2\x0f\x30"  # mov ecx, 0x6e0; xor eax, eax; xor edx, edx; wrmsr


@pytest.mark.parametrize("accounting", [False, True])
def test_every_exit_is_counted_once_and_timed_if_asked_for(accounting: bool) -> None:
    code = times(500, out(0x61, 0)) + times(400, READ_PORT) + times(300, WRITE_DEADLINE)
    code += times(200, READ_IOAPIC) + times(100, READ_NOBODY) + out(0x510, 0) + STOP
    with Machine(64 * MIB, accounting=accounting) as machine:
        start(machine, code)
        machine.run_to_end(END_S)
        stats = machine.stats()
    rows = [row for row in stats.rows() if row.kind not in OUTSIDE]
    handled = {
        (Kind.PORT_OUT, "i8254"): 500, (Kind.PORT_IN, "i8254"): 400, (Kind.WRMSR, "TSC deadline"): 300,
        (Kind.MMIO_READ, "ioapic"): 200, (Kind.MMIO_READ, UNCLAIMED): 100,
    }  # fmt: skip
    unhandled = {(Kind.PORT_OUT, UNCLAIMED): 1}
    assert {(row.kind, row.handler): row.count for row in rows} == handled | unhandled
    timed = {(row.kind, row.handler): sum(row.histogram) for row in rows if row.has_times}
    assert timed == (handled if accounting else {})
    assert 0 <= stats.handlers_ns <= stats.run_ns <= stats.driven_ns
    assert bool(stats.handlers_ns) == accounting


def test_a_machine_driven_on_in_a_callback_has_that_time_only_once() -> None:
    reader, writer = os.pipe()
    with Machine(64 * MIB, accounting=True) as machine:
        seen: list[bytes] = []

        def drive_on() -> None:
            seen.append(os.read(reader, 1))
            machine.drive(lambda: False, 0.4)

        start(machine, SPIN)
        machine.watch_fd(reader, drive_on)
        os.write(writer, b"x")
        machine.drive(lambda: bool(seen), END_S)
        stats = machine.stats()
        machine.unwatch_fd(reader)
    os.close(reader)
    os.close(writer)
    (files,) = (row for row in stats.rows() if row.handler == "files")
    assert files.count == 1 and files.total_ns < 0.3e9
    assert stats.run_ns > 0.2e9
    assert sum(ns for _, ns in stats.split()) == stats.driven_ns


def test_stats_outlive_a_reset(machine: Machine) -> None:
    boots: list[int] = []

    def load(memory: GuestMemory) -> BootState:
        boots.append(len(boots))
        end = STOP if len(boots) == 3 else out(0x64, 0xFE) + SPIN
        return micro.install(memory, out(0x61, 0) + b"\x0f\xa2" + end)

    machine.boot(load)
    machine.run_to_end(END_S)
    stats = machine.stats()
    assert (len(boots), stats.count(Kind.PORT_OUT, "i8254"), stats.count(Kind.NATIVE, "cpuid")) == (3, 3, 3)
