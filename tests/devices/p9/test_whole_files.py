"""Whole files by path. Attacks on the host each run twice, as in `test_escapes.py`: with and without their guard."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devices.p9 import export, guards, whole_files
from devices.p9.export import Export
from devices.p9.mapping import Mapping, Security, Unprivileged
from devices.p9.whole_files import WholeFiles
from tests.devices.p9.attacks import CHANGES, FILES, LINKS, NAMES, SECRET, allow
from tests.devices.p9.attacks import build as build_host
from tests.devices.p9.test_escapes import contents

MUCH = 100


@dataclass
class Scene:
    """A host with something to protect (`tests.devices.p9.attacks.build`), and the files a guest may have."""

    outside: Path
    shared: Path
    files: WholeFiles

    def read(self, path: bytes) -> bytes:
        return self.files.read(path, 0, MUCH)

    def write(self, path: bytes, create: bool = False, truncate: bool = False, append: bool = False) -> int:
        return self.files.write(path, 0, b"hostile", create, truncate, append)


def build(tmp_path: Path, read_only: bool = False) -> Scene:
    """One of them."""
    host = build_host(tmp_path)
    return Scene(host.outside, host.shared, WholeFiles(Export(host.shared, "test", read_only)))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """The host; what is outside is checked to be as it was in the end, and no descriptor left open."""
    scene = build(tmp_path)
    before, descriptors = contents(scene.outside), open_descriptors()
    yield scene
    assert contents(scene.outside) == before
    assert open_descriptors() <= descriptors
    scene.files.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def fails(number: int, request: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == number


# --- use ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"file", b"/file", b"//file", b"file/"])
def test_a_file_is_found_by_its_path(scene: Scene, path: bytes) -> None:
    assert scene.read(path) == b"the guest's"


def test_a_file_is_found_below_directories(scene: Scene) -> None:
    (scene.shared / "directory" / "deep").mkdir()
    (scene.shared / "directory" / "deep" / "file").write_bytes(b"deep")
    assert scene.read(b"directory//deep/file") == b"deep"


@pytest.mark.parametrize(
    ("offset", "size", "expected"), [(0, 3, b"the"), (4, 100, b"guest's"), (11, 9, b""), (99, 9, b"")]
)
def test_a_part_is_read(scene: Scene, offset: int, size: int, expected: bytes) -> None:
    assert scene.files.read(b"file", offset, size) == expected


def test_a_write_changes_only_its_bytes(scene: Scene) -> None:
    assert scene.files.write(b"file", 4, b"host", False, False, False) == 4
    assert scene.read(b"file") == b"the hostt's"


def test_a_write_behind_the_end_leaves_zeroes(scene: Scene) -> None:
    scene.files.write(b"file", 13, b"x", False, False, False)
    assert scene.read(b"file") == b"the guest's\0\0x"


def test_truncate_and_append(scene: Scene) -> None:
    assert scene.files.write(b"file", 0, b"new", False, True, False) == 3
    assert scene.files.write(b"file", 0, b"er", False, False, True) == 2
    assert scene.files.write(b"file", 0, b"!", False, False, True) == 1
    assert scene.read(b"file") == b"newer!"


def test_a_file_is_made_only_if_asked(scene: Scene) -> None:
    fails(errno.ENOENT, lambda: scene.write(b"new"))
    assert scene.write(b"directory/new", create=True) == len(b"hostile")
    assert scene.read(b"directory/new") == b"hostile"
    assert scene.write(b"directory/new", create=True, append=True)
    assert scene.read(b"directory/new") == b"hostilehostile"


def test_a_file_that_another_machine_makes_at_the_same_time_is_used(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = scene.files._mapping.create

    def slow_create(*arguments: Any) -> int:
        (scene.shared / "new").write_bytes(b"theirs, ")
        return usual(*arguments)

    monkeypatch.setattr(scene.files._mapping, "create", slow_create)
    scene.write(b"new", create=True, append=True)
    assert scene.read(b"new") == b"theirs, hostile"


@pytest.mark.parametrize("mask", [0, 0o077])
def test_what_is_made_has_mode_0644_and_no_set_id_bits(scene: Scene, mask: int) -> None:
    usual = os.umask(mask)
    try:
        scene.write(b"new", create=True)
    finally:
        os.umask(usual)
    assert (scene.shared / "new").stat().st_mode == stat.S_IFREG | 0o644


@pytest.mark.parametrize(
    ("path", "number"),
    [
        (b"missing", errno.ENOENT), (b"missing/file", errno.ENOENT), (b"file/below", errno.ENOTDIR),
        (b"directory", errno.EISDIR), (b"", errno.EINVAL), (b"/", errno.EINVAL), (b".", errno.EINVAL),
        (b"..", errno.EINVAL), (b"./file", errno.EINVAL), (b"directory/../file", errno.EINVAL),
        (b"file\0", errno.EINVAL), (b"directory\0/file", errno.EINVAL), (b"to_secret", errno.ELOOP),
        (b"to_outside/secret", errno.ELOOP), (b"x" * 256, errno.ENAMETOOLONG), (b"x" * 65536, errno.ENAMETOOLONG),
        (b"x" * 65536 + b"/file", errno.ENAMETOOLONG), (b"x/" * 32768, errno.ENOENT),
    ],
)
def test_what_is_no_file_has_its_errno(scene: Scene, path: bytes, number: int) -> None:
    fails(number, lambda: scene.read(path))
    fails(number, lambda: scene.write(path))
    fails(number, lambda: scene.write(path, truncate=True))


@pytest.mark.parametrize("security", Security)
def test_each_security_model_has_the_files(scene: Scene, security: Security) -> None:
    with closing(WholeFiles(Export(scene.shared, "test", security=security))) as files:
        try:
            files.write(b"new", 0, b"content", True, False, False)
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.EPERM):
                pytest.skip("the file system has no attributes of users, or only root may give files away")
            raise
        assert files.read(b"new", 0, MUCH) == b"content"


def test_a_file_that_grows_beyond_a_limit_is_an_errno(scene: Scene) -> None:
    fails(errno.EFBIG, lambda: scene.files.write(b"file", (1 << 63) - 8, b"hostile", False, False, False))
    assert scene.read(b"file") == b"the guest's"


# --- attacks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """What a guest does; true if it got what it wanted. An OSError is the refusal."""

    name: str
    run: Callable[[Scene], object]
    without: dict[str, Any]             # what stands in for the guards that stop it
    scene: dict[str, Any] = field(default_factory=dict)
    needs_root: bool = False


def read_secret(path: bytes) -> Callable[[Scene], object]:
    return lambda scene: scene.read(path) == SECRET


def overwrite_secret(path: bytes, truncate: bool) -> Callable[[Scene], object]:
    def run(scene: Scene) -> object:
        scene.write(path, truncate=truncate)
        return (scene.outside / "secret").read_bytes() != SECRET

    return run


def create_outside(path: bytes) -> Callable[[Scene], object]:
    def run(scene: Scene) -> object:
        scene.write(path, create=True)
        return (scene.outside / "new").exists()

    return run


def create_where_a_link_appears(scene: Scene) -> object:
    """A symbolic link is put there just after the file was found missing."""
    class Slow(Unprivileged):
        def create(self, directory: int, name: bytes, *rest: int) -> int:
            (scene.shared / "new").symlink_to(scene.outside / "new")
            return Mapping.create(self, directory, name, *rest)

    scene.files._mapping = Slow()
    scene.write(b"new", create=True)
    return (scene.outside / "new").exists()


def read_fifo(scene: Scene) -> object:
    os.mkfifo(scene.shared / "fifo")
    try:
        scene.read(b"fifo")
    except OSError as error:
        if error.errno != errno.ESPIPE:
            raise
    return True                         # it was opened


def write_fifo(scene: Scene) -> object:
    os.mkfifo(scene.shared / "fifo")
    reader = os.open(scene.shared / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        scene.write(b"fifo")
    except OSError as error:
        if error.errno != errno.ESPIPE:
            raise
    finally:
        os.close(reader)
    return True


def read_device(scene: Scene) -> object:
    os.mknod(scene.shared / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    return scene.read(b"zero") == bytes(MUCH)


def write_device(scene: Scene) -> object:
    os.mknod(scene.shared / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return scene.write(b"null")


def breaks(request: Callable[[Scene], object]) -> Callable[[Scene], object]:
    """What the host's own functions are not to see: it would be a traceback."""
    def run(scene: Scene) -> object:
        try:
            request(scene)
        except (ValueError, OverflowError):
            return True
        return False

    return run


