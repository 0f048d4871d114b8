"""The messages about what an inode says besides its contents. One function each."""

from __future__ import annotations

import errno
import os
import stat
import time

from devices.p9 import guards
from devices.p9.fids import CLOSED, Fid, Xattr
from devices.p9.mapping import descriptor_path
from devices.p9.messages import (
    NO_ID,
    Empty,
    Rgetattr,
    Rreadlink,
    Rstatfs,
    Rxattrwalk,
    Tgetattr,
    Treadlink,
    Tsetattr,
    Tstatfs,
    Txattrcreate,
    Txattrwalk,
)
from devices.p9.session import Session

__all__ = ["getattr_", "readlink", "setattr_", "statfs", "store_xattr", "xattrcreate", "xattrwalk"]

V9FS_MAGIC = 0x0102_1997
GETATTR_BASIC = 0x7FF                   # every field up to blocks
SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_CTIME, SET_ATIME_TO, SET_MTIME_TO = (
    1 << bit for bit in range(9)
)
NS_PER_S = 1_000_000_000
U64 = (1 << 64) - 1
LONGEST_XATTR = 1 << 16                 # XATTR_SIZE_MAX
XATTR_REPLACE = 2


def getattr_(session: Session, message: Tgetattr) -> Rgetattr:
    """What stat(2) says."""
    status, attributes = session.describe(session.fids.file(message.fid))
    mode, uid, gid, rdev = attributes
    atime, mtime, ctime = status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns
    return Rgetattr(
        GETATTR_BASIC, session.qid(status, mode), mode, uid, gid, status.st_nlink, rdev, status.st_size,
        session.block_size, status.st_blocks,
        atime // NS_PER_S & U64, atime % NS_PER_S, mtime // NS_PER_S & U64, mtime % NS_PER_S,
        ctime // NS_PER_S & U64, ctime % NS_PER_S, 0, 0, 0, 0,
    )


def setattr_(session: Session, message: Tsetattr) -> Empty:
    """Change owners, mode, size and times; in that order, for each may change what comes after."""
    session.require_change()
    fid, valid = session.fids.file(message.fid), message.valid
    path = _path(session, fid)
    status, attributes = session.describe(fid)
    if valid & (SET_UID | SET_GID):
        uid = message.uid if valid & SET_UID else NO_ID
        session.mapping.chown(path, uid, message.gid if valid & SET_GID else NO_ID)
    if valid & SET_MODE:
        session.mapping.chmod(path, stat.S_IFMT(attributes.mode) | stat.S_IMODE(message.mode))
    if valid & SET_SIZE:
        _set_size(fid, path, message.size)
    if valid & (SET_ATIME | SET_MTIME):
        _set_times(path, status, message)
    elif valid & SET_CTIME and not valid & ~SET_CTIME:
        os.chown(path, -1, -1)          # changes nothing else
    return Empty()


def _path(session: Session, fid: Fid) -> bytes:
    return descriptor_path(fid.fd if fid.fd != CLOSED else session.tree.handle(fid.node))


def _set_size(fid: Fid, path: bytes, size: int) -> None:
    guards.file_offset(size)
    if fid.node.kind != stat.S_IFREG:
        raise guards.refuse(errno.EISDIR if fid.node.kind == stat.S_IFDIR else errno.EINVAL)
    os.truncate(path, size)


def _set_times(path: bytes, status: os.stat_result, message: Tsetattr) -> None:
    now = time.time_ns()
    times = []
    for change, given, seconds, nanoseconds, old in (
        (SET_ATIME, SET_ATIME_TO, message.atime_sec, message.atime_nsec, status.st_atime_ns),
        (SET_MTIME, SET_MTIME_TO, message.mtime_sec, message.mtime_nsec, status.st_mtime_ns),
    ):
        if not message.valid & change:
            times.append(old)
        elif not message.valid & given:
            times.append(now)
        elif nanoseconds >= NS_PER_S:
            raise guards.refuse(errno.EINVAL)
        else:
            signed = seconds - (1 << 64) if seconds >> 63 else seconds
            times.append(signed * NS_PER_S + nanoseconds)
    os.utime(path, ns=(times[0], times[1]))


def statfs(session: Session, message: Tstatfs) -> Rstatfs:
    """What the file system has room for."""
    fid = session.fids.file(message.fid)
    space = os.fstatvfs(fid.fd if fid.fd != CLOSED else session.tree.handle(fid.node))
    return Rstatfs(
        V9FS_MAGIC, space.f_frsize, space.f_blocks, space.f_bfree, space.f_bavail, space.f_files, space.f_ffree,
        space.f_fsid & U64, space.f_namemax,
    )


def readlink(session: Session, message: Treadlink) -> Rreadlink:
    """What a symbolic link says."""
    return Rreadlink(session.mapping.readlink(session.tree.handle(session.fids.file(message.fid).node)))


def xattrwalk(session: Session, message: Txattrwalk) -> Rxattrwalk:
    """A fid to read an extended attribute from; without a name, the list of them, each name with a zero behind it."""
    fids, mapping = session.fids, session.mapping
    fid = fids.file(message.fid)
    if message.name:
        name = mapping.host_xattr(message.name)
        fids.require_free(message.newfid)
        value = os.getxattr(_path(session, fid), name)
    else:
        fids.require_free(message.newfid)
        names = (mapping.guest_xattr(os.fsencode(name)) for name in os.listxattr(_path(session, fid)))
        value = b"".join(name + b"\0" for name in names if name is not None)
    _add_xattr_fid(session, message.newfid, fid, value)
    return Rxattrwalk(len(value))


def _add_xattr_fid(session: Session, number: int, fid: Fid, value: bytes) -> None:
    new = session.fids.add(number, session.tree.keep(fid.node), fid.uid)
    try:
        session.fids.set_xattr(new, Xattr(bytearray(value)))
    except OSError:
        session.tree.drop(session.fids.remove(number).node)
        raise


def xattrcreate(session: Session, message: Txattrcreate) -> Empty:
    """Turn a fid into one to write an extended attribute to; it is set when the fid is clunked."""
    session.require_change()
    fid = session.fids.file(message.fid)
    if fid.opened:
        raise guards.refuse(errno.EINVAL)
    if message.size > LONGEST_XATTR:
        raise guards.refuse(errno.E2BIG)
    name = session.mapping.host_xattr(message.name)
    session.fids.set_xattr(fid, Xattr(bytearray(message.size), name, message.flags))
    return Empty()


def store_xattr(session: Session, fid: Fid, xattr: Xattr) -> None:
    """Set the extended attribute that was written to a fid that is no more.

    Raises:
        OSError: EINVAL, not all of it was written; or what the host says.
    """
    if xattr.name is None:
        return
    if xattr.written != len(xattr.value):
        raise guards.refuse(errno.EINVAL)
    path = descriptor_path(session.tree.handle(fid.node))
    if not xattr.value and xattr.flags & XATTR_REPLACE:
        os.removexattr(path, xattr.name)        # how Linux' client asks for it
    else:
        os.setxattr(path, xattr.name, bytes(xattr.value), xattr.flags)
