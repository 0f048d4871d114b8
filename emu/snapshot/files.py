"""A snapshot on disk: a directory with the header, RAM, and whatever else the machine keeps in files.

    header.json     what it is, and the machine's state
    ram             RAM, sparse
    files/          others, such as disks' overlays

It appears whole or not at all, takes the place of an older one in one step, and is never written to again.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, TypeVar

from emu.errors import BadSnapshot
from emu.memory import MIB, GuestMemory
from emu.snapshot.codec import decode
from emu.snapshot.header import LARGEST_HEADER, BaseLink, Header, ranges, unpack
from emu.snapshot.pages import PAGE
from emu.snapshot.ram import Layer, Progress, RamFile, map_files, ram_digest, trailer

__all__ = ["FILES", "HEADER", "LONGEST_CHAIN", "RAM", "Snapshot", "file_digest", "no_progress"]

HEADER, RAM, FILES = "header.json", "ram", "files"
LONGEST_CHAIN = 16                      # a snapshot and those that it builds on

T = TypeVar("T")


def no_progress(_done: int, _total: int) -> None:
    """Tell nobody."""


class Snapshot:
    """A snapshot that can be restored from; `open` makes one. A context manager, which closes it.

    Attributes:
        path: its directory, absolute.
        header: what it says of itself.
        id: 32 hexadecimal digits.
        digest: of the header's file.
        base: the snapshot that it builds on; None if it is whole.
    """

    def __init__(
        self, path: str, header: Header, state: Any, digest: str, ram: RamFile, base: Snapshot | None
    ) -> None:
        self.path = Path(path)
        self.header = header
        self.id = header.id
        self.digest = digest
        self.base = base
        self._state = state
        self._ram: RamFile | None = ram

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Snapshot:
        """Open a snapshot and those that it builds on; all is checked but the contents of RAM and other files.

        Raises:
            BadSnapshot: it is missing, damaged, or of a newer version.
        """
        return cls._open(os.path.realpath(path), LONGEST_CHAIN)

    @classmethod
    def _open(cls, path: str, longest: int) -> Snapshot:
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BadSnapshot(f"cannot open the snapshot {path}: {error.strerror}") from None
        # Through this descriptor all files are of one directory, should another take the name meanwhile.
        try:
            header, state, digest = unpack(_read_header(directory, path), os.path.join(path, HEADER))
            _check_files(directory, path, header)
            ram = _open_ram(directory, path, header, digest)
        finally:
            os.close(directory)
        try:
            base = cls._open_base(path, header, header.base, longest - 1) if header.base else None
            return cls(path, header, state, digest, ram, base)
        except BaseException:
            os.close(ram.fd)
            raise

    @classmethod
    def _open_base(cls, path: str, header: Header, link: BaseLink, longest: int) -> Snapshot:
        if not longest:
            raise BadSnapshot(f"{path} is one of more than {LONGEST_CHAIN} snapshots that build on each other")
        try:
            base = cls._open(os.path.realpath(os.path.join(path, link.path)), longest)
        except BadSnapshot as error:
            raise BadSnapshot(f"{path} builds on another snapshot: {error}") from None
        if (base.id, base.digest, base.header.ram.size) != (link.id, link.sha256, header.ram.size):
            base.close()
            raise BadSnapshot(f"{path} builds on a snapshot that {base.path} is not, or not any more")
        return base

    def state(self, kind: type[T]) -> T:
        """The machine's state.

        Args:
            kind: the dataclass that it was saved as.

        Raises:
            BadSnapshot: it is not exactly that.
        """
        return decode(kind, self._state, f"{self.path / HEADER}: state")

    def file(self, name: str) -> Path:
        """Path of another file of the snapshot; it must not be changed.

        Raises:
            BadSnapshot: there is none of that name.
        """
        if all(entry.name != name for entry in self.header.files):
            raise BadSnapshot(f"{self.path} has no file {name}")
        return self.path / FILES / name

    def map_memory(self, eager_bytes: int = 0, *, copy: bool = False) -> GuestMemory:
        """RAM as it was saved: pages come in when they are first needed, and are copied when they are first written.

        Args:
            eager_bytes: how much of the hot set, where one is known (`emu.snapshot.hot`), is brought in now.
            copy: bring all of RAM in now, into huge pages where the host has them: for a machine that is forked often.

        Raises:
            EmuError: the host has no room.
            BadSnapshot: RAM cannot be read.
        """
        memory = map_files(self._ram_files(), self.header.ram.size, self.id, copy)
        if eager_bytes and not copy:
            from emu.snapshot import hot

            try:
                known = hot.find(self.id, memory.size)
                if known:
                    hot.populate(memory, known, eager_bytes)
            except OSError as error:
                memory.close()
                raise BadSnapshot(f"{self.path}: its RAM cannot be read: {error.strerror}") from None
        return memory

    def _ram_files(self) -> list[RamFile]:
        if self._ram is None:
            raise ValueError(f"the snapshot {self.path} is closed")
        return [*(self.base._ram_files() if self.base else ()), self._ram]

    @property
    def depth(self) -> int:
        """How many snapshots build on each other here, this one included."""
        return 1 + (self.base.depth if self.base else 0)

    def verify(self, progress: Progress = no_progress) -> None:
        """Read everything, what it builds on included, and compare with the checksums.

        Args:
            progress: told of each RAM file's bytes.

        Raises:
            BadSnapshot: something is not as it was saved.
        """
        try:
            if ram_digest(self._ram_files()[-1], progress) != self.header.ram.sha256:
                raise BadSnapshot(f"{self.path / RAM} is damaged: it does not have its checksum")
            for file in self.header.files:
                if file_digest(self.path / FILES / file.name) != file.sha256:
                    raise BadSnapshot(f"{self.path / FILES / file.name} is damaged: it does not have its checksum")
        except OSError as error:
            raise BadSnapshot(f"{self.path} cannot be read: {error.strerror}") from None
        if self.base:
            self.base.verify(progress)

    def close(self) -> None:
        """Close its files; memory that was mapped stays."""
        ram, self._ram = self._ram, None
        if ram:
            os.close(ram.fd)
        if self.base:
            self.base.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _layer(header: Header) -> Layer:
    entry = header.ram
    if header.base:
        return Layer.delta(ranges(entry.held), ranges(entry.zero))
    return Layer.whole(entry.size, ranges(entry.held))


def _open_regular(directory: int, path: str, name: str) -> tuple[int, int]:
    """A descriptor and the size."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise BadSnapshot(f"{path} is no snapshot: its {name} cannot be opened: {error.strerror}") from None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return fd, status.st_size
    os.close(fd)
    raise BadSnapshot(f"{path} is no snapshot: its {name} is no file")


