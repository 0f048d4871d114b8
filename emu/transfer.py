"""Files between host and guest as tar streams through a job; what the guest sends is believed in nothing."""

from __future__ import annotations

import os
import shlex
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import IO, cast

from emu.channel import Channel
from emu.errors import EmuError, GuestError
from emu.job import Job, shown

__all__ = ["copy_in", "copy_out"]

BLOCK = 512                     # of a tar archive
BUFFER = 256 << 10
LONGEST_NAME = 4096             # PATH_MAX of Linux
MOST_MEMBERS = 1_000_000
REGULAR = tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE
NEWEST = 1 << 40                # seconds since 1970


def copy_in(
    channel: Channel, source: str | os.PathLike[str] | bytes, target: str, timeout: float | None = None
) -> None:
    """Copy a file, or a directory with all that is in it, into the guest, where it will be root's.

    Args:
        channel: to the guest.
        source: a path on the host, or a file's content. Sockets in a directory are left out.
        target: its path in the guest. One that ends in a slash is the directory to put it in, under its own name.
        timeout: host seconds, None for ever.

    Raises:
        EmuError: the source cannot be read, or holds a device or a named pipe.
        GuestTimeout, GuestStopped, GuestError: as `Channel.run` raises them.
    """
    directory, name = os.path.split(target)
    if not name and not isinstance(source, bytes):
        name = os.path.basename(os.path.abspath(source))
    if name in ("", ".", ".."):
        raise EmuError(f"{target!r} names no file in the guest")
    directory = directory or ("/" if target.startswith("/") else ".")
    deadline = None if timeout is None else monotonic() + timeout
    directories: list[tarfile.TarInfo] = []
    try:
        _send(channel, directory, partial(_add, source, name, directories), timeout)
    except OSError as error:
        raise EmuError(f"cannot read {error.filename or source!r}: {error.strerror or error}") from None
    if directories:
        # Once more, now that nothing is put into them any more: tar gives a directory its time when it meets it
        left = None if deadline is None else max(deadline - monotonic(), 0)
        _send(channel, directory, partial(_add_again, directories), left)


def copy_out(channel: Channel, source: str, target: str | os.PathLike[str], timeout: float | None = None) -> None:
    """Copy a file, or a directory with all that is in it, out of the guest; on the host it will be the caller's.

    A link that leads out of what is copied is refused, as is what is neither file, directory nor link: then nothing
    is copied. Of modes only the permissions are kept, and of these not the writing by group and others.

    Args:
        channel: to the guest.
        source: a path in the guest; if that is a symbolic link, what it leads to is copied.
        target: its path on the host. A directory that exists is what to put it in, under its name in the guest.
        timeout: host seconds, None for ever.

    Raises:
        EmuError: the target exists, or cannot be written.
        GuestError: the guest has no such file, or what it sent is refused; else as `Channel.run`.
        GuestTimeout, GuestStopped: as `Channel.run`.
    """
    name = os.path.basename(source.rstrip("/"))
    if name in ("", ".", ".."):
        raise EmuError(f"{source!r} names no file in the guest")
    path = Path(target)
    if path.is_dir():
        path /= name
    if os.path.lexists(path):
        raise EmuError(f"{path} exists")
    command = f'path=$(readlink -f {shlex.quote(source)}) && cd "${{path%/*}}/" && exec tar -c -f - "./${{path##*/}}"'
    job = channel.start(command, timeout=timeout)
    with channel.killing(job):
        try:
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{name}.") as place:
                copy = _Unpacker(Path(place), _Source(job)).unpack()
                _finish(job)
                if copy is None:
                    raise GuestError(f"the guest sent nothing for {source!r}")
                os.rename(copy, path)
        except OSError as error:
            raise EmuError(f"cannot write {error.filename or path}: {error.strerror}") from None


