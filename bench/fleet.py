"""Eight machines in one test: how long until all of them answer, and `wait_all` against the slowest and the sum.

    python -m bench.fleet [--runs N] [--machines N]

The machines are the default guest with 128 MiB, clones of one that is restored from its ready snapshot.

start_one_s, start_all_s: a fleet of one machine, of eight, from nothing until all guests answer; start_each_sum_s is
the sum of eight fleets of one, one after another. close_s: until all eight are gone.

wait_all_sleep_s: commands that sleep 0.3, 0.4, ... s, one on each machine, by `wait_all`; slowest_sleep_s is the
longest of them as its machine took it, sum_sleep_s all of them one after another. The same with `compute`: a shell's
loop, for which the machines share the host's processors.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import emu
from bench.common import Report
from emu.fleet.fleet import Fleet
from emu.fleet.machine import FleetMachine

RUNS, MACHINES = 5, 8
FIRST_SLEEP_S, SLEEP_STEP_S = 0.3, 0.1
COMPUTE = "i=0; while [ $i -lt 5000 ]; do i=$((i + 1)); done"


def seconds(do: Callable[[], object]) -> float:
    """How long something takes."""
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def fleet_of(count: int) -> Fleet:
    """A fleet that says nothing."""
    return emu.Fleet(*(f"machine{number}" for number in range(count)), sink=lambda _line: None)


def start_s(count: int) -> float:
    """A fleet from nothing until all guests answer."""
    started = time.perf_counter()
    with fleet_of(count) as fleet:
        fleet.start_all()
        return time.perf_counter() - started


def waiting(fleet: Fleet, command: Callable[[FleetMachine], str]) -> tuple[float, float, float]:
    """Seconds of a command on all machines by `wait_all`, of the slowest machine in that, and one after another."""
    times: list[float] = []

    def work(machine: FleetMachine) -> None:
        times.append(seconds(lambda: machine.succeed(command(machine))))

    together = seconds(lambda: fleet.wait_all(fleet, work))
    slowest = max(times)
    return together, slowest, seconds(lambda: [work(machine) for machine in fleet])


def main() -> None:
    """Measure, print and write bench/out/fleet.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each measurement ({RUNS})")
    parser.add_argument("--machines", type=int, default=MACHINES, help=f"in a fleet ({MACHINES})")
    arguments = parser.parse_args()
    runs, count = arguments.runs, arguments.machines
    report = Report("fleet", f"{count} machines in one test, {runs} runs, on {os.cpu_count()} processors")
    start_s(1)                      # makes the snapshot
    report.samples("start_one_s", [start_s(1) for _ in range(runs)])
    report.samples("start_all_s", [start_s(count) for _ in range(runs)])
    report.samples("start_each_sum_s", [sum(start_s(1) for _ in range(count)) for _ in range(runs)])
    fleet = fleet_of(count)
    try:
        fleet.start_all()
        fleet.wait_all(fleet, lambda machine: machine.succeed("true"))
        kinds: dict[str, Callable[[FleetMachine], str]] = {
            "sleep": lambda machine: f"sleep {FIRST_SLEEP_S + SLEEP_STEP_S * (machine.cid - 3):.1f}",
            "compute": lambda _machine: COMPUTE,
        }
        for kind, command in kinds.items():
            columns = zip(*(waiting(fleet, command) for _ in range(runs)), strict=True)
            for name, column in zip(("wait_all", "slowest", "sum"), columns, strict=True):
                report.samples(f"{name}_{kind}_s", column)
    finally:
        report.figure("close_s", seconds(fleet.close), "s")
    report.finish()


if __name__ == "__main__":
    main()
