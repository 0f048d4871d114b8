"""The messages about names: walking, making, linking, renaming and removing. One function each."""

from __future__ import annotations

import errno
import os
import stat

from devices.p9 import guards
from devices.p9.export import host_flags, reopen
from devices.p9.fids import Fid
from devices.p9.mapping import LONGEST_TARGET, descriptor_path
from devices.p9.messages import (
    Empty,
    Rattach,
    Rlopen,
    Rwalk,
    Tlcreate,
    Tlink,
    Tmkdir,
    Tmknod,
    Tremove,
    Trename,
    Trenameat,
    Tsymlink,
    Tunlinkat,
    Twalk,
)
from devices.p9.nodes import Node
from devices.p9.session import Session

__all__ = [
    "lcreate", "link", "mkdir", "mknod", "remove", "rename", "renameat", "symlink", "unlinkat", "walk",
]

WIRE_EXCL = 0o200
REMOVE_DIRECTORY = 0x200                # AT_REMOVEDIR, as Tunlinkat has it


def walk(session: Session, message: Twalk) -> Rwalk:
    """Make a fid of what names lead to from another one; as far as they exist, after the first."""
    fids, tree = session.fids, session.tree
    fid = fids.file(message.fid)
    in_place = message.newfid == message.fid
    if in_place and fid.opened:
        raise guards.refuse(errno.EBUSY)
    if not in_place:
        fids.require_free(message.newfid)
    node, qids = tree.keep(fid.node), []
    try:
        for name in message.names:
            below, qid = _step(session, node, name)
            tree.drop(node)
            node = below
            qids.append(qid)
    except OSError:
        tree.drop(node)
        if not qids:
            raise
        return Rwalk(tuple(qids))
    if in_place:
        tree.drop(fid.node)
        fid.node = node
    else:
        fids.add(message.newfid, node, fid.uid)
    return Rwalk(tuple(qids))


def _step(session: Session, node: Node, name: bytes) -> tuple[Node, bytes]:
    """One name's node, kept, and its qid. Parents are known, so the host never resolves one."""
    if name != b"..":
        guards.single_name(name)
        return session.find(node, name)
    if node.kind != stat.S_IFDIR:
        raise guards.refuse(errno.ENOTDIR)
    parent = node if guards.at_root(node) else node.parent
    if parent is None:
        raise guards.refuse(errno.ESTALE)
    status, attributes = session.describe_node(parent)
    return session.tree.keep(parent), session.qid(status, attributes.mode)


def _directory(session: Session, number: int, name: bytes) -> tuple[Fid, int]:
    """A directory in which a name is to be changed, and its descriptor."""
    session.require_change()
    guards.single_name(name)
    fid = session.fids.file(number)
    return fid, session.tree.directory(fid.node)


def _made(session: Session, fid: Fid, name: bytes) -> Rattach:
    node, qid = session.find(fid.node, name)
    session.tree.drop(node)
    return Rattach(qid)


def lcreate(session: Session, message: Tlcreate) -> Rlopen:
    """Make and open a regular file; the fid of its directory becomes its."""
    fid, directory = _directory(session, message.fid, message.name)
    if fid.opened:
        raise guards.refuse(errno.EINVAL)
    session.fids.require_descriptor()
    flags, parent = host_flags(message.flags), fid.node
    node = None
    try:
        fd = session.mapping.create(directory, message.name, flags, message.mode, fid.uid, message.gid)
    except FileExistsError:
        if message.flags & WIRE_EXCL:
            raise
        node, _ = session.find(parent, message.name)
        try:
            fd = reopen(session.tree.handle(node), node.kind, flags)
        except OSError:
            session.tree.drop(node)
            raise
    status = os.fstat(fd)
    try:
        fid.node = node or session.tree.child(parent, message.name, status)
    except OSError:
        os.close(fd)
        raise
    session.tree.drop(parent)
    session.fids.open(fid, fd, message.flags)
    return Rlopen(session.qid(status, status.st_mode), 0)


