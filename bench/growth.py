"""What it costs when there is more of something: memory, exports, disks, hypercalls, clones.

    python -m bench.growth [--rounds N]

Machines with a kernel of a few instructions, so that nothing else is measured. WHAT_GROWS_SIZE is the median of what
takes so long: `boot_ms` from nothing to the guest's first word, `restore_ms` from a snapshot until the machine can be
driven, `fork_ms` until the clone is in hand, `hypercall_ns` and `device_load_ns` one exit, by the clock of the process.
GROWS is `memory_mib`, `exports`, `disks`, `hypercalls` (registered), or `clones` (that wait beside). WHAT_by_GROWS is
the largest size over the smallest; all sizes take turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import emu
from bench.common import VARIATION_LIMIT, Report, in_turn, ratio_of_medians, variation
from bench.growth_machines import GROWTH, Machines

ROUNDS, WARM_UP = 25, 1
EXITS = 5_000
CLONES = 0, 5, 20, 60
SETTLE_S = 0.3                          # until fresh processes have nothing left to do

Costs = Mapping[str, Callable[[], float]]
"""What is measured, by name and unit: each call is one round."""


def since_ms(started_ns: int) -> float:
    """Milliseconds on the wall."""
    return (time.perf_counter_ns() - started_ns) / 1e6


def made_ms(machines: Machines, make: Callable[[], object]) -> float:
    """Milliseconds until a machine is there, the one of the round before being gone."""
    machines.close()
    started = time.perf_counter_ns()
    make()
    return since_ms(started)


def exit_ns(machines: Machines, kind: str) -> float:
    """Nanoseconds of an exit in a machine that was just made."""
    machines.close()
    run = machines.exits(kind, EXITS)
    started = time.process_time_ns()
    run()
    return (time.process_time_ns() - started) / EXITS


def costs(machines: Machines, template: emu.MachineProcess) -> Costs:
    """All that is measured with machines of one size; `template` is one of them."""
    return {
        "boot_ms": partial(made_ms, machines, machines.boot),
        "restore_ms": partial(made_ms, machines, machines.restore),
        "fork_ms": partial(made_ms, machines, partial(machines.fork, template)),
        "hypercall_ns": partial(exit_ns, machines, "hypercall"),
        "device_load_ns": partial(exit_ns, machines, "device_load"),
    }


def measure(report: Report, grows: str, by_size: Mapping[int, Costs], rounds: int) -> None:
    """Rows of one thing that grows; the sizes in turn."""
    for what in next(iter(by_size.values())):
        contestants = {str(size): cost[what] for size, cost in by_size.items()}
        in_turn(WARM_UP, contestants)
        times = in_turn(rounds, contestants)
        for size, samples in times.items():
            report.samples(f"{what}_{grows}_{size}", samples, what.rpartition("_")[2])
        least, most = min(by_size), max(by_size)
        ends = times[str(most)], times[str(least)]
        key, spread, remark = f"{what.rpartition('_')[0]}_by_{grows}", max(map(variation, ends)), f"{most} over {least}"
        if spread > VARIATION_LIMIT:
            report.figures[f"{key}_variation"] = round(spread, 4)
            remark += f", which vary by up to {spread:.0%}"
        report.figure(key, ratio_of_medians(*ends), "", remark)


def machines_of(stack: ExitStack, directory: Path, grows: str, size: int) -> tuple[Machines, emu.MachineProcess]:
    """Machines with so much of it, and one of them in a process of its own."""
    place = directory / f"{grows}{size}"
    place.mkdir()
    machines = stack.enter_context(closing(Machines(place, grows, size)))
    return machines, stack.enter_context(machines.template())


def grow(report: Report, directory: Path, grows: str, sizes: Sequence[int], rounds: int) -> None:
    """Everything that can be measured as one thing grows."""
    with ExitStack() as stack:
        by_size = {}
        for size in sizes:
            machines, template = machines_of(stack, directory, grows, size)
            machines.save()
            by_size[size] = costs(machines, template)
        time.sleep(SETTLE_S)
        measure(report, grows, by_size, rounds)


def grow_clones(report: Report, directory: Path, rounds: int) -> None:
    """A fork of a machine that has some clones already, which wait."""
    with ExitStack() as stack:
        by_size: dict[int, Costs] = {}
        for count in CLONES:
            place = directory / f"clones{count}"
            place.mkdir()
            machines, template = machines_of(stack, place, "memory_mib", min(GROWTH["memory_mib"]))
            for clone in template.fork(count) if count else []:
                stack.enter_context(clone)
            by_size[count] = {"fork_ms": partial(made_ms, machines, partial(machines.fork, template))}
        time.sleep(SETTLE_S)
        measure(report, "clones", by_size, rounds)


def main() -> None:
    """Measure, print and write bench/out/growth.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each measurement ({ROUNDS})")
    rounds = parser.parse_args().rounds
    report = Report("growth", "costs as something grows, sizes in turn")
    with tempfile.TemporaryDirectory() as name:
        for grows, sizes in GROWTH.items():
            grow(report, Path(name), grows, sizes, rounds)
        grow_clones(report, Path(name), rounds)
    report.finish()


if __name__ == "__main__":
    main()
