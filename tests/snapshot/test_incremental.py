"""Snapshots that hold only what differs from the one below: chains of them, and what can be wrong with a chain."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu.errors import BadSnapshot, EmuError
from emu.memory import GuestMemory
from emu.snapshot import ram as ram_file
from emu.snapshot.files import LONGEST_CHAIN, Snapshot
from emu.snapshot.pages import PAGE
from emu.snapshot.save import save_snapshot
from tests.snapshot.snapshots import SIZE, State, copy_snapshots, new_memory, scribble, tree
from tests.support.descriptors import open_files


def restored(path: Path) -> tuple[Snapshot, GuestMemory]:
    """A snapshot, open, and its memory."""
    snapshot = Snapshot.open(path)
    return snapshot, snapshot.map_memory()


def grow(base: Path, path: Path, seed: int) -> bytes:
    """An incremental snapshot; what its memory is."""
    snapshot, memory = restored(base)
    with snapshot:
        scribble(memory, seed, runs=20)
        save_snapshot(path, State(f"{seed}"), memory, base=snapshot)
    content = memory.ram[:]
    memory.close()
    return content


Chain = list[tuple[Path, bytes]]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A directory with base.snap, and 2.snap to 4.snap, each built on the one before; the memory of the latter."""
    directory = tmp_path_factory.mktemp("chain")
    memory = new_memory()
    save_snapshot(directory / "base.snap", State(), memory)
    memory.close()
    below = directory / "base.snap"
    contents = []
    for seed in (2, 3, 4):
        path = directory / f"{seed}.snap"
        contents.append(grow(below, path, seed))
        below = path
    return directory, contents


@pytest.fixture
def base(originals: tuple[Path, list[bytes]], tmp_path: Path) -> Path:
    """A copy of the lowest."""
    return copy_snapshots(originals[0] / "base.snap", tmp_path / "base.snap")


@pytest.fixture
def chain(originals: tuple[Path, list[bytes]], base: Path, tmp_path: Path) -> Chain:
    """Copies of those that build on it, with what their memory is."""
    names = "2.snap", "3.snap", "4.snap"
    paths = [copy_snapshots(originals[0] / name, tmp_path / name) for name in names]
    return list(zip(paths, originals[1], strict=True))


def test_every_snapshot_of_a_chain_is_restored(chain: Chain) -> None:
    for depth, (path, content) in enumerate(chain, 2):
        snapshot, memory = restored(path)
        with snapshot:
            assert snapshot.depth == depth
            assert snapshot.base is not None
            snapshot.verify()
        assert memory.ram[:] == content
        memory.close()


def test_all_of_a_chain_can_be_copied_into_huge_pages(chain: Chain) -> None:
    path, content = chain[-1]
    with Snapshot.open(path) as snapshot:
        memory = snapshot.map_memory(copy=True)
    assert memory.ram[:] == content
    memory.close()


