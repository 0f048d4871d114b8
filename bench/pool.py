"""Jobs a second in a pool, against a machine booted or restored for each.

    python -m bench.pool [--rounds N]

The jobs are `true`, a shell loop of 100 ms of guest computing (its number of turns is found first), and `sleep 0.1`.
`NAME_poolN_per_s` is with N machines at a time, handed in at once by `map`; `NAME_exec_per_s` is `emu exec` and
`NAME_boot_per_s` `emu run`, one after the other, from the start of each process to its end. All have the default guest;
`emu run` boots the kernel that the snapshot was made of.

`creation_percent` is what getting a machine from a pool that has one ready takes of what booting takes, each with
`true` run in it. `warmed_ms` is a job of apk, a program of some size, in a pool whose first machine has run the same
before, `unwarmed_ms` in one that has only run `true`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import emu
from bench.common import ROOT, Report, in_turn
from bench.exec import PYTHON_ENVIRONMENT

ROUNDS = 5
SIZES = 1, 2, 4, 8
JOB_S = 0.1
JOBS = 40                               # at a time, of each kind
PROBE_TURNS, PROBES = 20_000, 10        # the quickest counts: others may be at work on the host
LOOP = "i=0; while [ $i -lt {} ]; do i=$((i + 1)); done"
PROGRAM = "apk list --installed"
SETTLE_S = 0.2                          # for a machine to have become ready
EXEC = ["exec"]
RIVALS = {"exec": EXEC, "boot": ["run", "--kernel", "generic", "--memory", "128M"]}


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def turns_of_loop(pool: emu.Pool) -> int:
    """How many turns of LOOP take JOB_S in a machine of the pool."""

    def probe(machine: emu.MachineProcess) -> float:
        machine.run("true")
        few, many = (timed(partial(machine.run, LOOP.format(turns))) for turns in (1, PROBE_TURNS))
        return many - few

    return round(PROBE_TURNS * JOB_S / min(pool.map(lambda machine, _: probe(machine), range(PROBES))))


def jobs_per_s(pool: emu.Pool, command: str) -> float:
    """One round in a pool.

    Raises:
        RuntimeError: a job has failed.
    """
    began = time.perf_counter()
    if any(result.status for result in pool.map([command] * JOBS)):
        raise RuntimeError(f"{command} failed")
    return JOBS / (time.perf_counter() - began)


def processes_per_s(words: list[str], command: str) -> float:
    """One process of `emu`."""
    line = [sys.executable, "-m", "emu", *words, "--", "sh", "-c", command]
    return 1 / timed(lambda: subprocess.run(line, cwd=ROOT, env=PYTHON_ENVIRONMENT, check=True))


def warmth(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a job, in pools that were warmed by it and by another one."""
    with emu.Pool(size=1, warm_up=[PROGRAM, PROGRAM]) as warm, emu.Pool(size=1) as other:

        def job_ms(pool: emu.Pool) -> float:
            time.sleep(SETTLE_S)
            return timed(lambda: pool.run(PROGRAM, check=True)) * 1000

        return in_turn(rounds, {"warmed_ms": partial(job_ms, warm), "unwarmed_ms": partial(job_ms, other)})


def in_pools(rounds: int, report: Report) -> tuple[dict[str, str], dict[str, list[float]]]:
    """The commands, and jobs a second in pools of each size; one pool at a time, its jobs in turn."""
    commands: dict[str, str] = {}
    rates: dict[str, list[float]] = {}
    for size in SIZES:
        with emu.Pool(size=size) as pool:
            if not commands:
                turns = turns_of_loop(pool)
                commands = {"true": "true", "busy": LOOP.format(turns), "sleep": f"sleep {JOB_S}"}
                report.figure("busy_turns", turns, "", f"of the loop in {JOB_S:g} s")
            rates |= in_turn(rounds, {
                f"{name}_pool{size}_per_s": partial(jobs_per_s, pool, command) for name, command in commands.items()
            })
            report.figure(f"fork{size}_p50_ms", pool.metrics().forks.p50 * 1000, "ms", "while jobs run")
    return commands, rates


def ready_ms(rounds: int) -> list[float]:
    """Milliseconds of `true` in a machine that stood ready."""
    samples = []
    with emu.Pool(size=1) as pool:
        for _ in range(rounds):
            time.sleep(SETTLE_S)
            samples.append(timed(lambda: pool.run("true")) * 1000)
    return samples


def main() -> None:
    """Measure, print and write bench/out/pool.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each contestant ({ROUNDS})")
    rounds = parser.parse_args().rounds
    report = Report("pool", f"jobs a second, {rounds} rounds of {JOBS} in turn; processes one by one")
    processes_per_s(EXEC, "true")                       # makes the snapshot
    commands, rates = in_pools(rounds, report)
    rates |= in_turn(rounds, {
        f"{name}_{rival}_per_s": partial(processes_per_s, words, command)
        for name, command in commands.items() for rival, words in RIVALS.items()
    })
    for name in commands:
        for key, samples in rates.items():
            if key.startswith(name):
                report.samples(key, samples, "/s")
        best = max(median(rates[f"{name}_pool{size}_per_s"]) for size in SIZES)
        for rival in RIVALS:
            report.figure(f"{name}_against_{rival}", best / median(rates[f"{name}_{rival}_per_s"]), "times")
    ready = ready_ms(10 * rounds)
    report.samples("ready_ms", ready, "ms")
    report.figure("creation_percent", median(ready) * median(rates["true_boot_per_s"]) / 10, "%", "of booting")
    for key, samples in warmth(4 * rounds).items():
        report.samples(key, samples, "ms")
    report.finish()


if __name__ == "__main__":
    main()
