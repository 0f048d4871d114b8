"""Whatever happens while a snapshot is saved, the one that was there is whole, and nothing lies about."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emu.errors import EmuError
from emu.memory import MIB, GuestMemory
from emu.snapshot import ram as ram_file
from emu.snapshot import replace
from emu.snapshot import save as saving
from emu.snapshot.files import Snapshot
from emu.snapshot.save import save_snapshot
from tests.snapshot.snapshots import State, new_memory, tree


@pytest.fixture
def old(memory: GuestMemory, tmp_path: Path) -> Path:
    """A snapshot that is to be replaced, alone in its directory."""
    path = tmp_path / "directory" / "x.snap"
    path.parent.mkdir()
    save_snapshot(path, State("old"), memory)
    return path


@pytest.fixture
def other() -> Iterator[GuestMemory]:
    """Another machine's memory."""
    memory = new_memory(3)
    yield memory
    memory.close()


def name_of(path: Path) -> str:
    """The machine that a whole snapshot is of."""
    with Snapshot.open(path) as snapshot:
        snapshot.verify()
        return snapshot.state(State).name


def entries(path: Path) -> list[str]:
    """What lies in the directory of a snapshot."""
    return sorted(os.listdir(path.parent))


def test_a_snapshot_is_replaced(old: Path, other: GuestMemory) -> None:
    save_snapshot(old, State("new"), other)
    assert name_of(old) == "new"
    assert entries(old) == ["x.snap"]


