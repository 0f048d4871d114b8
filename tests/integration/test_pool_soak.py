"""Thousands of jobs in one pool: nothing grows."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import pytest

import emu
from emu.errors import EmuError
from tests.integration.processes import descendants, descriptors, resident, seconds_until_gone

pytestmark = pytest.mark.integration

MIB = 1 << 20
SIZE = 2
WARM = 20                               # jobs before the first look: arenas and caches have their size then
MOST_GROWTH = 24 * MIB                  # of memory, a leak of 2.5 KiB a job in the long run
MOST_PROCESSES = 1 + 2 * SIZE           # the zygote, machines with jobs, machines that stand ready
PRINT_EVERY = 500

full_size = (pytest.mark.soak, pytest.mark.timeout(7200))
job_counts = pytest.mark.parametrize("count", [20, pytest.param(10_000, marks=full_size)])

WORK = "echo hello >/tmp/work; sha256sum /tmp/work"
ROUND = (*["true"] * 15, *[WORK] * 3, "exit 3", "head -c 200000 /dev/zero")
EXPECTED = {"exit 3": "3", ROUND[-1]: "OutputLimit"}


@dataclass(frozen=True)
class Held:
    """What this process, its zygote and the host hold; bytes for memory."""

    memory: int
    zygote_memory: int
    descriptors: int
    zygote_descriptors: int
    threads: int
    processes: int
    files: int

    @classmethod
    def now(cls, pool: emu.Pool, directory: Path) -> Held:
        gc.collect()
        zygote, me = pool._stock._zygote, os.getpid()
        assert zygote is not None
        return cls(
            resident(me), resident(zygote.pid), descriptors(me), descriptors(zygote.pid), threading.active_count(),
            len(family(pool)), len(os.listdir(directory)),
        )  # fmt: skip


def family(pool: emu.Pool) -> set[int]:
    """The zygote's process and its children's; this process may have others from other tests."""
    zygote = pool._stock._zygote
    assert zygote is not None
    return {zygote.pid} | descendants(zygote.pid)


def settled(pool: emu.Pool) -> None:
    """Wait until the pool has let go of the machines that were used."""
    deadline = time.monotonic() + 60
    while len(family(pool)) > 1 + SIZE or pool.metrics().ready < SIZE or pool._stock._spent:
        assert time.monotonic() < deadline
        pool._stock._wake.set()
        time.sleep(0.05)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files would be."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield tmp_path


@job_counts
def test_nothing_grows(temporary: Path, count: int) -> None:
    began = time.monotonic()
    with emu.Pool("alpine", size=SIZE, output_limit=100_000, memory_limit=100 * MIB, timeout=300) as pool:
        run(pool, WARM)
        settled(pool)
        before = Held.now(pool, temporary)
        print("\njobs, memory and the zygote's (MiB), descriptors, its, threads, processes, files, host seconds")
        for done in range(0, count, PRINT_EVERY):
            run(pool, min(PRINT_EVERY, count - done))
            settled(pool)
            after = Held.now(pool, temporary)
            memory, zygote, *others = astuple(after)
            numbers = memory // MIB, zygote // MIB, *others, round(time.monotonic() - began)
            print(min(done + PRINT_EVERY, count), *numbers, flush=True)
        metrics = pool.metrics()
        processes = family(pool)
    print(f"{metrics}\nseconds until no process was left: {seconds_until_gone(processes):.2f}")
    assert metrics.jobs == WARM + count and metrics.restarts == metrics.replaced == 0
    assert metrics.failures == {"OutputLimit": (WARM + count) // len(ROUND)}
    assert after.memory <= before.memory + MOST_GROWTH
    assert after.zygote_memory <= before.zygote_memory + MOST_GROWTH
    assert after.descriptors <= before.descriptors and after.zygote_descriptors <= before.zygote_descriptors
    assert after.threads <= before.threads and after.processes <= MOST_PROCESSES
    assert after.files == before.files == 0


def run(pool: emu.Pool, count: int) -> None:
    """Run so many jobs, of which each kind ends as it has to."""
    commands = [ROUND[number % len(ROUND)] for number in range(count)]
    for command, future in [(command, pool.submit(command)) for command in commands]:
        try:
            outcome = str(future.result().status)
        except EmuError as error:
            outcome = type(error).__name__
        assert outcome == EXPECTED.get(command, "0"), command
