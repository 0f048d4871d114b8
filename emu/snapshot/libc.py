"""Two calls of libc: something mapped over a part of a mapping (mmap(2)), and two names exchanged (renameat2(2))."""

from __future__ import annotations

import errno
import mmap
import os
from typing import Any

from emu.snapshot._libc import ffi

__all__ = ["address_of", "exchange", "map_at"]

MAP_FIXED = 0x10
AT_FDCWD = -100
RENAME_EXCHANGE = 1 << 1
FAILED = (1 << 8 * ffi.sizeof("uintptr_t")) - 1     # MAP_FAILED
UNSUPPORTED = errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP      # by the file system, or by the kernel

libc: Any = ffi.dlopen(None)


def address_of(mapping: mmap.mmap) -> int:
    """Where a mapping stands in this process."""
    buffer = ffi.from_buffer(mapping)
    try:
        return int(ffi.cast("uintptr_t", buffer))
    finally:
        ffi.release(buffer)     # the mapping cannot be closed before


def map_at(address: int, size: int, fd: int = -1, offset: int = 0) -> None:
    """Lay a private, writable mapping over what is mapped there.

    Args:
        address, size: where, whole pages.
        fd, offset: a file and where in it, a whole page; zeros without one.

    Raises:
        OSError: the host refused.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | MAP_FIXED | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
    if libc.mmap(address, size, protection, flags, fd, offset) == FAILED:
        raise OSError(ffi.errno, os.strerror(ffi.errno))


def exchange(one: str, other: str) -> bool:
    """Exchange two names of one file system in one step; False if it cannot do that.

    Raises:
        OSError: the host refused.
    """
    try:
        rename = libc.renameat2
    except AttributeError:      # glibc before 2.28
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    if ffi.errno in UNSUPPORTED:
        return False
    raise OSError(ffi.errno, os.strerror(ffi.errno))
