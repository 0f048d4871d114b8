"""Files of the host in the guest: 9p over virtio, ours against QEMU's TCG with `-device virtio-9p-pci`.

    python -m bench.ninep [--boots N] [--rounds N]

Both sides run the same kernel, initramfs and command line at the same time and take turns, as in bench.guest; each
has a copy of the same tree on the host, in memory where there is /dev/shm. One run of each job warms up and is not
counted.

`cat` and `find` use the share as the guest's init mounts it. Reads and writes of 64 MiB, by `dd bs=1M`, use a mount
with `cache=none` for each msize: the guest keeps no page of a file, so every byte comes from the host's page cache
each time; `seqread` and `seqwrite` are those with the msize that init takes. The ratios of processor time say more
than those of time where the host is busy. `host_read_us` is the host's cost of one 4 KiB read, from the driver's
notification to the interrupt (bench/ninep_host.py).
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from bench.common import Report, in_turn
from bench.files import initramfs_file, kernel_file
from bench.guest import SCRIPT, SETTLE_S, TIMEOUT_S, Samples, script, seconds
from bench.ninep_host import READ_SIZE, Reader, outliers
from bench.ours import Settings
from bench.serial_guest import PROMPT, QEMU_MISSING, SerialGuest, have_qemu, ours, qemu
from emu.memory import KIB, MIB

KERNEL = "generic"
BOOTS, ROUNDS = 2, 3
STREAM_ROUNDS = 3                       # times as many, of jobs that are short
HOST_ROUNDS, READS = 200, 100
SHARED_MEMORY = Path("/dev/shm")

SHARE = "/mnt/data"
BIG_SIZE = 64 * MIB
BIG, SMALL, WRITTEN, TREE = "big", "small", "written", "tree"
DIRECTORIES, FILES = 100, 50
# 8 KiB and 128 KiB were and are Linux' defaults; its driver takes no more than the last.
MSIZES = 8 * KIB, 32 * KIB, 128 * KIB, 256 * KIB, 125 * 4 * KIB
UNTOLD_MSIZE = 128 * KIB                # Linux tells the mount's options that are not its defaults

TREE_JOBS = {
    "cat": f"i=0; while [ $i -lt 100 ]; do cat {SHARE}/{SMALL} >/dev/null; i=$((i+1)); done",
    "find": f"find {SHARE}/{TREE} -type f >/dev/null",
}
STREAM_JOBS = {
    "seqread": f"dd if={SHARE}/{BIG} of=/dev/null bs=1M 2>/dev/null",
    "seqwrite": f"dd if=/dev/zero of={SHARE}/{WRITTEN} bs=1M count={BIG_SIZE // MIB} 2>/dev/null",
}
MOUNT_OPTIONS = "trans=virtio,version=9p2000.L,cache=none"
MOUNT_JOBS = {
    "mount_*": f"umount {SHARE} && mount -t 9p -o {MOUNT_OPTIONS},msize=${{job#mount_}} data {SHARE}",
    "options": f"grep ' {SHARE} 9p ' /proc/mounts",
}
TITLES = {
    "cat": "100 x cat of a small file: fork, exec, open, read",
    "find": f"find -type f in a tree of {DIRECTORIES * FILES} files",
    "seqread": "64 MiB read by dd bs=1M, cache=none; behind it the msize where it is not the guest's default",
    "seqwrite": "64 MiB written, the same way",
    "empty": "no job: what the measurement itself takes",
}


@contextmanager
def tree() -> Iterator[Path]:
    """A directory to share: a small file, a big one, and a tree."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as name:
        directory = Path(name)
        (directory / SMALL).write_bytes(b"a small file\n")
        (directory / BIG).write_bytes(os.urandom(BIG_SIZE))
        for number in range(DIRECTORIES):
            branch = directory / TREE / f"directory {number}"
            branch.mkdir(parents=True)
            for leaf in range(FILES):
                (branch / f"file {leaf}").write_bytes(b"leaf\n")
        yield directory


