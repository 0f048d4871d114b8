"""The messages about a file's contents, locks, and a directory's list. One function each."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from devices.p9 import guards
from devices.p9.attributes import store_xattr
from devices.p9.export import ACCESS_MODE, WIRE_TRUNC, host_flags, reopen, writes
from devices.p9.fids import Fid, Listing, Xattr
from devices.p9.messages import (
    Empty,
    Rgetlock,
    Rlock,
    Rlopen,
    Rwrite,
    Tclunk,
    Tfsync,
    Tgetlock,
    Tlock,
    Tlopen,
    Tread,
    Treaddir,
    Twrite,
)
from devices.p9.saved import LockRequest
from devices.p9.session import Session, qid_type

if TYPE_CHECKING:
    from devices.virtio.queue import Chain

__all__ = [
    "READ_DATA", "WRITE_DATA", "clunk", "fsync", "getlock", "lock", "lopen", "read", "readdir", "take_locks", "write",
]

READ_DATA, WRITE_DATA = 11, 23          # where the data of Rread, Rreaddir and Twrite begins
MOST_SEGMENTS = 1024                    # IOV_MAX; a longer read or write is a short one
ENTRY = struct.Struct("<BIQQBH")        # qid, offset of the next, type, length of the name
DT_SHIFT = 12                           # from a mode's file type to d_type

READ_LOCK, WRITE_LOCK, UNLOCK = range(3)
HOST_LOCKS = {READ_LOCK: fcntl.F_RDLCK, WRITE_LOCK: fcntl.F_WRLCK, UNLOCK: fcntl.F_UNLCK}
WIRE_LOCKS = {host: wire for wire, host in HOST_LOCKS.items()}
LOCK_SUCCESS, LOCK_BLOCKED = 0, 1
FLOCK = struct.Struct("@hhqqi4x")       # struct flock: type, whence, start, length, process
MOST_LOCKS = 1024                       # granted to one fid


def lopen(session: Session, message: Tlopen) -> Rlopen:
    """Open a fid's file or directory. Zero for iounit: as much as a message holds."""
    fid = session.fids.file(message.fid)
    if fid.opened or message.flags & ACCESS_MODE == ACCESS_MODE:
        raise guards.refuse(errno.EINVAL)
    if writes(message.flags):
        session.require_change()
    session.fids.require_descriptor()
    try:
        handle = session.tree.handle(fid.node)
    except OSError as error:
        if error.errno == errno.ESTALE and session.tree.is_gone(fid.node):
            raise guards.refuse(errno.ENOENT) from None     # what an open by name would find
        raise
    fd = reopen(handle, fid.node.kind, host_flags(message.flags))
    session.fids.open(fid, fd, message.flags)
    status = os.fstat(fd)
    return Rlopen(session.qid(status, status.st_mode), 0)


def read(session: Session, message: Tread, chain: Chain) -> int:
    """Put data from `READ_DATA` on into the reply; how much."""
    fid = session.fids.get(message.fid)
    count = min(message.size, min(chain.writable_size, session.msize) - READ_DATA)
    if fid.xattr is not None:
        if fid.xattr.name is not None:
            raise guards.refuse(errno.EBADF)
        return chain.write(fid.xattr.value[message.offset : message.offset + count], READ_DATA)
    fd = fid.descriptor()
    guards.opened_for(fid.flags, os.O_WRONLY)
    guards.file_offset(message.offset)
    if not count:
        return 0
    return os.preadv(fd, chain.writable_views(READ_DATA, count)[:MOST_SEGMENTS], message.offset)


def write(session: Session, message: Twrite, chain: Chain) -> Rwrite:
    """Take data that stands from `WRITE_DATA` on in the request."""
    fid, count = session.fids.get(message.fid), message.size
    if fid.xattr is not None:
        return Rwrite(_write_xattr(fid.xattr, message.offset, chain.read(count, WRITE_DATA)))
    fd = fid.descriptor()
    guards.opened_for(fid.flags, os.O_RDONLY)
    guards.file_offset(message.offset)
    if not count:
        return Rwrite(0)
    return Rwrite(os.pwritev(fd, chain.readable_views(WRITE_DATA, count)[:MOST_SEGMENTS], message.offset))


def _write_xattr(xattr: Xattr, offset: int, data: bytes) -> int:
    if xattr.name is None:
        raise guards.refuse(errno.EBADF)
    if offset != xattr.written or offset + len(data) > len(xattr.value):
        raise guards.refuse(errno.EINVAL)
    xattr.value[offset : offset + len(data)] = data
    xattr.written += len(data)
    return len(data)


def clunk(session: Session, message: Tclunk) -> Empty:
    """The guest needs the fid no more; the fid goes also when an error is told."""
    fid = session.fids.remove(message.fid)
    try:
        if fid.xattr is not None:
            store_xattr(session, fid, fid.xattr)
    finally:
        session.tree.drop(fid.node)
    return Empty()


def fsync(session: Session, message: Tfsync) -> Empty:
    """Onto the host's disk."""
    fd = session.fids.file(message.fid).descriptor()
    if message.datasync:
        os.fdatasync(fd)
    else:
        os.fsync(fd)
    return Empty()


