"""Stops from outside, many thousand a second, change nothing of what the guest computes."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

import pytest

from emu.cpu.abi import ffi
from emu.cpu.constants import (
    HOOK_INSTRUCTION,
    HOOK_INTERRUPT,
    HOOK_INVALID,
    INSTRUCTION_IN,
    INSTRUCTION_OUT,
    INSTRUCTION_SYSCALL,
    MSR_LSTAR,
    MSR_SFMASK,
)
from emu.cpu.cpu import Cpu
from emu.cpu.library import load
from emu.cpu.platform import Exit
from emu.micro import BP, CODE, DATA, PATIENCE_S, UD, USER_CODE, USER_CS32, MicroGuest, host_address
from tests.support.remedies import run_alone

INTERVAL_NS = 50_000
SECONDS = 2.0
SOAK_SECONDS = 10.0
STOPS_PER_S = 100                       # at least, for a test to mean something; a quiet host makes 10,000
MOST_ROUNDS = 20                        # of work, until there were as many on a busy one

COUNT = (
    b"\x48\xff\x04\x25" + struct.pack("<I", DATA)       # inc qword [DATA]
    + b"\x53\x48\xff\x04\x24\x5b"                       # push rbx; inc qword [rsp]; pop rbx
    + b"\x48\xff\xc9"                                   # dec rcx
    + b"\x75\xed"                                       # jnz to the first
    + b"\xf4"                                           # hlt
)  # fmt: skip


def stopped_by_the_timer(guest: MicroGuest, seconds: float) -> int:
    """Run to the halt with a stop every 50 µs; the number of stops."""
    stops, end = 0, time.monotonic() + 10 * seconds + 10
    while guest.cpu.run(time.monotonic_ns() + INTERVAL_NS) is Exit.KICK:
        stops += 1
        assert time.monotonic() < end
    return stops


def stopped_by_a_thread(guest: MicroGuest, seconds: float) -> int:
    """Run to the halt while another thread stops the CPU every 50 µs; the number of stops."""
    ended = threading.Event()

    def stop() -> None:
        while not ended.is_set():
            guest.cpu.stop()
            time.sleep(INTERVAL_NS / 1e9)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        stops, end = 0, time.monotonic() + 10 * seconds + 10
        while guest.cpu.run(time.monotonic_ns() + 10_000_000) is Exit.KICK:
            stops += 1
            assert time.monotonic() < end
        return stops
    finally:
        ended.set()
        thread.join()


Stopper = Callable[[MicroGuest, float], int]
STOPPERS: dict[str, Stopper] = {"timer": stopped_by_the_timer, "thread": stopped_by_a_thread}


def is_right(seconds: float, work: Callable[[], tuple[bool, int]]) -> bool:
    """Whether work under stops has the right result, again and again until there were enough stops.

    Args:
        seconds: that the work takes about.
        work: returns whether its result was right, and the number of stops.
    """
    stops = 0
    for _ in range(MOST_ROUNDS):
        right, more = work()
        stops += more
        if not right or stops > STOPS_PER_S * seconds:
            return right
    raise AssertionError(f"only {stops} stops in {MOST_ROUNDS} rounds")


def counts_right(guest: MicroGuest, stopper: Stopper, seconds: float) -> bool:
    """Whether memory and a register count the turns of the loop under stops, in some seconds."""
    turns = turns_in(guest, seconds)

    def work() -> tuple[bool, int]:
        guest.memory.write(DATA, bytes(8))
        guest.put(COUNT, rcx=turns, rbx=0)
        stops = stopper(guest, seconds)
        return (guest.quad(DATA), guest.registers.rbx) == (turns, turns), stops

    return is_right(seconds, work)


def turns_in(guest: MicroGuest, seconds: float) -> int:
    """How many turns take about so long under stops, on this machine at this moment."""
    started = time.monotonic()
    guest.put(COUNT, rcx=200_000, rbx=0)
    stopped_by_the_timer(guest, 10.0)
    return int(200_000 * seconds / (time.monotonic() - started))


@pytest.mark.parametrize("stopper", STOPPERS)
def test_stops_lose_and_repeat_no_instruction(stopper: str) -> None:
    with MicroGuest() as guest:
        assert counts_right(guest, STOPPERS[stopper], SECONDS / 2)


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stopper", STOPPERS)
def test_stops_lose_and_repeat_no_instruction_for_long(stopper: str) -> None:
    with MicroGuest() as guest:
        assert counts_right(guest, STOPPERS[stopper], SOAK_SECONDS)


def count_with_exits_anywhere() -> bool:
    """Whether the count is right with `no_exit_request` taken back, before anything of the loop is translated."""
    with MicroGuest() as guest:
        ffi.cast("uint8_t *", host_address(guest.cpu._uc) + load().layout.no_exit_request)[0] = 0
        return counts_right(guest, stopped_by_the_timer, 0.5)


def test_they_would_if_libunicorn_stopped_after_any_access() -> None:
    """Without the inline check too, which knows of one place in a block only."""
    done = run_alone(
        "from tests.support.remedies import leave_out\n"
        "leave_out('GENERATE_CALL', 'GENERATE_EXIT')\n"
        "from tests.cpu.test_stops import *\n"
        "print(count_with_exits_anywhere())\n"
    )
    assert done.stdout == "False\n", done.stderr


# -- system calls --------------------------------------------------------------------------------------------------

CALL = b"\x0f\x05\x48\xff\xcb\x75\xf9\x0f\x0b"           # syscall; dec rbx; jnz to it; ud2
KERNEL = b"\x48\xff\x04\x25" + struct.pack("<I", DATA) + b"\x48\x0f\x07"        # inc qword [DATA]; sysretq


def system_calls(guest: MicroGuest, calls: int, stopper: Stopper, seconds: float) -> tuple[bool, int]:
    """Make `calls` system calls from ring 3 under stops: whether the kernel saw all, and the number of stops."""
    guest.cpu.write_msr(MSR_LSTAR, CODE)
    guest.cpu.write_msr(MSR_SFMASK, 0x200)
    guest.memory.write(CODE, KERNEL)
    guest.memory.write(DATA, bytes(8))
    guest.put(CALL, USER_CODE, rbx=calls)
    stops = stopper(guest, seconds)
    assert (guest.event.vector, guest.event.rip) == (UD, USER_CODE + 7)
    guest.events.clear()
    return guest.quad(DATA) == calls, stops


def calls_in(guest: MicroGuest, seconds: float) -> int:
    """How many calls take about so long under stops."""
    started = time.monotonic()
    system_calls(guest, 50_000, stopped_by_the_timer, 0.0)
    return int(50_000 * seconds / (time.monotonic() - started))


@pytest.mark.parametrize("stopper", STOPPERS)
def test_stops_lose_no_system_call(stopper: str) -> None:
    with MicroGuest() as guest:
        calls = calls_in(guest, SECONDS / 2)
        assert is_right(SECONDS / 2, lambda: system_calls(guest, calls, STOPPERS[stopper], SECONDS / 2))


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stopper", STOPPERS)
def test_stops_lose_no_system_call_for_long(stopper: str) -> None:
    with MicroGuest() as guest:
        calls = calls_in(guest, SOAK_SECONDS)
        assert is_right(SOAK_SECONDS, lambda: system_calls(guest, calls, STOPPERS[stopper], SOAK_SECONDS))


def hooks_in_another_order(cpu: Cpu) -> None:
    """As Cpu._add_hooks, with SYSCALL behind IN."""
    cpu._add_hook(HOOK_INSTRUCTION, "PORT_IN", INSTRUCTION_IN)
    cpu._add_hook(HOOK_INSTRUCTION, "SYSCALL", INSTRUCTION_SYSCALL)
    cpu._add_hook(HOOK_INSTRUCTION, "PORT_OUT", INSTRUCTION_OUT)
    cpu._add_hook(HOOK_INTERRUPT, "EXCEPTION")
    cpu._add_hook(HOOK_INVALID, "UNDEFINED")


def test_they_would_if_another_hook_stood_before_syscalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cpu, "_add_hooks", hooks_in_another_order)
    with MicroGuest() as guest:
        calls = calls_in(guest, 3.0)
        assert not is_right(3.0, lambda: system_calls(guest, calls, stopped_by_a_thread, 3.0))


# -- undefined SYSENTER, software interrupts -----------------------------------------------------------------------


class Counting(MicroGuest):
    """A guest whose #UD handler goes on behind the two bytes."""

    def port_out(self, port: int, size: int, value: int) -> None:
        super().port_out(port, size, value)
        if self.events[-1].vector == UD:
            at = self.registers.rsp + 16
            self.write_quads(at, self.quad(at) + 2)


