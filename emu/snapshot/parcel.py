"""Snapshots in pieces, to go from one host to another by whatever carries bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from emu.cache import Cache
from emu.errors import BadSnapshot, EmuError
from emu.memory import MIB
from emu.snapshot.files import FILES, HEADER, RAM, Snapshot
from emu.snapshot.header import FILE_NAME
from emu.snapshot.ready import alone
from emu.snapshot.replace import replacing

__all__ = ["Piece", "fetched", "is_snapshot", "pack", "unpack"]

KIND = "fetched"                        # in the cache
BLOCK = MIB
PIECE = 4 * MIB                         # that a piece has, or a block more; engines complain about long messages
LEVEL = 3                               # of compression: quicker than most networks
NAME = re.compile(f"{re.escape(HEADER)}|{RAM}|{FILES}/{FILE_NAME.pattern}")

Piece = tuple[tuple[str, int, bytes], ...]
"""Blocks: a file's name, an offset in it, and what stands there, compressed; with nothing, the offset is the end."""


def pack(snapshot: Snapshot) -> Iterator[Piece]:
    """All of a snapshot but its zeroes.

    Raises:
        BadSnapshot: it builds on another one, or cannot be read.
    """
    if snapshot.base:
        raise BadSnapshot(
            f"{snapshot.path} builds on another snapshot; only a whole one goes to another host (restore it, save it)"
        )
    blocks: list[tuple[str, int, bytes]] = []
    size = 0
    for block in _blocks(snapshot):
        blocks.append(block)
        size += len(block[2])
        if size >= PIECE:
            yield tuple(blocks)
            blocks, size = [], 0
    if blocks:
        yield tuple(blocks)


def _blocks(snapshot: Snapshot) -> Iterator[tuple[str, int, bytes]]:
    compress = zstandard.ZstdCompressor(level=LEVEL).compress
    zeros = bytes(BLOCK)
    for name in HEADER, RAM, *(f"{FILES}/{entry.name}" for entry in snapshot.header.files):
        try:
            with open(snapshot.path / name, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                yield name, size, b""
                for offset in range(0, size, BLOCK):
                    block = os.pread(file.fileno(), BLOCK, offset)
                    if block != zeros[: len(block)]:
                        yield name, offset, compress(block)
        except OSError as error:
            raise BadSnapshot(f"{snapshot.path / name} cannot be read: {error.strerror}") from None


def unpack(pieces: Iterable[Piece], directory: Path) -> None:
    """Write the files of a snapshot into an empty directory, and have the disk keep them.

    Raises:
        BadSnapshot: the pieces are not of a snapshot.
        OSError: the host refused.
    """
    decompress = zstandard.ZstdDecompressor().decompress
    (directory / FILES).mkdir()
    for piece in pieces:
        for name, offset, packed in piece:
            if not NAME.fullmatch(name):
                raise BadSnapshot(f"a snapshot has no file {name!a}")
            with open(directory / name, "r+b" if packed else "xb", buffering=0) as file:
                try:
                    block = decompress(packed, BLOCK) if packed else b""
                except zstandard.ZstdError:
                    raise BadSnapshot(f"a snapshot's {name} came damaged") from None
                if packed:
                    os.pwrite(file.fileno(), block, offset)
                else:
                    os.truncate(file.fileno(), offset)
    for path in [path for path in directory.rglob("*") if path.is_file()]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def fetched(id: str, digest: str, pieces: Iterable[Piece] = ()) -> Path | None:
    """Where this host's cache has a snapshot; None if it has not, and there are no pieces to make it from.

    Args:
        id, digest: of the snapshot (`emu.snapshot.files.Snapshot`).
        pieces: of it; all is compared with its checksums. One process of the host does this at a time.

    Raises:
        BadSnapshot: the pieces are not of that snapshot.
        EmuError: the host has no room.
    """
    directory = Cache().workspace(KIND)
    path = directory / id
    if is_snapshot(path, id, digest):
        return path
    pieces = list(pieces)
    if not pieces:
        return None
    try:
        with alone(directory):
            if not is_snapshot(path, id, digest):   # another process may have made it meanwhile
                _make(path, id, digest, pieces)
    except OSError as error:
        raise EmuError(f"cannot keep a snapshot in {directory}: {error.strerror}") from None
    return path


def _make(path: Path, id: str, digest: str, pieces: Iterable[Piece]) -> None:
    with replacing(os.fspath(path)) as aside:
        unpack(pieces, Path(aside))
        with Snapshot.open(aside) as snapshot:
            if (snapshot.id, snapshot.digest) != (id, digest):
                raise BadSnapshot(f"the snapshot {snapshot.id} came in place of {id}")
            snapshot.verify()


def is_snapshot(path: str | os.PathLike[str], id: str, digest: str) -> bool:
    """Whether just that snapshot is there."""
    try:
        with Snapshot.open(path) as snapshot:
            return (snapshot.id, snapshot.digest) == (id, digest)
    except BadSnapshot:
        return False
