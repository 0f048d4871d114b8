"""Whole files of an export by path, with neither fids nor messages: what PV_READ and PV_WRITE do.

The guards are those of 9p: every component is opened relative to its directory, never through a symbolic link, and
only regular files are opened for reading or writing.
"""

from __future__ import annotations

import errno
import os
import stat

from devices.p9 import guards
from devices.p9.export import Export, reopen

__all__ = ["WholeFiles"]

PATH_FLAGS = os.O_PATH | os.O_CLOEXEC
NEW_MODE = 0o644
ROOT = 0                                # uid and gid of what the guest makes
SEPARATOR = b"/"


class WholeFiles:
    """The files of an exported directory.

    Args:
        export: the directory, and how the guest may use it.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, export: Export) -> None:
        self._read_only = export.read_only
        self._mapping = export.security.mapping()
        self._root = os.open(export.path, PATH_FLAGS | os.O_DIRECTORY)

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        """Bytes of a file.

        Args:
            path: components between slashes, relative to the directory; a slash before or behind them is ignored.
            offset, size: which bytes; fewer come where the file ends.

        Raises:
            OSError: the errno that the guest is told; ELOOP for a symbolic link on the way.
        """
        guards.file_offset(offset)
        directory, name = self._directory(path)
        try:
            fd = self._open(directory, name, os.O_RDONLY)
        finally:
            self._close(directory)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)

    def write(self, path: bytes, offset: int, data: bytes, create: bool, truncate: bool, append: bool) -> int:
        """Store bytes in a file.

        Args:
            path, offset: as `read`.
            data: what to store.
            create: make the file if it is not there.
            truncate: empty it first.
            append: store behind what is there, whatever the offset.

        Returns:
            How many bytes were stored; fewer than asked for if the host's disk is full.

        Raises:
            OSError: as `read`; EROFS for an export that is read-only.
        """
        guards.file_offset(offset)
        guards.writable_export(self._read_only)
        flags = os.O_WRONLY | (os.O_TRUNC if truncate else 0) | (os.O_APPEND if append else 0)
        directory, name = self._directory(path)
        try:
            fd = self._open_or_make(directory, name, flags) if create else self._open(directory, name, flags)
        finally:
            self._close(directory)
        try:
            return os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def _directory(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor of the directory that holds the path's last component, and that component."""
        *way, name = [component for component in path.split(SEPARATOR) if component] or [b""]
        guards.single_name(name)
        directory = self._root
        for component in way:
            try:
                guards.single_name(component)
                below = os.open(component, PATH_FLAGS | guards.NOFOLLOW, dir_fd=directory)
            finally:
                self._close(directory)
            if not stat.S_ISDIR(kind := os.fstat(below).st_mode):
                os.close(below)
                raise guards.refuse(errno.ELOOP if stat.S_ISLNK(kind) else errno.ENOTDIR)
            directory = below
        return directory, name

    def _open_or_make(self, directory: int, name: bytes, flags: int) -> int:
        try:
            return self._open(directory, name, flags)
        except FileNotFoundError:
            pass
        try:
            return self._mapping.create(directory, name, flags, NEW_MODE, ROOT, ROOT)
        except FileExistsError:         # another machine was quicker
            return self._open(directory, name, flags)

    def _open(self, directory: int, name: bytes, flags: int) -> int:
        handle = os.open(name, PATH_FLAGS | guards.NOFOLLOW, dir_fd=directory)
        try:
            kind = stat.S_IFMT(os.fstat(handle).st_mode)
            if kind == stat.S_IFDIR:
                raise guards.refuse(errno.EISDIR)
            return reopen(handle, kind, flags)
        finally:
            os.close(handle)

    def _close(self, directory: int) -> None:
        if directory != self._root:
            os.close(directory)

    def close(self) -> None:
        """Close the directory; no method may be called after."""
        os.close(self._root)
