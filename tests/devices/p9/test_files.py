"""Contents, locks and directories."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from devices.p9 import messages as m
from devices.p9.export import Limits
from tests.devices.p9.client import MSIZE, ROOT, Guest

APPEND, TRUNC = 0o2000, 0o1000
READ_LOCK, WRITE_LOCK, UNLOCK = 0, 1, 2
SUCCESS, BLOCKED = 0, 1


def refused(number: int, guest: Guest, request: object, data: bytes = b"") -> None:
    with pytest.raises(OSError) as caught:
        guest.ask(request, data)
    assert caught.value.errno == number


# --- reading and writing ----------------------------------------------------------------------------------------


def test_data_go_into_all_buffers_of_the_reply_and_come_from_all_of_the_request(shared: Path, guest: Guest) -> None:
    fid = guest.create(b"file")
    data = os.urandom(10_000)
    frame = m.encode(118, 1, m.Twrite(fid, 5, len(data)), len(data))
    reply = guest.raw([frame, data[:100], data[100:5000], data[5000:]], [11])
    assert m.decode(119, reply).size == len(data)
    assert (shared / "file").read_bytes() == bytes(5) + data
    reply = guest.raw([m.encode(116, 1, m.Tread(fid, 5, 20_000))], [11, 4096, 1, 4095, 4096])
    assert m.decode(117, reply).size == len(data) and reply[11:] == data


def test_a_read_is_as_long_as_there_are_data_and_room(shared: Path, guest: Guest) -> None:
    (shared / "file").write_bytes(b"x" * (MSIZE * 2))
    fid = guest.open(b"file")
    assert len(guest.ask(m.Tread(fid, 0, 0xFFFF_FFFF), room=1000)[1]) == 1000 - 11
    assert len(guest.ask(m.Tread(fid, 0, 0xFFFF_FFFF), room=MSIZE * 2)[1]) == MSIZE - 11
    assert len(guest.read(fid, MSIZE * 2 - 3, 100)) == 3
    assert guest.read(fid, MSIZE * 2, 100) == guest.read(fid, 0, 0) == b""


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1])
def test_an_offset_that_no_file_has_is_refused(guest: Guest, offset: int) -> None:
    fid = guest.create(b"file")
    refused(errno.EINVAL, guest, m.Tread(fid, offset, 10))
    refused(errno.EINVAL, guest, m.Twrite(fid, offset, 4), b"data")


def test_a_file_larger_than_the_host_lets_is_refused(guest: Guest) -> None:
    refused(errno.EFBIG, guest, m.Twrite(guest.create(b"file"), (1 << 63) - 4096, 4), b"data")


def test_holes_are_kept(shared: Path, guest: Guest) -> None:
    fid = guest.create(b"sparse")
    guest.write(fid, b"end", 1 << 40)
    assert guest.stat(fid).size == (1 << 40) + 3 and guest.stat(fid).blocks < 100
    assert guest.read(fid, (1 << 40) - 2, 10) == b"\0\0end"


def test_what_is_not_open_or_not_for_it_is_bad(shared: Path, guest: Guest) -> None:
    (shared / "file").touch()
    refused(errno.EBADF, guest, m.Tread(guest.walk(b"file"), 0, 1))
    refused(errno.EBADF, guest, m.Twrite(guest.open(b"file"), 0, 1), b"x")
    refused(errno.EBADF, guest, m.Tread(guest.open(b"file", flags=os.O_WRONLY), 0, 1))
    refused(errno.EISDIR, guest, m.Tread(guest.open(), 0, 1))
    refused(errno.ENOTDIR, guest, m.Treaddir(guest.open(b"file"), 0, 100))
    refused(errno.EISDIR, guest, m.Tlopen(guest.walk(), os.O_RDWR))


def test_a_fid_is_opened_once_and_with_an_access_mode(shared: Path, guest: Guest) -> None:
    (shared / "file").touch()
    fid = guest.open(b"file")
    refused(errno.EINVAL, guest, m.Tlopen(fid, 0))
    refused(errno.EINVAL, guest, m.Tlopen(guest.walk(b"file"), 3))
    refused(errno.EINVAL, guest, m.Tlcreate(guest.open(), b"x", 0, 0, 0))
    refused(errno.EBUSY, guest, m.Twalk(fid, fid, ()))
    guest.walk(start=fid)


def test_a_file_is_truncated_or_appended_to_when_asked(shared: Path, guest: Guest) -> None:
    (shared / "file").write_bytes(b"12345")
    fid = guest.open(b"file", flags=os.O_WRONLY | APPEND)
    guest.write(fid, b"67", 0)
    assert (shared / "file").read_bytes() == b"1234567"
    guest.open(b"file", flags=os.O_WRONLY | TRUNC)
    assert (shared / "file").read_bytes() == b""


@pytest.mark.parametrize(("datasync", "call"), [(0, "fsync"), (1, "fdatasync")])
def test_fsync_reaches_the_host(guest: Guest, monkeypatch: pytest.MonkeyPatch, datasync: int, call: str) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, call, synced.append)
    guest.send(m.Tfsync(guest.create(b"file"), datasync))
    guest.send(m.Tfsync(guest.open(), datasync))
    assert len(synced) == 2
    refused(errno.EBADF, guest, m.Tfsync(ROOT, 0))


# --- locks ------------------------------------------------------------------------------------------------------


def lock(guest: Guest, fid: int, type_: int, start: int = 0, length: int = 0) -> int:
    return int(guest.send(m.Tlock(fid, type_, 1, start, length, 42, b"guest")).status)


def test_a_lock_that_another_has_is_blocked_at_once(shared: Path, guest: Guest) -> None:
    one = guest.create(b"file")
    other = Guest(shared)
    two = other.open(b"file", flags=os.O_RDWR)
    assert lock(guest, one, WRITE_LOCK, 10, 20) == SUCCESS
    assert lock(other, two, READ_LOCK, 29, 1) == BLOCKED
    assert lock(other, two, READ_LOCK, 30, 1) == SUCCESS
    assert lock(guest, one, UNLOCK) == SUCCESS
    assert lock(other, two, READ_LOCK, 29, 1) == SUCCESS


def test_a_lock_is_given_back_with_its_fid(shared: Path, guest: Guest) -> None:
    one, two = guest.create(b"file"), guest.open(b"file", flags=os.O_RDWR)
    assert lock(guest, one, WRITE_LOCK) == SUCCESS
    assert lock(guest, two, WRITE_LOCK) == BLOCKED
    guest.clunk(one)
    assert lock(guest, two, WRITE_LOCK) == SUCCESS


def test_a_lock_holds_against_the_host(shared: Path, guest: Guest) -> None:
    fid = guest.create(b"file")
    lock(guest, fid, WRITE_LOCK)
    with open(shared / "file", "rb+") as file, pytest.raises(BlockingIOError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_who_asks_about_a_lock_is_told_what_is_in_the_way(shared: Path, guest: Guest) -> None:
    one, two = guest.create(b"file"), guest.open(b"file", flags=os.O_RDWR)
    lock(guest, one, WRITE_LOCK, 10, 20)
    request = m.Tgetlock(two, READ_LOCK, 0, 0, 42, b"guest")
    assert guest.send(request) == m.Rgetlock(WRITE_LOCK, 10, 20, 42, b"guest")
    assert guest.send(request._replace(start=40)) == m.Rgetlock(UNLOCK, 40, 0, 42, b"guest")


@pytest.mark.parametrize(("flags", "type_"), [(os.O_RDONLY, WRITE_LOCK), (os.O_WRONLY, READ_LOCK)])
def test_flock_takes_a_lock_that_the_file_was_not_opened_for(guest: Guest, flags: int, type_: int) -> None:
    guest.clunk(guest.create(b"file"))
    one, two = guest.open(b"file", flags=flags), guest.open(b"file", flags=os.O_RDWR)
    own = READ_LOCK if flags == os.O_RDONLY else WRITE_LOCK
    assert lock(guest, one, own, 0, 10) == SUCCESS
    assert lock(guest, one, type_, 20, 10) == SUCCESS
    assert [lock(guest, two, WRITE_LOCK, start, 10) for start in (0, 10, 20)] == [BLOCKED, SUCCESS, BLOCKED]
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        guest.write(one, b"no") if flags == os.O_RDONLY else guest.read(one)
    assert lock(guest, one, UNLOCK) == SUCCESS
    assert lock(guest, two, WRITE_LOCK) == SUCCESS


def test_exclusive_lock_in_a_read_only_export_is_a_shared_one_on_the_host(shared: Path) -> None:
    (shared / "file").touch()
    guest = Guest(shared, read_only=True)
    one, two = guest.open(b"file"), guest.open(b"file")
    assert [lock(guest, fid, WRITE_LOCK) for fid in (one, two)] == [SUCCESS, SUCCESS]
    with open(shared / "file", "rb+") as file, pytest.raises(BlockingIOError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(("type_", "start", "length"), [(3, 0, 0), (0, 1 << 63, 0), (0, 0, (1 << 64) - 1)])
def test_odd_locks_are_refused(guest: Guest, type_: int, start: int, length: int) -> None:
    fid = guest.create(b"file")
    refused(errno.EINVAL, guest, m.Tlock(fid, type_, 0, start, length, 1, b""))
    refused(errno.EINVAL, guest, m.Tgetlock(fid, type_, start, length, 1, b""))
    refused(errno.EBADF, guest, m.Tlock(ROOT, 0, 0, 0, 0, 1, b""))


def test_a_fid_has_only_so_many_locks(guest: Guest) -> None:
    fid = guest.create(b"file")
    assert all(lock(guest, fid, WRITE_LOCK, 2 * place, 1) == SUCCESS for place in range(1024))
    refused(errno.ENOLCK, guest, m.Tlock(fid, WRITE_LOCK, 0, 5000, 1, 1, b""))
    assert lock(guest, fid, UNLOCK) == SUCCESS
    assert lock(guest, fid, WRITE_LOCK, 5000, 1) == SUCCESS


# --- directories ------------------------------------------------------------------------------------------------


def test_a_directory_lists_everything_with_its_type_and_inode(shared: Path, guest: Guest) -> None:
    (shared / "directory").mkdir()
    (shared / "file").touch()
    (shared / "link").symlink_to("file")
    os.mkfifo(shared / "fifo")
    found = {entry.name: (entry.type, entry.qid[2]) for entry in guest.entries(guest.open())}
    expected = {b"directory": 4, b"file": 8, b"link": 10, b"fifo": 1}
    root = shared.stat().st_ino
    assert found == {b".": (4, root), b"..": (4, root)} | {
        name: (type_, os.lstat(shared / os.fsdecode(name)).st_ino) for name, type_ in expected.items()
    }


def test_a_listing_in_parts_neither_repeats_nor_misses_while_files_come_and_go(shared: Path, guest: Guest) -> None:
    for number in range(300):
        (shared / f"file{number}").touch()
    fid = guest.open()
    names: list[bytes] = []
    offset = 0
    while part := guest.entries(fid, 200, offset):
        names += [entry.name for entry in part]
        offset = part[-1].offset
        os.remove(shared / os.fsdecode(max(os.listdir(shared))))
        (shared / f"new{offset}").touch()
    assert len(names) == len(set(names)) == 302
    assert {b"file%d" % number for number in range(300)} < set(names)


def test_a_listing_from_the_start_is_a_new_one(shared: Path, guest: Guest) -> None:
    fid = guest.open()
    assert len(guest.entries(fid)) == 2
    (shared / "new").touch()
    assert [entry.name for entry in guest.entries(fid)] == [b".", b"..", b"new"]


def test_an_entry_that_does_not_fit_is_an_error_and_no_end(shared: Path, guest: Guest) -> None:
    (shared / ("x" * 200)).touch()
    fid = guest.open()
    assert [entry.name for entry in guest.entries(fid, 100)] == [b".", b".."]
    refused(errno.EINVAL, guest, m.Treaddir(fid, 2, 100))
    assert len(guest.entries(fid, 224, 2)) == 1


def test_listings_that_cost_too_much_are_read_again(shared: Path) -> None:
    for number in range(50):
        (shared / f"file{number}").touch()
    guest = Guest(shared, limits=Limits(handles=8, opened=8, listing_bytes=2000))
    one, two = guest.open(), guest.open()
    part = guest.entries(one, 500)
    guest.entries(two, 500)
    rest = guest.entries(one, offset=part[-1].offset)
    assert len({entry.name for entry in part + rest}) == 52
