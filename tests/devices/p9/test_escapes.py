"""Attacks on the host by a guest. Each in the table runs twice: it has to fail, and, without its guard, to succeed.

The second run is what makes the first one worth something: it shows that the attack is one, and which check stops it.
What is stopped by more than one thing, and what no single guard lets through, follows the table.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.p9 import guards
from devices.p9 import messages as m
from tests.devices.p9.attacks import ATTACKS, REMOVE_DIRECTORY, SECRET, Attack, Scene, build
from tests.devices.p9.client import MSIZE, ROOT, Guest


def contents(path: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """All that an attack could change below a directory."""
    found = {}
    for below in sorted(path.rglob("*")):
        status = below.lstat()
        data = below.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(below)] = (status.st_mode, status.st_uid, status.st_nlink, data)
    return found


def needs(attack: Attack) -> None:
    if attack.needs_root and os.geteuid():
        pytest.skip("only root could do it on the host")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_refused(tmp_path: Path, attack: Attack) -> None:
    needs(attack)
    scene = build(tmp_path, **attack.scene)
    before = contents(scene.outside)
    with pytest.raises(OSError):
        assert not attack.run(scene), "the attack succeeded"
        raise OSError("it did not get anything")
    assert contents(scene.outside) == before
    assert scene.guest.stat().nlink     # the server lives


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_succeeds_without_its_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Attack) -> None:
    needs(attack)
    scene = build(tmp_path, **attack.scene)
    for name, stand_in in attack.without.items():
        monkeypatch.setattr(guards, name, stand_in)
    assert attack.run(scene)


# --- stopped by more than one thing -----------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """The host; checked to be as it was in the end."""
    scene = build(tmp_path)
    before = contents(scene.outside)
    yield scene
    assert contents(scene.outside) == before


def refused(number: int, scene: Scene, request: object, data: bytes = b"") -> None:
    with pytest.raises(OSError) as caught:
        scene.guest.ask(request, data)
    assert caught.value.errno == number


def test_two_dots_stay_at_the_root(scene: Scene) -> None:
    fid = scene.guest.walk(*[b".."] * 16)
    assert scene.guest.stat(fid).qid == scene.guest.stat(ROOT).qid
    refused(errno.ENOENT, scene, m.Twalk(fid, 5, (b"outside",)))


def test_two_dots_of_a_directory_moved_out_by_the_host_lead_nowhere_else(scene: Scene) -> None:
    fid = scene.guest.open(b"directory")
    os.rename(scene.shared / "directory", scene.shared.parent / "moved")
    up = scene.guest.walk(b"..", start=fid)
    assert scene.guest.stat(up).qid == scene.guest.stat(ROOT).qid
    os.rename(scene.shared.parent / "moved", scene.shared / "directory")


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"/etc", b"a\0b", b"\0"])
def test_such_a_name_is_refused_wherever_a_name_is_given(scene: Scene, name: bytes) -> None:
    file, free = scene.guest.walk(b"file"), scene.guest.walk()
    for request in (
        m.Tlcreate(free, name, 0, 0o644, 0), m.Tmkdir(ROOT, name, 0o755, 0), m.Tsymlink(ROOT, name, b"x", 0),
        m.Tmknod(ROOT, name, stat.S_IFREG, 0, 0, 0), m.Tlink(ROOT, file, name), m.Trename(file, ROOT, name),
        m.Trenameat(ROOT, b"file", ROOT, name), m.Trenameat(ROOT, name, ROOT, b"new"), m.Tunlinkat(ROOT, name, 0),
        m.Tunlinkat(ROOT, name, REMOVE_DIRECTORY),
    ):
        refused(errno.EINVAL, scene, request)
    if name != b"..":
        refused(errno.EINVAL, scene, m.Twalk(ROOT, 5, (name,)))


def test_the_root_is_neither_renamed_nor_removed_nor_replaced(scene: Scene) -> None:
    directory = scene.guest.walk(b"directory")
    refused(errno.EBUSY, scene, m.Trename(ROOT, directory, b"new"))
    refused(errno.EBUSY, scene, m.Tremove(scene.guest.walk()))
    for name in b"..", b".", b"../shared":
        refused(errno.EINVAL, scene, m.Trenameat(ROOT, b"file", directory, name))
    assert scene.shared.is_dir()


@pytest.mark.parametrize("size", [256, 4096, 65535])
def test_names_longer_than_any_are_refused(scene: Scene, size: int) -> None:
    name = b"x" * size
    refused(errno.ENAMETOOLONG, scene, m.Twalk(ROOT, 5, (name,)))
    refused(errno.ENAMETOOLONG, scene, m.Tmkdir(ROOT, name, 0o755, 0))
    refused(errno.ENAMETOOLONG, scene, m.Trenameat(ROOT, b"file", ROOT, name))


def test_a_dangling_symbolic_link_is_not_created_through(scene: Scene) -> None:
    (scene.shared / "dangling").symlink_to(scene.outside / "new")
    refused(errno.ELOOP, scene, m.Tlcreate(scene.guest.walk(), b"dangling", os.O_WRONLY, 0o644, 0))


def test_a_hard_link_joins_two_names_of_one_export_only(scene: Scene, tmp_path: Path) -> None:
    other = Guest(scene.outside)
    fid = other.walk(b"secret")
    refused(errno.EBADF, scene, m.Tlink(ROOT, fid, b"stolen"))
    refused(errno.EPERM, scene, m.Tlink(ROOT, scene.guest.walk(b"directory"), b"stolen"))


def test_a_walk_from_a_file_or_link_finds_nothing(scene: Scene) -> None:
    for name in b"file", b"to_outside":
        fid = scene.guest.walk(name)
        for below in b"secret", b"..":
            refused(errno.ENOTDIR, scene, m.Twalk(fid, 50, (below,)))
        refused(errno.ENOTDIR, scene, m.Tlcreate(scene.guest.walk(name), b"x", 0, 0o644, 0))


def test_a_symbolic_link_is_not_opened(scene: Scene) -> None:
    refused(errno.ELOOP, scene, m.Tlopen(scene.guest.walk(b"to_secret"), 0))


def test_an_unknown_fid_is_nothing(scene: Scene) -> None:
    for fid in 1, 0x7FFF_FFFF, m.NO_FID:
        for request in m.Tgetattr(fid, 0), m.Tlopen(fid, 0), m.Tread(fid, 0, 10), m.Twalk(fid, 5, ()), m.Tclunk(fid):
            refused(errno.EBADF, scene, request)


def test_a_reply_is_never_longer_than_agreed_on_nor_than_its_room(scene: Scene) -> None:
    (scene.shared / "big").write_bytes(bytes(2 * MSIZE))
    fid, directory = scene.guest.open(b"big"), scene.guest.open()
    for request in m.Tread(fid, 0, 0xFFFF_FFFF), m.Treaddir(directory, 0, 0xFFFF_FFFF):
        for room in 100, 4 * MSIZE:
            reply = scene.guest.raw([m.encode(m.TYPE_OF[type(request)], 1, request)], [room])
            assert len(reply) <= min(room, MSIZE)


def test_a_write_takes_no_more_than_its_frame_has(scene: Scene) -> None:
    fid = scene.guest.create(b"new")
    frame = m.encode(118, 1, m.Twrite(fid, 0, 100), extra=4)
    assert scene.guest.raw([frame, b"dataSECRETS" * 20], [11])[4] == m.RLERROR
    assert (scene.shared / "new").read_bytes() == b""


def test_links_swapped_in_all_the_while_never_lead_outside(scene: Scene) -> None:
    inside, link = scene.shared / "race", scene.shared / "race.link"
    inside.mkdir()
    (inside / "secret").write_bytes(b"harmless")
    link.symlink_to(scene.outside)
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for old, new in (("", ".was"), (".link", ""), ("", ".link"), (".was", "")):
                os.rename(scene.shared / f"race{old}", scene.shared / f"race{new}")

    swapper = threading.Thread(target=swap)
    swapper.start()
    found = set()
    try:
        for _ in range(500):
            try:
                found.add(scene.guest.content(b"race", b"secret"))
            except OSError:
                pass
    finally:
        done.set()
        swapper.join()
    assert SECRET not in found
