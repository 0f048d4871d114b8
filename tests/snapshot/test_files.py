"""Snapshots saved, opened and mapped; and refused where something is wrong with them."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from emu.errors import BadSnapshot, EmuError
from emu.memory import MIB, GuestMemory
from emu.snapshot import ram as ram_file
from emu.snapshot.files import Snapshot
from emu.snapshot.pages import PAGE, dirty_ranges
from emu.snapshot.save import save_snapshot
from tests.snapshot.snapshots import SIZE, State, content, copy_snapshots, new_memory, scribble, tree

NOBODY = 65534


def refused(path: Path) -> str:
    """The message; it is one line, and no descriptor is left open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BadSnapshot) as caught:
        Snapshot.open(path)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- saved and restored -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", [False, True])
def test_what_was_saved_is_restored(saved: Path, memory: GuestMemory, copy: bool) -> None:
    with Snapshot.open(saved) as snapshot:
        assert snapshot.state(State) == State()
        assert snapshot.base is None
        assert snapshot.file("disk0").read_bytes().startswith(b"overlay")
        restored = snapshot.map_memory(copy=copy)
    assert (restored.size, restored.low_size) == (memory.size, memory.low_size)
    assert restored.ram[:] == memory.ram[:]
    assert bool(restored.backed) is not copy
    restored.close()


def test_memory_with_nothing_in_it_is_saved(tmp_path: Path) -> None:
    memory = GuestMemory(SIZE)
    done: list[tuple[int, int]] = []
    save_snapshot(tmp_path / "x", State(), memory, progress=lambda *at: done.append(at))
    assert done == [(0, 0)]
    with Snapshot.open(tmp_path / "x") as snapshot:
        snapshot.verify()
        restored = snapshot.map_memory()
    assert restored.ram[:] == bytes(SIZE)
    restored.close()
    memory.close()


def test_ram_is_sparse_and_at_its_own_offsets(saved: Path, memory: GuestMemory) -> None:
    status = os.stat(saved / "ram")
    assert status.st_size == SIZE + PAGE
    used = sum(memory.ram[at : at + PAGE] != bytes(PAGE) for at in range(0, SIZE, PAGE))
    assert status.st_blocks * 512 < 2 * (used + 64) * PAGE < SIZE
    assert (saved / "ram").read_bytes()[:SIZE] == memory.ram[:]


def test_two_snapshots_have_different_ids(saved: Path, memory: GuestMemory, tmp_path: Path) -> None:
    save_snapshot(tmp_path / "x", State(), memory)
    with Snapshot.open(saved) as one, Snapshot.open(tmp_path / "x") as other:
        assert one.id != other.id


