"""Walking, making, linking, renaming and removing; and what becomes of fids meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from devices.p9 import messages as m
from tests.devices.p9.client import ROOT, Guest

REMOVE_DIRECTORY = 0x200
EXCL = 0o200


def refused(number: int, guest: Guest, request: object) -> None:
    with pytest.raises(OSError) as caught:
        guest.send(request)
    assert caught.value.errno == number


@pytest.fixture
def tree(shared: Path) -> Path:
    """A few files."""
    (shared / "a" / "b" / "c").mkdir(parents=True)
    (shared / "a" / "file").write_bytes(b"content")
    (shared / "link").symlink_to("a/file")
    return shared


# --- walking ----------------------------------------------------------------------------------------------------


def test_a_walk_gives_a_qid_for_each_name(tree: Path, guest: Guest) -> None:
    qids = [m.QID.unpack(qid) for qid in guest.send(m.Twalk(ROOT, 5, (b"a", b"file"))).qids]
    assert [(type_, inode) for type_, _, inode in qids] == [
        (m.QT_DIR, (tree / "a").stat().st_ino), (m.QT_FILE, (tree / "a/file").stat().st_ino),
    ]


def test_a_walk_stops_where_there_is_nothing_and_makes_no_fid(tree: Path, guest: Guest) -> None:
    assert len(guest.send(m.Twalk(ROOT, 5, (b"a", b"nothing", b"b"))).qids) == 1
    refused(errno.EBADF, guest, m.Tgetattr(5, 0))
    refused(errno.ENOENT, guest, m.Twalk(ROOT, 5, (b"nothing",)))


def test_a_walk_stops_at_a_file_or_symbolic_link(tree: Path, guest: Guest) -> None:
    assert len(guest.send(m.Twalk(ROOT, 5, (b"a", b"file", b"x"))).qids) == 2
    qids = guest.send(m.Twalk(ROOT, 5, (b"link", b"x"))).qids
    assert [qid[0] for qid in qids] == [m.QT_SYMLINK]


def test_a_fid_can_be_walked_in_place(tree: Path, guest: Guest) -> None:
    fid = guest.walk(b"a")
    guest.walk(b"b", start=fid, fid=fid)
    assert m.QID.unpack(guest.stat(fid).qid)[2] == (tree / "a/b").stat().st_ino


def test_two_dots_lead_to_the_parent_and_no_further_than_the_root(tree: Path, guest: Guest) -> None:
    fid = guest.walk(b"a", b"b", b"..", b"file")
    assert m.QID.unpack(guest.stat(fid).qid)[2] == (tree / "a/file").stat().st_ino
    assert guest.stat(guest.walk(b"a", b"..", b"..", b"..")).qid == guest.stat(ROOT).qid


def test_the_version_in_a_qid_changes_with_the_file_and_is_never_zero(tree: Path, guest: Guest) -> None:
    fid = guest.walk(b"a", b"file")
    versions = [m.QID.unpack(guest.stat(fid).qid)[1]]
    (tree / "a/file").write_bytes(b"changed!")
    versions.append(m.QID.unpack(guest.stat(fid).qid)[1])
    os.utime(tree / "a/file", ns=(0, 0))
    versions.append(m.QID.unpack(guest.stat(fid).qid)[1])
    assert len({0, *versions}) == 4


def test_odd_names_are_walked_as_the_bytes_they_are(shared: Path, guest: Guest) -> None:
    name = b"\xff\xfe new\nline \xc3\xa4 *"
    guest.clunk(guest.create(name))
    assert os.listdir(os.fsencode(shared)) == [name]
    guest.walk(name)
    assert guest.names() == [name]


# --- making -----------------------------------------------------------------------------------------------------


def test_a_created_file_is_open_and_has_its_mode_whatever_the_umask(shared: Path, guest: Guest) -> None:
    old = os.umask(0o077)
    try:
        fid = guest.create(b"new", mode=0o664)
    finally:
        os.umask(old)
    assert guest.write(fid, b"data") == 4
    assert guest.read(fid) == b"data"
    assert (shared / "new").read_bytes() == b"data"
    assert stat.S_IMODE((shared / "new").stat().st_mode) == 0o664
    assert guest.stat(fid).size == 4


def test_creating_what_is_there_opens_it_unless_that_is_excluded(shared: Path, guest: Guest) -> None:
    (shared / "old").write_bytes(b"12345")
    fid = guest.walk()
    refused(errno.EEXIST, guest, m.Tlcreate(fid, b"old", os.O_RDWR | EXCL, 0o644, 0))
    guest.send(m.Tlcreate(fid, b"old", os.O_RDWR, 0o600, 0))
    assert guest.read(fid) == b"12345"


def test_a_directory_is_made_with_its_mode_and_sticky_bit(shared: Path, guest: Guest) -> None:
    reply = guest.send(m.Tmkdir(ROOT, b"new", 0o1777, 0))
    assert m.QID.unpack(reply.qid)[::2] == (m.QT_DIR, (shared / "new").stat().st_ino)
    assert stat.S_IMODE((shared / "new").stat().st_mode) == 0o1777
    refused(errno.EEXIST, guest, m.Tmkdir(ROOT, b"new", 0o755, 0))


def test_a_symbolic_link_says_what_it_was_given(shared: Path, guest: Guest) -> None:
    reply = guest.send(m.Tsymlink(ROOT, b"link", b"../../etc/passwd", 0))
    assert reply.qid[0] == m.QT_SYMLINK
    assert os.readlink(shared / "link") == "../../etc/passwd"
    fid = guest.walk(b"link")
    assert guest.send(m.Treadlink(fid)).target == b"../../etc/passwd"
    assert stat.S_ISLNK(guest.stat(fid).mode)


@pytest.mark.parametrize(
    ("target", "number"), [(b"", errno.EINVAL), (b"a\0b", errno.EINVAL), (b"x" * 5000, errno.ENAMETOOLONG)]
)
def test_a_symbolic_link_that_says_what_none_can_is_refused(guest: Guest, target: bytes, number: int) -> None:
    refused(number, guest, m.Tsymlink(ROOT, b"link", target, 0))


def test_a_fifo_and_a_regular_file_can_be_made_by_mknod(shared: Path, guest: Guest) -> None:
    guest.send(m.Tmknod(ROOT, b"fifo", stat.S_IFIFO | 0o640, 0, 0, 0))
    guest.send(m.Tmknod(ROOT, b"file", stat.S_IFREG | 0o640, 0, 0, 0))
    assert (shared / "fifo").is_fifo() and (shared / "file").is_file()
    assert stat.S_IMODE((shared / "fifo").stat().st_mode) == 0o640
    assert stat.S_ISFIFO(guest.stat(guest.walk(b"fifo")).mode)
    refused(errno.EINVAL, guest, m.Tmknod(ROOT, b"odd", 0o170000, 0, 0, 0))


def test_a_link_is_one_more_name_of_the_file(tree: Path, guest: Guest) -> None:
    guest.send(m.Tlink(ROOT, guest.walk(b"a", b"file"), b"hard"))
    assert (tree / "hard").samefile(tree / "a/file")
    assert guest.stat(guest.walk(b"hard")).nlink == 2


def test_a_link_of_a_symbolic_link_is_the_link_itself(tree: Path, guest: Guest) -> None:
    guest.send(m.Tlink(ROOT, guest.walk(b"link"), b"hard"))
    assert os.readlink(tree / "hard") == "a/file"


# --- removing ---------------------------------------------------------------------------------------------------


def test_names_are_removed(tree: Path, guest: Guest) -> None:
    directory = guest.walk(b"a")
    guest.send(m.Tunlinkat(directory, b"file", 0))
    refused(errno.EISDIR, guest, m.Tunlinkat(directory, b"b", 0))
    refused(errno.ENOTEMPTY, guest, m.Tunlinkat(directory, b"b", REMOVE_DIRECTORY))
    guest.send(m.Tunlinkat(guest.walk(b"a", b"b"), b"c", REMOVE_DIRECTORY))
    guest.send(m.Tunlinkat(directory, b"b", REMOVE_DIRECTORY))
    assert os.listdir(tree / "a") == []
    refused(errno.EINVAL, guest, m.Tunlinkat(directory, b"b", 1))


def test_removing_by_fid_gives_the_fid_back_also_when_it_fails(tree: Path, guest: Guest) -> None:
    directory, file = guest.walk(b"a"), guest.walk(b"a", b"file")
    refused(errno.ENOTEMPTY, guest, m.Tremove(directory))
    guest.send(m.Tremove(file))
    assert not (tree / "a/file").exists()
    for fid in directory, file:
        refused(errno.EBADF, guest, m.Tclunk(fid))


def test_an_open_file_works_on_after_its_name_is_gone(tree: Path, guest: Guest) -> None:
    fid = guest.open(b"a", b"file", flags=os.O_RDWR)
    guest.send(m.Tunlinkat(guest.walk(b"a"), b"file", 0))
    assert guest.write(fid, b"C") == 1
    assert guest.read(fid) == b"Content"
    assert guest.stat(fid).nlink == 0


def test_a_file_that_is_not_open_works_on_after_its_name_is_gone(tree: Path, guest: Guest) -> None:
    fid = guest.walk(b"a", b"file")
    guest.send(m.Tunlinkat(guest.walk(b"a"), b"file", 0))
    for number in range(300):           # more than are kept open for speed
        guest.send(m.Tmkdir(ROOT, b"%d" % number, 0o755, 0))
        guest.clunk(guest.open(b"%d" % number))
    assert guest.stat(fid).size == 7
    guest.set(fid, 8, size=3)
    guest.send(m.Tlopen(fid, os.O_RDONLY))
    assert guest.read(fid) == b"con"


# --- renaming ---------------------------------------------------------------------------------------------------


def test_fids_follow_a_renamed_directory(tree: Path, guest: Guest) -> None:
    below, directory = guest.walk(b"a", b"b", b"c"), guest.walk(b"a")
    guest.send(m.Trenameat(ROOT, b"a", ROOT, b"z"))
    (tree / "z/b/c/new").touch()
    assert guest.stat(below).mode & 0o170000 == stat.S_IFDIR
    guest.walk(b"new", start=below)
    guest.walk(b"file", start=directory)
    guest.clunk(guest.create(b"made", start=below))
    assert (tree / "z/b/c/made").exists()


def test_a_fid_can_be_renamed(tree: Path, guest: Guest) -> None:
    fid = guest.walk(b"a", b"file")
    guest.send(m.Trename(fid, ROOT, b"moved"))
    assert (tree / "moved").read_bytes() == b"content"
    guest.send(m.Trename(fid, guest.walk(b"a", b"b"), b"again"))
    assert (tree / "a/b/again").exists() and guest.stat(fid).size == 7


def test_a_rename_replaces_a_file_whose_fid_keeps_what_it_had(tree: Path, guest: Guest) -> None:
    (tree / "over").write_bytes(b"older")
    over, moved = guest.walk(b"over"), guest.walk(b"a", b"file")
    guest.send(m.Trenameat(guest.walk(b"a"), b"file", ROOT, b"over"))
    guest.send(m.Tlopen(over, 0))
    guest.send(m.Tlopen(moved, 0))
    assert (guest.read(over), guest.read(moved)) == (b"older", b"content")
    assert guest.content(b"over") == b"content"


def test_a_rename_between_two_names_of_one_file_does_nothing(tree: Path, guest: Guest) -> None:
    os.link(tree / "a/file", tree / "other")
    one, other = guest.walk(b"a", b"file"), guest.walk(b"other")
    guest.send(m.Trenameat(guest.walk(b"a"), b"file", ROOT, b"other"))
    assert (tree / "a/file").exists() and (tree / "other").exists()
    assert guest.stat(one).nlink == guest.stat(other).nlink == 2
    guest.send(m.Trename(one, ROOT, b"new"))
    assert sorted(os.listdir(tree)) == ["a", "link", "new", "other"] and os.listdir(tree / "a") == ["b"]


def test_a_directory_cannot_be_moved_into_itself(tree: Path, guest: Guest) -> None:
    refused(errno.EINVAL, guest, m.Trenameat(ROOT, b"a", guest.walk(b"a", b"b"), b"x"))
    assert guest.stat(guest.walk(b"a", b"b", b"c")).nlink == 2


def test_the_root_is_neither_renamed_nor_removed(tree: Path, guest: Guest) -> None:
    refused(errno.EBUSY, guest, m.Trename(ROOT, guest.walk(b"a"), b"x"))
    refused(errno.EBUSY, guest, m.Tremove(guest.walk()))
    assert guest.names() == [os.fsencode(name) for name in os.listdir(tree)]


# --- the host changes things ------------------------------------------------------------------------------------


def test_a_file_that_the_host_replaced_is_not_there_for_an_old_fid(tree: Path, guest: Guest) -> None:
    fid = guest.walk(b"a", b"file")
    (tree / "new").write_bytes(b"another")
    os.rename(tree / "new", tree / "a/file")
    refused(errno.ENOENT, guest, m.Tgetattr(fid, 0x7FF))
    refused(errno.ESTALE, guest, m.Tlopen(fid, 0))
    assert guest.content(b"a", b"file") == b"another"
    new = guest.walk(b"a", b"file")
    for each in fid, new:
        guest.clunk(each)
    assert guest.content(b"a", b"file") == b"another"


def test_what_the_host_makes_and_removes_is_seen_at_once(tree: Path, guest: Guest) -> None:
    refused(errno.ENOENT, guest, m.Twalk(ROOT, 5, (b"new",)))
    (tree / "new").write_bytes(b"1")
    assert guest.content(b"new") == b"1"
    (tree / "new").write_bytes(b"22")
    assert guest.content(b"new") == b"22"
    os.remove(tree / "new")
    refused(errno.ENOENT, guest, m.Twalk(ROOT, 5, (b"new",)))
    assert b"new" not in guest.names()