SYSENTERS = b"\x0f\x34\x4b\x75\xfb\xcc"                  # sysenter; dec ebx; jnz to it; int3


def test_stops_skip_no_undefined_sysenter() -> None:
    with Counting(resume={UD}) as guest:
        guest.put(SYSENTERS, USER_CODE, cs=USER_CS32, rbx=3000)
        stopped_by_a_thread(guest, 10.0)
        assert [event.vector for event in guest.events] == [UD] * 3000 + [BP]


def test_sysenter_goes_anywhere_without_the_remedy() -> None:
    """It adds its length to a RIP that nobody has brought up to date."""
    done = run_alone(
        "from tests.support.remedies import leave_out\n"
        "leave_out('SYSENTER')\n"
        "from tests.cpu.test_stops import *\n"
        "guest = Counting(resume={UD})\n"
        "guest.run(SYSENTERS, USER_CODE, cs=USER_CS32, rbx=3)\n"
        f"print({UD} in [event.vector for event in guest.events])\n"
    )
    assert done.stdout == "False\n", done.stderr


def test_a_stop_before_the_run_is_made_up_for() -> None:
    """uc_emu_start resets the flag; the timer strikes again."""
    with MicroGuest() as guest:
        guest.put(b"\xeb\xfe")                           # jmp $
        for _ in range(50):
            assert guest.cpu.run(0) is Exit.KICK         # the deadline is long past


def test_a_stop_inside_an_exit_ends_the_run() -> None:
    class Stopping(MicroGuest):
        def port_out(self, port: int, size: int, value: int) -> None:
            self.cpu.stop()

    with Stopping() as guest:
        started = time.monotonic()
        assert guest.run(b"\xe6\x99\xeb\xfe") is Exit.KICK       # out 0x99, al; jmp $
        assert time.monotonic() - started < PATIENCE_S / 2      # after all of that it would be stopped anyway