def test_progress_ends_with_all(memory: GuestMemory, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    save_snapshot(tmp_path / "x", State(), memory, progress=lambda *at: done.append(at))
    total = done[0][1]
    assert done[0] == (0, total) and done[-1] == (total, total) and len(done) > 10
    assert [at for at, _ in done] == sorted({at for at, _ in done})


def test_a_restored_machine_writes_to_copies(saved: Path) -> None:
    before = tree(saved, checksums=True)
    with Snapshot.open(saved) as snapshot:
        one, other = snapshot.map_memory(), snapshot.map_memory()
    one.ram[:] = b"x" * SIZE
    assert other.ram[:PAGE] == content(0, 1)
    assert tree(saved, checksums=True) == before
    for memory in (one, other):
        memory.close()


def test_what_a_restored_machine_wrote_is_dirty(saved: Path) -> None:
    with Snapshot.open(saved) as snapshot:
        memory = snapshot.map_memory()
    [copied] = [run for run in dirty_ranges(memory) if run[0] == 0] or [(0, 0)]     # short runs are read, not mapped
    assert copied[1] <= 15 * PAGE
    start, _ = memory.backed[0]
    memory.ram[start + 5] ^= 1
    assert any(first <= start < end for first, end in dirty_ranges(memory))
    memory.close()


def test_a_snapshot_of_a_restored_machine_is_whole(saved: Path, tmp_path: Path) -> None:
    with Snapshot.open(saved) as snapshot:
        memory = snapshot.map_memory()
    scribble(memory, 5)
    save_snapshot(tmp_path / "second", State("second"), memory)
    with Snapshot.open(tmp_path / "second") as snapshot:
        snapshot.verify()
        restored = snapshot.map_memory()
    assert restored.ram[:] == memory.ram[:]
    for each in (memory, restored):
        each.close()


def test_a_snapshot_of_a_restored_machine_that_was_reset_holds_nothing_old(saved: Path, tmp_path: Path) -> None:
    with Snapshot.open(saved) as snapshot:
        memory = snapshot.map_memory()
    memory.clear()
    memory.ram[5 * MIB] = 1
    save_snapshot(tmp_path / "second", State(), memory)
    with Snapshot.open(tmp_path / "second") as snapshot:
        restored = snapshot.map_memory()
    assert restored.ram[:] == bytes(5 * MIB) + b"\1" + bytes(SIZE - 5 * MIB - 1)
    for each in (memory, restored):
        each.close()


def test_many_runs_are_mapped_as_fewer(memory: GuestMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram_file, "MOST_MAPPED", 3)
    save_snapshot(tmp_path / "x", State(), memory)
    with Snapshot.open(tmp_path / "x") as snapshot:
        assert len(snapshot.header.ram.held) <= 6
        monkeypatch.setattr(ram_file, "MOST_MAPPED", 1)
        restored = snapshot.map_memory()
    assert len(restored.backed) <= 1
    assert restored.ram[:] == memory.ram[:]
    restored.close()


def test_mapped_memory_outlives_its_snapshot(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_snapshot(path, State(), memory)
    with Snapshot.open(path) as snapshot:
        restored = snapshot.map_memory()
        other = new_memory(9)
        save_snapshot(path, State("new"), other)
        assert restored.ram[:] == memory.ram[:]
        again = snapshot.map_memory()       # the files that were opened
        assert again.ram[:PAGE] == memory.ram[:PAGE]
    for each in (restored, other, again):
        each.close()


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that any user can reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        for path in Path(name).rglob("*"):
            path.chmod(0o755)


def test_a_snapshot_that_may_only_be_read_is_restored(saved: Path, public: Path) -> None:
    """As a plain user: root may write anywhere."""
    path = copy_snapshots(saved, public / "copy")
    for each in (*path.rglob("*"), path):
        each.chmod(0o555 if each.is_dir() else 0o444)
    child = os.fork()
    if not child:
        status = 1
        try:
            if not os.getuid():
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            with Snapshot.open(path) as snapshot:
                snapshot.verify()
                memory = snapshot.map_memory()
                memory.ram[0] ^= 1
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_closed_snapshot_is_not_read(saved: Path) -> None:
    with Snapshot.open(saved) as snapshot:
        pass
    for read in (snapshot.map_memory, snapshot.verify):
        with pytest.raises(ValueError, match="is closed"):
            read()
    snapshot.close()


def resident_bytes() -> int:
    """This process' share of the host's memory."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE


def test_many_restores_leave_nothing_behind(saved: Path) -> None:
    def restore() -> None:
        with Snapshot.open(saved) as snapshot:
            snapshot.state(State)
            memory = snapshot.map_memory()
        memory.ram[memory.backed[0][0]] = 1
        memory.close()

    def maps() -> int:
        with open("/proc/self/maps", "rb") as file:
            return len(file.readlines())

    for _ in range(10):
        restore()
    before = len(os.listdir("/proc/self/fd")), maps()
    resident = resident_bytes()
    for _ in range(300):
        restore()
    after = len(os.listdir("/proc/self/fd")), maps()
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 20
    assert resident_bytes() < resident + 16 * MIB


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of the snapshot, to be damaged."""
    return copy_snapshots(saved, tmp_path / "machine.snap")


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Store bytes in a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_copy_is_as_good(copy: Path) -> None:
    with Snapshot.open(copy) as snapshot:
        snapshot.verify()


Damage = Callable[[Path], object]
DAMAGE: list[tuple[str, Damage, str]] = [
    ("ram too short", lambda path: os.truncate(path / "ram", SIZE), "ram has 67108864 bytes, and had 67112960"),
    ("ram too long", lambda path: os.truncate(path / "ram", SIZE + PAGE + 1), "ram has 67112961 bytes"),
    ("ram empty", lambda path: os.truncate(path / "ram", 0), "ram has 0 bytes"),
    ("ram cut and filled up", lambda path: (os.truncate(path / "ram", 9), os.truncate(path / "ram", SIZE + PAGE)),
     "ram is damaged, or belongs to another snapshot"),
    ("trailer's first byte", lambda path: overwrite(path / "ram", SIZE, b"x"), "ram is damaged"),
    ("trailer's last byte", lambda path: overwrite(path / "ram", SIZE + PAGE - 1, b"x"), "ram is damaged"),
    ("ram missing", lambda path: (path / "ram").unlink(), "its ram cannot be opened: No such file"),
    ("ram a directory", lambda path: ((path / "ram").unlink(), (path / "ram").mkdir()), "its ram is no file"),
    ("ram a pipe", lambda path: ((path / "ram").unlink(), os.mkfifo(path / "ram")), "its ram is no file"),
    ("header missing", lambda path: (path / "header.json").unlink(), "its header.json cannot be opened"),
    ("header empty", lambda path: os.truncate(path / "header.json", 0), "is not the header of a snapshot"),
    ("header cut", lambda path: os.truncate(path / "header.json", 300), "header.json is damaged"),
    ("header huge", lambda path: os.truncate(path / "header.json", 1 << 40), "header.json is damaged: it has"),
    ("other file cut", lambda path: os.truncate(path / "files" / "disk0", 5), "files/disk0 has 5 bytes"),
    ("other file missing", lambda path: (path / "files" / "disk0").unlink(), "its files/disk0 cannot be opened"),
    ("all missing", shutil.rmtree, "cannot open the snapshot"),
    ("a file", lambda path: (shutil.rmtree(path), path.write_bytes(b"")), "cannot open the snapshot"),
]


@pytest.mark.parametrize(("damage", "message"), [each[1:] for each in DAMAGE], ids=[each[0] for each in DAMAGE])
def test_damage_is_seen_at_once(copy: Path, damage: Damage, message: str) -> None:
    damage(copy)
    assert message in refused(copy)


def test_the_ram_of_another_snapshot_is_seen(copy: Path, memory: GuestMemory, tmp_path: Path) -> None:
    save_snapshot(tmp_path / "other", State(), memory)
    os.replace(tmp_path / "other" / "ram", copy / "ram")
    assert "belongs to another snapshot" in refused(copy)


def test_the_header_of_another_snapshot_is_seen(copy: Path, memory: GuestMemory, tmp_path: Path) -> None:
    save_snapshot(tmp_path / "other", State(), memory)
    os.replace(tmp_path / "other" / "header.json", copy / "header.json")
    assert "belongs to another snapshot" in refused(copy)


@pytest.mark.parametrize(("name", "at"), [("ram", 5), ("ram", SIZE - 5), ("files/disk0", 3), ("files/disk0", 2 << 20)])
def test_damage_to_contents_is_seen_when_all_is_read(copy: Path, name: str, at: int) -> None:
    overwrite(copy / name, at, b"!")
    with Snapshot.open(copy) as snapshot, pytest.raises(BadSnapshot, match=f"{name} is damaged"):
        snapshot.verify()


def test_a_file_moved_within_another_is_seen_when_all_is_read(copy: Path) -> None:
    overwrite(copy / "files" / "disk0", 0, bytes(7))
    overwrite(copy / "files" / "disk0", MIB, b"overlay")
    with Snapshot.open(copy) as snapshot, pytest.raises(BadSnapshot, match="disk0 is damaged"):
        snapshot.verify()


def test_ram_cut_after_it_was_opened_is_an_error_where_it_is_read(copy: Path) -> None:
    with Snapshot.open(copy) as snapshot:
        os.truncate(copy / "ram", 0)
        with pytest.raises(BadSnapshot, match="its RAM cannot be read: it is too short"):
            snapshot.map_memory(copy=True)


@dataclass(frozen=True)
class OtherState:
    """Another machine's."""

    old: int


def test_a_state_of_another_class_is_refused(saved: Path) -> None:
    with Snapshot.open(saved) as snapshot, pytest.raises(BadSnapshot, match=r"header.json: state: old is missing"):
        snapshot.state(OtherState)


def test_a_file_that_is_not_there_is_refused(saved: Path) -> None:
    with Snapshot.open(saved) as snapshot, pytest.raises(BadSnapshot, match="has no file disk1"):
        snapshot.file("disk1")


# --- where it is saved --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file", "directory", "almost"])
def test_what_is_no_snapshot_is_not_replaced(memory: GuestMemory, tmp_path: Path, name: str, saved: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "header.json").write_bytes(b"mine")
    copy_snapshots(saved, tmp_path / "almost")
    (tmp_path / "almost" / "notes.txt").write_bytes(b"mine")
    before = tree(tmp_path)
    with pytest.raises(EmuError, match="something else than a snapshot is there"):
        save_snapshot(tmp_path / name, State(), memory)
    assert tree(tmp_path) == before


def test_a_snapshot_an_empty_directory_and_a_link_are_replaced(memory: GuestMemory, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for path in ("real", "real", "link"):
        save_snapshot(tmp_path / path, State(path), memory)
    assert (tmp_path / "link").is_symlink()
    with Snapshot.open(tmp_path / "real") as snapshot:
        assert snapshot.state(State).name == "link"
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]
    assert sorted(os.listdir(tmp_path / "real")) == ["header.json", "ram"]


def test_a_missing_directory_is_one_line(memory: GuestMemory, tmp_path: Path) -> None:
    with pytest.raises(EmuError, match=f"^cannot save {tmp_path}/no/where: No such file or directory$"):
        save_snapshot(tmp_path / "no" / "where", State(), memory)


def test_files_have_the_users_usual_rights(memory: GuestMemory, tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        save_snapshot(tmp_path / "x", State(), memory)
    finally:
        os.umask(mask)
    modes = [stat.S_IMODE((tmp_path / "x" / name).stat().st_mode) for name in (".", "ram", "header.json")]
    assert modes == [0o750, 0o640, 0o640]
