"""How a guest's owners, modes and special files are kept on the host: QEMU's security models.

A guest's root owns what it makes, but the host process seldom may say so. What differs between the models is here;
the names are the ones that users of QEMU's `security_model=` know:

- `none`: modes are the host's, owners as far as the host lets; a chown that the host refuses is done as far as the
  guest is told. The user who runs the machine is root in the guest, so that a user's own tree looks like root's and
  `git` or `tar` there have nothing to complain of. Set-user-id bits and device nodes do not reach the host. The
  default: files that both sides use, without privileges.
- `mapped`: owner, mode and device number are in extended attributes, as QEMU's `mapped-xattr` has them
  (`user.virtfs.uid`, `.gid`, `.mode`, 32 bits little-endian, `.rdev`, 64 bits); a symbolic link or special file
  is a regular file, and everything belongs to the user who runs the machine, 0600 or 0700. For a whole system's
  root without privileges on the host.
- `passthrough`: everything as it is. Needs root on the host, and a guest that is trusted with it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from enum import Enum
from typing import NamedTuple

from devices.p9 import guards
from devices.p9.messages import NO_ID

__all__ = ["Attributes", "Mapped", "Mapping", "Passthrough", "Security", "Unprivileged", "descriptor_path"]

HIDDEN = guards.HIDDEN
UID, GID, MODE, RDEV = (HIDDEN + name for name in (b"uid", b"gid", b"mode", b"rdev"))
LAYOUTS = {UID: struct.Struct("<I"), GID: struct.Struct("<I"), MODE: struct.Struct("<I"), RDEV: struct.Struct("<Q")}
STORED_NAMESPACES = b"security.", b"trusted."       # that `mapped` keeps behind HIDDEN
LONGEST_TARGET = 4095                               # of a symbolic link
PATH_FLAGS = os.O_PATH | os.O_CLOEXEC


class Security(Enum):
    """Which mapping an export has; see the module."""

    NONE = "none"
    MAPPED = "mapped"
    PASSTHROUGH = "passthrough"

    def mapping(self) -> Mapping:
        """One for this process's user."""
        return {"none": Unprivileged, "mapped": Mapped, "passthrough": Passthrough}[self.value]()


class Attributes(NamedTuple):
    """What the guest sees of an inode where it may differ from what the host has."""

    mode: int
    uid: int
    gid: int
    rdev: int


def descriptor_path(fd: int) -> bytes:
    """A path that stands for an open descriptor, `O_PATH` ones included, without being resolved by name."""
    return b"/proc/self/fd/%d" % fd