def change(request: Callable[[Scene], object]) -> Callable[[Scene], object]:
    """A change of a read-only export; it is enough that it is not refused."""
    return lambda scene: (request(scene), True)[1]


READ_ONLY = {"read_only": True}

ATTACKS = [
    Attack("read upwards", read_secret(b"../outside/secret"), NAMES),
    Attack("read upwards, from below", read_secret(b"directory/../../outside/secret"), NAMES),
    Attack("read upwards, by slashes", read_secret(b"/..//outside/secret"), NAMES),
    Attack("write upwards", overwrite_secret(b"../outside/secret", False), NAMES),
    Attack("truncate upwards", overwrite_secret(b"../outside/secret", True), NAMES),
    Attack("create upwards", create_outside(b"../outside/new"), NAMES),
    Attack("read through a link to a file", read_secret(b"to_secret"), LINKS),
    Attack("read through a link to a directory", read_secret(b"to_outside/secret"), LINKS),
    Attack("read through a chain of links", read_secret(b"to_link/secret"), LINKS),
    Attack("read through a relative link in the middle", read_secret(b"directory/up/outside/secret"), LINKS),
    Attack("write through a link to a file", overwrite_secret(b"to_secret", False), LINKS),
    Attack("truncate through a link to a file", overwrite_secret(b"to_secret", True), LINKS),
    Attack("create through a link to a directory", create_outside(b"to_outside/new"), LINKS),
    Attack("create where a link appears", create_where_a_link_appears, LINKS | {"os.O_EXCL": 0}),
    Attack("read a FIFO", read_fifo, FILES),
    Attack("write to a FIFO", write_fifo, FILES),
    Attack("read a device", read_device, FILES, needs_root=True),
    Attack("write to a device", write_device, FILES, needs_root=True),
    Attack("a NUL in a file's name", breaks(lambda scene: scene.read(b"file\0")), NAMES),
    Attack("a NUL in a directory's name", breaks(lambda scene: scene.read(b"\0/file")), NAMES),
    Attack("an offset of 64 bits", breaks(lambda scene: scene.files.read(b"file", 1 << 63, 1)), {"file_offset": allow}),
    Attack(
        "write at an offset of 64 bits",
        breaks(lambda scene: scene.files.write(b"file", (1 << 64) - 1, b"x", False, False, False)),
        {"file_offset": allow},
    ),
    Attack("read-only: write", change(lambda scene: scene.write(b"file")), CHANGES, READ_ONLY),
    Attack("read-only: truncate", change(lambda scene: scene.write(b"file", truncate=True)), CHANGES, READ_ONLY),
    Attack("read-only: append", change(lambda scene: scene.write(b"file", append=True)), CHANGES, READ_ONLY),
    Attack("read-only: create", change(lambda scene: scene.write(b"new", create=True)), CHANGES, READ_ONLY),
]