def measure_boot(samples: Samples, cpu: Samples, initrd: Path, rounds: int) -> int:
    """Boot both sides, and add to `samples[job][side]` and, in seconds of processor time, to `cpu[job][side]`.

    Returns:
        The msize with which the guest's init mounts shares.
    """
    sides = {"ours": ours, **({"qemu": qemu} if have_qemu() else {})}
    kernel = str(kernel_file(KERNEL))
    with ExitStack() as stack:
        guests = {
            side: stack.enter_context(start(Settings(kernel, str(initrd), share=str(stack.enter_context(tree())))))
            for side, start in sides.items()
        }
        for guest in guests.values():
            guest.expect(PROMPT, TIMEOUT_S)
        time.sleep(SETTLE_S)
        for guest in guests.values():
            guest.send(f"sh /{SCRIPT}\n".encode())
            guest.expect(b"READY\r\n", TIMEOUT_S)
        default = mounted_msize(guests["ours"])
        for job in (*TREE_JOBS, "empty"):
            measure_job(samples, cpu, job, job, guests, rounds)
        for msize in sorted({*MSIZES, default}):
            for guest in guests.values():
                seconds(guest, f"mount_{msize}")
                assert mounted_msize(guest) == msize, guest.tail()
            for job in STREAM_JOBS:
                measure_job(samples, cpu, f"{job}_{msize}", job, guests, rounds * STREAM_ROUNDS)
    return default


def mounted_msize(guest: SerialGuest) -> int:
    """Of the share as it is mounted now.

    Raises:
        AssertionError: it is not.
    """
    start = len(guest.output)
    seconds(guest, "options")
    options = guest.output[start:]
    assert b" 9p " in options, f"the share is not mounted:\n{guest.tail()}"
    found = re.search(rb"msize=(\d+)", options)
    return int(found[1]) if found else UNTOLD_MSIZE


def measure_job(
    samples: Samples, cpu: Samples, name: str, job: str, guests: dict[str, SerialGuest], rounds: int
) -> None:
    """Run one job on every side, once to warm up, then `rounds` times in turn."""
    spent: dict[str, list[float]] = {side: [] for side in guests}

    def run(side: str, guest: SerialGuest) -> float:
        before_s = guest.cpu_s()
        taken_s = seconds(guest, job)
        spent[side].append(guest.cpu_s() - before_s)
        return taken_s

    contestants = {side: partial(run, side, guest) for side, guest in guests.items()}
    in_turn(1, contestants)
    for side, times in in_turn(rounds, contestants).items():
        samples.setdefault(name, {}).setdefault(side, []).extend(times)
        cpu.setdefault(name, {}).setdefault(side, []).extend(spent[side][1:])


def add_guest_rows(report: Report, samples: Samples, cpu: Samples, default: int) -> None:
    """Each job's medians and ratio; which msize is the best for each kind of stream."""
    for name, times in samples.items():
        report.versus(name.removesuffix(f"_{default}"), times)
    for job in (*TREE_JOBS, *STREAM_JOBS):
        spent = cpu[job if job in cpu else f"{job}_{default}"]
        if "qemu" in spent:
            report.figure(f"{job}_cpu_ratio", sum(spent["ours"]) / sum(spent["qemu"]), "", "of processor time")
    for job in STREAM_JOBS:
        medians = {
            name.rpartition("_")[2]: statistics.median(times["ours"])
            for name, times in samples.items() if name.startswith(f"{job}_")
        }
        report.figure(f"{job}_best_msize", int(min(medians, key=lambda msize: medians[msize])), "bytes")
    report.figure("default_msize", default, "bytes", "what init mounts with")


def add_host_rows(report: Report) -> None:
    """The host's cost of a read."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "page"
        file.write_bytes(os.urandom(READ_SIZE))
        with closing(Reader(file)) as reader:
            reader.microseconds(READS)
            samples = [reader.microseconds(READS) for _ in range(HOST_ROUNDS)]
            assert reader.data() == file.read_bytes(), "the device read something else"
    strange = outliers(samples)
    report.samples("host_read_us", samples, "µs")
    report.figure("host_read_lowest_us", min(samples), "µs")
    report.figure("host_read_highest_us", strange.highest, "µs")
    report.figure("host_read_outliers", strange.count, "", f"of {HOST_ROUNDS} rounds of {READS} reads")


def main() -> None:
    """Measure, print and write bench/out/ninep.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boots", type=int, default=BOOTS, help=f"of each side ({BOOTS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each job in a boot, after the first ({ROUNDS})")
    options = parser.parse_args()
    initrd = initramfs_file("alpine", {SCRIPT: script(TREE_JOBS | STREAM_JOBS | MOUNT_JOBS)}, modules=KERNEL)
    report = Report("ninep", f"9p over virtio: Debian's {KERNEL} kernel, 256 MiB, both sides in turn")
    samples: Samples = {}
    cpu: Samples = {}
    for _ in range(options.boots):
        default = measure_boot(samples, cpu, initrd, options.rounds)
    add_guest_rows(report, samples, cpu, default)
    add_host_rows(report)
    for job, title in TITLES.items():
        report.note(f"{job}: {title}")
    if not have_qemu():
        report.note(QEMU_MISSING)
    report.finish()


if __name__ == "__main__":
    main()