def readdir(session: Session, message: Treaddir, chain: Chain) -> int:
    """Put directory entries from `READ_DATA` on into the reply; how many bytes."""
    fid = session.fids.file(message.fid)
    fd = fid.descriptor()
    if fid.node.kind != stat.S_IFDIR:
        raise guards.refuse(errno.ENOTDIR)
    count = min(message.size, min(chain.writable_size, session.msize) - READ_DATA)
    if fid.listing is None or not message.offset:
        session.fids.set_listing(fid, _list(session, fid, fd))
    assert fid.listing is not None
    return chain.write(fid.listing.part(message.offset, count), READ_DATA)


def _list(session: Session, fid: Fid, fd: int) -> Listing:
    entries, ends = bytearray(), array("Q")
    device = fid.node.identity[0]
    above = fid.node.parent or fid.node
    dots = [(b".", fid.node.identity[1], stat.S_IFDIR), (b"..", above.identity[1], stat.S_IFDIR)]
    for name, inode, kind in (*dots, *_scan(fd)):
        path = session.qid_path(device, inode)
        kind = session.mapping.directory_type(kind)
        entries += ENTRY.pack(qid_type(kind), 0, path, len(ends) + 1, kind >> DT_SHIFT, len(name)) + name
        ends.append(len(entries))
    return Listing(bytes(entries), ends)


def _scan(fd: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, inode number and file type of each entry; the type 0 where the host has to look it up and cannot."""
    with os.scandir(fd) as found:
        for entry in found:
            if entry.is_symlink():
                kind = stat.S_IFLNK
            elif entry.is_dir(follow_symlinks=False):
                kind = stat.S_IFDIR
            elif entry.is_file(follow_symlinks=False):
                kind = stat.S_IFREG
            else:
                try:
                    kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
                except OSError:
                    kind = 0
            yield os.fsencode(entry.name), entry.inode(), kind


def lock(session: Session, message: Tlock) -> Rlock:
    """Lock or unlock, without waiting: a client that wants to wait asks again.

    Locks are the host's, of the open file (`F_OFD_SETLK`): so they hold between guests and against the host.
    """
    fid = session.fids.file(message.fid)
    fid.descriptor()
    request = message.type, message.start, message.length
    if message.type != UNLOCK and len(fid.locks) >= MOST_LOCKS:
        raise guards.refuse(errno.ENOLCK)
    try:
        _set_lock(session, fid, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return Rlock(LOCK_BLOCKED)
        raise
    if request == (UNLOCK, 0, 0):
        fid.locks.clear()
    else:
        fid.locks.append(request)
    return Rlock(LOCK_SUCCESS)


def _set_lock(session: Session, fid: Fid, request: LockRequest) -> None:
    """Lock or unlock; a guest's flock(2) arrives here too, and does not ask what a file was opened for."""
    try:
        fcntl.fcntl(fid.fd, fcntl.F_OFD_SETLK, _flock(request))
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        if not _open_both_ways(session, fid):
            other = WRITE_LOCK if request[0] == READ_LOCK else READ_LOCK    # what the host does let us have
            request = other, *request[1:]
        fcntl.fcntl(fid.fd, fcntl.F_OFD_SETLK, _flock(request))


def _open_both_ways(session: Session, fid: Fid) -> bool:
    """Have the fid's descriptor open for reading and writing, with its locks; whether that could be."""
    if session.export.read_only or fid.node.kind != stat.S_IFREG:
        return False
    flags = host_flags(fid.flags & ~(ACCESS_MODE | WIRE_TRUNC) | os.O_RDWR)
    try:
        fd = reopen(fid.fd, fid.node.kind, flags)
    except OSError:
        return False
    os.dup2(fd, fid.fd, inheritable=False)
    os.close(fd)
    locks, fid.locks = fid.locks, []
    take_locks(session, fid, tuple(locks))
    return True


def take_locks(session: Session, fid: Fid, requests: tuple[LockRequest, ...]) -> None:
    """Ask again for locks that were granted, in their order; those that others have by now are lost."""
    for request in requests:
        try:
            _set_lock(session, fid, request)
            fid.locks.append(request)
        except OSError:
            pass


def _flock(request: LockRequest) -> bytes:
    type_, start, length = request
    if type_ not in HOST_LOCKS:
        raise guards.refuse(errno.EINVAL)
    guards.file_offset(start)
    guards.file_offset(length)
    return FLOCK.pack(HOST_LOCKS[type_], os.SEEK_SET, start, length, 0)


def getlock(session: Session, message: Tgetlock) -> Rgetlock:
    """Who stands in the way of a lock."""
    fd = session.fids.file(message.fid).descriptor()
    request = _flock((message.type, message.start, message.length))
    answer = FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request))
    if answer[0] == fcntl.F_UNLCK:
        return Rgetlock(UNLOCK, message.start, message.length, message.proc_id, message.client_id)
    return Rgetlock(WIRE_LOCKS[answer[0]], answer[2], answer[3], message.proc_id, message.client_id)
