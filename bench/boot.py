"""Boot time: from the start of the process to the first shell prompt, ours against QEMU's TCG.

    python -m bench.boot [--runs N]

Both boot the same bzImage and the same gzip-compressed initramfs with as much memory and the same command line, in
turn; the cache is warm. "as shipped" is a figure of its own: the distribution's settings on both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial

from bench.common import Report, in_turn, ratio_of_medians
from bench.files import KERNELS, initramfs_file, kernel_file
from bench.ours import Settings
from bench.serial_guest import PROMPT, QEMU_MISSING, SerialGuest, have_qemu, ours, qemu

RUNS = 5
TIMEOUT_S = 120.0
BUSY_KERNEL = "cloud"
AS_SHIPPED_KERNEL = "generic"


def seconds_to_prompt(start: Callable[[Settings], SerialGuest], settings: Settings) -> float:
    """Boot once and end it; seconds from just before the process was started until the prompt was read."""
    with start(settings) as guest:
        return (guest.expect(PROMPT, TIMEOUT_S) - guest.started_ns) / 1e9


def against_qemu(report: Report, name: str, settings: Settings, runs: int) -> None:
    """Add `name`_ours_s, and if there is a QEMU `name`_qemu_s and `name`_ratio."""
    contestants = {"ours": partial(seconds_to_prompt, ours, settings)}
    if have_qemu():
        contestants["qemu"] = partial(seconds_to_prompt, qemu, settings)
    contestants["ours"]()           # fills the caches, the package's and the host's
    report.versus(name, in_turn(runs, contestants))


def beside_a_busy_thread(report: Report, settings: Settings, runs: int) -> None:
    """Add busy_thread_ratio: with another thread of the process computing, over alone."""
    busy = dataclasses.replace(settings, busy_thread=True)
    times = in_turn(runs, {
        "alone_s": partial(seconds_to_prompt, ours, settings),
        "busy_thread_s": partial(seconds_to_prompt, ours, busy),
    })
    for name, samples in times.items():
        report.samples(name, samples)
    ratio = ratio_of_medians(times["busy_thread_s"], times["alone_s"])
    report.figure("busy_thread_ratio", ratio, "", f"{BUSY_KERNEL} kernel")


def main() -> None:
    """Measure, print and write bench/out/boot.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each contestant ({RUNS})")
    runs = parser.parse_args().runs
    initrd = str(initramfs_file("alpine"))
    settings = {kernel: Settings(str(kernel_file(kernel)), initrd) for kernel in KERNELS}
    report = Report("boot", "process start to the first shell prompt, Alpine, 256 MiB, warm cache, runs in turn")
    for kernel in KERNELS:
        against_qemu(report, kernel, settings[kernel], runs)
    as_shipped = dataclasses.replace(settings[AS_SHIPPED_KERNEL], as_shipped=True)
    against_qemu(report, "as_shipped", as_shipped, runs)
    beside_a_busy_thread(report, settings[BUSY_KERNEL], runs)
    report.note(f"as_shipped: the {AS_SHIPPED_KERNEL} kernel with the distribution's own settings on both sides")
    if not have_qemu():
        report.note(QEMU_MISSING)
    report.finish()


if __name__ == "__main__":
    main()
