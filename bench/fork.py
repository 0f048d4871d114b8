"""Clones of a warm machine: what a fork takes, what a hundred of them hold, how soon one has run a command.

    python -m bench.fork [--forks N] [--clones N]

The machine is a 128 MiB Alpine on Debian's generic kernel that has run a few commands, once booted and once restored
from a snapshot (restored_...). One clone after another:

fork_p50_ms, fork_p99_ms: from the call of `fork()` until the child runs its first guest instruction, which it tells by
the clock that processes share (CLOCK_MONOTONIC). fork_call_p50_ms is until the caller has it in hand.

start_private_kib: of the host's memory, what a clone has for itself right then (Private_Clean and Private_Dirty of
/proc/PID/smaps_rollup).

command_p50_ms, command_p99_ms: from the call of `run("true")` in a clone that has just come until its result is there;
before the guest runs it, it draws new random numbers and sets its clock. second_command_p50_ms is the next one in the
same clone, parent_command_p50_ms one in the machine that is forked.

clones_total_ms: a hundred clones by one call, until the last of them runs its guest. clones_private_kib is what each of
them has for itself then, the median, and clones_used_private_kib when each has run a command.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext

import emu
from bench.common import Report
from emu.memory import KIB, MIB
from emu.snapshot.ready import ready_snapshot

FORKS, CLONES = 200, 100
MEMORY = 128 * MIB
KERNEL = "generic"
WARM_UP = 5                     # of each kind, not counted
TIMEOUT_S = 60.0


def percentile(samples: Sequence[float], percent: int) -> float:
    """The smallest sample that so many percent of all do not exceed."""
    return sorted(samples)[max(-(-len(samples) * percent // 100) - 1, 0)]


def since_ms(start_ns: int, end_ns: int | None = None) -> float:
    """Milliseconds between two readings of the monotonic clock; the second is now unless given."""
    return ((time.monotonic_ns() if end_ns is None else end_ns) - start_ns) / 1e6


def command_ms(machine: emu.MachineProcess) -> float:
    """Milliseconds of `true`."""
    started = time.monotonic_ns()
    machine.run("true", check=True, timeout=TIMEOUT_S)
    return since_ms(started)


def fork_once(template: emu.MachineProcess) -> dict[str, float]:
    """How one clone begins: milliseconds, and KiB."""
    started = time.monotonic_ns()
    with template.fork() as clone:
        called = since_ms(started)
        return {"fork_ms": since_ms(started, clone.describe().since_ns), "fork_call_ms": called}


def size_once(template: emu.MachineProcess) -> dict[str, float]:
    """What one clone holds as it begins."""
    with template.fork() as clone:
        return {"start_private_kib": clone.use().private_bytes / KIB}


def command_once(template: emu.MachineProcess) -> dict[str, float]:
    """Milliseconds of commands in one clone, from its first word on."""
    with template.fork() as clone:
        return {"command_ms": command_ms(clone), "second_command_ms": command_ms(clone)}


def many(report: Report, prefix: str, template: emu.MachineProcess, count: int) -> None:
    """A number of clones that live at once."""
    started = time.monotonic_ns()
    clones = template.fork(count)
    try:
        fresh = [clone.use().private_bytes for clone in clones]
        last_ns = max(clone.describe().since_ns for clone in clones)
        report.figure(f"{prefix}clones_total_ms", since_ms(started, last_ns), "ms", f"{count} clones")
        report.figure(f"{prefix}clones_private_kib", statistics.median(fresh) / KIB, "KiB", "median, each")
        for clone in clones:
            clone.run("true", check=True, timeout=TIMEOUT_S)
        used = [clone.use().private_bytes for clone in clones]
        report.figure(f"{prefix}clones_used_private_kib", statistics.median(used) / KIB, "KiB", "after a command")
    finally:
        for clone in clones:
            clone.close()


def quantiles(report: Report, key: str, samples: Sequence[float]) -> None:
    """NAME_p50_ms and NAME_p99_ms, of samples called NAME_ms."""
    name = key.removesuffix("_ms")
    for percent in 50, 99:
        report.figure(f"{name}_p{percent}_ms", percentile(samples, percent), "ms", f"of {len(samples)}")


def measure(report: Report, prefix: str, template: emu.MachineProcess, forks: int, clones: int) -> None:
    """All figures of one machine."""
    template.wait_ready()
    own = [command_ms(template) for _ in range(WARM_UP + forks)][WARM_UP:]
    for once in fork_once, size_once, command_once:
        rounds = [once(template) for _ in range(WARM_UP + forks)][WARM_UP:]
        for key in rounds[0]:
            samples = [parts[key] for parts in rounds]
            if key.endswith("_ms"):
                quantiles(report, prefix + key, samples)
            else:
                report.figure(prefix + key, statistics.median(samples), "KiB", f"median of {forks}")
    quantiles(report, f"{prefix}parent_command_ms", own)
    many(report, prefix, template, clones)


def main() -> None:
    """Measure, print and write bench/out/fork.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forks", type=int, default=FORKS, help=f"one after another ({FORKS})")
    parser.add_argument("--clones", type=int, default=CLONES, help=f"at once ({CLONES})")
    options = parser.parse_args()
    report = Report("fork", f"clones of a warm Alpine of {MEMORY // MIB} MiB")
    with emu.spawn(kernel=KERNEL, memory=MEMORY) as template:
        measure(report, "", template, options.forks, options.clones)
    snapshot = ready_snapshot(MEMORY, lambda _name: nullcontext(), print)
    with emu.spawn(snapshot) as template:
        measure(report, "restored_", template, options.forks, options.clones)
    report.finish()


if __name__ == "__main__":
    main()
