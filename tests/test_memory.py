"""Guest RAM: its hole, its bounds, and what is told of a write."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import EmuError
from emu.memory import GIB, HIGH_START, HOLE_START, KIB, LARGEST, MIB, SMALLEST, GuestMemory, OutsideMemory

SMALL = GuestMemory(64 * MIB)
LARGE = GuestMemory(5 * GIB)


@pytest.mark.parametrize("size", [SMALLEST, 100 * MIB, HOLE_START, HOLE_START + 4 * KIB, LARGEST])
def test_sizes_it_takes(size: int) -> None:
    memory = GuestMemory(size)
    assert memory.low_size + memory.high_size == memory.size == size
    assert memory.low_size == min(size, HOLE_START)


@pytest.mark.parametrize("size", [0, -1, SMALLEST - 4096, LARGEST + 4096, SMALLEST + 1])
def test_sizes_it_refuses_in_one_line(size: int) -> None:
    with pytest.raises(EmuError, match="this machine takes 64 MiB to 8 GiB") as caught:
        GuestMemory(size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", [0, 64 * MIB - 4])
def test_what_is_written_is_read(address: int) -> None:
    SMALL.write(address, b"abcd")
    assert SMALL.read(address, 4) == b"abcd"
    assert bytes(SMALL.view(address, 4)) == b"abcd"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_can_be_written(kind: type) -> None:
    SMALL.write(0x1000, kind(b"xyz"))
    assert SMALL.read(0x1000, 3) == b"xyz"


END = 64 * MIB
NOT_IN_SMALL = ((END - 3, 4), (END, 1), (-1, 1), (-4, 8), (HOLE_START, 1), (HIGH_START, 1), (1 << 64, 1), (1 << 52, 4))
HIGH_END = HIGH_START + 2 * GIB
NOT_IN_LARGE = ((HOLE_START - 3, 4), (HOLE_START, 1), (HIGH_START - 1, 2), (HIGH_END - 3, 4), (HIGH_END, 1))
REFUSED = [(SMALL, *bad) for bad in NOT_IN_SMALL] + [(LARGE, *bad) for bad in NOT_IN_LARGE]


@pytest.mark.parametrize(("memory", "address", "size"), REFUSED)
def test_what_is_not_all_ram_is_refused(memory: GuestMemory, address: int, size: int) -> None:
    with pytest.raises(OutsideMemory, match="are not RAM"):
        memory.read(address, size)
    with pytest.raises(OutsideMemory, match="are not RAM"):
        memory.write(address, bytes(size))
    with pytest.raises(OutsideMemory, match="are not RAM"):
        memory.view(address, size)


def test_a_refused_write_writes_nothing() -> None:
    SMALL.write(64 * MIB - 2, b"ab")
    with pytest.raises(OutsideMemory):
        SMALL.write(64 * MIB - 2, b"xyz")
    assert SMALL.read(64 * MIB - 2, 2) == b"ab"


def test_memory_goes_on_behind_the_hole() -> None:
    LARGE.write(HOLE_START - 2, b"lo")
    LARGE.write(HIGH_START, b"hi")
    assert LARGE.read(HOLE_START - 2, 2) == b"lo"
    assert LARGE.read(HIGH_START, 2) == b"hi"
    assert [(start, len(block)) for start, block in LARGE.blocks()] == [(0, HOLE_START), (HIGH_START, 2 * GIB)]
    assert bytes(LARGE.blocks()[1][1][:2]) == b"hi"


def test_small_memory_is_one_block() -> None:
    assert [(start, len(block)) for start, block in SMALL.blocks()] == [(0, 64 * MIB)]


@given(st.integers(0, 5 * GIB - 16), st.integers(1, 16))
def test_a_write_tells_the_ram_addresses_it_changed(ram_address: int, size: int) -> None:
    """They count through both blocks: libunicorn knows memory by them."""
    dropped: list[tuple[int, int]] = []
    LARGE.drop_code = lambda start, end: dropped.append((start, end))
    inside = ram_address < HOLE_START
    if inside and ram_address + size > HOLE_START:
        size = HOLE_START - ram_address
    LARGE.write(ram_address if inside else ram_address - HOLE_START + HIGH_START, bytes(size))
    assert dropped == [(ram_address, ram_address + size)]


@pytest.mark.parametrize("code, told", [(None, 3), (9, 0), (5, 3), (7, 3), (8, 3)])
def test_many_writes_are_told_if_code_stands_in_any_of_their_pages(code: int | None, told: int) -> None:
    memory = GuestMemory(64 * MIB)
    dropped: list[tuple[int, int]] = []
    memory.drop_code = lambda start, end: dropped.append((start, end))
    if code is not None:
        memory.code_pages = mmap.mmap(-1, memory.size // 4096)
        memory.code_pages[code] = 1
    memory.written_all([0x5000, 0x6FFF, 0x7FFF], [4096, 1, 2])
    assert dropped == [(0x5000, 0x6000), (0x6FFF, 0x7000), (0x7FFF, 0x8001)][:told]


@pytest.mark.parametrize("code, is_told", [(2, True), (3, True), (4, False), (5, True), (6, False), (7, True)])
def test_a_header_that_reaches_into_the_next_page_is_looked_at_in_both(code: int, is_told: bool) -> None:
    memory = GuestMemory(64 * MIB)
    memory.code_pages = mmap.mmap(-1, memory.size // 4096)
    memory.code_pages[code] = 1
    dropped: list[tuple[int, int]] = []
    memory.drop_code = lambda start, end: dropped.append((start, end))
    memory.written_all([0x2FF8, 0x7000, 0x5000], [11, 4096, 4096])
    assert bool(dropped) is is_told


def test_no_writes_are_told_of() -> None:
    memory = GuestMemory(64 * MIB)
    memory.code_pages = mmap.mmap(-1, memory.size // 4096)
    memory.written_all([], [])


def test_views_of_many_ranges_are_the_memory_itself() -> None:
    ranges = [0x1000, HOLE_START - 4, HIGH_START], [8, 4, 16]
    views = LARGE.views(*ranges)
    assert [len(view) for view in views] == ranges[1]
    views[2][:4] = b"high"
    assert LARGE.read(HIGH_START, 4) == b"high"
    with pytest.raises(OutsideMemory):
        LARGE.views([0, HOLE_START - 4], [4, 5])


def test_cleared_memory_is_zero_even_where_it_shows_a_file(tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(b"f" * 64 * MIB)
    with open(tmp_path / "ram", "rb") as file:
        ram = mmap.mmap(file.fileno(), 64 * MIB, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    memory = GuestMemory(64 * MIB, ram, ((0, 64 * MIB),), "snapshot")
    memory.write(0x1000, b"abc")
    assert memory.read(0xFFF, 5) == b"fabcf"
    memory.clear()
    assert memory.ram[:] == bytes(64 * MIB)
    assert memory.origin is None
    memory.close()
    assert (tmp_path / "ram").read_bytes() == b"f" * 64 * MIB
