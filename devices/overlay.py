"""Copy-on-write disks, by which many machines share one image.

The file of an overlay is a header, a map with one byte for each cluster, and the clusters at their places behind it.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Iterator, Sequence
from copy import copy

from devices.disk import (
    PUNCH_HOLE,
    Buffers,
    Disk,
    DiskError,
    clear,
    make_zero,
    open_locked,
    part_of,
    read_views,
    total_size,
    write_views,
    zeroes,
)

__all__ = ["CLUSTER", "Overlay", "branched", "settle"]

KIB, MIB = 1 << 10, 1 << 20
CLUSTER = 4 * KIB                       # what guests' file systems write: nothing is ever copied up for them
OVERLAY_HEADER = struct.Struct("<8sIIQ")        # magic, version, cluster size, disk size
OVERLAY_MAGIC, OVERLAY_VERSION = b"PVEMUCOW", 1
MAP_OFFSET = 4 * KIB                    # one byte for each cluster, then, aligned, the clusters themselves
MAP_PAGE = 4 * KIB                      # what of the map is written back together
ABSENT, WRITTEN, ZERO = range(3)        # in the map: the base has it, the overlay's file has it, it reads as zeros
ALL_WRITTEN, NOT_ABSENT = re.compile(rb"\x01+"), re.compile(rb"[\x01\x02]+")


class Overlay:
    """A disk that begins as another one and keeps what is written to it in a file of its own, cluster by cluster.

    Without a path that file has no name, and is gone when it is closed or the process ends; so a flush of it has
    nothing to do. With a path it is made, or gone on with if it is there, and stays; what was flushed survives.

    A snapshot of a machine takes `copy_to`; `Overlay(Overlay(base, copy, read_only=True))` goes on from it, any number
    of times. Processes that forked share the file: each but one has to put an overlay of its own on top first
    (`settle`, `branched`).

    Args:
        base: what is read where nothing was written. It must never change while the overlay is of use, and is the
            overlay's now: closed with it, also when the overlay cannot be made.
        path: file with the clusters, sparse; None for a temporary one.
        read_only: a named file that is there is opened for reading, together with others.

    Raises:
        DiskError: the file cannot be made, is something else, belongs to another base, or another machine has it.

    Attributes:
        is_fresh: nothing was written to it.
    """

    def __init__(self, base: Disk, path: str | os.PathLike[str] | None = None, read_only: bool = False) -> None:
        self.base = base
        self.path = None if path is None else os.fspath(path)
        self.read_only = read_only
        self.size = base.size
        clusters = -(-self.size // CLUSTER)
        self._map = bytearray(clusters)
        self.is_fresh = True
        self._dirty: set[int] = set()           # pages of the map that the named file does not have yet
        self._data = -(-(MAP_OFFSET + clusters) // CLUSTER) * CLUSTER
        try:
            self._fd = self._open_file()
        except BaseException:
            base.close()
            raise

    def read(self, offset: int, views: Sequence[memoryview], /) -> None:
        """Fill the views from `offset` on, each part from where it stands."""
        done = 0
        for state, size in self._runs(offset, total_size(views)):
            part = part_of(views, done, size)
            if state == WRITTEN:
                read_views(self._fd, self._data + offset + done, part)
            elif state == ABSENT:
                self.base.read(offset + done, part)
            else:
                clear(part)
            done += size

    def write(self, offset: int, views: Buffers, /) -> None:
        """Store the views' bytes; what they leave of a cluster that the file does not have yet is copied up."""
        self._check_writable()
        size = total_size(views)
        if not size:
            return
        end = offset + size
        start, stop = offset // CLUSTER * CLUSTER, min(-(-end // CLUSTER) * CLUSTER, self.size)
        head = self._to_copy_up(start, offset - start)
        tail = self._to_copy_up(end, stop - end)
        write_views(self._fd, self._data + offset - len(head), [head, *views, tail])
        self._mark(start // CLUSTER, -(-stop // CLUSTER), WRITTEN)

    def discard(self, offset: int, size: int, /) -> None:
        """Make the whole clusters of the range read as zeros, and give their room back to the host."""
        self._check_writable()
        end = offset + size
        first, last = -(-offset // CLUSTER), len(self._map) if end == self.size else end // CLUSTER
        if first < last:
            self._mark(first, last, ZERO)
            make_zero(self._fd, PUNCH_HOLE, self._data + first * CLUSTER, (last - first) * CLUSTER)

    def write_zeroes(self, offset: int, size: int, unmap: bool, /) -> None:
        """Make the range read as zeros; only what is less than a cluster takes room."""
        end = offset + size
        inner = min(-(-offset // CLUSTER) * CLUSTER, end)
        outer = max(end // CLUSTER * CLUSTER, inner)
        self.write(offset, zeroes(inner - offset))
        self.discard(inner, outer - inner)
        self.write(outer, zeroes(end - outer))

    def flush(self) -> None:
        """Wait until a named file has what was written: first the clusters, then the map that makes them count."""
        if self.path is None or self.read_only:
            return
        os.fdatasync(self._fd)
        if self._dirty:
            self._write_map(sorted(self._dirty))
            os.fdatasync(self._fd)
            self._dirty.clear()

    def copy_to(self, path: str | os.PathLike[str]) -> None:
        """Save all that differs from the image below every overlay into a new overlay file.

        Raises:
            DiskError: there is a file of that name, or it cannot be made.
            OSError: the host refused a read or a write; the new file is gone again.
        """
        target = os.fspath(path)
        fd = open_locked(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            merged = self._merged_map()
            os.truncate(fd, self._data + len(merged) * CLUSTER)
            self._copy_clusters(merged, fd)
            write_views(fd, MAP_OFFSET, [bytes(merged)])
            write_views(fd, 0, [self._header()])
        except BaseException:
            os.unlink(target)
            raise
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the file, flushed if it has a name, and the base."""
        try:
            self.flush()
        finally:
            os.close(self._fd)
            self.base.close()

    def settle(self) -> None:
        """Put what was written into a layer below, which never changes again, and go on with a fresh file.

        A layer that is not more than twice as large as the one above it is merged with that first. So there are never
        more than some thirty, and nothing that was written is copied more often than that.

        Raises:
            DiskError: there is no room; nothing has changed for who uses the disk.
        """
        try:
            while isinstance(below := self.base, Overlay) and below.path is None and below._size <= 2 * self._size:
                self._merge(below)
            fd = self._open_file()
        except OSError as error:
            raise DiskError(f"cannot make a temporary disk overlay: {error.strerror}") from None
        self.base, self._map, self._fd, self.is_fresh = copy(self), bytearray(len(self._map)), fd, True

    @property
    def _size(self) -> int:
        """Clusters that this layer has."""
        return len(self._map) - self._map.count(ABSENT)

    def _merge(self, below: Overlay) -> None:
        """Take the place of the layer below, too; other processes may still read its file, and this one's."""
        merged = bytearray(below._map)
        _lay_over(merged, self._map)
        fd = self._open_file()
        try:
            self._copy_clusters(merged, fd)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        os.close(below._fd)
        self.base, self._map, self._fd = below.base, merged, fd

    def leave(self) -> Disk:
        """Close this layer, and keep the base, in a process that is a copy of the one that has both."""
        os.close(self._fd)
        return self.base

    # --- its file -----------------------------------------------------------------------------------------------

    def _open_file(self) -> int:
        if self.path is None:
            from tempfile import TemporaryFile  # 10 ms, for overlays only

            try:
                with TemporaryFile(prefix="overlay-") as file:
                    os.truncate(file.fileno(), self._data + len(self._map) * CLUSTER)
                    return os.dup(file.fileno())
            except OSError as error:
                raise DiskError(f"cannot make a temporary disk overlay: {error.strerror}") from None
        fd = open_locked(self.path, os.O_RDONLY if self.read_only else os.O_RDWR | os.O_CREAT)
        try:
            if os.fstat(fd).st_size or self.read_only:
                self._load_map(fd)
            else:
                os.truncate(fd, self._data + len(self._map) * CLUSTER)
                write_views(fd, 0, [self._header()])
        except OSError as error:
            os.close(fd)
            raise DiskError(f"cannot use disk overlay {self.path}: {error.strerror}") from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _header(self) -> bytes:
        return OVERLAY_HEADER.pack(OVERLAY_MAGIC, OVERLAY_VERSION, CLUSTER, self.size)

    def _load_map(self, fd: int) -> None:
        header = os.pread(fd, OVERLAY_HEADER.size, 0)
        if not header.startswith(OVERLAY_MAGIC) or len(header) < OVERLAY_HEADER.size:
            raise DiskError(f"{self.path} is not a disk overlay")
        _, version, cluster, size = OVERLAY_HEADER.unpack(header)
        if (version, cluster) != (OVERLAY_VERSION, CLUSTER):
            raise DiskError(f"disk overlay {self.path} has version {version}, this machine reads {OVERLAY_VERSION}")
        if size != self.size:
            raise DiskError(f"disk overlay {self.path} is for a base of {size} bytes; this one has {self.size}")
        read_views(fd, MAP_OFFSET, [memoryview(self._map)])
        self.is_fresh = not any(self._map)
        if os.fstat(fd).st_size < self._data + len(self._map) * CLUSTER or max(self._map) > ZERO:
            raise DiskError(f"disk overlay {self.path} is damaged")

    def _write_map(self, pages: list[int]) -> None:
        for page in pages:
            start = page * MAP_PAGE
            write_views(self._fd, MAP_OFFSET + start, [bytes(self._map[start : start + MAP_PAGE])])

    def _merged_map(self) -> bytearray:
        """Where the clusters stand for somebody who has only the image below all overlays."""
        if not isinstance(self.base, Overlay):
            return self._map
        merged = bytearray(self.base._merged_map())
        _lay_over(merged, self._map)
        return merged

    def _copy_clusters(self, merged: bytearray, fd: int) -> None:
        buffer = memoryview(bytearray(MIB))
        for run in ALL_WRITTEN.finditer(merged):
            end = min(run.end() * CLUSTER, self.size)
            for offset in range(run.start() * CLUSTER, end, MIB):
                view = buffer[: end - offset]
                self.read(offset, [view])
                write_views(fd, self._data + offset, [view])

    # --- its map ------------------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def _runs(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Split a range where its clusters' state changes: (state, bytes) of each part."""
        end = offset + size
        while offset < end:
            first = offset // CLUSTER
            states = self._map[first : -(-end // CLUSTER)]
            same = len(states) - len(states.lstrip(states[:1]))
            upto = min((first + same) * CLUSTER, end)
            yield states[0], upto - offset
            offset = upto

    def _to_copy_up(self, offset: int, size: int) -> bytes:
        """What a write to the rest of a cluster has to bring along: `size` bytes within that cluster, or none."""
        state = self._map[offset // CLUSTER] if size else WRITTEN
        if state == WRITTEN:
            return b""
        buffer = bytearray(size)
        if state == ABSENT:
            self.base.read(offset, [memoryview(buffer)])
        return bytes(buffer)

    def _mark(self, first: int, last: int, state: int) -> None:
        states = bytes((state,)) * (last - first)
        if self._map[first:last] == states:
            return
        self._map[first:last] = states
        self.is_fresh = False
        if self.path is not None:
            self._dirty.update(range(first // MAP_PAGE, (last - 1) // MAP_PAGE + 1))


def _lay_over(states: bytearray, upper: bytearray) -> None:
    """Put what an upper layer has into a map of clusters."""
    for run in NOT_ABSENT.finditer(upper):
        states[run.start() : run.end()] = run[0]


def settle(disk: Disk) -> None:
    """Make a disk such that processes that are forked can each have a layer of their own (`branched`).

    Raises:
        DiskError: it is written in place, its overlay has a name, or there is no room.
    """
    if disk.read_only:
        return
    if not isinstance(disk, Overlay):
        raise DiskError("a disk that is written in place cannot be forked; give it a temporary overlay")
    if disk.path is not None:
        raise DiskError(f"disk overlay {disk.path} cannot be forked; only temporary ones can")
    if not disk.is_fresh:
        disk.settle()


def branched(disk: Disk) -> Disk:
    """The disk of a process that was forked; it was settled in the process that this one is a copy of.

    Raises:
        DiskError: there is no room.
    """
    return Overlay(disk.leave()) if isinstance(disk, Overlay) and not disk.read_only else disk
