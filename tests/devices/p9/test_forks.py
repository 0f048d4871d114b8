"""A session that two processes go on with after a fork."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from devices.p9 import messages as m
from tests.devices.p9.client import Guest
from tests.support.forks import ForkedCall, in_fork

WRITE_LOCK, UNLOCK = 1, 2               # of the wire
SUCCESS, BLOCKED = 0, 1
ENTRIES, ROUNDS = 2000, 30


def descriptor(guest: Guest, fid: int) -> int:
    """The host's, of an open fid."""
    return guest.server._session.fids.by_number[fid].fd


def position(guest: Guest, fid: int) -> int:
    return os.lseek(descriptor(guest, fid), 0, os.SEEK_CUR)


def lock(guest: Guest, fid: int, type_: int) -> int:
    return int(guest.send(m.Tlock(fid, type_, 1, 0, 0, 42, b"guest")).status)


def test_open_files_get_positions_of_their_own(shared: Path, guest: Guest) -> None:
    (shared / "file").write_bytes(b"content")
    fids = [guest.open(b"file", flags=flags) for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY)]
    fids.append(guest.walk())
    guest.send(m.Tlopen(fids[-1], os.O_RDONLY))

    def child() -> list[int]:
        before = len(os.listdir("/proc/self/fd"))
        guest.server.forked()
        assert len(os.listdir("/proc/self/fd")) <= before
        for fid in fids:
            os.lseek(descriptor(guest, fid), 5, os.SEEK_SET)
            assert not os.get_inheritable(descriptor(guest, fid))
        return [position(guest, fid) for fid in fids]

    assert in_fork(child) == [5] * 4
    assert [position(guest, fid) for fid in fids] == [0] * 4


def test_files_are_read_and_written_on_by_both(shared: Path, guest: Guest) -> None:
    (shared / "file").write_bytes(b"0123456789")
    fid = guest.open(b"file", flags=os.O_RDWR)

    def child() -> bytes:
        guest.server.forked()
        guest.write(fid, b"child", 5)
        return guest.read(fid, 0, 5)

    assert in_fork(child) == b"01234"
    guest.write(fid, b"us", 0)
    assert (shared / "file").read_bytes() == guest.read(fid) == b"us234child"


def test_an_unlinked_file_can_still_be_used(shared: Path, guest: Guest) -> None:
    fid = guest.create(b"file")
    guest.write(fid, b"before")
    (shared / "file").unlink()

    def child() -> bytes:
        guest.server.forked()
        guest.write(fid, b" and after", 6)
        return guest.read(fid)

    assert in_fork(child) == b"before and after"
    assert guest.read(fid) == b"before and after"
    assert not (shared / "file").exists()


def test_a_file_that_was_opened_to_be_emptied_is_not_emptied_again(shared: Path, guest: Guest) -> None:
    (shared / "file").write_bytes(b"old")
    fid = guest.open(b"file", flags=os.O_RDWR | os.O_TRUNC)
    guest.write(fid, b"new")
    in_fork(guest.server.forked)
    assert (shared / "file").read_bytes() == b"new"


def test_a_file_that_is_only_appended_to_stays_so(shared: Path, guest: Guest) -> None:
    (shared / "log").write_bytes(b"1\n")
    fid = guest.open(b"log", flags=os.O_WRONLY | os.O_APPEND)

    def child() -> None:
        guest.server.forked()
        guest.write(fid, b"2\n", 0)

    in_fork(child)
    guest.write(fid, b"3\n", 0)
    assert (shared / "log").read_bytes() == b"1\n2\n3\n"


def test_a_file_that_cannot_be_opened_again_stays_open(shared: Path, guest: Guest) -> None:
    fid = guest.create(b"file")

    def child() -> bytes:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        guest.server.forked()
        guest.write(fid, b"by nobody")
        return guest.read(fid)

    (shared / "file").chmod(0o400)
    if os.geteuid() == 0:
        assert in_fork(child) == b"by nobody"


def test_a_directory_is_read_by_both_at_the_same_time(shared: Path, guest: Guest) -> None:
    """What is left of it is kept by the open file, which would be one for both."""
    names = {b"%04d" % number for number in range(ENTRIES)}
    for name in names:
        (shared / os.fsdecode(name)).touch()
    fid = guest.walk()
    guest.send(m.Tlopen(fid, os.O_RDONLY))

    def read_all() -> int:
        whole = 0
        for _ in range(ROUNDS):
            found, offset = set(), 0
            while entries := guest.entries(fid, offset=offset):
                found |= {entry.name for entry in entries}
                offset = entries[-1].offset
            whole += found == names | {b".", b".."}
        return whole

    def child() -> int:
        guest.server.forked()
        return read_all()

    call = ForkedCall(child)
    assert read_all() == ROUNDS
    assert call.outcome() == ROUNDS


def test_locks_stay_with_the_parent(shared: Path, guest: Guest) -> None:
    (shared / "file").write_bytes(b"content")
    fid = guest.open(b"file", flags=os.O_RDWR)
    assert lock(guest, fid, WRITE_LOCK) == SUCCESS

    def child() -> list[int]:
        guest.server.forked()
        answers = [lock(guest, fid, WRITE_LOCK), lock(guest, fid, UNLOCK)]
        guest.clunk(fid)
        return answers

    assert in_fork(child) == [BLOCKED, SUCCESS]
    with open(shared / "file", "rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise AssertionError("the lock is gone")
