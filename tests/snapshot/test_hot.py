"""The hot set: recorded on one run, brought in before the next, and never more than asked for."""

from __future__ import annotations

import os
import resource
from array import array
from pathlib import Path
from typing import NoReturn

import pytest

import emu
from emu.cache import ENVIRONMENT as CACHE
from emu.cache import Cache
from emu.cli import main
from emu.errors import BadSnapshot, EmuError
from emu.machine import Machine
from emu.memory import MIB, GuestMemory
from emu.snapshot import hot
from emu.snapshot.files import Snapshot
from emu.snapshot.hot import HotSet, eager_bytes, find, populate, record
from emu.snapshot.pages import PAGE, touched
from emu.snapshot.save import save_snapshot
from tests.snapshot.snapshots import SIZE, State, tree

IDENTITY = "0" * 32
FULL = MIB, 33 * MIB            # what the snapshot's RAM has something in
Run = tuple[int, int]
WRITTEN, READ = (2 * MIB, 2 * MIB + 8 * PAGE), (8 * MIB, 8 * MIB + 64 * PAGE)
HOT = HotSet((WRITTEN,), (READ,))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with one long run of data."""
    path = tmp_path_factory.mktemp("hot") / "x.snap"
    memory = GuestMemory(SIZE)
    memory.ram[FULL[0] : FULL[1]] = b"f" * (FULL[1] - FULL[0])
    save_snapshot(path, State(), memory)
    memory.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """The user's cache, empty."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return Cache()


def numbers(*values: int) -> bytes:
    """As they stand in the cache."""
    return array(hot.NUMBER, values).tobytes()


def mapped(path: Path, eager: int = 0) -> GuestMemory:
    """The snapshot's memory."""
    with Snapshot.open(path) as snapshot:
        return snapshot.map_memory(eager)