@pytest.mark.parametrize("system", ["renames", "cannot exchange names"])
def test_another_process_always_finds_one_whole(
    old: Path, other: GuestMemory, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    """Looked at after each call that changes names; where names cannot be exchanged, there may be none for a moment."""
    found: list[str | None] = []

    def looking(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object) -> object:
            done = call(*arguments)
            found.append(name_of(old) if old.exists() else None)
            return done

        return wrapped

    monkeypatch.setattr(replace.os, "rename", looking(os.rename))
    monkeypatch.setattr(replace, "exchange", looking(replace.exchange if system == "renames" else lambda *_: False))
    monkeypatch.setattr(replace, "_delete", looking(replace._delete))
    save_snapshot(old, State("new"), other)
    assert name_of(old) == "new"
    if None in found:
        assert found == ["old", None, "new", "new", "new"]
    else:
        assert found == ["new", "new"]
    assert entries(old) == ["x.snap"]


def fails(error: BaseException) -> Callable[..., object]:
    """Something that raises it."""

    def fail(*_arguments: object) -> object:
        raise error

    return fail


PLACES = ["write", "hash", "trailer", "header", "sync", "names"]


def break_at(place: str, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have a save fail somewhere on its way."""
    fail = fails(error)
    if place == "write":
        calls = iter(range(1000))
        real = os.pwrite
        monkeypatch.setattr(ram_file.os, "pwrite", lambda *a: fail() if next(calls) > 5 else real(*a))
    elif place == "hash":
        monkeypatch.setattr(ram_file, "_write", fail)
    elif place == "trailer":
        monkeypatch.setattr(saving, "trailer", fail)
    elif place == "header":
        monkeypatch.setattr(saving, "pack", fail)
    elif place == "sync":
        monkeypatch.setattr(replace.os, "fsync", fail)
    else:
        monkeypatch.setattr(replace, "exchange", fail)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failed_save_leaves_the_old_one(
    old: Path, other: GuestMemory, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    before = tree(old.parent)
    with monkeypatch.context() as broken:
        break_at(place, broken, OSError(number, os.strerror(number)))
        with pytest.raises(EmuError, match=f"^cannot save {old}: {os.strerror(number)}$"):
            save_snapshot(old, State("new"), other)
    assert tree(old.parent) == before
    assert name_of(old) == "old"
    save_snapshot(old, State("new"), other)
    assert name_of(old) == "new"


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupted_save_leaves_the_old_one(
    old: Path, other: GuestMemory, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    before = tree(old.parent)
    with monkeypatch.context() as broken:
        break_at(place, broken, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            save_snapshot(old, State("new"), other)
    assert tree(old.parent) == before


def test_ctrl_c_leaves_the_old_one(old: Path, other: GuestMemory) -> None:
    before = tree(old.parent)

    def interrupt(done: int, total: int) -> None:
        if 0 < done < total:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        save_snapshot(old, State("new"), other, progress=interrupt)
    assert tree(old.parent) == before


def test_an_interrupted_first_save_leaves_nothing(other: GuestMemory, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        save_snapshot(tmp_path / "x", State(), other, progress=lambda done, total: 1 // 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("a bad disk"), OSError(errno.ENOSPC, "a bad disk")])
def test_another_file_that_cannot_be_saved_is_an_error(old: Path, other: GuestMemory, error: Exception) -> None:
    before = tree(old.parent)
    with pytest.raises(EmuError, match=r"^cannot save .*: a bad disk$"):
        save_snapshot(old, State("new"), other, files={"disk0": fails(error)})
    assert tree(old.parent) == before


def test_a_save_whose_names_cannot_be_put_back_is_put_back_by_hand(
    old: Path, other: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No exchange, and the second rename fails."""
    renames = iter(range(10))
    real = os.rename

    def rename(source: str, target: str) -> None:
        if next(renames) == 1:
            raise OSError(errno.EIO, "broken")
        real(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(replace, "exchange", lambda *_: False)
        broken.setattr(replace.os, "rename", rename)
        with pytest.raises(EmuError, match="broken"):
            save_snapshot(old, State("new"), other)
    assert name_of(old) == "old"
    assert entries(old) == ["x.snap"]


# --- a process that is killed ------------------------------------------------------------------------------------


def killed(work: Callable[[], object]) -> None:
    """Run it in a process that ends itself by SIGKILL in it."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def die(*_arguments: object) -> None:
    """End the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_cleared_away(old: Path, other: GuestMemory) -> None:
    killed(lambda: save_snapshot(old, State("new"), other, progress=lambda done, total: die() if done else None))
    assert len(entries(old)) == 2
    assert name_of(old) == "old"
    save_snapshot(old, State("new"), other)
    assert entries(old) == ["x.snap"]
    assert name_of(old) == "new"


def test_one_killed_with_the_old_one_aside_is_made_up_for(
    old: Path, other: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename_and_die(source: str, target: str) -> None:
        os.replace(source, target)
        die()

    with monkeypatch.context() as broken:
        broken.setattr(replace, "exchange", lambda *_: False)
        broken.setattr(replace.os, "rename", rename_and_die)
        killed(lambda: save_snapshot(old, State("new"), other))
    assert not old.exists()
    with pytest.raises(ZeroDivisionError):
        save_snapshot(old, State("newer"), other, progress=lambda done, total: 1 // 0)
    assert name_of(old) == "old"
    assert entries(old) == ["x.snap"]


def test_a_save_under_way_is_no_leftover(old: Path, other: GuestMemory, memory: GuestMemory) -> None:
    def save_another(done: int, total: int) -> None:
        if done == total:
            save_snapshot(old, State("between"), memory)
            assert name_of(old) == "between"

    save_snapshot(old, State("new"), other, progress=save_another)
    assert name_of(old) == "new"
    assert entries(old) == ["x.snap"]


@pytest.mark.parametrize("when", ["before it is opened", "while it is locked"])
def test_a_new_directory_that_was_taken_for_a_leftover_is_made_anew(
    old: Path, other: GuestMemory, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Another process clears leftovers away in the moment in which the new directory is not locked."""
    taken: list[str] = []
    real_mkdir, real_flock = os.mkdir, replace.fcntl.flock

    def mkdir(path: str) -> None:
        real_mkdir(path)
        if not taken:
            taken.append(path)
            if when == "before it is opened":
                os.rmdir(path)

    def flock(fd: int, operation: int) -> None:
        if taken and os.path.exists(taken[0]):
            os.rmdir(taken[0])
        real_flock(fd, operation)

    with monkeypatch.context() as patched:
        patched.setattr(replace.os, "mkdir", mkdir)
        patched.setattr(replace.fcntl, "flock", flock)
        save_snapshot(old, State("new"), other)
    assert taken
    assert name_of(old) == "new"
    assert entries(old) == ["x.snap"]


def test_leftovers_of_other_names_are_let_alone(old: Path, other: GuestMemory) -> None:
    kept = [".y.snap.1-00000000.new", ".x.snap.1-00000000.new.txt", ".x.snap.new", ".xxsnap.1-00000000.new"]
    for name in kept:
        (old.parent / name).mkdir()
    (old.parent / ".x.snap.99-01234567.new").mkdir()
    save_snapshot(old, State("new"), other)
    assert entries(old) == sorted([*kept, "x.snap"])


# --- a disk that is full -----------------------------------------------------------------------------------------


def test_a_file_that_may_not_grow_leaves_the_old_one(old: Path, other: GuestMemory) -> None:
    before = tree(old.parent)
    child = os.fork()
    if not child:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
            try:
                save_snapshot(old, State("new"), other)
            except EmuError as error:
                status = "File too large" not in str(error)
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert tree(old.parent) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one snapshot."""
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", path], capture_output=True)
    if done.returncode:
        pytest.skip("only root can make a small file system")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount(8)")
def test_a_full_disk_leaves_the_old_one(small_disk: Path, memory: GuestMemory, other: GuestMemory) -> None:
    path = small_disk / "x.snap"
    save_snapshot(path, State("old"), memory)
    before = tree(small_disk)
    with pytest.raises(EmuError, match="No space left on device"):
        save_snapshot(path, State("new"), other)
    assert tree(small_disk) == before
    assert name_of(path) == "old"