def test_short_parts_are_read_many_at_a_time_and_as_far_as_the_host_reads(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv
    calls = 0

    def preadv(fd: int, views: list[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        content = os.pread(fd, 3 * PAGE + 1, offset)            # less than asked for
        return real(fd, [view[: len(content)] for view in views[:1]], offset)

    path, content = chain[-1]
    with Snapshot.open(path) as snapshot:
        memory = snapshot.map_memory(copy=True)
        memory.close()
        monkeypatch.setattr(ram_file, "MOST_AT_ONCE", 3)
        monkeypatch.setattr(ram_file.os, "preadv", preadv)
        memory = snapshot.map_memory(copy=True)
        assert memory.ram[:] == content
        assert calls > 100
    memory.close()


def test_only_what_differs_is_held(base: Path, tmp_path: Path) -> None:
    snapshot, memory = restored(base)
    with snapshot:
        mapped = memory.backed[0][0]
        memory.ram[mapped] = memory.ram[mapped]             # a copy, and nothing else
        memory.ram[mapped + 3 * PAGE] ^= 1
        save_snapshot(tmp_path / "x", State(), memory, base=snapshot)
    with Snapshot.open(tmp_path / "x") as snapshot:
        assert snapshot.header.ram.held == (mapped // PAGE + 3, 1)
        assert snapshot.header.ram.zero == ()
    assert os.stat(tmp_path / "x" / "ram").st_size == 2 * PAGE          # and the trailer
    memory.close()


def test_nothing_changed_is_nothing_held(base: Path, tmp_path: Path) -> None:
    snapshot, memory = restored(base)
    with snapshot:
        save_snapshot(tmp_path / "x", State(), memory, base=snapshot)
    with Snapshot.open(tmp_path / "x") as snapshot:
        assert snapshot.header.ram.held == ()
        again = snapshot.map_memory()
    assert again.ram[:] == memory.ram[:]
    for each in (memory, again):
        each.close()


def test_long_runs_of_zeros_take_no_room(base: Path, tmp_path: Path) -> None:
    snapshot, memory = restored(base)
    with snapshot:
        start, end = max(memory.backed, key=lambda part: part[1] - part[0])
        memory.ram[start:end] = bytes(end - start)
        save_snapshot(tmp_path / "x", State(), memory, base=snapshot)
    with Snapshot.open(tmp_path / "x") as snapshot:
        first, pages, *_ = snapshot.header.ram.zero
        again = snapshot.map_memory()
        assert not any(part_start <= first * PAGE < part_end for part_start, part_end in again.backed)
    assert pages >= 16
    assert os.stat(tmp_path / "x" / "ram").st_size <= 64 * PAGE
    assert again.ram[:] == memory.ram[:]
    for each in (memory, again):
        each.close()


Change = tuple[int, int, int]       # first page, pages, byte to fill them with
CHANGES = st.lists(
    st.tuples(st.integers(0, 300), st.integers(1, 60), st.sampled_from([0, 0, 1, 2])), max_size=6
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(generations=st.lists(CHANGES, min_size=1, max_size=4))
def test_a_chain_is_the_last_memory_of_it(tmp_path: Path, generations: list[list[Change]]) -> None:
    memory = GuestMemory(SIZE)
    model = bytearray(400)
    below: Snapshot | None = None
    for number, changes in enumerate(generations):
        for first, count, value in changes:
            memory.ram[first * PAGE : (first + count) * PAGE] = bytes((value,)) * (count * PAGE)
            model[first : first + count] = bytes((value,)) * count
        save_snapshot(tmp_path / f"{number}", State(), memory, base=below)
        memory.close()
        if below:
            below.close()
        below = Snapshot.open(tmp_path / f"{number}")
        memory = below.map_memory()
        assert memory.ram[: len(model) * PAGE : PAGE] == model
        assert memory.ram[PAGE - 1 : len(model) * PAGE : PAGE] == model
    memory.close()
    for path in tmp_path.iterdir():
        shutil.rmtree(path)


def test_a_chain_can_be_moved_together(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for path in ("base.snap", "2.snap", "3.snap", "4.snap"):
        (tmp_path / path).rename(tmp_path / "elsewhere" / path)
    snapshot, memory = restored(tmp_path / "elsewhere" / "4.snap")
    with snapshot:
        assert memory.ram[:] == chain[-1][1]
    memory.close()


def test_saving_on_a_base_leaves_it_alone(base: Path, tmp_path: Path) -> None:
    before = tree(base, checksums=True)
    grow(base, tmp_path / "x", 7)
    assert tree(base, checksums=True) == before


# --- what can be wrong --------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    """The message; it is one line, and no descriptor is left open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BadSnapshot) as caught:
        Snapshot.open(path)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_base_is_told(chain: Chain, base: Path) -> None:
    shutil.rmtree(base)
    assert refused(chain[0][0]) == (
        f"{chain[0][0]} builds on another snapshot: cannot open the snapshot {base}: No such file or directory"
    )
    refused(chain[2][0])


def test_a_damaged_base_is_told(chain: Chain, base: Path) -> None:
    os.truncate(base / "ram", SIZE)
    assert "builds on another snapshot" in refused(chain[2][0])


def test_damage_to_the_contents_of_a_base_is_seen_when_all_is_read(chain: Chain, base: Path) -> None:
    with open(base / "ram", "r+b") as file:
        file.write(b"!")
    with Snapshot.open(chain[2][0]) as snapshot, pytest.raises(BadSnapshot, match=r"base\.snap/ram is damaged"):
        snapshot.verify()


def test_a_closed_chain_holds_no_file(chain: Chain) -> None:
    before = open_files()
    with Snapshot.open(chain[2][0]):
        assert len(open_files()) == len(before) + 4
    assert open_files() == before


def test_a_replaced_base_is_told(chain: Chain, base: Path) -> None:
    memory = new_memory(8)
    save_snapshot(base, State(), memory)
    memory.close()
    message = f"{chain[0][0]} builds on a snapshot that {base} is not, or not any more"
    assert refused(chain[0][0]) == message
    assert message in refused(chain[2][0])


def test_a_base_of_a_reset_machine_is_refused(base: Path, tmp_path: Path) -> None:
    snapshot, memory = restored(base)
    memory.clear()
    with snapshot, pytest.raises(EmuError, match=r"does not go on from .*base\.snap, or was reset since"):
        save_snapshot(tmp_path / "x", State(), memory, base=snapshot)
    assert not (tmp_path / "x").exists()
    memory.close()


def test_a_base_of_another_machine_is_refused(base: Path, tmp_path: Path) -> None:
    memory = new_memory()
    with Snapshot.open(base) as snapshot, pytest.raises(EmuError, match="does not go on from"):
        save_snapshot(tmp_path / "x", State(), memory, base=snapshot)
    memory.close()


@pytest.mark.parametrize("name", ["base.snap", "2.snap", "4.snap"])
def test_a_snapshot_is_not_replaced_by_what_builds_on_it(
    chain: Chain, tmp_path: Path, name: str
) -> None:
    snapshot, memory = restored(tmp_path / "4.snap")
    before = tree(tmp_path)
    with snapshot, pytest.raises(EmuError, match="would build on the one there"):
        save_snapshot(tmp_path / name, State(), memory, base=snapshot)
    assert tree(tmp_path) == before
    memory.close()


def test_a_chain_has_an_end(base: Path, tmp_path: Path) -> None:
    below = base
    for number in range(2, LONGEST_CHAIN + 1):
        snapshot, memory = restored(below)
        with snapshot:
            memory.ram[number * PAGE] ^= 1
            below = tmp_path / f"{number}.snap"
            save_snapshot(below, State(), memory, base=snapshot)
        memory.close()
    snapshot, memory = restored(below)
    with snapshot:
        assert snapshot.depth == LONGEST_CHAIN
        with pytest.raises(EmuError, match="16 snapshots build on each other already"):
            save_snapshot(tmp_path / "x", State(), memory, base=snapshot)
        save_snapshot(tmp_path / "whole", State(), memory)
    with Snapshot.open(tmp_path / "whole") as snapshot:
        assert snapshot.depth == 1
    memory.close()


def test_a_longer_chain_that_somebody_has_made_is_refused(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emu.snapshot import files

    monkeypatch.setattr(files, "LONGEST_CHAIN", 4)
    Snapshot.open(chain[2][0]).close()
    monkeypatch.setattr(files, "LONGEST_CHAIN", 3)
    assert "is one of more than 3 snapshots that build on each other" in refused(chain[2][0])