def needs(attack: Attack) -> None:
    if attack.needs_root and os.geteuid():
        pytest.skip("only root could do it on the host")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_refused(tmp_path: Path, attack: Attack) -> None:
    needs(attack)
    scene = build(tmp_path, **attack.scene)
    before, descriptors = contents(scene.outside), open_descriptors()
    with pytest.raises(OSError):
        assert not attack.run(scene), "the attack succeeded"
        raise OSError("it did not get anything")
    assert contents(scene.outside) == before
    assert open_descriptors() <= descriptors
    assert scene.read(b"file") == b"the guest's"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_succeeds_without_its_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Attack) -> None:
    needs(attack)
    scene = build(tmp_path, **attack.scene)
    for name, stand_in in attack.without.items():
        monkeypatch.setattr(f"{guards.__name__}.{name}" if "." not in name else name, stand_in)
    assert attack.run(scene)


# --- stopped by more than one thing, or by how it is done ---------------------------------------------------------


def test_an_absolute_path_begins_at_the_directory(scene: Scene) -> None:
    secret = scene.outside / "secret"
    fails(errno.ENOENT, lambda: scene.read(os.fsencode(secret)))
    inside = scene.shared / str(secret).lstrip("/")
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"harmless")
    assert scene.read(os.fsencode(secret)) == b"harmless"


