"""What a hostile guest tries on the host, and the guards that stop it; `test_escapes.py` runs the table."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.p9 import messages as m
from devices.p9.attributes import SET_MODE, SET_SIZE
from devices.p9.export import Limits
from devices.p9.mapping import Security
from tests.devices.p9.client import ROOT, Guest
from tests.devices.p9.test_attributes import set_xattr

__all__ = ["ATTACKS", "REMOVE_DIRECTORY", "SECRET", "Attack", "Scene", "build"]

SECRET = b"the host's secret"
TRUNC = 0o1000
REMOVE_DIRECTORY = 0x200


@dataclass
class Scene:
    """A host with something to protect."""

    outside: Path
    shared: Path
    guest: Guest

    @property
    def secret(self) -> Path:
        return self.outside / "secret"

    def swap(self, name: str, replace: Callable[[Path], None]) -> None:
        """The host, or an accomplice in it, puts something else where a file was."""
        path = self.shared / name
        path.rename(self.shared / (name + ".was"))
        replace(path)


Run = Callable[[Scene], object]


def allow(*_: object) -> None:
    """A guard that is not there."""


@dataclass(frozen=True)
class Attack:
    """What a guest does; true if it got what it wanted. An OSError is the refusal."""

    name: str
    run: Run
    without: dict[str, Any]             # what stands in for the guards that stop it
    scene: dict[str, Any] = field(default_factory=dict)
    needs_root: bool = False


NAMES = {"single_name": allow}
LINKS = {"NOFOLLOW": 0}
SWAPS = {"same_file": allow}
SWAPPED_LINKS = LINKS | SWAPS
FILES = {"openable": allow}
CHANGES = {"writable_export": allow}
READ_ONLY = {"read_only": True}


def walk_up(names: tuple[bytes, ...]) -> Run:
    return lambda scene: scene.guest.content(*names) == SECRET


def walk_absolute(scene: Scene) -> object:
    return scene.guest.content(os.fsencode(scene.secret)) == SECRET


def create_above(scene: Scene) -> object:
    scene.guest.create(b"../outside/new")
    return (scene.outside / "new").exists()


def mkdir_above(scene: Scene) -> object:
    scene.guest.send(m.Tmkdir(ROOT, b"../outside/new", 0o755, 0))
    return (scene.outside / "new").exists()


def symlink_above(scene: Scene) -> object:
    scene.guest.send(m.Tsymlink(ROOT, b"../outside/new", b"/", 0))
    return (scene.outside / "new").is_symlink()


def mknod_above(scene: Scene) -> object:
    scene.guest.send(m.Tmknod(ROOT, b"../outside/new", stat.S_IFIFO | 0o600, 0, 0, 0))
    return (scene.outside / "new").is_fifo()


def link_above(scene: Scene) -> object:
    scene.guest.send(m.Tlink(ROOT, scene.guest.walk(b"file"), b"../outside/new"))
    return (scene.outside / "new").exists()


def unlink_above(scene: Scene) -> object:
    scene.guest.send(m.Tunlinkat(ROOT, b"../outside/secret", 0))
    return not scene.secret.exists()


def rmdir_above(scene: Scene) -> object:
    scene.guest.send(m.Tunlinkat(ROOT, b"../outside/empty", REMOVE_DIRECTORY))
    return not (scene.outside / "empty").exists()


def rename_from_above(scene: Scene) -> object:
    scene.guest.send(m.Trenameat(ROOT, b"../outside/secret", ROOT, b"stolen"))
    return scene.guest.content(b"stolen") == SECRET


def renameat_to_above(scene: Scene) -> object:
    scene.guest.send(m.Trenameat(ROOT, b"file", ROOT, b"../outside/secret"))
    return scene.secret.read_bytes() != SECRET


def rename_to_above(scene: Scene) -> object:
    scene.guest.send(m.Trename(scene.guest.walk(b"file"), ROOT, b"../outside/secret"))
    return scene.secret.read_bytes() != SECRET


def read_linked(*names: bytes) -> Run:
    return lambda scene: scene.guest.content(*names) == SECRET


def stat_link(scene: Scene) -> object:
    return scene.guest.stat(scene.guest.walk(b"to_secret")).size == len(SECRET)


def truncate_linked(scene: Scene) -> object:
    scene.guest.set(scene.guest.walk(b"to_secret"), SET_SIZE, size=0)
    return scene.secret.stat().st_size == 0


def chmod_linked(scene: Scene) -> object:
    scene.guest.set(scene.guest.walk(b"to_secret"), SET_MODE, mode=0o777)
    return stat.S_IMODE(scene.secret.stat().st_mode) == 0o777


def create_in_linked(scene: Scene) -> object:
    scene.guest.create(b"new", start=scene.guest.walk(b"to_outside"))
    return (scene.outside / "new").exists()


def list_linked(scene: Scene) -> object:
    return b"secret" in scene.guest.names(b"to_outside")


def mkdir_in_linked(scene: Scene) -> object:
    scene.guest.send(m.Tmkdir(scene.guest.walk(b"to_outside"), b"new", 0o755, 0))
    return (scene.outside / "new").exists()


def unlink_in_linked(scene: Scene) -> object:
    scene.guest.send(m.Tunlinkat(scene.guest.walk(b"to_outside"), b"secret", 0))
    return not scene.secret.exists()


def rename_out_by_link(scene: Scene) -> object:
    scene.guest.send(m.Trenameat(scene.guest.walk(b"to_outside"), b"secret", ROOT, b"stolen"))
    return scene.guest.content(b"stolen") == SECRET


def hard_link_of_linked(scene: Scene) -> object:
    scene.guest.send(m.Tlink(ROOT, scene.guest.walk(b"to_secret"), b"hard"))
    return scene.guest.content(b"hard") == SECRET


def xattr_of_linked(scene: Scene) -> object:
    set_xattr(scene.guest, b"user.mark", b"1", path=b"to_secret")
    return os.listxattr(scene.secret) == ["user.mark"]


def swap_directory_for_link_then_walk(scene: Scene) -> object:
    fid = scene.guest.walk(b"directory")
    scene.swap("directory", lambda path: path.symlink_to(scene.outside))
    return scene.guest.walk(b"secret", start=fid)


def swap_directory_for_link_then_create(scene: Scene) -> object:
    fid = scene.guest.walk(b"directory")
    scene.swap("directory", lambda path: path.symlink_to(scene.outside))
    scene.guest.create(b"new", start=fid)
    return (scene.outside / "new").exists()


def swap_file_for_link_then_open(scene: Scene) -> object:
    fid = scene.guest.walk(b"file")
    scene.swap("file", lambda path: path.symlink_to(scene.secret))
    scene.guest.send(m.Tlopen(fid, 0))
    return scene.guest.read(fid) == SECRET


def swap_file_for_link_then_chmod(scene: Scene) -> object:
    fid = scene.guest.walk(b"file")
    scene.swap("file", lambda path: path.symlink_to(scene.secret))
    scene.guest.set(fid, SET_MODE, mode=0o777)
    return stat.S_IMODE(scene.secret.stat().st_mode) == 0o777


def swap_directory_for_another(scene: Scene) -> object:
    fid = scene.guest.walk(b"directory")
    scene.swap("directory", lambda path: path.mkdir())
    return scene.guest.create(b"new", start=fid)


def swap_file_for_fifo_then_open(scene: Scene) -> object:
    fid = scene.guest.walk(b"file")
    scene.swap("file", os.mkfifo)
    scene.guest.send(m.Tlopen(fid, 0))
    return True


def open_fifo(scene: Scene) -> object:
    os.mkfifo(scene.shared / "fifo")
    return scene.guest.open(b"fifo")


def create_over_fifo(scene: Scene) -> object:
    os.mkfifo(scene.shared / "fifo")
    return scene.guest.create(b"fifo")


def open_device(scene: Scene) -> object:
    os.mknod(scene.shared / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    return scene.guest.read(scene.guest.open(b"zero"), 0, 4) == bytes(4)


def write_device(scene: Scene) -> object:
    os.mknod(scene.shared / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return scene.guest.write(scene.guest.open(b"null", flags=os.O_WRONLY), b"x")


def make_device(kind: int) -> Run:
    def run(scene: Scene) -> object:
        scene.guest.send(m.Tmknod(ROOT, b"device", kind | 0o666, 1, 3, 0))
        return stat.S_IFMT((scene.shared / "device").stat().st_mode) == kind

    return run


def has_set_id(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID))


def create_set_id(scene: Scene) -> object:
    scene.guest.create(b"new", mode=0o6755)
    return has_set_id(scene.shared / "new")


def make_set_id(scene: Scene) -> object:
    scene.guest.set(scene.guest.walk(b"file"), SET_MODE, mode=0o6755)
    return has_set_id(scene.shared / "file")


def mknod_set_id(scene: Scene) -> object:
    scene.guest.send(m.Tmknod(ROOT, b"new", stat.S_IFREG | 0o4755, 0, 0, 0))
    return has_set_id(scene.shared / "new")


def forge_owner(scene: Scene) -> object:
    set_xattr(scene.guest, b"user.virtfs.uid", bytes(4))
    return "user.virtfs.uid" in os.listxattr(scene.shared / "file")


def set_trusted_xattr(scene: Scene) -> object:
    set_xattr(scene.guest, b"trusted.mark", b"1")
    return "trusted.mark" in os.listxattr(scene.shared / "file")


def get_trusted_xattr(scene: Scene) -> object:
    os.setxattr(scene.shared / "file", "trusted.mark", b"1")
    return scene.guest.send(m.Txattrwalk(scene.guest.walk(b"file"), 50, b"trusted.mark")).size


def read_directory_at(offset: int) -> Run:
    def run(scene: Scene) -> object:
        try:
            scene.guest.entries(scene.guest.open(), offset=offset)
        except IndexError:
            return True                 # the server broke
        return False

    return run


def take_fid_by_walk(scene: Scene) -> object:
    fid = scene.guest.open(b"file", flags=os.O_RDWR)
    scene.guest.send(m.Twalk(ROOT, fid, (b"directory",)))
    return stat.S_ISDIR(scene.guest.stat(fid).mode)


def take_fid_by_attach(scene: Scene) -> object:
    fid = scene.guest.open(b"file")
    scene.guest.attach(fid)
    return stat.S_ISDIR(scene.guest.stat(fid).mode)


def take_fid_by_xattr(scene: Scene) -> object:
    fid = scene.guest.open(b"file")
    return scene.guest.send(m.Txattrwalk(ROOT, fid, b""))


def fill_fids(scene: Scene) -> object:
    return [scene.guest.walk() for _ in range(50)]


def fill_descriptors(scene: Scene) -> object:
    return [scene.guest.open(b"file") for _ in range(30)]


def change(request: Callable[[Guest], object]) -> Run:
    """A change of a read-only export; it is enough that it is not refused."""
    return lambda scene: (request(scene.guest), True)[1]


ATTACKS = [
    Attack("walk to a path upwards", walk_up((b"../outside/secret",)), NAMES),
    Attack("walk to a path that goes down first", walk_up((b"directory/../../outside/secret",)), NAMES),
    Attack("walk upwards by a name with a slash behind", walk_up((b"../", b"outside", b"secret")), NAMES),
    Attack("walk to an absolute path", walk_absolute, NAMES),
    Attack("create above the root", create_above, NAMES),
    Attack("make a directory above the root", mkdir_above, NAMES),
    Attack("make a symbolic link above the root", symlink_above, NAMES),
    Attack("make a FIFO above the root", mknod_above, NAMES),
    Attack("hard link to above the root", link_above, NAMES),
    Attack("remove a file above the root", unlink_above, NAMES),
    Attack("remove a directory above the root", rmdir_above, NAMES),
    Attack("rename from above the root", rename_from_above, NAMES),
    Attack("rename by name to above the root", renameat_to_above, NAMES),
    Attack("rename by fid to above the root", rename_to_above, NAMES),
    Attack("read through a symbolic link to a file", read_linked(b"to_secret"), LINKS),
    Attack("read through a symbolic link to a directory", read_linked(b"to_outside", b"secret"), LINKS),
    Attack("read through a chain of symbolic links", read_linked(b"to_link", b"secret"), LINKS),
    Attack("read through a relative symbolic link", read_linked(b"directory", b"up", b"outside", b"secret"), LINKS),
    Attack("stat through a symbolic link", stat_link, LINKS),
    Attack("truncate through a symbolic link", truncate_linked, LINKS),
    Attack("chmod through a symbolic link", chmod_linked, LINKS),
    Attack("create through a symbolic link", create_in_linked, LINKS),
    Attack("list through a symbolic link", list_linked, LINKS),
    Attack("make a directory through a symbolic link", mkdir_in_linked, LINKS),
    Attack("remove through a symbolic link", unlink_in_linked, LINKS),
    Attack("rename out through a symbolic link", rename_out_by_link, LINKS),
    Attack("hard link of what a symbolic link leads to", hard_link_of_linked, LINKS),
    Attack("extended attribute through a symbolic link", xattr_of_linked, LINKS),
    Attack("directory swapped for a link before a walk", swap_directory_for_link_then_walk, SWAPPED_LINKS),
    Attack("directory swapped for a link before a create", swap_directory_for_link_then_create, SWAPPED_LINKS),
    Attack("file swapped for a link before an open", swap_file_for_link_then_open, SWAPPED_LINKS),
    Attack("file swapped for a link before a chmod", swap_file_for_link_then_chmod, SWAPPED_LINKS),
    Attack("directory swapped for another", swap_directory_for_another, SWAPS),
    Attack("file swapped for a FIFO before an open", swap_file_for_fifo_then_open, SWAPS),
    Attack("open a FIFO", open_fifo, FILES),
    Attack("create where a FIFO is", create_over_fifo, FILES),
    Attack("read a device", open_device, FILES, needs_root=True),
    Attack("write to a device", write_device, FILES, needs_root=True),
    Attack("make a character device", make_device(stat.S_IFCHR), {"no_device": allow}, needs_root=True),
    Attack("make a block device", make_device(stat.S_IFBLK), {"no_device": allow}, needs_root=True),
    Attack("create a set-user-id program", create_set_id, {"host_mode": stat.S_IMODE}),
    Attack("mknod a set-user-id program", mknod_set_id, {"host_mode": stat.S_IMODE}),
    Attack("make a program set-user-id", make_set_id, {"host_mode": stat.S_IMODE}),
    Attack("forge a mapped owner", forge_owner, {"shared_xattr": allow}, {"security": Security.MAPPED}),
    Attack("set a trusted attribute", set_trusted_xattr, {"shared_xattr": allow}, needs_root=True),
    Attack("get a trusted attribute", get_trusted_xattr, {"shared_xattr": allow}, needs_root=True),
    Attack("list from an offset past the end", read_directory_at(1000), {"cookie": allow}),
    Attack("list from an offset of 63 bits", read_directory_at((1 << 63) - 1), {"cookie": allow}),
    Attack("walk to a fid in use", take_fid_by_walk, {"free_fid": allow}),
    Attack("attach a fid in use", take_fid_by_attach, {"free_fid": allow}),
    Attack("read attributes by a fid in use", take_fid_by_xattr, {"free_fid": allow}),
    Attack("more fids than there may be", fill_fids, {"room": allow}, {"limits": Limits(8, 20, fids=40)}),
    Attack("more open files than there may be", fill_descriptors, {"room": allow}, {"limits": Limits(8, 20)}),
] + [
    Attack(f"read-only: {name}", change(request), CHANGES, READ_ONLY)
    for name, request in {
        "create": lambda guest: guest.create(b"new"),
        "open to write": lambda guest: guest.open(b"file", flags=os.O_WRONLY),
        "open to truncate": lambda guest: guest.open(b"file", flags=TRUNC),
        "chmod": lambda guest: guest.set(guest.walk(b"file"), SET_MODE, mode=0o777),
        "make a directory": lambda guest: guest.send(m.Tmkdir(ROOT, b"new", 0o755, 0)),
        "make a symbolic link": lambda guest: guest.send(m.Tsymlink(ROOT, b"new", b"x", 0)),
        "make a FIFO": lambda guest: guest.send(m.Tmknod(ROOT, b"new", stat.S_IFIFO, 0, 0, 0)),
        "hard link": lambda guest: guest.send(m.Tlink(ROOT, guest.walk(b"file"), b"new")),
        "rename by fid": lambda guest: guest.send(m.Trename(guest.walk(b"file"), ROOT, b"new")),
        "rename by name": lambda guest: guest.send(m.Trenameat(ROOT, b"file", ROOT, b"new")),
        "remove by name": lambda guest: guest.send(m.Tunlinkat(ROOT, b"file", 0)),
        "remove by fid": lambda guest: guest.send(m.Tremove(guest.walk(b"file"))),
        "extended attribute": lambda guest: set_xattr(guest, b"user.x", b"1"),
    }.items()
]


def build(tmp_path: Path, **options: Any) -> Scene:
    """The host of `Scene`."""
    outside, shared = tmp_path / "outside", tmp_path / "shared"
    (outside / "empty").mkdir(parents=True)
    (outside / "secret").write_bytes(SECRET)
    (outside / "secret").chmod(0o600)
    (shared / "directory").mkdir(parents=True)
    (shared / "file").write_bytes(b"the guest's")
    (shared / "to_secret").symlink_to(outside / "secret")
    (shared / "to_outside").symlink_to(outside)
    (shared / "to_link").symlink_to("to_outside")
    (shared / "directory" / "up").symlink_to("../..")
    return Scene(outside, shared, Guest(shared, **options))