def symlink(session: Session, message: Tsymlink) -> Rattach:
    """Make a symbolic link; what it says is the guest's business, for the host never follows one."""
    fid, directory = _directory(session, message.dfid, message.name)
    if len(message.target) > LONGEST_TARGET:
        raise guards.refuse(errno.ENAMETOOLONG)
    if not message.target or b"\0" in message.target:
        raise guards.refuse(errno.EINVAL)
    session.mapping.symlink(directory, message.name, message.target, fid.uid, message.gid)
    return _made(session, fid, message.name)


def mknod(session: Session, message: Tmknod) -> Rattach:
    """Make a special file, or an empty regular one."""
    fid, directory = _directory(session, message.dfid, message.name)
    mapping, owner = session.mapping, (fid.uid, message.gid)
    kind = stat.S_IFMT(message.mode) or stat.S_IFREG
    if kind == stat.S_IFREG:
        os.close(mapping.create(directory, message.name, os.O_WRONLY, message.mode, *owner))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
        rdev = os.makedev(message.major, message.minor)
        mapping.mknod(directory, message.name, kind | stat.S_IMODE(message.mode), rdev, *owner)
    else:
        raise guards.refuse(errno.EINVAL)
    return _made(session, fid, message.name)


def mkdir(session: Session, message: Tmkdir) -> Rattach:
    """Make a directory."""
    fid, directory = _directory(session, message.dfid, message.name)
    session.mapping.mkdir(directory, message.name, message.mode, fid.uid, message.gid)
    return _made(session, fid, message.name)


def link(session: Session, message: Tlink) -> Empty:
    """Give a file one more name; a symbolic link itself, not what it leads to."""
    _, directory = _directory(session, message.dfid, message.name)
    target = session.fids.file(message.fid).node
    os.link(descriptor_path(session.tree.handle(target)), message.name, dst_dir_fd=directory)
    return Empty()


def rename(session: Session, message: Trename) -> Empty:
    """Rename the file of a fid."""
    session.require_change()
    node = session.fids.file(message.fid).node
    if guards.at_root(node):
        raise guards.refuse(errno.EBUSY)
    if node.parent is None:
        raise guards.refuse(errno.ESTALE)
    _rename(session, node.parent, node.name, session.fids.file(message.dfid).node, message.name)
    return Empty()


def renameat(session: Session, message: Trenameat) -> Empty:
    """Rename by name, between two directories."""
    session.require_change()
    fids = session.fids
    old, new = fids.file(message.olddirfid).node, fids.file(message.newdirfid).node
    _rename(session, old, message.oldname, new, message.newname)
    return Empty()


def _rename(session: Session, old: Node, old_name: bytes, new: Node, new_name: bytes) -> None:
    guards.single_name(old_name)
    guards.single_name(new_name)
    tree = session.tree
    directories = {"src_dir_fd": tree.directory(old), "dst_dir_fd": tree.directory(new)}
    over = tree.hold(new, new_name)
    # Between two names of one file a rename does nothing; so both nodes stay where they are.
    one_file = over is not None and guards.identity(tree.look(old, old_name)) == over.identity
    os.rename(old_name, new_name, **directories)
    if not one_file:
        tree.moved(old.children.get(old_name), new, new_name)


def unlinkat(session: Session, message: Tunlinkat) -> Empty:
    """Remove a name."""
    fid, _ = _directory(session, message.dirfid, message.name)
    if message.flags & ~REMOVE_DIRECTORY:
        raise guards.refuse(errno.EINVAL)
    _unlink(session, fid.node, message.name, bool(message.flags & REMOVE_DIRECTORY))
    return Empty()


def _unlink(session: Session, parent: Node, name: bytes, is_directory: bool) -> None:
    tree = session.tree
    directory = tree.directory(parent)
    node = tree.hold(parent, name)
    (os.rmdir if is_directory else os.unlink)(name, dir_fd=directory)
    if node is not None:
        tree.detach(node)


def remove(session: Session, message: Tremove) -> Empty:
    """Remove the file of a fid, and the fid in any case."""
    fid = session.fids.remove(message.fid)
    node = fid.node
    try:
        session.require_change()
        if guards.at_root(node):
            raise guards.refuse(errno.EBUSY)
        if node.parent is None:
            raise guards.refuse(errno.ESTALE)
        _unlink(session, node.parent, node.name, node.kind == stat.S_IFDIR)
    finally:
        session.tree.drop(node)
    return Empty()
