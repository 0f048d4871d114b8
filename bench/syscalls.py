"""What it costs and gains to answer system calls on the host, as seen by a program of the guest.

    python -m bench.syscalls [--rounds N] [--boots N]

Two machines with the same kernel and root: one answers the calls of `hypercalls.examples.readonly_syscalls`, and two
numbers that Linux does not use; the other leaves all to the guest's kernel. A program makes each call some thousand
times and reads its time-stamp counter before and behind them; the loop is in the figures.

NAME_kernel_ns is the call done by the guest's kernel in the machine without interception, NAME_host_ns the same by the
host. `other_off_ns` and `other_on_ns` are a call that no handler is for (getppid), in the two machines. `empty_host_ns`
is a handler that returns at once, `passed_on_ns` one that passes everything on, beside `unknown_kernel_ns`, the same
number without a handler. `boot_off_s` and `boot_on_s` are the times to the prompt, `boot_calls` how many calls the host
answered on the way.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing

from bench.common import Report, in_turn
from emu.launch import boot
from emu.machine import Machine
from hypercalls.examples import readonly_syscalls
from hypercalls.loading import objects_of
from hypercalls.syscalls import PASS, Syscall
from tests.integration.script import FREE, Step, play

ROUNDS, BOOTS = 15, 5
EMPTY, PASSED_ON = 400, 401             # no call of x86-64 Linux has these numbers
SECOND_NS = 1_000_000_000

SYSCALLS = (
    *objects_of(readonly_syscalls, Syscall),
    Syscall(EMPTY, "empty", lambda call: 0),
    Syscall(PASSED_ON, "passed on", lambda call: PASS),
)
COMPARED = {
    "sched_get_priority_max": Step(146, (1,), 5000),
    "getcpu": Step(309, (FREE, FREE + 4, 0), 3000),
    "getrandom_16": Step(318, (FREE, 16, 0), 3000),
    "getrandom_4k": Step(318, (FREE, 4 << 10, 0), 500),
    "getrandom_64k": Step(318, (FREE, 64 << 10, 0), 50),
    "getrandom_1m": Step(318, (FREE, 1 << 20, 0), 3),
}
OTHER, UNKNOWN = Step(110, (), 20_000), Step(PASSED_ON, (), 5000)


def nanoseconds(machine: Machine, steps: dict[str, Step]) -> dict[str, float]:
    """Time of each of some calls, as the guest's time-stamp counter has it."""
    results, _ = play(machine, list(steps.values()))
    ns_per_cycle = SECOND_NS / machine.board.kvmclock.hz
    timed = zip(steps.items(), results, strict=True)
    return {name: cycles * ns_per_cycle / step.times for (name, step), (_, cycles) in timed}


def boot_time(syscalls: tuple[Syscall, ...]) -> tuple[float, int]:
    """Seconds to the prompt, and how many calls were intercepted until then."""
    started = time.perf_counter()
    with boot(syscalls=syscalls) as machine:
        machine.wait_prompt()
        return time.perf_counter() - started, int(machine.board.cpu.context.intercepted)


def calls(report: Report, rounds: int) -> None:
    """The figures of single calls."""
    off_steps = COMPARED | {"other": OTHER, "unknown": UNKNOWN}
    on_steps = COMPARED | {"other": OTHER, "passed on": UNKNOWN, "empty": Step(EMPTY, (), 5000)}
    with closing(boot()) as off, closing(boot(syscalls=SYSCALLS)) as on:
        for machine in off, on:
            machine.wait_prompt()
        by_kernel, by_host = [], []
        for _ in range(rounds):
            by_kernel.append(nanoseconds(off, off_steps))
            by_host.append(nanoseconds(on, on_steps))
    for name in COMPARED:
        least(report, f"{name}_kernel_ns", [one[name] for one in by_kernel])
        least(report, f"{name}_host_ns", [one[name] for one in by_host])
    least(report, "other_off_ns", [one["other"] for one in by_kernel])
    least(report, "other_on_ns", [one["other"] for one in by_host])
    least(report, "unknown_kernel_ns", [one["unknown"] for one in by_kernel])
    least(report, "passed_on_ns", [one["passed on"] for one in by_host])
    least(report, "empty_host_ns", [one["empty"] for one in by_host])


def least(report: Report, key: str, samples: list[float]) -> None:
    """Add the least of some times: what disturbs them only makes them longer."""
    report.figure(key, min(samples), "ns", f"least of {len(samples)}")


def boots(report: Report, runs: int) -> None:
    """The figures of booting."""
    counts = []

    def timed(syscalls: tuple[Syscall, ...]) -> float:
        seconds, count = boot_time(syscalls)
        counts.append(count)
        return seconds

    times = in_turn(runs, {"off": lambda: timed(()), "on": lambda: timed(SYSCALLS)})
    report.samples("boot_off_s", times["off"])
    report.samples("boot_on_s", times["on"])
    report.figure("boot_calls", max(counts), "", "answered by the host until the prompt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each call is measured; default {ROUNDS}")
    parser.add_argument("--boots", type=int, default=BOOTS, help=f"how often each machine boots; default {BOOTS}")
    options = parser.parse_args()
    report = Report("syscalls", "System calls answered on the host, and by the guest's kernel; nanoseconds a call")
    calls(report, options.rounds)
    boots(report, options.boots)
    report.finish()


if __name__ == "__main__":
    main()
