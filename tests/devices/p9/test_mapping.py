"""Owners, modes and special files in each of QEMU's security models."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from devices.p9 import messages as m
from devices.p9.attributes import SET_GID, SET_MODE, SET_UID
from devices.p9.mapping import Security
from tests.devices.p9.client import ROOT, Guest
from tests.devices.p9.test_attributes import get_xattr, set_xattr

is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="needs to be root on the host")


def virtfs(path: Path, name: str) -> int:
    """What QEMU would read of an attribute."""
    return int.from_bytes(os.getxattr(path, "user.virtfs." + name), "little")


# --- none -------------------------------------------------------------------------------------------------------


def test_the_user_who_runs_the_machine_is_root_in_the_guest(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared / "mine").touch()
    monkeypatch.setattr(os, "geteuid", lambda: shared.stat().st_uid)
    monkeypatch.setattr(os, "getegid", lambda: shared.stat().st_gid)
    guest = Guest(shared)
    seen = guest.stat(guest.walk(b"mine"))
    assert (seen.uid, seen.gid) == (0, 0)


def test_a_chown_that_the_host_refuses_is_done_as_far_as_the_guest_is_told(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "not you")

    monkeypatch.setattr(os, "chown", refuse)
    guest = Guest(shared, uid=1000)
    fid = guest.create(b"file", gid=1000)
    guest.set(fid, SET_UID | SET_GID, uid=5, gid=6)
    with pytest.raises(PermissionError):
        Guest(shared, Security.PASSTHROUGH, uid=1000).create(b"other")
    assert not (shared / "other").exists()


def test_set_id_bits_do_not_reach_the_host_but_a_directory_s_group(shared: Path, guest: Guest) -> None:
    fid = guest.create(b"file", mode=0o6755)
    assert stat.S_IMODE((shared / "file").stat().st_mode) == 0o755
    guest.set(fid, SET_MODE, mode=0o6711)
    assert stat.S_IMODE((shared / "file").stat().st_mode) == 0o711
    guest.send(m.Tmkdir(ROOT, b"directory", 0o6755, 0))
    assert stat.S_IMODE((shared / "directory").stat().st_mode) == 0o2755


def test_no_device_is_made(shared: Path, guest: Guest) -> None:
    for kind in stat.S_IFCHR, stat.S_IFBLK:
        with pytest.raises(PermissionError):
            guest.send(m.Tmknod(ROOT, b"device", kind | 0o600, 1, 3, 0))
    assert os.listdir(shared) == []


# --- passthrough ------------------------------------------------------------------------------------------------


@needs_root
def test_passthrough_has_everything_as_it_is(shared: Path) -> None:
    guest = Guest(shared, Security.PASSTHROUGH, uid=1234)
    fid = guest.create(b"file", mode=0o4755, gid=4321)
    host = (shared / "file").stat()
    assert (host.st_uid, host.st_gid, stat.S_IMODE(host.st_mode)) == (1234, 4321, 0o4755)
    guest.set(fid, SET_UID | SET_GID | SET_MODE, uid=5, gid=6, mode=0o2755)
    seen = guest.stat(fid)
    assert (seen.uid, seen.gid, stat.S_IMODE(seen.mode)) == (5, 6, 0o2755)
    guest.send(m.Tsymlink(ROOT, b"link", b"file", 7))
    assert (os.lstat(shared / "link").st_uid, os.lstat(shared / "link").st_gid) == (1234, 7)


# --- mapped -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped(shared: Path) -> Guest:
    """A guest whose user 1000 owns what it makes, on paper."""
    return Guest(shared, Security.MAPPED, uid=1000)


def test_owner_and_mode_are_kept_as_qemu_keeps_them(shared: Path, mapped: Guest) -> None:
    fid = mapped.create(b"file", mode=0o4751, gid=100)
    path = shared / "file"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_uid == os.geteuid()
    assert (virtfs(path, "uid"), virtfs(path, "gid"), virtfs(path, "mode")) == (1000, 100, stat.S_IFREG | 0o4751)
    assert len(os.getxattr(path, "user.virtfs.mode")) == 4
    mapped.set(fid, SET_UID | SET_GID | SET_MODE, uid=0, gid=5, mode=0o444)
    for number in fid, mapped.walk(b"file"):
        seen = mapped.stat(number)
        assert (seen.uid, seen.gid, seen.mode) == (0, 5, stat.S_IFREG | 0o444)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_mapped_directory_is_one_on_the_host_too(shared: Path, mapped: Guest) -> None:
    qid = mapped.send(m.Tmkdir(ROOT, b"directory", 0o1777, 5)).qid
    assert qid[0] == m.QT_DIR and stat.S_IMODE((shared / "directory").stat().st_mode) == 0o700
    seen = mapped.stat(mapped.walk(b"directory"))
    assert (seen.mode, seen.uid, seen.gid) == (stat.S_IFDIR | 0o1777, 1000, 5)


def test_a_mapped_symbolic_link_is_a_file_with_its_target_in_it(shared: Path, mapped: Guest) -> None:
    qid = mapped.send(m.Tsymlink(ROOT, b"link", b"/etc/passwd", 5)).qid
    assert qid[0] == m.QT_SYMLINK
    assert (shared / "link").read_bytes() == b"/etc/passwd" and not (shared / "link").is_symlink()
    fid = mapped.walk(b"link")
    assert mapped.stat(fid).mode == stat.S_IFLNK | 0o777 and mapped.stat(fid).uid == 1000
    assert mapped.send(m.Treadlink(fid)).target == b"/etc/passwd"
    mapped.clunk(mapped.create(b"file"))
    with pytest.raises(OSError):
        mapped.send(m.Treadlink(mapped.walk(b"file")))


def test_a_mapped_device_is_an_empty_file(shared: Path, mapped: Guest) -> None:
    mapped.send(m.Tmknod(ROOT, b"null", stat.S_IFCHR | 0o666, 1, 3, 0))
    seen = mapped.stat(mapped.walk(b"null"))
    assert (seen.mode, seen.rdev) == (stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (shared / "null").is_file() and os.getxattr(shared / "null", "user.virtfs.rdev") == struct.pack("<Q", 0x103)


def test_a_symbolic_link_of_the_host_can_be_read_all_the_same(shared: Path, mapped: Guest) -> None:
    (shared / "link").symlink_to("target")
    assert mapped.send(m.Treadlink(mapped.walk(b"link"))).target == b"target"


def test_files_of_qemu_and_of_the_host_are_understood(shared: Path, mapped: Guest) -> None:
    (shared / "plain").touch(0o640)
    (shared / "plain").chmod(0o640)
    (shared / "qemu").touch()
    os.setxattr(shared / "qemu", "user.virtfs.mode", struct.pack("<I", stat.S_IFSOCK | 0o711))
    os.setxattr(shared / "qemu", "user.virtfs.uid", struct.pack("<I", 33))
    seen = mapped.stat(mapped.walk(b"plain"))
    assert (seen.mode, seen.uid) == (stat.S_IFREG | 0o640, 0)
    seen = mapped.stat(mapped.walk(b"qemu"))
    assert (seen.mode, seen.uid, seen.gid) == (stat.S_IFSOCK | 0o711, 33, 0)


@pytest.mark.parametrize("value", [b"", b"123", struct.pack("<I", stat.S_IFDIR | 0o777)])
def test_attributes_that_make_no_sense_are_not_believed(shared: Path, mapped: Guest, value: bytes) -> None:
    (shared / "file").touch()
    os.setxattr(shared / "file", "user.virtfs.mode", value)
    fid = mapped.walk(b"file")
    assert stat.S_ISREG(mapped.stat(fid).mode) and mapped.stat(fid).qid[0] == m.QT_FILE


def test_a_mapped_listing_does_not_say_what_a_file_is(shared: Path, mapped: Guest) -> None:
    mapped.send(m.Tsymlink(ROOT, b"link", b"x", 0))
    mapped.send(m.Tmkdir(ROOT, b"directory", 0o755, 0))
    found = {entry.name: entry.type for entry in mapped.entries(mapped.open())}
    assert (found[b"link"], found[b"directory"]) == (0, 4)


def test_the_mapping_s_own_attributes_are_not_the_guest_s_business(shared: Path, mapped: Guest) -> None:
    mapped.clunk(mapped.create(b"file"))
    set_xattr(mapped, b"user.mine", b"1")
    set_xattr(mapped, b"security.capability", b"caps")
    set_xattr(mapped, b"trusted.x", b"t")
    assert sorted(get_xattr(mapped, b"").split(b"\0")) == [b"", b"security.capability", b"trusted.x", b"user.mine"]
    assert get_xattr(mapped, b"security.capability") == b"caps"
    assert "security.capability" not in os.listxattr(shared / "file")
    fid = mapped.walk(b"file")
    for name in b"user.virtfs.uid", b"user.virtfs.security.capability":
        with pytest.raises(PermissionError):
            mapped.send(m.Txattrwalk(fid, 50, name))
        with pytest.raises(PermissionError):
            mapped.send(m.Txattrcreate(fid, name, 4, 0))


def test_what_cannot_be_finished_leaves_nothing_behind(
    shared: Path, mapped: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "no room")

    monkeypatch.setattr(os, "setxattr", fail)
    for request in (
        m.Tmkdir(ROOT, b"d", 0, 0), m.Tsymlink(ROOT, b"l", b"t", 0), m.Tmknod(ROOT, b"n", stat.S_IFCHR, 1, 3, 0),
        m.Tlcreate(mapped.walk(), b"f", 0, 0, 0),
    ):
        with pytest.raises(OSError):
            mapped.send(request)
    assert os.listdir(shared) == []
