"""Work inside a running guest: the time of seven jobs, ours against QEMU's TCG, and what an idle guest costs.

    python -m bench.guest [--boots N] [--rounds N] [--idle SECONDS]

The main figures are those of Debian's static busybox; `alpine_` stands before those of Alpine's (musl, loaded
dynamically), the default guest.

Both sides run the same kernel, initramfs and command line, at the same time: while one works the other waits at its
shell. A script in the initramfs reads the name of a job from the serial line, runs it and prints a mark. The host's
clock is read when the name was sent and when the mark arrives; the guest is idle before and after, so that no buffer
holds the mark back. `empty` shows what this costs by itself. One run of each job warms up and is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

from bench.common import Report, in_turn
from bench.files import initramfs_file, kernel_file
from bench.ours import Settings
from bench.serial_guest import PROMPT, QEMU_MISSING, SerialGuest, have_qemu, ours, qemu

KERNEL = "cloud"
BOOTS, ROUNDS, IDLE_S = 2, 4, 60.0
TIMEOUT_S = 120.0
SETTLE_S = 3.0                  # after the prompt, until the kernel has finished what it defers

JOBS = {
    "shell_loop": "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done",
    "cat_200": "i=0; while [ $i -lt 200 ]; do cat /etc/passwd >/dev/null; i=$((i+1)); done",
    "sha256": "dd if=/dev/zero bs=64k count=160 2>/dev/null | sha256sum >/dev/null",
    "gzip_twice": "gzip -c /bin/busybox >/dev/null; gzip -c /bin/busybox >/dev/null",
    "awk_floats": "awk 'BEGIN { for (i = 0; i < 300000; i++) x += 0.5 }'",
    "syscalls": "dd if=/dev/zero of=/dev/null bs=1 count=50000 2>/dev/null",
    "sort": "seq 1 20000 | sort -r | tail -1 >/dev/null",
}
TITLES = {
    "shell_loop": "50,000 turns of a shell loop",
    "cat_200": "200 x cat",
    "sha256": "dd bs=64k count=160 | sha256sum",
    "gzip_twice": "gzip of busybox, twice",
    "awk_floats": "awk, 300,000 float additions",
    "syscalls": "dd bs=1 count=50000: 100,000 system calls",
    "sort": "seq 1 20000 | sort -r | tail -1",
    "empty": "no job: what the measurement itself takes",
}
SCRIPT = "jobs.sh"
PREFIXES = {"busybox": "", "alpine": "alpine_"}

Samples = dict[str, dict[str, list[float]]]
"""Seconds, by job and side."""


def script(jobs: Mapping[str, str]) -> str:
    """The guest's side: a job a line, a mark after each.

    Args:
        jobs: commands by name; `empty`, which does nothing, is there besides.
    """
    cases = "\n".join(f"{name}) {command} ;;" for name, command in ({**jobs, "empty": ":"}).items())
    return f"#!/bin/sh\nstty -echo\necho READY\nwhile read -r job; do\ncase $job in\n{cases}\nesac\necho END\ndone\n"


def seconds(guest: SerialGuest, job: str) -> float:
    """Run one job."""
    sent_ns = guest.send(f"{job}\n".encode())
    return (guest.expect(b"END\r\n", TIMEOUT_S) - sent_ns) / 1e9


def idle_percent(guests: Mapping[str, SerialGuest], duration_s: float) -> dict[str, float]:
    """Share of one host core that each process uses while its guest waits at its shell."""
    before = {name: (guest.cpu_s(), time.monotonic()) for name, guest in guests.items()}
    time.sleep(duration_s)
    return {
        name: 100 * (guest.cpu_s() - before[name][0]) / (time.monotonic() - before[name][1])
        for name, guest in guests.items()
    }


def measure_boot(samples: Samples, settings: Settings, rounds: int, idle_s: float) -> dict[str, float]:
    """Boot both sides and add to `samples[job][side]`; the idle shares, empty unless `idle_s`."""
    with ExitStack() as stack:
        guests = {"ours": stack.enter_context(ours(settings))}
        if have_qemu():
            guests["qemu"] = stack.enter_context(qemu(settings))
        for guest in guests.values():
            guest.expect(PROMPT, TIMEOUT_S)
        time.sleep(SETTLE_S)
        idle = idle_percent(guests, idle_s) if idle_s else {}
        for guest in guests.values():
            guest.send(f"sh /{SCRIPT}\n".encode())
            guest.expect(b"READY\r\n", TIMEOUT_S)
        for job in TITLES:
            contestants = {name: partial(seconds, guest, job) for name, guest in guests.items()}
            in_turn(1, contestants)
            for name, times in in_turn(rounds, contestants).items():
                samples.setdefault(job, {}).setdefault(name, []).extend(times)
    return idle


def add_jobs(report: Report, prefix: str, samples: Samples) -> None:
    """Each job's medians and ratio, and the geometric mean of the ratios."""
    ratios = []
    for job, times in samples.items():
        ratio = report.versus(f"{prefix}{job}", times)
        if ratio is not None and job in JOBS:
            ratios.append(ratio)
    if ratios:
        report.figure(f"{prefix}geomean_ratio", statistics.geometric_mean(ratios), "", "of the seven jobs")


def main() -> None:
    """Measure, print and write bench/out/guest.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boots", type=int, default=BOOTS, help=f"of each side ({BOOTS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each job in a boot, after the first ({ROUNDS})")
    parser.add_argument("--idle", type=float, default=IDLE_S, help=f"seconds at the shell ({IDLE_S:g})")
    options = parser.parse_args()
    report = Report("guest", f"jobs in a guest: Debian's {KERNEL} kernel, 256 MiB, both sides in turn")
    for root, prefix in PREFIXES.items():
        settings = Settings(str(kernel_file(KERNEL)), str(initramfs_file(root, {SCRIPT: script(JOBS)})))
        samples: Samples = {}
        for boot in range(options.boots):
            idle = measure_boot(samples, settings, options.rounds, 0 if boot else options.idle)
            for name, percent in idle.items():
                key = f"{prefix}idle_cpu_percent" + ("" if name == "ours" else f"_{name}")
                report.figure(key, percent, "%", f"of a core, {options.idle:g} s at the shell")
        add_jobs(report, prefix, samples)
    for job, title in TITLES.items():
        report.note(f"{job}: {title}")
    if not have_qemu():
        report.note(QEMU_MISSING)
    report.finish()


if __name__ == "__main__":
    main()
