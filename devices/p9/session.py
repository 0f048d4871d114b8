"""What the handlers of messages share: the export, the fids, and how the host's files look to the guest."""

from __future__ import annotations

import os
import stat

from devices.p9 import guards
from devices.p9.export import Export, ExportError, Limits
from devices.p9.fids import CLOSED, Fid, FidTable
from devices.p9.mapping import Attributes
from devices.p9.messages import QID, QT_DIR, QT_FILE, QT_SYMLINK
from devices.p9.nodes import Node, Tree

__all__ = ["IO_HEADER", "LARGEST_MSIZE", "SMALLEST_MSIZE", "Session", "qid_type"]

SMALLEST_MSIZE = 4096
LARGEST_MSIZE = 1 << 20
IO_HEADER = 24                          # what Linux' client takes off msize for the largest read or write
LARGEST_BLOCK = 128 << 10               # that programs are told to read and write in
DEVICE_SHIFT, MOST_DEVICES = 56, 255    # in a qid's path, above any inode number


class Session:
    """One guest's use of one export.

    Args:
        export: what is shared.
        limits: on what the guest may cost.

    Attributes:
        msize: largest message agreed on, 0 before Tversion.
        devices: the file systems that the guest has seen files of, the root's first.

    Raises:
        ExportError: the host does not let the directory be opened.
    """

    def __init__(self, export: Export, limits: Limits) -> None:
        self.export = export
        try:
            self.tree = Tree(export.path, limits.handles)
        except OSError as error:
            raise ExportError(f"{export.path} cannot be shared: {error.strerror}") from None
        self.fids = FidTable(self.tree, limits)
        self.mapping = export.security.mapping()
        self.msize = 0
        self.devices = [self.tree.root.identity[0]]

    def require_change(self) -> None:
        """Check that the guest may change anything.

        Raises:
            OSError: EROFS.
        """
        guards.writable_export(self.export.read_only)

    def start(self, msize: int) -> None:
        """Begin anew with messages of up to so many bytes; 0: no session."""
        self.fids.clear()
        self.msize = msize

    def describe(self, fid: Fid) -> tuple[os.stat_result, Attributes]:
        """A fid's file as the host and as the guest has it."""
        if fid.fd != CLOSED:
            status = os.fstat(fid.fd)
            return status, self.mapping.attributes(status, fid.fd)
        return self.describe_node(fid.node)

    def describe_node(self, node: Node) -> tuple[os.stat_result, Attributes]:
        """A file as the host and as the guest has it."""
        status = self.tree.status(node)
        return status, self.mapping.attributes(status, *self.tree.place(node))

    def find(self, parent: Node, name: bytes) -> tuple[Node, bytes]:
        """The node of a name in a directory, kept for the caller, and its qid."""
        status = self.tree.look(parent, name)
        attributes = self.mapping.attributes(status, self.tree.handle(parent), name)
        return self.tree.child(parent, name, status), self.qid(status, attributes.mode)

    def qid(self, status: os.stat_result, mode: int) -> bytes:
        """A file's qid; its version is another one after each change, and never 0, which would say not to cache it."""
        version = hash((status.st_mtime_ns, status.st_ctime_ns, status.st_size)) & 0xFFFF_FFFF or 1
        return QID.pack(qid_type(mode), version, self.qid_path(status.st_dev, status.st_ino))

    def qid_path(self, device: int, inode: int) -> int:
        """A number for an inode that is its own also where an export has file systems mounted in it."""
        if device == self.devices[0]:
            return inode
        if device not in self.devices and len(self.devices) < MOST_DEVICES:
            self.devices.append(device)
        number = self.devices.index(device) if device in self.devices else MOST_DEVICES
        return inode ^ number << DEVICE_SHIFT

    @property
    def block_size(self) -> int:
        """What programs are told to read and write in: whole pages that fit into one message."""
        return min(LARGEST_BLOCK, max(4096, (self.msize - IO_HEADER) & ~4095))


def qid_type(mode: int) -> int:
    """The type in a qid of a file with that mode."""
    if stat.S_ISDIR(mode):
        return QT_DIR
    return QT_SYMLINK if stat.S_ISLNK(mode) else QT_FILE
