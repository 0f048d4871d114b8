"""A session goes on after a snapshot: on the same host, and on one where files are others."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path

import pytest

from devices.p9 import messages as m
from devices.p9.mapping import Security
from tests.devices.p9.client import ROOT, Guest

APPEND = 0o2000


def restored(guest: Guest, path: Path | None = None) -> Guest:
    """A guest on another server, with the state of this one's; which stays as it is."""
    state = guest.server.save()
    assert pickle.loads(pickle.dumps(state)) == state
    new = Guest(path or guest.export.path, guest.export.security, guest.export.read_only, state)
    if path is None:
        assert new.server.save() == state
    new.fid = guest.fid
    return new


@pytest.fixture
def tree(shared: Path) -> Path:
    """A few files."""
    (shared / "a" / "b").mkdir(parents=True)
    for number in range(100):
        (shared / "a" / f"file{number}").write_bytes(b"%d" % number)
    return shared


def test_a_session_goes_on_as_it_was(tree: Path, guest: Guest) -> None:
    guest.version(8192)
    guest.attach(ROOT, 1000)
    walked, opened = guest.walk(b"a", b"file7"), guest.open(b"a", b"file8", flags=os.O_RDWR)
    new = restored(guest)
    assert new.content(b"a", b"file9") == b"9"
    assert new.stat(walked).qid == guest.stat(walked).qid
    assert new.write(opened, b"new") == 3 and new.read(opened) == b"new"
    assert new.stat().blksize == 4096
    new.send(m.Tlopen(walked, 0))
    assert new.read(walked) == b"7"


def test_a_listing_goes_on_where_it_was(tree: Path, guest: Guest) -> None:
    fid = guest.open(b"a")
    part = guest.entries(fid, 500)
    (tree / "a" / "new").touch()
    new = restored(guest)
    assert new.entries(fid, offset=part[-1].offset) == guest.entries(fid, offset=part[-1].offset)


def test_truncation_is_not_done_again(tree: Path, guest: Guest) -> None:
    fid = guest.open(b"a", b"file1", flags=os.O_WRONLY | 0o1000)
    guest.write(fid, b"content")
    restored(guest)
    assert (tree / "a/file1").read_bytes() == b"content"


def test_appending_goes_on(tree: Path, guest: Guest) -> None:
    fid = guest.open(b"a", b"file1", flags=os.O_WRONLY | APPEND)
    restored(guest).write(fid, b"+", 0)
    assert (tree / "a/file1").read_bytes() == b"1+"


def test_an_extended_attribute_half_written_is_finished(tree: Path, guest: Guest) -> None:
    fid = guest.walk(b"a")
    guest.send(m.Txattrcreate(fid, b"user.x", 4, 0))
    guest.write(fid, b"12")
    new = restored(guest)
    new.write(fid, b"34", 2)
    new.clunk(fid)
    assert os.getxattr(tree / "a", "user.x") == b"1234"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_locks_are_taken_again(tree: Path, guest: Guest, flags: int) -> None:
    fid = guest.open(b"a", b"file1", flags=flags)
    guest.send(m.Tlock(fid, 1, 0, 10, 20, 1, b""))
    state = guest.server.save()
    guest.server.close()
    new = Guest(tree, state=state)
    other = Guest(tree)
    request = m.Tlock(other.open(b"a", b"file1", flags=os.O_RDWR), 1, 0, 15, 1, 1, b"")
    assert other.send(request).status == 1
    new.clunk(fid)
    assert other.send(request).status == 0


def test_what_is_gone_is_stale_and_the_rest_is_there(tree: Path, guest: Guest) -> None:
    walked, opened = guest.walk(b"a", b"file1"), guest.open(b"a", b"file2")
    unlinked, replaced = guest.open(b"a", b"file3"), guest.open(b"a", b"file4")
    kept = guest.open(b"a", b"file5")
    guest.send(m.Tunlinkat(guest.walk(b"a"), b"file3", 0))
    for name in "file1", "file2", "file4":
        (tree / "a" / name).unlink()
    (tree / "a" / "file4").write_bytes(b"another")
    state = guest.server.save()
    new = Guest(tree, state=state)
    assert new.read(kept) == b"5"
    for fid in opened, unlinked, replaced:
        with pytest.raises(OSError) as caught:
            new.read(fid)
        assert caught.value.errno == errno.ESTALE
        new.clunk(fid)
    with pytest.raises(FileNotFoundError):
        new.stat(walked)
    with pytest.raises(FileNotFoundError):      # as an open by name would find; ESTALE would be for ever
        new.send(m.Tlopen(walked, 0))
    assert new.server.save().fids


def test_a_file_that_was_only_looked_up_is_whatever_has_its_name_now(tree: Path, guest: Guest) -> None:
    walked = guest.walk(b"a", b"file1")
    (tree / "other").write_bytes(b"another")
    (tree / "other").rename(tree / "a" / "file1")
    new = Guest(tree, state=guest.server.save())
    new.send(m.Tlopen(walked, 0))
    assert new.read(walked) == b"another"


def test_a_directory_in_place_of_a_file_is_not_taken_for_it(tree: Path, guest: Guest) -> None:
    walked = guest.walk(b"a", b"file1")
    (tree / "a" / "file1").unlink()
    (tree / "a" / "file1").mkdir()
    new = Guest(tree, state=guest.server.save())
    with pytest.raises(FileNotFoundError):
        new.send(m.Tlopen(walked, 0))


def test_a_copy_of_the_tree_is_taken_for_it(tree: Path, guest: Guest, tmp_path: Path) -> None:
    directory, opened = guest.walk(b"a", b"b"), guest.open(b"a", b"file1")
    changed = guest.open(b"a", b"file2")
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    (copy / "a/file2").write_bytes(b"other")
    new = restored(guest, copy)
    assert new.read(opened) == b"1"
    new.clunk(new.create(b"new", start=directory))
    assert (copy / "a/b/new").exists() and new.content(b"a", b"file3") == b"3"
    with pytest.raises(OSError):
        new.read(changed)


def test_a_swapped_link_is_not_followed_on_restore(tree: Path, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file1").write_bytes(b"secret")
    fid = guest.open(b"a", b"file1")
    (tree / "a").rename(tree / "was")
    (tree / "a").symlink_to(tmp_path / "outside")
    new = Guest(tree, state=guest.server.save())
    with pytest.raises(OSError):
        new.read(fid)


def test_no_session_is_none_after_a_restore(shared: Path, guest: Guest) -> None:
    guest.server.reset()
    new = restored(guest)
    with pytest.raises(OSError):
        new.stat()
    new.version()
    new.attach(ROOT)


def test_a_mapped_read_only_session_goes_on(tree: Path) -> None:
    guest = Guest(tree, Security.MAPPED, read_only=True)
    fid = guest.open(b"a", b"file1")
    assert restored(guest).read(fid) == b"1"
