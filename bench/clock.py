"""A reading of the clock by a program of a Linux guest: kvmclock in the vDSO, against QEMU's TCG."""

from __future__ import annotations

import statistics
from contextlib import ExitStack, closing
from functools import partial

from bench.common import Report, in_turn, ratio_of_medians
from bench.files import initramfs_file, kernel_file
from bench.guest import SCRIPT, TIMEOUT_S, script, seconds
from bench.ours import Settings
from bench.serial_guest import PROMPT, QEMU_MISSING, have_qemu, ours, qemu
from emu.launch import boot
from emu.machine import Machine
from emu.stats import Kind

__all__ = ["clock_figures"]

KERNEL, ROOT = "cloud", "alpine"
TURNS = 200_000                         # a turn of awk takes some 8 us, most of it awk's
# systime() is time(2), in musl a clock_gettime(CLOCK_REALTIME) by the vDSO.
LOOP = "awk 'BEGIN {{ for (i = 0; i < {turns}; i++) {call} }}'"
CALL, EMPTY = "x = systime()", "x = i"
ASKED_FOR = Kind.PORT_IN, Kind.PORT_OUT, Kind.MMIO_READ, Kind.MMIO_WRITE, Kind.RDMSR, Kind.WRMSR
TIMER = "lapic", "x2apic", "TSC deadline"


def _caused(machine: Machine, call: str) -> tuple[int, int]:
    """How many exits and how many system calls a loop causes; the timer's, which come with time alone, left out."""
    before = machine.stats()
    machine.run(LOOP.format(turns=TURNS, call=call), check=True, timeout=TIMEOUT_S)
    gained = machine.stats() - before
    exits = sum(row.count for row in gained.rows() if row.kind in ASKED_FOR and row.handler not in TIMER)
    return exits, gained.count(Kind.NATIVE, "syscall")


def clock_figures(report: Report, rounds: int) -> None:
    """Count, and measure in turn with QEMU where it is installed."""
    with boot(kernel=KERNEL) as machine:
        machine.wait_ready()
        machine.run("true")
        exits, syscalls = zip(*(_caused(machine, call) for call in (CALL, EMPTY)), strict=True)
    report.figure("clock_exits", exits[0] - exits[1], "", f"of {TURNS} calls, beyond {exits[1]} without them")
    report.figure("clock_syscalls", syscalls[0] - syscalls[1], "", f"beyond {syscalls[1]}")
    jobs = {name: LOOP.format(turns=TURNS, call=call) for name, call in (("calls", CALL), ("loop", EMPTY))}
    settings = Settings(str(kernel_file(KERNEL)), str(initramfs_file(ROOT, {SCRIPT: script(jobs)})))
    sides = {"ours": ours} | ({"qemu": qemu} if have_qemu() else {})
    with ExitStack() as stack:
        guests = {name: stack.enter_context(closing(start(settings))) for name, start in sides.items()}
        for guest in guests.values():
            guest.expect(PROMPT, TIMEOUT_S)
            guest.send(f"sh /{SCRIPT}\n".encode())
            guest.expect(b"READY\r\n", TIMEOUT_S)
        contestants = {
            f"{name} {job}": partial(seconds, guest, job) for name, guest in guests.items() for job in jobs
        }
        in_turn(1, contestants)
        times = in_turn(rounds, contestants)
    costs = {name: [calls / TURNS * 1e6 for calls in times[f"{name} calls"]] for name in guests}
    for name, samples in costs.items():
        key = "clock" if name == "ours" else f"clock_{name}"
        report.samples(f"{key}_us", samples, "us")
        loop = statistics.median(times[f"{name} loop"]) / TURNS * 1e6
        report.figure(f"{key}_alone_us", statistics.median(samples) - loop, "us", f"less {loop:.3f} us of the loop")
    if "qemu" in costs:
        report.figure("clock_ratio", ratio_of_medians(costs["ours"], costs["qemu"]))
    else:
        report.note(QEMU_MISSING)
