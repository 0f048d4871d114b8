"""Files into and out of the guest; the guest may send any archive."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emu.channel import Channel
from emu.errors import EmuError, GuestError, GuestTimeout
from emu.transfer import copy_in, copy_out
from tests.agent_on_ptys import AgentOnPtys
from tests.test_channel import SHELLS, TIMEOUT_S, FakeGuest


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Channel]:
    guest = AgentOnPtys(next(iter(SHELLS.values())), tmp_path_factory.mktemp("guest"))
    assert guest.channel.wait(TIMEOUT_S)
    yield guest.channel
    guest.close()


def make_tree(root: Path) -> None:
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "empty").touch()
    (root / "data").write_bytes(os.urandom(100_000))
    (root / "sub" / "tool").write_text("#!/bin/sh\n")
    (root / "sub" / "tool").chmod(0o755)
    (root / "sub" / ("long name " * 20)).write_text("long")
    (root / "sub" / "to data").symlink_to("../data")
    (root / "odd \udcff\n name").write_text("odd")
    os.link(root / "data", root / "same data")
    os.utime(root / "data", (1_000_000_000, 1_000_000_000))


def described(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: Any = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes(), int(status.st_mtime)
        found[str(path.relative_to(root))] = stat.filemode(status.st_mode), content
    return found


def test_a_tree_goes_in_and_out_unchanged(channel: Channel, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    copy_in(channel, tmp_path / "tree", str(tmp_path / "guest tree"), TIMEOUT_S)
    assert described(tmp_path / "guest tree") == described(tmp_path / "tree")
    copy_out(channel, str(tmp_path / "guest tree"), tmp_path / "back", TIMEOUT_S)
    assert described(tmp_path / "back") == described(tmp_path / "tree")
    assert (tmp_path / "back" / "data").samefile(tmp_path / "back" / "same data")


def test_bytes_become_a_file(channel: Channel, tmp_path: Path) -> None:
    copy_in(channel, b"content", str(tmp_path / "file"), TIMEOUT_S)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_slash_at_the_end_puts_a_file_into_a_directory(channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "guest").mkdir()
    (tmp_path / "file").write_text("x")
    copy_in(channel, tmp_path / "file", f"{tmp_path}/guest/", TIMEOUT_S)
    assert (tmp_path / "guest" / "file").read_text() == "x"
    with pytest.raises(EmuError, match="names no file"):
        copy_in(channel, b"x", f"{tmp_path}/guest/")


def test_out_into_a_directory_that_exists(channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "host").mkdir()
    copy_out(channel, str(tmp_path / "file"), tmp_path / "host", TIMEOUT_S)
    assert (tmp_path / "host" / "file").read_text() == "x"
    with pytest.raises(EmuError, match="exists"):
        copy_out(channel, str(tmp_path / "file"), tmp_path / "host", TIMEOUT_S)


def test_a_link_named_as_the_source_is_followed(channel: Channel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    copy_out(channel, str(tmp_path / "link"), tmp_path / "copy", TIMEOUT_S)
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").read_text() == "x"


def test_what_is_missing_is_an_error_that_says_so(channel: Channel, tmp_path: Path) -> None:
    with pytest.raises(EmuError, match=r"cannot read .*nothing"):
        copy_in(channel, tmp_path / "nothing", "/tmp/x", TIMEOUT_S)
    with pytest.raises(GuestError, match=r"ended with status [12]: tar: "):
        copy_in(channel, b"x" * 1_000_000, f"{tmp_path}/no/such/directory", TIMEOUT_S)
    with pytest.raises(GuestError, match="ended with status"):
        copy_out(channel, f"{tmp_path}/no/such/file", tmp_path / "out", TIMEOUT_S)
    with pytest.raises(EmuError, match="cannot write"):
        copy_out(channel, "/etc/passwd", tmp_path / "no" / "directory", TIMEOUT_S)
    assert list(tmp_path.iterdir()) == []


def test_a_named_pipe_is_not_copied(channel: Channel, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EmuError, match="neither file, directory nor link"):
        copy_in(channel, tmp_path, f"{tmp_path}/copy", TIMEOUT_S)


# What a hostile guest sends


class Sender(FakeGuest):
    """A guest that sends an archive whatever it is asked."""

    def __init__(self, archive: bytes, status: bytes = b"000\n") -> None:
        super().__init__()
        self.driver_ready = True
        self.ports[0].set_open(True)
        self.say(b"hello 1\n")
        for step in (
            self.open_slot,
            lambda: self.ports[1].say(archive),
            lambda: self.mark(status),
        ):
            self.steps.append(step)


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = "", **more: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512)


DIRECTORY, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
TOP = member("./top/", DIRECTORY)

REFUSED: dict[str, Callable[[], bytes]] = {
    "absolute name": lambda: member("/etc/passwd"),
    "name that goes up": lambda: member("../outside"),
    "name that goes up inside": lambda: TOP + member("./top/../../outside"),
    "another top": lambda: TOP + member("./other"),
    "directory never sent": lambda: TOP + member("./top/a/b"),
    "file as directory": lambda: TOP + member("./top/a") + member("./top/a/b"),
    "empty name": lambda: member(""),
    "dot": lambda: member("./."),
    "twice": lambda: TOP + member("./top/a") + member("./top/a"),
    "file over link": lambda: TOP + member("./top/a", LINK, link="b") + member("./top/a"),
    "directory over link": lambda: TOP + member("./top/a", LINK, link="b") + member("./top/a/", DIRECTORY),
    "absolute link": lambda: TOP + member("./top/a", LINK, link="/etc"),
    "link out": lambda: TOP + member("./top/a", LINK, link="../x"),
    "link out from deep": lambda: TOP + member("./top/d/", DIRECTORY) + member("./top/d/a", LINK, link="../../x"),
    "link up after down": lambda: TOP + member("./top/a", LINK, link="b/../../x"),
    "link to nothing": lambda: TOP + member("./top/a", LINK, link=""),
    "top is a link": lambda: member("./top", LINK, link="x"),
    "path through a link": lambda: TOP + member("./top/a", LINK, link="b") + member("./top/a/c"),
    "hard link out": lambda: TOP + member("./top/a", HARD, link="/etc/passwd"),
    "hard link up": lambda: TOP + member("./top/a", HARD, link="../x"),
    "hard link to a link": lambda: TOP + member("./top/a", LINK, link="b") + member("./top/c", HARD, link="./top/a"),
    "hard link to nothing": lambda: TOP + member("./top/a", HARD, link="./top/b"),
    "device": lambda: TOP + member("./top/a", tarfile.CHRTYPE),
    "named pipe": lambda: TOP + member("./top/a", tarfile.FIFOTYPE),
    "sparse file": lambda: TOP + member("./top/a", tarfile.GNUTYPE_SPARSE),
    "extended header": lambda: member("./top", tarfile.XHDTYPE, b"30 path=/etc/passwd\n"),
    "name too long": lambda: member("././@LongLink", tarfile.GNUTYPE_LONGNAME, b"x" * 5000),
    "file that ends early": lambda: member("./top", size=10_000)[:512] + b"too short",
    "less than nothing": lambda: member("./top", size=-512),
    "no archive": lambda: b"x" * 512,
    "nothing": lambda: b"",
    "only the end": lambda: bytes(1024),
}


@pytest.mark.parametrize("what", REFUSED)
def test_archives_that_are_refused_leave_nothing(what: str, tmp_path: Path) -> None:
    guest = Sender(REFUSED[what]() + bytes(1024))
    with pytest.raises(GuestError):
        copy_out(guest.channel, "/top", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_modes_are_those_of_a_plain_file(tmp_path: Path) -> None:
    archive = member("./top/", DIRECTORY, mode=0o7000) + member("./top/a", mode=0o6777, mtime=-5, uid=0)
    copy_out(Sender(archive).channel, "/top", tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "out" / "a").stat().st_mode) == 0o755


def test_a_failure_after_a_whole_archive_copies_nothing(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="status 1"):
        copy_out(Sender(TOP, b"001\n").channel, "/top", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_guest_that_stops_sending_is_given_up(tmp_path: Path) -> None:
    guest = Sender(TOP)
    guest.steps.pop()
    with pytest.raises(GuestTimeout):
        copy_out(guest.channel, "/top", tmp_path / "out", timeout=1)
    assert list(tmp_path.iterdir()) == []


NAMES = st.sampled_from(["./top", "./top/", "./top/a", "./top/a/b", "./top/b", "../x", "/x", "./top//c", "./top/a/.."])
TARGETS = st.sampled_from(["", "a", "b", "../top/a", "..", "../..", "/x", "a/..", "./top/a", "./top/b"])
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, DIRECTORY, LINK, HARD, tarfile.CHRTYPE, b"K", b"L", b"?"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(NAMES, KINDS, TARGETS, st.binary(max_size=20)), max_size=8), st.binary(max_size=600))
def test_no_archive_makes_anything_outside(
    tmp_path: Path, members: list[tuple[str, bytes, str, bytes]], tail: bytes
) -> None:
    place = tmp_path / "place"
    place.mkdir(exist_ok=True)
    outside = tmp_path / "canary"
    outside.write_text("canary")
    archive = TOP + b"".join(member(name, kind, data, link) for name, kind, link, data in members)
    try:
        copy_out(Sender(archive + tail).channel, "/top", place / "out")
    except GuestError:
        assert list(place.iterdir()) == []
        return
    root = (place / "out").resolve()
    for path in (place / "out").rglob("*"):
        assert path.parent.resolve().is_relative_to(root)
        assert path.resolve().is_relative_to(root)
    assert outside.read_text() == "canary"
    assert sorted(tmp_path.iterdir()) == [outside, place]
    shutil.rmtree(place / "out")
