"""What a snapshot keeps of a 9P session, and how it is put together again on a host that may have changed."""

from __future__ import annotations

import os
import stat
import struct
from array import array

from devices.p9 import guards
from devices.p9.export import WIRE_TRUNC, host_flags, reopen
from devices.p9.fids import Fid, Listing, Xattr
from devices.p9.files import ENTRY, take_locks
from devices.p9.nodes import Node
from devices.p9.saved import FidState, P9State, XattrState
from devices.p9.session import Session

__all__ = ["restore", "save"]


def save(session: Session) -> P9State:
    """The state to `restore`; nothing of the session changes."""
    fids = tuple(_save_fid(number, fid) for number, fid in session.fids.by_number.items())
    return P9State(session.msize, tuple(session.devices), fids)


def _save_fid(number: int, fid: Fid) -> FidState:
    stamp = None
    if fid.opened and not fid.lost:
        status = os.fstat(fid.fd)
        stamp = status.st_size, status.st_mtime_ns
    xattr = fid.xattr
    return FidState(
        number, fid.uid, fid.node.path(), fid.node.identity, fid.flags if fid.opened else None, stamp,
        fid.listing.entries if fid.listing is not None else None,
        None if xattr is None else XattrState(bytes(xattr.value), xattr.name, xattr.flags, xattr.written),
        tuple(fid.locks),
    )


def restore(session: Session, state: P9State) -> None:
    """Open again what can be: a fid whose file is not there any more answers ESTALE or ENOENT from now on.

    Args:
        session: a new one.
        state: of the old one.
    """
    session.msize = state.msize
    if state.devices[:1] == (session.devices[0],):
        session.devices = list(state.devices)
    for saved in state.fids:
        fid = session.fids.add(saved.number, _find(session, saved), saved.uid)
        if saved.xattr is not None:
            kept = saved.xattr
            session.fids.set_xattr(fid, Xattr(bytearray(kept.value), kept.name, kept.flags, kept.written))
        if saved.flags is not None:
            _open(session, fid, saved, saved.flags)
        session.tree.trim()


def _find(session: Session, saved: FidState) -> Node:
    """The node that stands where the saved one stood, kept; one that is nowhere if it is another file."""
    tree = session.tree
    if saved.path is None:
        return tree.nameless(saved.identity)
    node = tree.keep(tree.root)
    for place, name in enumerate(saved.path, 1):
        try:
            status = tree.look(node, name)
            if place == len(saved.path) and not _acceptable(saved, status):
                break
            below = tree.child(node, name, status)
        except OSError:
            break
        tree.drop(node)
        node = below
    else:
        return node
    tree.drop(node)
    return tree.nameless(saved.identity)


def _acceptable(saved: FidState, status: os.stat_result) -> bool:
    if guards.identity(status) == saved.identity:
        return True
    kind = stat.S_IFMT(status.st_mode)
    if kind != saved.identity[2]:
        return False
    # A file that was only looked up is whatever has its name now; Linux keeps names of open files, and asks no more.
    return kind == stat.S_IFDIR or saved.flags is None or saved.stamp == (status.st_size, status.st_mtime_ns)


def _open(session: Session, fid: Fid, saved: FidState, flags: int) -> None:
    fid.flags = flags
    try:
        session.fids.require_descriptor()
        fd = reopen(session.tree.handle(fid.node), fid.node.kind, host_flags(flags & ~WIRE_TRUNC))
    except OSError:
        fid.lost = True
        return
    session.fids.open(fid, fd, flags)
    take_locks(session, fid, saved.locks)
    if saved.listing is not None:
        session.fids.set_listing(fid, _listing(saved.listing))


def _listing(entries: bytes) -> Listing:
    ends: array[int] = array("Q")
    at = 0
    while at < len(entries):
        try:
            at += ENTRY.size + ENTRY.unpack_from(entries, at)[-1]
        except struct.error:
            break
        ends.append(at)
    return Listing(entries, ends)