def _finish(job: Job) -> None:
    if job.wait():
        first = (job.stderr.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[0]
        raise GuestError(f"{shown(job.text)} ended with status {job.status}: {first}")


# Into the guest


class _Ended(Exception):
    """The guest's tar takes no more."""


class _Sink:
    """A file for tarfile to write to."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def write(self, data: bytes) -> int:
        if self._job.is_over:
            raise _Ended
        self._job.write(data)
        return len(data)


def _send(
    channel: Channel, directory: str, fill: Callable[[tarfile.TarFile], None], timeout: float | None
) -> None:
    """Have the guest's tar unpack what `fill` adds to an archive."""
    job = channel.start(f"tar -x -f - -C {shlex.quote(directory)}", writes=True, timeout=timeout)
    with channel.killing(job):
        try:
            sink = cast(IO[bytes], _Sink(job))
            with tarfile.open(mode="w|", fileobj=sink, bufsize=BUFFER, format=tarfile.GNU_FORMAT) as tar:
                fill(tar)
        except _Ended:
            pass
        job.end_input()
        _finish(job)


def _add(
    source: str | os.PathLike[str] | bytes, name: str, directories: list[tarfile.TarInfo], tar: tarfile.TarFile
) -> None:
    """Add the source; note down which directories it has."""
    if isinstance(source, bytes):
        info = tarfile.TarInfo(name)
        info.size = len(source)
        tar.addfile(_as_root(info), BytesIO(source))
        return

    def noted(info: tarfile.TarInfo) -> tarfile.TarInfo:
        if info.isdir():
            directories.append(info)
        return _as_root(info)

    tar.add(os.fspath(source), name, filter=noted)


def _add_again(directories: list[tarfile.TarInfo], tar: tarfile.TarFile) -> None:
    for info in reversed(directories):
        tar.addfile(info)


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    if not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
        raise EmuError(f"cannot copy {info.name} into the guest: it is neither file, directory nor link")
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


# Out of the guest


class _Source:
    """What a job writes, in pieces of any size."""

    def __init__(self, job: Job) -> None:
        self._chunks: Iterator[bytes] = iter(job.stdout)
        self._left = b""

    def read(self, size: int) -> bytes:
        """That many bytes, fewer only at the end."""
        parts = [self._left]
        have = len(self._left)
        while have < size and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        self._left = data[size:]
        return data[:size]

    def pieces(self, size: int) -> Iterator[bytes]:
        """That many bytes and what pads them to a block, the padding left out; raises `GuestError` at an early end."""
        left = size
        while left:
            data = self.read(min(left, BUFFER))
            if not data:
                raise GuestError("what the guest sent ends in the middle of a file")
            left -= len(data)
            yield data
        self.read(-size % BLOCK)

    def drop(self) -> None:
        """Read to the end."""
        self._left = b""
        for _ in self._chunks:
            pass


class _Unpacker:
    """Makes what an archive holds, below one directory that nobody else writes to.

    A member's directory has to be one that the archive has made before, so that no path leads through a link. A
    symbolic link may go up only first and not out; as no link leads further up than it says, none leads out.
    """

    def __init__(self, place: Path, source: _Source) -> None:
        self._place = place
        self._source = source
        self._directories: dict[tuple[str, ...], tarfile.TarInfo] = {}
        self._files: set[tuple[str, ...]] = set()
        self._root: tuple[str, ...] = ()
        self._members = 0

    def unpack(self) -> Path | None:
        """Unpack all; the path of what everything is in, None if there was nothing."""
        while (info := self._next()) is not None:
            self._members += 1
            if self._members > MOST_MEMBERS:
                raise GuestError(f"the guest sent more than {MOST_MEMBERS:,} files")
            self._make(info)
        self._source.drop()
        for parts, info in reversed(self._directories.items()):
            self._set_mode(self._path(parts), info)
        return self._path(self._root) if self._root else None

    def _next(self) -> tarfile.TarInfo | None:
        """The next member, with its long names."""
        names: dict[bytes, str] = {}
        while True:
            block = self._source.read(BLOCK)
            if len(block) < BLOCK or not any(block):
                return None
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.TarError as error:
                raise GuestError(f"the guest sent no archive: {error}") from None
            if info.size < 0:
                raise GuestError("the guest sent a file of less than no bytes")
            if info.type not in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                break
            if info.size > LONGEST_NAME:
                raise GuestError(f"the guest sent a name of {info.size} bytes")
            name = b"".join(self._source.pieces(info.size)).partition(b"\0")[0]
            names[info.type] = name.decode("utf-8", "surrogateescape")
        info.name = names.get(tarfile.GNUTYPE_LONGNAME, info.name)
        info.linkname = names.get(tarfile.GNUTYPE_LONGLINK, info.linkname)
        return info

    def _make(self, info: tarfile.TarInfo) -> None:
        parts = self._parts(info.name)
        self._root = self._root or parts
        path = self._path(parts)
        if parts != self._root and parts[:-1] not in self._directories:
            raise GuestError(f"the guest sent {info.name!r}, which is in no directory that it sent")
        if os.path.lexists(path):
            raise GuestError(f"the guest sent {info.name!r} twice")
        if info.isdir():
            path.mkdir(mode=0o700)
            self._directories[parts] = info
        elif info.type in REGULAR:
            self._make_file(path, info)
            self._files.add(parts)
        elif info.issym():
            self._check_link(parts, info)
            os.symlink(info.linkname, path)
        elif info.islnk() and self._parts(info.linkname) in self._files:
            os.link(self._path(self._parts(info.linkname)), path, follow_symlinks=False)
            self._files.add(parts)
        else:
            raise GuestError(f"the guest sent {info.name!r}, which is neither file, directory nor link")

    def _parts(self, name: str) -> tuple[str, ...]:
        """A name's components; the first of all members' is the same."""
        parts = tuple(name.removeprefix("./").removesuffix("/").split("/"))
        if any(part in ("", ".", "..") for part in parts) or (self._root and parts[0] != self._root[0]):
            raise GuestError(f"the guest sent {name!r}, which is not in what was asked for")
        return parts

    def _path(self, parts: tuple[str, ...]) -> Path:
        return self._place.joinpath("copy", *parts[1:])

    def _check_link(self, parts: tuple[str, ...], info: tarfile.TarInfo) -> None:
        steps = info.linkname.split("/")
        up = next((i for i, step in enumerate(steps) if step != ".."), len(steps))
        if info.linkname.startswith("/") or not info.linkname or ".." in steps[up:] or up > len(parts) - 2:
            raise GuestError(f"the guest sent {info.name!r}, a link that may lead out of the copy: {info.linkname!r}")

    def _make_file(self, path: Path, info: tarfile.TarInfo) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as handle:
            for data in self._source.pieces(info.size):
                handle.write(data)
        self._set_mode(path, info)

    def _set_mode(self, path: Path, info: tarfile.TarInfo) -> None:
        usable = stat.S_IRWXU if info.isdir() else stat.S_IRUSR | stat.S_IWUSR
        path.chmod(info.mode & 0o755 | usable)
        mtime = min(max(int(info.mtime), 0), NEWEST)
        os.utime(path, (mtime, mtime))
