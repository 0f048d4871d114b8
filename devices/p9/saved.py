"""What a snapshot keeps of a 9P session, apart from the server: `devices.p9.state` saves and restores it."""

from __future__ import annotations

from devices.frozen import frozen
from devices.p9 import guards

__all__ = ["FidState", "LockRequest", "P9State", "XattrState"]

LockRequest = tuple[int, int, int]
"""Type, start and length of a lock that was granted, as on the wire."""
"""Type, start and length of a lock that was granted, as on the wire."""


@frozen
class XattrState:
    """An extended attribute being read (no name) or written."""

    value: bytes
    name: bytes | None
    flags: int
    written: int


@frozen
class FidState:
    """One fid.

    Attributes:
        number: the guest's for it.
        uid: of the guest's user.
        path: components below the root; None if the file had no name any more.
        identity: device, inode number and type of the file.
        flags: what it was opened with; None if it is not open.
        stamp: size and modification time in ns of an open file: one that has both under the same name on another
            host is taken for it.
        listing: entries of a directory being read.
        xattr: extended attributes being read or written.
        locks: granted.
    """

    number: int
    uid: int
    path: tuple[bytes, ...] | None
    identity: guards.Identity
    flags: int | None = None
    stamp: tuple[int, int] | None = None
    listing: bytes | None = None
    xattr: XattrState | None = None
    locks: tuple[LockRequest, ...] = ()


@frozen
class P9State:
    """A session: the largest message agreed on (0: none), file systems seen, and fids.

    Raises:
        ValueError: two fids have one number.
    """

    msize: int = 0
    devices: tuple[int, ...] = ()
    fids: tuple[FidState, ...] = ()

    def __post_init__(self) -> None:
        if len({fid.number for fid in self.fids}) < len(self.fids):
            raise ValueError("two fids with one number")
