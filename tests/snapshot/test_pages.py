"""Which pages were written: told by the host, without privilege."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.memory import GuestMemory, Ranges, new_ram
from emu.snapshot import pages
from emu.snapshot.libc import address_of, map_at
from emu.snapshot.pages import DATA, PAGE, SAME, ZERO, contents, differences, dirty_ranges, runs, touched
from tests.snapshot.snapshots import SIZE

NOBODY = 65534
BACKED = 4 * PAGE, 4000 * PAGE          # where the file shows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that no page of is zero."""
    path = tmp_path / "file"
    path.write_bytes(b"f" * SIZE)
    return path


@pytest.fixture
def memory(file: Path) -> Iterator[GuestMemory]:
    """Memory that begins as a part of the file, and as zeros elsewhere."""
    ram = new_ram(SIZE)
    with open(file, "rb") as opened:
        map_at(address_of(ram) + BACKED[0], BACKED[1] - BACKED[0], opened.fileno(), BACKED[0])
    memory = GuestMemory(SIZE, ram, (BACKED,), "origin")
    memory.ram.madvise(mmap.MADV_NOHUGEPAGE)        # a page is a page
    yield memory
    memory.close()


def write(memory: GuestMemory, ranges: Ranges) -> None:
    """One byte to every page."""
    for start, end in ranges:
        for at in range(start, end, PAGE):
            memory.ram[at + 7] = 1


SOME: Ranges = ((0, PAGE), (3 * PAGE, 6 * PAGE), (100 * PAGE, 101 * PAGE), (5000 * PAGE, 5002 * PAGE))


def test_untouched_memory_is_clean(memory: GuestMemory) -> None:
    assert dirty_ranges(memory) == ()
    assert touched(memory) == ((), ())


def test_pages_written_are_dirty_and_no_others(memory: GuestMemory) -> None:
    write(memory, SOME)
    assert dirty_ranges(memory) == SOME


def test_pages_read_of_a_file_are_not_dirty(memory: GuestMemory) -> None:
    assert memory.ram[50 * PAGE] == memory.ram[3000 * PAGE] == ord("f")
    assert dirty_ranges(memory) == ()
    read, written = touched(memory)
    assert written == ()
    for page in (50, 3000):
        assert any(start <= page * PAGE < end for start, end in read)
    assert all(BACKED[0] <= start < end <= BACKED[1] for start, end in read)


def test_touched_is_only_what_a_file_shows(memory: GuestMemory) -> None:
    write(memory, SOME)
    assert touched(memory)[1] == ((4 * PAGE, 6 * PAGE), (100 * PAGE, 101 * PAGE))


def test_pages_are_told_in_many_reads_too(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "READ_PAGES", 1000)
    write(memory, SOME)
    assert dirty_ranges(memory) == SOME


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_without_proc_everything_may_be_dirty(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    def refuse(*_arguments: object) -> int:
        raise error

    write(memory, SOME)
    expected = contents(memory)
    monkeypatch.setattr(pages.os, "open", refuse)
    assert dirty_ranges(memory) == ((0, SIZE),)
    assert contents(memory) == expected


def test_a_plain_user_is_told(memory: GuestMemory) -> None:
    """The process becomes one; Linux would then hide its /proc from itself, as from others, but for PR_SET_DUMPABLE."""
    if os.getuid():
        pytest.skip("all other tests show it")
    import ctypes

    write(memory, SOME)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
            memory.ram[200 * PAGE] = 1
            status = dirty_ranges(memory) != (*SOME[:3], (200 * PAGE, 201 * PAGE), *SOME[3:])
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_contents_are_what_is_not_zero(memory: GuestMemory) -> None:
    write(memory, SOME)
    memory.ram[5000 * PAGE : 5001 * PAGE] = bytes(PAGE)
    memory.ram[60 * PAGE : 61 * PAGE] = bytes(PAGE)
    kinds = contents(memory)
    expected = {0, 3, 5001, *range(4, 4000)} - {60}
    assert [page for page, kind in enumerate(kinds) if kind != SAME] == sorted(expected)
    assert set(kinds) == {SAME, DATA}


def test_contents_do_not_touch_what_was_never_touched(memory: GuestMemory) -> None:
    contents(memory)
    assert dirty_ranges(memory) == ()


def test_differences_are_what_is_not_as_in_the_base(memory: GuestMemory, file: Path) -> None:
    base = mmap.mmap(-1, SIZE)
    base[BACKED[0] : BACKED[1]] = b"f" * (BACKED[1] - BACKED[0])
    write(memory, SOME)
    memory.ram[3 * PAGE + 7] = 0                            # as before
    memory.ram[5 * PAGE + 7] = ord("f")
    memory.ram[60 * PAGE : 61 * PAGE] = bytes(PAGE)         # zeros now
    kinds = differences(memory, base)
    assert {page: kind for page, kind in enumerate(kinds) if kind != SAME} == {
        0: DATA, 4: DATA, 60: ZERO, 100: DATA, 5000: DATA, 5001: DATA,
    }


@settings(max_examples=50)
@given(st.lists(st.booleans(), max_size=50))
def test_runs_are_found(states: list[bool]) -> None:
    marked = bytes(2 if state else 1 for state in states)
    found = runs(marked, b"[\x02]+")
    inside = [page for start, end in found for page in range(start // PAGE, end // PAGE)]
    assert inside == [page for page, state in enumerate(states) if state]
    assert all(end < start for (_, end), (start, _) in pairwise(found)), "runs touch"
