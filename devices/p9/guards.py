"""What stands between a guest and the host: each check that a hostile request runs into, on its own.

Every one of them raises `OSError` with the errno that the guest is told. They are functions of this module, and
called through it, so that the tests of attacks can take one out and see its attack succeed.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices.p9.nodes import Node

__all__ = [
    "NOFOLLOW",
    "Identity",
    "at_root",
    "cookie",
    "file_offset",
    "free_fid",
    "host_mode",
    "no_device",
    "openable",
    "opened_for",
    "refuse",
    "room",
    "same_file",
    "shared_xattr",
    "single_name",
    "writable_export",
]

NOFOLLOW = os.O_NOFOLLOW                # in every open of a name
NAME_MAX = 255
LARGEST_OFFSET = (1 << 63) - 1          # off_t
HIDDEN = b"user.virtfs."                # where mappings keep what the host's inode cannot hold


Identity = tuple[int, int, int]         # device, inode number, file type


def refuse(number: int) -> OSError:
    """The exception that tells the guest this errno."""
    return OSError(number, os.strerror(number))


def single_name(name: bytes) -> None:
    """One component that names an entry of its directory: no path, and neither the directory nor its parent."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise refuse(errno.EINVAL)
    if len(name) > NAME_MAX:
        raise refuse(errno.ENAMETOOLONG)


def identity(status: os.stat_result) -> Identity:
    """What tells a file from another that took its name."""
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


def same_file(expected: Identity, found: os.stat_result) -> None:
    """What was opened by name again is what the fid was walked to, not something put there since."""
    if identity(found) != expected:
        raise refuse(errno.ESTALE)


def openable(kind: int) -> None:
    """Opening a device, FIFO or socket has effects on the host, or blocks; a symbolic link leads anywhere."""
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise refuse(errno.ELOOP if kind == stat.S_IFLNK else errno.EOPNOTSUPP)


def opened_for(flags: int, other: int) -> None:
    """A file is used as the guest opened it, whatever else the host's descriptor is good for."""
    if flags & os.O_ACCMODE == other:
        raise refuse(errno.EBADF)


def writable_export(read_only: bool) -> None:
    """Nothing changes in a read-only export."""
    if read_only:
        raise refuse(errno.EROFS)


def at_root(node: Node) -> bool:
    """Whether there is nothing above for the guest: the parent of the export's root is the root."""
    return node.is_root


def host_mode(mode: int) -> int:
    """The mode a guest may give a file that belongs to a host user: no program of its making runs as that user."""
    if stat.S_ISDIR(mode):
        return stat.S_IMODE(mode) & ~stat.S_ISUID
    return stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID)


def no_device(mode: int) -> None:
    """A device node in an export would be the host's device."""
    if stat.S_IFMT(mode) in (stat.S_IFCHR, stat.S_IFBLK):
        raise refuse(errno.EPERM)


def shared_xattr(name: bytes) -> None:
    """Only the user's own attributes: others give host files capabilities, labels or access lists."""
    if name.startswith(HIDDEN):
        raise refuse(errno.EACCES)
    if not name.startswith(b"user.") or b"\0" in name:
        raise refuse(errno.EOPNOTSUPP)


def file_offset(offset: int) -> None:
    """An offset or a size that a file can have."""
    if offset > LARGEST_OFFSET:
        raise refuse(errno.EINVAL)


def cookie(offset: int, entries: int) -> None:
    """An offset that a Rreaddir gave, of a directory with so many entries."""
    if offset > entries:
        raise refuse(errno.EINVAL)


def room(now: int, most: int) -> None:
    """A table of the guest's stays within what it may cost the host."""
    if now >= most:
        raise refuse(errno.ENFILE)


def free_fid(taken: bool) -> None:
    """A fid names one file until it is clunked."""
    if taken:
        raise refuse(errno.EINVAL)
