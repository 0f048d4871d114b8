"""Host files as disks: what a block device asks of them, and raw images.

A disk moves bytes between a file and the caller's views, with nothing in between; offsets and sizes are bytes, and the
caller keeps them within the disk. What the host refuses at run time is an `OSError`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Protocol

__all__ = ["SECTOR", "Disk", "DiskError", "Image"]

KIB = 1 << 10
SECTOR = 512
IOV_MAX = os.sysconf("SC_IOV_MAX")
QCOW2_MAGIC = b"QFI\xfb"

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10      # fallocate's modes, linux/falloc.h
NOT_SUPPORTED = errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL

Buffers = Sequence["memoryview | bytes"]


class DiskError(ValueError):
    """A file cannot be a disk; the message is one line that says why."""


class Disk(Protocol):
    """What a block device asks of the disk behind it; every method may raise `OSError`."""

    @property
    def size(self) -> int:
        """Bytes, a multiple of 512."""

    @property
    def read_only(self) -> bool:
        """Whether only `read` may be called."""

    def read(self, offset: int, views: Sequence[memoryview], /) -> None:
        """Fill the views, one after the other, from `offset` on."""

    def write(self, offset: int, views: Buffers, /) -> None:
        """Store the views' bytes, one view after the other, from `offset` on."""

    def discard(self, offset: int, size: int, /) -> None:
        """What stands there is not needed any more: it may read as zeros from now on."""

    def write_zeroes(self, offset: int, size: int, unmap: bool, /) -> None:
        """Make a range read as zeros; with `unmap` its room may be given back to the host."""

    def flush(self) -> None:
        """Return when all that was written before would survive a power failure of the host."""

    def close(self) -> None:
        """Give the file back; the disk is of no use afterwards."""


class Image:
    """A raw image: a file's bytes are the disk's, or a block device's are.

    A size that is not a multiple of 512 is rounded up: what the file does not have reads as zeros, and a write there
    makes it longer. While the image is open, nobody else can have it open as writable, and nobody at all if it is
    writable itself.

    Args:
        path: the file.
        read_only: open it for reading, together with others.

    Raises:
        DiskError: it is not there, empty, not a raw image, or another machine has it.
    """

    def __init__(self, path: str | os.PathLike[str], read_only: bool = False) -> None:
        self.path = os.fspath(path)
        self.read_only = read_only
        self._fd = open_locked(self.path, os.O_RDONLY if read_only else os.O_RDWR)
        try:
            self.size = -(-_image_size(self._fd, self.path) // SECTOR) * SECTOR
        except BaseException:
            os.close(self._fd)
            raise

    def read(self, offset: int, views: Sequence[memoryview], /) -> None:
        """Fill the views from `offset` on."""
        read_views(self._fd, offset, views)

    def write(self, offset: int, views: Buffers, /) -> None:
        """Store the views' bytes from `offset` on."""
        write_views(self._fd, offset, views)

    def discard(self, offset: int, size: int, /) -> None:
        """Give the range's room back to the host; where the host cannot do that, nothing happens."""
        make_zero(self._fd, PUNCH_HOLE, offset, size)

    def write_zeroes(self, offset: int, size: int, unmap: bool, /) -> None:
        """Make the range read as zeros, in the fastest way that the host has."""
        if not make_zero(self._fd, PUNCH_HOLE if unmap else ZERO_RANGE, offset, size):
            write_views(self._fd, offset, zeroes(size))

    def flush(self) -> None:
        """Wait until what was written is on the host's storage."""
        if not self.read_only:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file, and let others have it."""
        os.close(self._fd)


# --- files ----------------------------------------------------------------------------------------------------------


def open_locked(path: str, flags: int) -> int:
    """Open a file that can be a disk, and lock it: shared if it is opened for reading, else for us alone."""
    try:
        fd = os.open(path, flags | os.O_NONBLOCK, 0o666)        # a FIFO would wait for its other end
    except OSError as error:
        raise DiskError(f"cannot open disk image {path}: {error.strerror}") from None
    except ValueError:
        raise DiskError(f"cannot open disk image {path!r}: no file has such a name") from None
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise DiskError(f"cannot open disk image {path}: it is a directory")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DiskError(f"cannot open disk image {path}: neither a file nor a block device")
        _lock(fd, path, alone=flags & os.O_ACCMODE != os.O_RDONLY)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, path: str, alone: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        what = "in use" if alone else "being written to"
        raise DiskError(f"disk image {path} is {what} by another machine; overlays can share it") from None
    except OSError:
        pass            # a file system without locks is no reason to refuse its files


def _image_size(fd: int, path: str) -> int:
    size = os.lseek(fd, 0, os.SEEK_END)         # a block device's stat says 0
    if not size:
        raise DiskError(f"disk image {path} is empty")
    if os.pread(fd, len(QCOW2_MAGIC), 0) == QCOW2_MAGIC:
        raise DiskError(f"disk image {path} is qcow2; make it raw with qemu-img convert -O raw")
    return size


def total_size(views: Buffers) -> int:
    """Bytes in all views."""
    return sum(map(len, views))


def part_of(views: Sequence[memoryview], offset: int, size: int) -> list[memoryview]:
    """The views of `size` bytes, beginning `offset` bytes into these."""
    part = []
    for view in views:
        if offset < len(view) and size:
            part.append(view[offset : offset + size])
            size -= len(part[-1])
        offset = max(offset - len(view), 0)
    return part


def _batches(views: Buffers) -> Iterator[list[memoryview]]:
    """As many views at a time as one system call takes."""
    for first in range(0, len(views), IOV_MAX):
        yield [memoryview(view) for view in views[first : first + IOV_MAX]]


def read_views(fd: int, offset: int, views: Sequence[memoryview]) -> None:
    """Fill the views from a file; what lies behind its end is zeros."""
    for batch in _batches(views):
        while left := total_size(batch):
            count = os.preadv(fd, batch, offset)
            if not count:
                clear(batch)
                count = left
            offset += count
            batch = part_of(batch, count, left - count)


def write_views(fd: int, offset: int, views: Buffers) -> None:
    """Store the views' bytes in a file, all of them."""
    for batch in _batches(views):
        while left := total_size(batch):
            count = os.pwritev(fd, batch, offset)
            if not count:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            offset += count
            batch = part_of(batch, count, left - count)


def clear(views: Sequence[memoryview]) -> None:
    """Fill the views with zeros."""
    for view in views:
        view[:] = bytes(len(view))


def zeroes(size: int) -> list[memoryview]:
    """Views of that many zeros."""
    page = memoryview(bytes(min(size, 64 * KIB)))
    return [page[: size - offset] for offset in range(0, size, 64 * KIB)]


@cache
def _libc() -> Any:
    import ctypes  # 2 ms, and most machines have no disk

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
    return libc


def make_zero(fd: int, mode: int, offset: int, size: int) -> bool:
    """Make a range of a file read as zeros without writing them; False where the host cannot.

    Args:
        mode: PUNCH_HOLE or ZERO_RANGE: the room is given back, or kept.
    """
    import ctypes

    while size and _libc().fallocate(fd, mode | KEEP_SIZE, offset, size):
        error = ctypes.get_errno()
        if error in NOT_SUPPORTED:
            return False
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))
    return True