def touch(memory: GuestMemory, read: Run = READ, written: Run = WRITTEN) -> int:
    """What the guest does; the faults that it cost."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for at in range(*read, PAGE):
        assert memory.ram[at] == ord("f")
    for at in range(*written, PAGE):
        memory.ram[at] = 1
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def inside(run: Run, ranges: tuple[Run, ...]) -> bool:
    """Whether it lies in one of them."""
    return any(start <= run[0] and run[1] <= end for start, end in ranges)


def present(memory: GuestMemory, run: Run) -> bool:
    """Whether all pages of it are there."""
    read, written = touched(memory)
    pages = {at for start, end in (*read, *written) for at in range(start, end, PAGE)}
    return pages.issuperset(range(*run, PAGE))


def test_a_run_is_recorded_and_the_next_is_spared_its_faults(full: Path, cache: Cache) -> None:
    before = tree(full, checksums=True)
    memory = mapped(full)
    assert touch(memory) > 8            # 64 pages are read in few faults, or in one
    with Snapshot.open(full) as snapshot:
        record(snapshot.id, memory)
    memory.close()
    faults = []
    for _ in range(5):                  # a host that is short of memory takes pages back, and Python itself has faults
        memory = mapped(full, 4 * MIB)
        assert inside(WRITTEN, touched(memory)[1])
        faults.append(touch(memory) if present(memory, READ) else SIZE // PAGE)
        memory.close()
    assert min(faults) <= 3
    assert tree(full, checksums=True) == before, "restoring has written to the snapshot"


def test_what_is_recorded_is_what_was_touched(full: Path, cache: Cache) -> None:
    memory = mapped(full)
    touch(memory)
    memory.ram[40 * MIB] = 1            # not of the file
    record(IDENTITY, memory, cache)
    found = find(IDENTITY, SIZE, cache)
    assert found is not None
    assert found.written == (WRITTEN,)
    assert inside(READ, found.read)
    assert sum(end - start for start, end in found.read) < 16 * MIB
    memory.close()


def test_only_the_first_run_is_recorded(full: Path, cache: Cache) -> None:
    memory = mapped(full)
    touch(memory)
    record(IDENTITY, memory, cache)
    first = find(IDENTITY, SIZE, cache)
    touch(memory, written=(20 * MIB, 21 * MIB))
    record(IDENTITY, memory, cache)
    assert find(IDENTITY, SIZE, cache) == first
    memory.close()


def test_without_a_hot_set_nothing_is_brought_in(full: Path, cache: Cache) -> None:
    memory = mapped(full, 64 * MIB)
    assert touched(memory) == ((), ())
    memory.close()


@pytest.mark.parametrize(
    ("budget", "written", "read"),
    [(0, 0, 0), (PAGE - 1, 0, 0), (3 * PAGE + 5, 3, 0), (8 * PAGE, 8, 0), (20 * PAGE, 8, 12), (SIZE, 8, 64)],
)
def test_no_more_is_brought_in_than_was_asked_for(full: Path, budget: int, written: int, read: int) -> None:
    memory = mapped(full)
    assert populate(memory, HOT, budget) == (written + read) * PAGE
    assert present(memory, (WRITTEN[0], WRITTEN[0] + written * PAGE))
    assert present(memory, (READ[0], READ[0] + read * PAGE))
    assert sum(end - start for start, end in touched(memory)[1]) == written * PAGE
    memory.close()


def test_a_kernel_that_cannot_populate_touches(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot, "MADV_POPULATE_READ", 9998)
    monkeypatch.setattr(hot, "MADV_POPULATE_WRITE", 9999)
    memory = mapped(full)
    populate(memory, HOT, SIZE)
    assert touched(memory)[1] == (WRITTEN,)
    assert present(memory, READ)
    assert memory.ram[FULL[0] : FULL[1]] == b"f" * (FULL[1] - FULL[0])
    memory.close()


def test_a_file_cut_since_is_an_error(full: Path, cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    memory = mapped(full)
    save_snapshot(path, State(), memory)
    memory.close()
    with Snapshot.open(path) as snapshot:
        cache.store(hot.KIND, snapshot.id, lambda file: file.write(numbers(0, READ[0] // PAGE, READ[1] // PAGE)))
        os.truncate(path / "ram", MIB)
        with pytest.raises(BadSnapshot, match="its RAM cannot be read"):
            snapshot.map_memory(MIB)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0", b"\0" * 7, b"\xff" * 12, b"text", numbers(0, 5), numbers(0, 5, 5), numbers(0, 5, 4),
        numbers(0, 0, SIZE // PAGE + 1), numbers(1, 0, 1, 3),
    ],
)
def test_a_bad_hot_set_is_none(cache: Cache, content: bytes) -> None:
    cache.store(hot.KIND, IDENTITY, lambda file: file.write(content))
    assert find(IDENTITY, SIZE, cache) is None


def test_how_much_is_brought_in_can_be_set() -> None:
    assert eager_bytes({}) == 16 * MIB
    assert eager_bytes({"EMU_EAGER_MIB": "0"}) == 0
    assert eager_bytes({"EMU_EAGER_MIB": "64"}) == 64 * MIB


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "1e3", " 1", "²", "1" * 50])
def test_what_is_no_number_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(EmuError, match="it takes a number of MiB, 0 for none") as caught:
        eager_bytes({"EMU_EAGER_MIB": text})
    assert "\n" not in str(caught.value)


# --- restoring a machine ------------------------------------------------------------------------------------------


@pytest.fixture
def machine_path(cache: Cache, tmp_path: Path) -> Path:
    """A machine's snapshot of which a hot set is known, of 256 pages that are to be written."""
    path = tmp_path / "machine.snap"
    with Machine(SIZE) as machine:
        machine.memory.write(MIB, b"f" * MIB)
        machine.snapshot(path)
    with Snapshot.open(path) as snapshot:
        cache.store(hot.KIND, snapshot.id, lambda file: file.write(numbers(1, MIB // PAGE, 2 * MIB // PAGE)))
    return path


def brought_in(path: Path, eager: int | None = None) -> int:
    """Pages of the hot set that a restore brings in."""
    with emu.restore(path, eager=eager) as machine:
        return sum(
            (min(end, 2 * MIB) - max(start, MIB)) // PAGE
            for start, end in touched(machine.memory)[1] if start < 2 * MIB and end > MIB
        )  # fmt: skip


def test_a_restore_brings_in_what_the_environment_says_or_who_asks(
    machine_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(hot.ENVIRONMENT, raising=False)
    assert brought_in(machine_path) == 256
    monkeypatch.setenv(hot.ENVIRONMENT, "0")
    assert brought_in(machine_path) == 0
    assert brought_in(machine_path, MIB // 2) == 128
    monkeypatch.setenv(hot.ENVIRONMENT, "1")
    assert brought_in(machine_path) == 256
    assert brought_in(machine_path, 0) == 0


def test_a_number_in_the_environment_that_is_none_is_told_in_one_line(
    machine_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(hot.ENVIRONMENT, "some")
    assert main(["exec", "--snapshot", str(machine_path), "--", "true"]) == 2
    assert capfd.readouterr() == ("", "emu: EMU_EAGER_MIB=some: it takes a number of MiB, 0 for none\n")


def test_the_option_is_what_a_restore_is_asked_for(
    machine_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[int | None] = []

    def refuse(_path: Path, eager: int | None, **_rest: object) -> NoReturn:
        asked.append(eager)
        raise EmuError("not now")

    monkeypatch.setattr("emu.snapshot.machine.restore", refuse)
    for option in [], ["--eager", "0"], ["--eager", "3"]:
        assert main(["exec", "--snapshot", str(machine_path), *option, "--", "true"]) == 2
        assert main(["restore", *option, str(machine_path)]) == 2
    assert asked == [None, None, 0, 0, 3 * MIB, 3 * MIB]
    assert capfd.readouterr() == ("", "emu: not now\n" * 6)