def _read_header(directory: int, path: str) -> bytes:
    fd, size = _open_regular(directory, path, HEADER)
    with open(fd, "rb") as file:
        if size > LARGEST_HEADER:
            raise BadSnapshot(f"{path}/{HEADER} is damaged: it has {size} bytes")
        try:
            return file.read()
        except OSError as error:
            raise BadSnapshot(f"{path}/{HEADER} cannot be read: {error.strerror}") from None


def _check_files(directory: int, path: str, header: Header) -> None:
    for entry in header.files:
        fd, size = _open_regular(directory, path, f"{FILES}/{entry.name}")
        os.close(fd)
        if size != entry.size:
            raise BadSnapshot(f"{path}/{FILES}/{entry.name} has {size} bytes, and had {entry.size}")


def _open_ram(directory: int, path: str, header: Header, digest: str) -> RamFile:
    layer = _layer(header)
    fd, size = _open_regular(directory, path, RAM)
    try:
        expected = layer.size + PAGE
        if size != expected:
            raise BadSnapshot(f"{path}/{RAM} has {size} bytes, and had {expected}")
        try:
            end = os.pread(fd, PAGE, layer.size)
        except OSError as error:
            raise BadSnapshot(f"{path}/{RAM} cannot be read: {error.strerror}") from None
        if end != trailer(header.id, digest):
            raise BadSnapshot(f"{path}/{RAM} is damaged, or belongs to another snapshot")
        return RamFile(path, fd, layer)
    except BaseException:
        os.close(fd)
        raise


def file_digest(path: Path) -> str:
    """SHA-256 of what is not zero in a file and of where it stands; holes are not read.

    Raises:
        OSError: the host refused.
    """
    from hashlib import sha256

    digest = sha256()
    zeros = bytes(MIB)
    with open(path, "rb", buffering=0) as file:
        fd, size, offset = file.fileno(), os.fstat(file.fileno()).st_size, 0
        while offset < size:
            try:
                offset = os.lseek(fd, offset, os.SEEK_DATA) // MIB * MIB
            except OSError:             # ENXIO: only a hole is left
                break
            block = os.pread(fd, MIB, offset)
            if block != zeros[: len(block)]:
                digest.update(offset.to_bytes(8, "little"))
                digest.update(block)
            offset += MIB
    return digest.hexdigest()
