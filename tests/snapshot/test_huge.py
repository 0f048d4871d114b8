"""Huge pages: RAM is in them as far as the host has them, by what /proc/self/smaps_rollup says of this process."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emu.memory import MIB, GuestMemory
from emu.snapshot.files import Snapshot
from emu.snapshot.save import save_snapshot
from tests.snapshot.snapshots import SIZE, State

WRITTEN = 8 * MIB
ENOUGH = WRITTEN // 2               # the first and the last huge page may be other memory's, too
ROLLUP = Path("/proc/self/smaps_rollup")


def huge_bytes() -> int:
    """How much of this process is in huge pages."""
    found = re.search(r"^AnonHugePages: +(\d+) kB", ROLLUP.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


@contextmanager
def more() -> Iterator[list[int]]:
    """How much more is in huge pages after the body of a `with`."""
    found: list[int] = []
    before = huge_bytes()
    yield found
    found.append(huge_bytes() - before)


def write(ram: mmap.mmap, start: int, end: int) -> None:
    for offset in range(start, end, mmap.PAGESIZE):
        ram[offset] = 1


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Half of it has something in it; skips on a host that gives none to a program that has none of our code."""
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ram:
        with more() as given:
            ram.madvise(mmap.MADV_HUGEPAGE)
            write(ram, 0, SIZE)
    if given[0] < SIZE // 2:
        pytest.skip("the host has no huge pages to give")
    memory = GuestMemory(SIZE)
    yield memory
    memory.close()


def test_a_machines_memory_is_in_huge_pages(memory: GuestMemory) -> None:
    with more() as found:
        write(memory.ram, 0, WRITTEN)
    assert found[0] >= ENOUGH


def test_memory_that_is_copied_from_a_snapshot_is_in_huge_pages(memory: GuestMemory, tmp_path: Path) -> None:
    write(memory.ram, 0, WRITTEN)
    save_snapshot(tmp_path / "x", State(), memory)
    with Snapshot.open(tmp_path / "x") as snapshot, more() as found:
        copied = snapshot.map_memory(copy=True)
    assert found[0] >= ENOUGH
    copied.close()


def test_what_a_snapshot_has_nothing_of_is_in_huge_pages(memory: GuestMemory, tmp_path: Path) -> None:
    write(memory.ram, 0, WRITTEN)
    save_snapshot(tmp_path / "x", State(), memory)
    with Snapshot.open(tmp_path / "x") as snapshot:
        mapped = snapshot.map_memory()
    with more() as found:
        write(mapped.ram, SIZE - WRITTEN, SIZE)
    assert found[0] >= ENOUGH
    mapped.close()
