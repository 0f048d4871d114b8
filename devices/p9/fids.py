"""A session's fids: what the guest has walked to, and what it has open there."""

from __future__ import annotations

import errno
import os
from array import array
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field

from devices.p9 import guards
from devices.p9.export import WIRE_TRUNC, Limits, host_flags, reopen
from devices.p9.nodes import Node, Tree
from devices.p9.saved import LockRequest

__all__ = ["CLOSED", "Fid", "FidTable", "Listing", "Xattr"]

CLOSED = -1


@dataclass
class Xattr:
    """An extended attribute, or the list of them, being read; or one being written, until its fid is clunked.

    Attributes:
        value: bytes of it.
        name: on the host, of one being written; None while reading.
        flags: of setxattr(2).
        written: how many bytes of it the guest has written.
    """

    value: bytearray
    name: bytes | None = None
    flags: int = 0
    written: int = 0


class Listing:
    """A directory as it was when it was read from its start: so entries neither repeat nor go missing.

    The offset of an entry is how many entries come before it.

    Args:
        entries: all of them, as they are in Rreaddir.
        ends: where each ends.
    """

    __slots__ = ("ends", "entries")

    def __init__(self, entries: bytes, ends: array[int]) -> None:
        self.entries = entries
        self.ends = ends

    def part(self, offset: int, count: int) -> bytes:
        """As many whole entries from `offset` as `count` bytes hold.

        Raises:
            OSError: EINVAL, no entry has that offset, or the next one does not fit.
        """
        guards.cookie(offset, len(self.ends))
        start = self.ends[offset - 1] if offset else 0
        last = bisect_right(self.ends, start + count)
        if last == offset < len(self.ends):
            raise guards.refuse(errno.EINVAL)
        return self.entries[start : self.ends[last - 1]] if last > offset else b""


@dataclass(eq=False, slots=True)
class Fid:
    """One fid.

    Attributes:
        node: the file.
        uid: of the guest's user who attached; what is made through the fid is theirs.
        fd: the host's descriptor open for I/O, CLOSED while it is not open.
        flags: it was opened with, on the wire.
        listing: of a directory that is being read.
        xattr: if the fid stands for extended attributes and no file.
        locks: granted through it, since the last time all were given back.
        lost: opened before a restore that could not open it again.
    """

    node: Node
    uid: int
    fd: int = CLOSED
    flags: int = 0
    listing: Listing | None = None
    xattr: Xattr | None = None
    locks: list[LockRequest] = field(default_factory=list)
    lost: bool = False

    @property
    def opened(self) -> bool:
        """Whether Tlopen or Tlcreate succeeded."""
        return self.fd != CLOSED or self.lost

    def descriptor(self) -> int:
        """The descriptor for I/O.

        Raises:
            OSError: EBADF, it is not open; ESTALE, no longer.
        """
        if self.fd == CLOSED:
            raise guards.refuse(errno.ESTALE if self.lost else errno.EBADF)
        return self.fd


class FidTable:
    """All fids, within what a guest may cost.

    Args:
        tree: of the export; fids keep nodes of it.
        limits: on what there may be.
    """

    def __init__(self, tree: Tree, limits: Limits) -> None:
        self.tree = tree
        self.limits = limits
        self.by_number: dict[int, Fid] = {}
        self.opened = 0
        self._xattr_bytes = 0
        self._listings: dict[Fid, int] = {}     # sizes; the oldest first

    def get(self, number: int) -> Fid:
        """The fid of that number.

        Raises:
            OSError: EBADF, there is none.
        """
        fid = self.by_number.get(number)
        if fid is None:
            raise guards.refuse(errno.EBADF)
        return fid

    def file(self, number: int) -> Fid:
        """The fid of that number, which stands for a file.

        Raises:
            OSError: EBADF, there is none, or it is of extended attributes.
        """
        fid = self.by_number.get(number)
        if fid is None or fid.xattr is not None:
            raise guards.refuse(errno.EBADF)
        return fid

    def require_free(self, number: int) -> None:
        """Check that there may be a new fid of that number.

        Raises:
            OSError: EINVAL, there is one; ENFILE, there are too many.
        """
        guards.free_fid(number in self.by_number)
        guards.room(len(self.by_number), self.limits.fids)

    def add(self, number: int, node: Node, uid: int) -> Fid:
        """A new fid, after `require_free`; the caller's hold on the node becomes its."""
        fid = self.by_number[number] = Fid(node, uid)
        return fid

    def open(self, fid: Fid, fd: int, flags: int) -> None:
        """The fid is open now; the descriptor is its."""
        fid.fd, fid.flags = fd, flags
        self.opened += 1

    def require_descriptor(self) -> None:
        """Check that one more may be opened.

        Raises:
            OSError: ENFILE, there are too many.
        """
        guards.room(self.opened, self.limits.opened)

    def set_xattr(self, fid: Fid, xattr: Xattr) -> None:
        """The fid stands for an extended attribute from now on.

        Raises:
            OSError: ENOSPC, there are too many bytes of them.
        """
        if self._xattr_bytes + len(xattr.value) > self.limits.xattr_bytes:
            raise guards.refuse(errno.ENOSPC)
        self._xattr_bytes += len(xattr.value)
        fid.xattr = xattr

    def set_listing(self, fid: Fid, listing: Listing) -> None:
        """Keep what was read of a directory; others go where there is no room, and are read again when asked for."""
        self._listings.pop(fid, None)
        fid.listing = listing
        self._listings[fid] = len(listing.entries)
        total = sum(self._listings.values())
        while total > self.limits.listing_bytes and len(self._listings) > 1:
            oldest = next(iter(self._listings))
            oldest.listing = None
            total -= self._listings.pop(oldest)

    def remove(self, number: int) -> Fid:
        """Forget a fid and close what it has open; its xattr is still there to be stored.

        Raises:
            OSError: EBADF, there is none.
        """
        fid = self.get(number)
        del self.by_number[number]
        if fid.xattr is not None:
            self._xattr_bytes -= len(fid.xattr.value)
        self._listings.pop(fid, None)
        if fid.fd != CLOSED:
            fd, fid.fd = fid.fd, CLOSED
            self.opened -= 1
            os.close(fd)
        return fid

    def forked(self) -> None:
        """This process is a copy: files that are open get positions of their own, and lose the locks, which stay
        with the original. One that cannot be opened again keeps its shared position, which only directories use.
        """
        for fid in self.by_number.values():
            fid.locks = []
            if fid.fd != CLOSED:
                with suppress(OSError):
                    fd = reopen(fid.fd, fid.node.kind, host_flags(fid.flags & ~WIRE_TRUNC))
                    os.dup2(fd, fid.fd, inheritable=False)
                    os.close(fd)

    def clear(self) -> None:
        """Forget all."""
        for number in list(self.by_number):
            self.tree.drop(self.remove(number).node)
