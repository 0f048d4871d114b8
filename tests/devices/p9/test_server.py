"""Frames, sessions and fids."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from devices.p9 import messages as m
from devices.p9.codec import HEADER
from devices.p9.export import Export, ExportError, Limits
from devices.p9.fids import FidTable
from devices.virtio.device import BadRequest
from tests.devices.p9.client import MSIZE, ROOT, Guest


def error_of(reply: bytes) -> int:
    """The errno in an Rlerror."""
    assert len(reply) == 11 and reply[4] == m.RLERROR
    return int(m.decode(m.RLERROR, reply).ecode)


def refused(number: int, guest: Guest, request: object) -> None:
    with pytest.raises(OSError) as caught:
        guest.send(request)
    assert caught.value.errno == number


# --- exports ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["", "x" * 32, "a\0b"])
def test_a_mount_tag_that_cannot_be_one_is_refused(shared: Path, tag: str) -> None:
    with pytest.raises(ExportError):
        Export(shared, tag)


def test_only_a_directory_can_be_exported(shared: Path) -> None:
    (shared / "file").touch()
    for path in shared / "file", shared / "nothing":
        with pytest.raises(ExportError):
            Export(path, "tag")


# --- sessions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "given"), [(4096, 4096), (512 << 10, 512 << 10), (1 << 20, 1 << 20), (8 << 20, 1 << 20)]
)
def test_msize_is_what_the_guest_asks_up_to_a_mebibyte(guest: Guest, asked: int, given: int) -> None:
    assert guest.version(asked) == m.Rversion(given, m.VERSION)


def test_a_msize_that_holds_no_page_is_refused(guest: Guest) -> None:
    refused(errno.EMSGSIZE, guest, m.Tversion(4095, m.VERSION))


@pytest.mark.parametrize("version", [b"9P2000", b"9P2000.u", b""])
def test_another_dialect_is_unknown_and_begins_no_session(guest: Guest, version: bytes) -> None:
    assert guest.version(version=version).version == b"unknown"
    refused(errno.EPROTO, guest, m.Tgetattr(ROOT, 0))


def test_a_new_session_forgets_fids_and_closes_files(shared: Path, guest: Guest) -> None:
    (shared / "file").touch()
    before = len(os.listdir("/proc/self/fd"))
    fid = guest.open(b"file")
    guest.version()
    assert len(os.listdir("/proc/self/fd")) <= before
    for number in ROOT, fid:
        refused(errno.EBADF, guest, m.Tgetattr(number, 0))
    guest.attach(ROOT)


def test_reset_ends_the_session(guest: Guest) -> None:
    guest.server.reset()
    refused(errno.EPROTO, guest, m.Tgetattr(ROOT, 0))


def test_close_gives_every_descriptor_back(shared: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    guest = Guest(shared)
    fids = [guest.create(b"%d" % number) for number in range(5)]
    guest.send(m.Tunlinkat(ROOT, b"1", 0))
    assert len(os.listdir("/proc/self/fd")) > before + len(fids)
    guest.server.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_authentication_is_not_needed_and_refused(guest: Guest) -> None:
    refused(errno.EOPNOTSUPP, guest, m.Tauth(9, b"root", b"/", 0))
    refused(errno.EINVAL, guest, m.Tattach(9, 3, b"root", b"/", 0))


def test_a_flush_finds_everything_answered(guest: Guest) -> None:
    assert guest.send(m.Tflush(3)) == m.Empty()


def test_the_root_is_a_directory(shared: Path, guest: Guest) -> None:
    qid = m.QID.unpack(guest.attach(5).qid)
    assert qid[0] == m.QT_DIR and qid[2] == shared.stat().st_ino


# --- frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", [0, 6, 9, 101, 112, 124, 126, 255])
def test_unknown_types_are_not_supported(guest: Guest, type_: int) -> None:
    assert error_of(guest.raw([HEADER.pack(7, type_, 1)], [11])) == errno.EOPNOTSUPP


@pytest.mark.parametrize("length", [0, 6, 16, 0xFFFF_FFFF])
def test_a_frame_that_is_not_as_long_as_it_says_is_an_error(guest: Guest, length: int) -> None:
    frame = struct.pack("<IBHII", length, 24, 1, ROOT, 0)
    assert error_of(guest.raw([frame], [100])) == errno.EINVAL


def test_a_frame_longer_than_agreed_on_is_an_error(guest: Guest) -> None:
    guest.version(4096)
    guest.attach(ROOT)
    request = m.encode(72, 1, m.Tmkdir(ROOT, b"x" * 4096, 0o755, 0))
    assert error_of(guest.raw([request], [100])) == errno.EINVAL


def test_what_stands_behind_the_frame_is_not_looked_at(guest: Guest) -> None:
    frame = m.encode(m.TYPE_OF[m.Twrite], 1, m.Twrite(ROOT, 0, 4), extra=3)
    assert error_of(guest.raw([frame, b"abcd"], [100])) == errno.EINVAL


@pytest.mark.parametrize(("readable", "writable"), [(b"", 100), (b"123456", 100), (bytes(7), 10), (bytes(7), 0)])
def test_no_frame_or_no_room_for_an_error_breaks_the_device(guest: Guest, readable: bytes, writable: int) -> None:
    with pytest.raises(BadRequest):
        guest.raw([readable], [writable])


def test_a_request_in_pieces_is_put_together(shared: Path, guest: Guest) -> None:
    (shared / "directory").mkdir()
    frame = m.encode(110, 1, m.Twalk(ROOT, 5, (b"directory",)))
    reply = guest.raw([frame[i : i + 1] for i in range(len(frame))], [1] * 30)
    assert m.decode(111, reply).qids[0][0] == m.QT_DIR


def test_a_reply_that_does_not_fit_is_an_error(shared: Path, guest: Guest) -> None:
    frame = m.encode(24, 1, m.Tgetattr(ROOT, 0x7FF))
    assert error_of(guest.raw([frame], [100])) == errno.EMSGSIZE


# --- fids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_", [
        m.Tgetattr(9, 0), m.Tclunk(9), m.Tremove(9), m.Twalk(9, 10, ()), m.Tread(9, 0, 1), m.Tlopen(9, 0), m.Tstatfs(9),
        m.Treaddir(9, 0, 1), m.Tfsync(9, 0), m.Tlink(ROOT, 9, b"x"), m.Trename(9, ROOT, b"x"), m.Tmkdir(9, b"x", 0, 0),
    ],
)
def test_a_fid_that_is_not_there_is_bad(guest: Guest, request_: object) -> None:
    refused(errno.EBADF, guest, request_)


def test_a_fid_in_use_cannot_be_used_for_another_file(shared: Path, guest: Guest) -> None:
    (shared / "a").mkdir()
    fid = guest.walk(b"a")
    refused(errno.EINVAL, guest, m.Twalk(ROOT, fid, ()))
    refused(errno.EINVAL, guest, m.Tattach(fid, m.NO_FID, b"", b"", 0))
    assert guest.stat(fid).qid == guest.stat(guest.walk(b"a")).qid


def test_a_clunked_fid_is_free(guest: Guest) -> None:
    guest.clunk(ROOT)
    refused(errno.EBADF, guest, m.Tgetattr(ROOT, 0))
    guest.attach(ROOT)


def test_there_are_only_so_many_fids(shared: Path) -> None:
    guest = Guest(shared, limits=Limits(handles=4, opened=4, fids=10))
    for fid in range(1, 10):
        guest.walk(fid=fid)
    refused(errno.ENFILE, guest, m.Twalk(ROOT, 10, ()))
    guest.clunk(3)
    guest.walk(fid=10)


def test_there_are_only_so_many_open_files(shared: Path) -> None:
    guest = Guest(shared, limits=Limits(handles=4, opened=4))
    fids = [guest.create(b"%d" % number) for number in range(4)]
    with pytest.raises(OSError) as caught:
        guest.open(b"0")
    assert caught.value.errno == errno.ENFILE
    guest.clunk(fids[0])
    guest.open(b"0")


def test_hundreds_of_fids_cost_a_few_descriptors(shared: Path) -> None:
    for number in range(20):
        (shared / f"d{number}").mkdir()
        (shared / f"d{number}" / "file").touch()
    guest = Guest(shared, limits=Limits(handles=8, opened=8))
    before = len(os.listdir("/proc/self/fd"))
    fids = [guest.walk(b"d%d" % (number % 20), b"file") for number in range(400)]
    for fid in fids:
        guest.set(fid, 1, mode=0o600)
    assert len(os.listdir("/proc/self/fd")) <= before + 10


def test_running_out_of_descriptors_closes_what_is_kept_only_for_speed(
    shared: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared / "file").write_bytes(b"x")
    fid = guest.walk(b"file")
    guest.set(fid, 1, mode=0o600)       # which opens a descriptor of the file
    open_ = FidTable.require_descriptor
    failures = [OSError(errno.EMFILE, "")]

    def fail_once(table: FidTable) -> None:
        if failures:
            raise failures.pop()
        assert table.tree.open_handles == 1
        open_(table)

    monkeypatch.setattr(FidTable, "require_descriptor", fail_once)
    guest.send(m.Tlopen(fid, 0))
    assert guest.read(fid) == b"x"


def test_block_size_is_pages_that_fit_into_a_message(guest: Guest) -> None:
    assert guest.stat().blksize == MSIZE - 4096
    guest.version(8192)
    guest.attach(ROOT)
    assert guest.stat().blksize == 4096