def test_a_dangling_link_is_not_created_through(scene: Scene) -> None:
    (scene.shared / "dangling").symlink_to(scene.outside / "new")
    fails(errno.ELOOP, lambda: scene.write(b"dangling", create=True))


def test_a_socket_is_not_opened(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene.shared)     # its path would be too long for an address
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        listener.listen()
        fails(errno.EOPNOTSUPP, lambda: scene.read(b"socket"))
        fails(errno.EOPNOTSUPP, lambda: scene.write(b"socket", create=True))


def swap(scene: Scene, name: str, target: Path) -> None:
    """A symbolic link takes a file's place."""
    path = scene.shared / name
    path.rename(scene.shared / (name + ".was"))
    path.symlink_to(target)


def swapped_at_the_last_moment(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a file has been found to be one, a symbolic link takes its place before it is opened."""
    usual = guards.openable

    def openable(kind: int) -> None:
        usual(kind)
        swap(scene, "file", scene.outside / "secret")

    monkeypatch.setattr(guards, "openable", openable)


def test_a_file_swapped_for_a_link_before_it_is_opened_is_still_the_file(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped_at_the_last_moment(scene, monkeypatch)
    assert scene.read(b"file") == b"the guest's"


def test_opened_again_by_its_name_it_would_be_the_secret(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above can tell the difference."""
    swapped_at_the_last_moment(scene, monkeypatch)
    monkeypatch.setattr(export, "descriptor_path", lambda fd: os.fsencode(scene.shared / "file"))
    assert scene.read(b"file") == SECRET


def test_a_directory_swapped_for_a_link_on_the_way_is_still_the_directory(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scene.shared / "directory" / "secret").write_bytes(b"harmless")
    usual = scene.files._open

    def slow_open(directory: int, name: bytes, flags: int) -> int:
        swap(scene, "directory", scene.outside)
        return usual(directory, name, flags)

    monkeypatch.setattr(scene.files, "_open", slow_open)
    assert scene.read(b"directory/secret") == b"harmless"


def test_links_swapped_in_all_the_while_never_lead_outside(scene: Scene) -> None:
    inside, link = scene.shared / "race", scene.shared / "race.link"
    inside.mkdir()
    (inside / "secret").write_bytes(b"harmless")
    link.symlink_to(scene.outside)
    done = threading.Event()

    def swap_all_the_while() -> None:
        while not done.is_set():
            for old, new in (("", ".was"), (".link", ""), ("", ".link"), (".was", "")):
                os.rename(scene.shared / f"race{old}", scene.shared / f"race{new}")

    swapper = threading.Thread(target=swap_all_the_while)
    swapper.start()
    found = set()
    try:
        for _ in range(500):
            for request in (lambda: scene.read(b"race/secret"), lambda: scene.write(b"race/new", create=True)):
                try:
                    found.add(request())
                except OSError:
                    pass
    finally:
        done.set()
        swapper.join()
    assert SECRET not in found          # and the fixture finds nothing new outside


def test_the_directory_is_the_one_it_was_when_the_machine_was_made(scene: Scene) -> None:
    scene.shared.rename(scene.shared.parent / "moved")
    scene.shared.symlink_to(scene.outside)
    assert scene.read(b"file") == b"the guest's"
    fails(errno.ENOENT, lambda: scene.read(b"secret"))


def test_a_long_path_costs_little(scene: Scene) -> None:
    """No descriptor for each component, and each is opened once."""
    opened = []
    usual = os.open
    deep = b"d/" * 100
    (scene.shared / os.fsdecode(deep)).mkdir(parents=True)

    def counting(*arguments: Any, **keywords: Any) -> int:
        opened.append(open_descriptors())
        return usual(*arguments, **keywords)

    before = open_descriptors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_files.os, "open", counting)
        fails(errno.ENOENT, lambda: scene.read(deep + b"file"))
    assert len(opened) == 101 and max(opened) <= before + 2