class Mapping:
    """The host's own owners and modes; base of all."""

    def attributes(self, status: os.stat_result, fd: int, name: bytes | None = None) -> Attributes:
        """What the guest sees of a file that the host describes so.

        Args:
            status: of the host.
            fd: its descriptor; or its directory's, if there is
            name: in that directory.
        """
        return Attributes(status.st_mode, status.st_uid, status.st_gid, status.st_rdev)

    def create(self, directory: int, name: bytes, flags: int, mode: int, uid: int, gid: int) -> int:
        """Make a regular file that was not there, and open it."""
        flags |= os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | guards.NOFOLLOW
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            self.finish(descriptor_path(fd), stat.S_IFREG | stat.S_IMODE(mode), uid, gid)
        except OSError:
            os.close(fd)
            os.unlink(name, dir_fd=directory)
            raise
        return fd

    def mkdir(self, directory: int, name: bytes, mode: int, uid: int, gid: int) -> None:
        """Make a directory."""
        os.mkdir(name, 0o700, dir_fd=directory)
        self._finish_new(directory, name, stat.S_IFDIR | stat.S_IMODE(mode), uid, gid)

    def symlink(self, directory: int, name: bytes, target: bytes, uid: int, gid: int) -> None:
        """Make a symbolic link."""
        os.symlink(target, name, dir_fd=directory)
        self._finish_new(directory, name, stat.S_IFLNK | 0o777, uid, gid)

    def mknod(self, directory: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> None:
        """Make a special file."""
        os.mknod(name, stat.S_IFMT(mode) | 0o600, rdev, dir_fd=directory)
        self._finish_new(directory, name, mode, uid, gid)

    def _finish_new(self, directory: int, name: bytes, mode: int, uid: int, gid: int) -> None:
        """`finish` what was made under that name, by descriptor: the name may be another file's by now."""
        try:
            fd = os.open(name, PATH_FLAGS | guards.NOFOLLOW, dir_fd=directory)
            try:
                self.finish(descriptor_path(fd), mode, uid, gid)
            finally:
                os.close(fd)
        except OSError:
            (os.rmdir if stat.S_ISDIR(mode) else os.unlink)(name, dir_fd=directory)
            raise

    def finish(self, path: bytes, mode: int, uid: int, gid: int) -> None:
        """Give a new file its owner and mode; the owner first, for a change of it clears the set-id bits."""
        self.chown(path, uid, gid)
        if not stat.S_ISLNK(mode):
            self.chmod(path, mode)

    def chmod(self, path: bytes, mode: int) -> None:
        """Set the mode; `mode` has the file's type, too."""
        os.chmod(path, stat.S_IMODE(mode))

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        """Set the owners that are not NO_ID."""
        os.chown(path, -1 if uid == NO_ID else uid, -1 if gid == NO_ID else gid)

    def readlink(self, fd: int) -> bytes:
        """What a symbolic link says."""
        return os.readlink(b"", dir_fd=fd)

    def host_xattr(self, name: bytes) -> bytes:
        """Under which name the host has an extended attribute of the guest's."""
        guards.shared_xattr(name)
        return name

    def guest_xattr(self, name: bytes) -> bytes | None:
        """The other way round; None if it is not for the guest."""
        return name if name.startswith(b"user.") and not name.startswith(HIDDEN) else None

    def directory_type(self, kind: int) -> int:
        """The guest's file type of a directory entry with that type on the host; 0 if that does not say."""
        return kind


class Passthrough(Mapping):
    """Everything as it is."""


class Unprivileged(Mapping):
    """`none`: without privileges on the host, and with none to give."""

    def __init__(self) -> None:
        self._uid, self._gid = os.geteuid(), os.getegid()

    def attributes(self, status: os.stat_result, fd: int, name: bytes | None = None) -> Attributes:
        """The user who runs the machine is root."""
        uid, gid = status.st_uid, status.st_gid
        return Attributes(
            status.st_mode, 0 if uid == self._uid else uid, 0 if gid == self._gid else gid, status.st_rdev
        )

    def mknod(self, directory: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> None:
        """Make a FIFO or socket; no device."""
        guards.no_device(mode)
        super().mknod(directory, name, mode, rdev, uid, gid)

    def chmod(self, path: bytes, mode: int) -> None:
        """Set the mode, without the set-id bits that would make a guest's program run as a user of the host."""
        os.chmod(path, guards.host_mode(mode))

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        """Set the owners as far as the host lets."""
        try:
            super().chown(path, self._uid if uid == 0 else uid, self._gid if gid == 0 else gid)
        except PermissionError:
            pass                        # the guest's root may; its owners are not the host's


class Mapped(Unprivileged):
    """`mapped`: owners, modes and special files in extended attributes of plain files."""

    def attributes(self, status: os.stat_result, fd: int, name: bytes | None = None) -> Attributes:
        """What the extended attributes say, and the host where there are none."""
        found = super().attributes(status, fd, name)
        if stat.S_IFMT(status.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            return found
        path, follow = descriptor_path(fd), True
        if name is not None:
            path, follow = path + b"/" + name, False
        values = {}
        for key in os.listxattr(path, follow_symlinks=follow):
            host_name = os.fsencode(key)
            layout = LAYOUTS.get(host_name)
            if layout is not None:
                value = os.getxattr(path, host_name, follow_symlinks=follow)
                if len(value) == layout.size:
                    (values[host_name],) = layout.unpack(value)
        mode = values.get(MODE, found.mode)
        if stat.S_ISDIR(mode) != stat.S_ISDIR(status.st_mode):
            mode = found.mode           # no attribute turns a file into a directory
        return Attributes(mode, values.get(UID, found.uid), values.get(GID, found.gid), values.get(RDEV, found.rdev))

    def symlink(self, directory: int, name: bytes, target: bytes, uid: int, gid: int) -> None:
        """A file with the target in it."""
        fd = self.create(directory, name, os.O_WRONLY, 0, uid, gid)
        try:
            os.write(fd, target)
            self.chmod(descriptor_path(fd), stat.S_IFLNK | 0o777)
        except OSError:
            os.unlink(name, dir_fd=directory)
            raise
        finally:
            os.close(fd)

    def mknod(self, directory: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> None:
        """An empty file."""
        fd = self.create(directory, name, os.O_WRONLY, 0, uid, gid)
        try:
            self.chmod(descriptor_path(fd), mode)
            _store(descriptor_path(fd), RDEV, rdev)
        except OSError:
            os.unlink(name, dir_fd=directory)
            raise
        finally:
            os.close(fd)

    def chmod(self, path: bytes, mode: int) -> None:
        """Keep the mode."""
        _store(path, MODE, mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        """Keep the owners."""
        for name, value in ((UID, uid), (GID, gid)):
            if value != NO_ID:
                _store(path, name, value)

    def readlink(self, fd: int) -> bytes:
        """The file's contents; or, of a link that the host made, what it says."""
        status = os.fstat(fd)
        if stat.S_ISLNK(status.st_mode):
            return super().readlink(fd)
        if not stat.S_ISLNK(self.attributes(status, fd).mode):
            raise guards.refuse(errno.EINVAL)
        opened = os.open(descriptor_path(fd), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(opened, LONGEST_TARGET)
        finally:
            os.close(opened)

    def host_xattr(self, name: bytes) -> bytes:
        """The user's own as they are, the system's behind our prefix."""
        if name.startswith(STORED_NAMESPACES) and b"\0" not in name:
            return HIDDEN + name
        return super().host_xattr(name)

    def guest_xattr(self, name: bytes) -> bytes | None:
        """The user's own, and the system's that are behind our prefix."""
        if name.startswith(HIDDEN):
            stored = name.removeprefix(HIDDEN)
            return stored if stored.startswith(STORED_NAMESPACES) else None
        return super().guest_xattr(name)

    def directory_type(self, kind: int) -> int:
        """A regular file may be anything."""
        return 0 if kind == stat.S_IFREG else kind


def _store(path: bytes, name: bytes, value: int) -> None:
    os.setxattr(path, name, LAYOUTS[name].pack(value))
