"""What stat, chmod, chown, utimes, truncate, statfs and extended attributes give; with the default mapping."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from devices.p9 import messages as m
from devices.p9.attributes import (
    SET_ATIME,
    SET_ATIME_TO,
    SET_CTIME,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_MTIME_TO,
    SET_SIZE,
    SET_UID,
)
from devices.p9.export import Limits
from tests.devices.p9.client import ROOT, Guest

NS = 1_000_000_000
CREATE, REPLACE = 1, 2                  # flags of setxattr(2)


def refused(number: int, guest: Guest, request: object, data: bytes = b"") -> None:
    with pytest.raises(OSError) as caught:
        guest.ask(request, data)
    assert caught.value.errno == number


@pytest.fixture
def file(shared: Path) -> Path:
    """A file with something in it."""
    path = shared / "file"
    path.write_bytes(b"content")
    path.chmod(0o640)
    return path


def test_attributes_are_the_host_s(file: Path, guest: Guest) -> None:
    os.utime(file, ns=(5 * NS + 6, 7 * NS + 8))
    host, seen = file.stat(), guest.stat(guest.walk(b"file"))
    assert seen.valid == 0x7FF
    assert (seen.mode, seen.size, seen.nlink, seen.blocks) == (stat.S_IFREG | 0o640, 7, 1, host.st_blocks)
    assert (seen.atime_sec, seen.atime_nsec, seen.mtime_sec, seen.mtime_nsec) == (5, 6, 7, 8)
    assert seen.ctime_sec * NS + seen.ctime_nsec == host.st_ctime_ns
    assert (seen.btime_sec, seen.gen, seen.data_version) == (0, 0, 0)


def test_times_before_1970_survive(file: Path, guest: Guest) -> None:
    fid = guest.walk(b"file")
    guest.set(fid, SET_MTIME | SET_MTIME_TO, mtime_sec=(1 << 64) - 2, mtime_nsec=5)
    assert file.stat().st_mtime_ns == -2 * NS + 5
    assert (guest.stat(fid).mtime_sec, guest.stat(fid).mtime_nsec) == ((1 << 64) - 2, 5)


def test_each_time_is_set_alone_to_a_value_or_to_now(file: Path, guest: Guest) -> None:
    os.utime(file, ns=(NS, NS))
    fid = guest.walk(b"file")
    guest.set(fid, SET_ATIME | SET_ATIME_TO, atime_sec=3, atime_nsec=4)
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (3 * NS + 4, NS)
    guest.set(fid, SET_MTIME)
    assert file.stat().st_atime_ns == 3 * NS + 4 and file.stat().st_mtime_ns > 1000 * NS
    with pytest.raises(OSError):
        guest.set(fid, SET_MTIME | SET_MTIME_TO, mtime_nsec=NS)


def test_times_of_a_symbolic_link_are_its_own(file: Path, guest: Guest, shared: Path) -> None:
    (shared / "link").symlink_to("file")
    before = file.stat().st_mtime_ns
    guest.set(guest.walk(b"link"), SET_MTIME | SET_MTIME_TO, mtime_sec=9)
    assert os.lstat(shared / "link").st_mtime_ns == 9 * NS and file.stat().st_mtime_ns == before


def test_a_change_of_nothing_but_ctime_changes_that(file: Path, guest: Guest) -> None:
    os.utime(file, ns=(NS, NS))
    before = file.stat()
    guest.set(guest.walk(b"file"), SET_CTIME)
    assert file.stat().st_ctime_ns > before.st_ctime_ns and file.stat().st_mtime_ns == NS


def test_the_mode_is_set(file: Path, guest: Guest) -> None:
    guest.set(guest.walk(b"file"), SET_MODE, mode=stat.S_IFREG | 0o751)
    assert stat.S_IMODE(file.stat().st_mode) == 0o751


def test_the_size_is_set_before_the_times(file: Path, guest: Guest) -> None:
    fid = guest.walk(b"file")
    guest.set(fid, SET_SIZE | SET_MTIME | SET_MTIME_TO, size=3, mtime_sec=5)
    assert file.read_bytes() == b"con" and file.stat().st_mtime_ns == 5 * NS
    guest.set(fid, SET_SIZE, size=1 << 35)
    assert file.stat().st_size == 1 << 35


@pytest.mark.parametrize(("name", "size", "number"), [
    (b"file", 1 << 63, errno.EINVAL), (b"directory", 0, errno.EISDIR), (b"fifo", 0, errno.EINVAL),
])
def test_a_size_that_cannot_be_set_is_refused(
    file: Path, shared: Path, guest: Guest, name: bytes, size: int, number: int
) -> None:
    (shared / "directory").mkdir()
    os.mkfifo(shared / "fifo")
    with pytest.raises(OSError) as caught:
        guest.set(guest.walk(name), SET_SIZE, size=size)
    assert caught.value.errno == number


def test_an_owner_that_is_to_stay_stays(file: Path, guest: Guest) -> None:
    before = file.stat()
    guest.set(guest.walk(b"file"), SET_UID | SET_GID, uid=m.NO_ID, gid=m.NO_ID)
    assert (file.stat().st_uid, file.stat().st_gid) == (before.st_uid, before.st_gid)


def test_attributes_of_an_open_file_are_those_of_what_was_opened(file: Path, guest: Guest) -> None:
    fid = guest.open(b"file")
    file.unlink()
    assert guest.stat(fid).nlink == 0
    guest.set(fid, SET_MODE, mode=0o600)
    assert stat.S_IMODE(guest.stat(fid).mode) == 0o600


def test_room_is_the_host_s(shared: Path, guest: Guest) -> None:
    host, seen = os.statvfs(shared), guest.send(m.Tstatfs(ROOT))
    assert (seen.type, seen.bsize, seen.blocks, seen.namelen) == (0x01021997, host.f_frsize, host.f_blocks, 255)


def test_only_a_symbolic_link_says_something(file: Path, guest: Guest) -> None:
    with pytest.raises(OSError):
        guest.send(m.Treadlink(guest.walk(b"file")))


# --- extended attributes ----------------------------------------------------------------------------------------


def set_xattr(guest: Guest, name: bytes, value: bytes, flags: int = 0, path: bytes = b"file") -> None:
    fid = guest.walk(path)
    guest.send(m.Txattrcreate(fid, name, len(value), flags))
    if value:
        assert guest.write(fid, value) == len(value)
    guest.clunk(fid)


def get_xattr(guest: Guest, name: bytes, path: bytes = b"file") -> bytes:
    file, fid = guest.walk(path), guest.next_fid()
    size = guest.send(m.Txattrwalk(file, fid, name)).size
    value = guest.read(fid)
    assert len(value) == size
    guest.clunk(fid)
    return value


def test_an_extended_attribute_is_set_read_listed_and_removed(file: Path, guest: Guest) -> None:
    set_xattr(guest, b"user.one", b"value")
    set_xattr(guest, b"user.two", b"")
    assert os.getxattr(file, "user.one") == b"value" and os.getxattr(file, "user.two") == b""
    assert get_xattr(guest, b"user.one") == b"value"
    assert sorted(get_xattr(guest, b"").split(b"\0")) == [b"", b"user.one", b"user.two"]
    set_xattr(guest, b"user.one", b"", REPLACE)
    assert os.listxattr(file) == ["user.two"]
    refused(errno.ENODATA, guest, m.Txattrwalk(guest.walk(b"file"), guest.next_fid(), b"user.one"))


def test_flags_of_an_extended_attribute_are_kept_to(file: Path, guest: Guest) -> None:
    set_xattr(guest, b"user.one", b"1", CREATE)
    for name, flags, number in ((b"user.one", CREATE, errno.EEXIST), (b"user.two", REPLACE, errno.ENODATA)):
        with pytest.raises(OSError) as caught:
            set_xattr(guest, name, b"2", flags)
        assert caught.value.errno == number
    assert os.getxattr(file, "user.one") == b"1"


def test_an_extended_attribute_is_read_in_parts(file: Path, guest: Guest) -> None:
    os.setxattr(file, "user.one", bytes(range(100)))
    fid = guest.next_fid()
    guest.send(m.Txattrwalk(guest.walk(b"file"), fid, b"user.one"))
    assert guest.read(fid, 0, 60) + guest.read(fid, 60, 60) + guest.read(fid, 120, 60) == bytes(range(100))
    assert guest.read(fid, (1 << 64) - 1, 10) == b""


def test_an_extended_attribute_that_was_not_all_written_is_not_set(file: Path, guest: Guest) -> None:
    fid = guest.walk(b"file")
    guest.send(m.Txattrcreate(fid, b"user.one", 10, 0))
    guest.write(fid, b"12345")
    for offset, data in ((0, b"1"), (6, b"1"), (5, b"123456")):
        refused(errno.EINVAL, guest, m.Twrite(fid, offset, len(data)), data)
    refused(errno.EBADF, guest, m.Tread(fid, 0, 1))
    refused(errno.EINVAL, guest, m.Tclunk(fid))
    assert os.listxattr(file) == []
    refused(errno.EBADF, guest, m.Tclunk(fid))


def test_a_fid_of_an_extended_attribute_is_no_file(file: Path, guest: Guest) -> None:
    fid = guest.next_fid()
    guest.send(m.Txattrwalk(guest.walk(b"file"), fid, b""))
    for request in m.Tgetattr(fid, 0), m.Twalk(fid, 5, ()), m.Tlopen(fid, 0), m.Tlink(ROOT, fid, b"x"):
        refused(errno.EBADF, guest, request)
    refused(errno.EBADF, guest, m.Twrite(fid, 0, 1), b"x")


def test_extended_attributes_cost_only_so_much(file: Path, shared: Path) -> None:
    guest = Guest(shared, limits=Limits(handles=8, opened=8, xattr_bytes=1000))
    refused(errno.E2BIG, guest, m.Txattrcreate(guest.walk(b"file"), b"user.x", 65537, 0))
    fids = [guest.walk(b"file") for _ in range(3)]
    guest.send(m.Txattrcreate(fids[0], b"user.x", 600, 0))
    refused(errno.ENOSPC, guest, m.Txattrcreate(fids[1], b"user.x", 600, 0))
    os.setxattr(file, "user.big", bytes(700))
    refused(errno.ENOSPC, guest, m.Txattrwalk(fids[1], 50, b"user.big"))
    refused(errno.EBADF, guest, m.Tclunk(50))
    with pytest.raises(OSError):
        guest.clunk(fids[0])
    guest.send(m.Txattrcreate(fids[1], b"user.x", 600, 0))
