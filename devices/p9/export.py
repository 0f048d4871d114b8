"""What of the host a guest is shown, and how a host file is opened for it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from devices.frozen import frozen
from devices.p9 import guards
from devices.p9.mapping import Security, descriptor_path

__all__ = ["Export", "ExportError", "Limits", "reopen"]

LONGEST_TAG = 31                        # bytes; what QEMU allows
MOST_HANDLES = 256

# Open flags on the wire are x86 Linux' numbers; those not here do not concern the host: O_NOFOLLOW and O_DIRECTORY
# are the client's to check, O_DIRECT would want aligned buffers, O_NOATIME is only for a file's owner.
ACCESS_MODE = 0o3
WIRE_TRUNC, WIRE_APPEND, WIRE_DSYNC, WIRE_SYNC = 0o1000, 0o2000, 0o10000, 0o4000000
WIRE_FLAGS = (WIRE_TRUNC, os.O_TRUNC), (WIRE_APPEND, os.O_APPEND), (WIRE_DSYNC, os.O_DSYNC), (WIRE_SYNC, os.O_SYNC)


class ExportError(ValueError):
    """This directory cannot be exported so."""


@frozen
class Export:
    """A directory of the host and how a guest may use it.

    Attributes:
        path: the directory; a symbolic link to one is followed when the machine is made.
        tag: what the guest mounts it by: 1 to 31 bytes.
        read_only: refuse every change.
        security: how owners and modes are kept.
    """

    path: Path
    tag: str
    read_only: bool = False
    security: Security = Security.NONE

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            ExportError: the tag cannot be one, the path is no directory, or the host has no /proc.
        """
        if not 0 < len(self.tag.encode()) <= LONGEST_TAG or "\0" in self.tag:
            raise ExportError(f"mount tag {self.tag!r}: it takes 1 to {LONGEST_TAG} bytes")
        if not self.path.is_dir():
            raise ExportError(f"{self.path} is no directory; what is shared has to be there")
        if not Path("/proc/self/fd").is_dir():
            raise ExportError("files can only be shared on a host with /proc mounted")


@frozen
class Limits:
    """What a guest may cost the host.

    Attributes:
        handles: descriptors of named files kept between messages.
        opened: files open for reading and writing, each a descriptor.
        fids: fids in use.
        xattr_bytes: values of extended attributes being read or written.
        listing_bytes: directories being read.
    """

    handles: int
    opened: int
    fids: int = 1 << 16
    xattr_bytes: int = 16 << 20
    listing_bytes: int = 64 << 20

    @classmethod
    def of_process(cls) -> Limits:
        """Such that a few exports fit into this process's limit of descriptors."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(handles=max(8, min(MOST_HANDLES, soft // 8)), opened=max(16, soft // 2))


def host_flags(wire: int) -> int:
    """The host's open flags for those on the wire."""
    flags = wire & ACCESS_MODE
    for number, flag in WIRE_FLAGS:
        if wire & number:
            flags |= flag
    return flags


def writes(wire: int) -> bool:
    """Whether an open with these flags of the wire may change the file."""
    return bool(wire & ACCESS_MODE or wire & WIRE_TRUNC)


def reopen(handle: int, kind: int, flags: int) -> int:
    """Open for reading or writing what an `O_PATH` descriptor stands for.

    Args:
        handle: the descriptor.
        kind: its file type.
        flags: of the host.

    Raises:
        OSError: it is neither a regular file nor a directory, or the host refuses.
    """
    guards.openable(kind)
    return os.open(descriptor_path(handle), flags | os.O_CLOEXEC | os.O_NONBLOCK)
