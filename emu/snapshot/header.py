"""The header of a snapshot: one JSON file, of which not a byte can change unnoticed.

Its first line says what it is, in which version, who has written it, and the SHA-256 of that and of all that follows.
"""

from __future__ import annotations

import json
import re
from typing import Any

from devices.frozen import frozen
from emu import __version__
from emu.errors import BadSnapshot
from emu.memory import HOLE_START, LARGEST, MIB, SMALLEST, Ranges
from emu.snapshot.codec import decode, encode
from emu.snapshot.pages import PAGE

# hashlib loads OpenSSL, which takes longer than all the rest of opening a snapshot.
try:
    from _sha256 import sha256  # type: ignore[import-not-found]
except ImportError:
    from hashlib import sha256

__all__ = [
    "LARGEST_HEADER", "VERSION", "BaseLink", "FileEntry", "Header", "Pairs", "RamEntry", "pack", "pairs", "ranges",
    "unpack",
]

VERSION = 3
LARGEST_HEADER = 256 * MIB              # a guest can have 80 MiB of 9P listings and attributes open

FIRST_LINE = re.compile(
    rb'\{"format": "pvemu snapshot", "version": ([1-9]\d{0,8}), "creator": "([\w.+-]{1,40})", '
    rb'"sha256": "([0-9a-f]{64})",\n'
)
SECTIONS = {"header", "state"}
ID = re.compile("[0-9a-f]{32}")
DIGEST = re.compile("[0-9a-f]{64}")
FILE_NAME = re.compile("[a-z0-9][a-z0-9._-]{0,63}")

Pairs = tuple[int, ...]
"""Ranges in few bytes: first page and number of pages of each in turn."""


@frozen
class RamEntry:
    """The file `ram`.

    Attributes:
        size, low_size: bytes of RAM, and of those below the hole.
        page: bytes that the pairs count in.
        held, zero: what the file has, and what is zero whatever the base has (`emu.snapshot.ram.Layer`).
        sha256: of what is held.
    """

    size: int
    low_size: int
    page: int
    held: Pairs
    zero: Pairs
    sha256: str

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            ValueError: no machine has such RAM, or a range is not in it.
        """
        if not SMALLEST <= self.size <= LARGEST or self.size % PAGE:
            raise ValueError(f"RAM of {self.size} bytes: this machine has 64 MiB to 8 GiB")
        if self.low_size != min(self.size, HOLE_START) or self.page != PAGE:
            raise ValueError("its RAM is laid out as this machine's is not")
        for numbers in (self.held, self.zero):
            end = 0
            if len(numbers) % 2:
                raise ValueError("half a range of pages")
            for start, size in zip(numbers[::2], numbers[1::2], strict=True):
                if start < end or size < 1:
                    raise ValueError("ranges of pages that are out of order")
                end = start + size
            if end > self.size // PAGE:
                raise ValueError("a range of pages behind the end of RAM")
        if not DIGEST.fullmatch(self.sha256):
            raise ValueError("no SHA-256")


@frozen
class BaseLink:
    """The snapshot below an incremental one: its path as seen from this one's, its id and its header's digest."""

    path: str
    id: str
    sha256: str


@frozen
class FileEntry:
    """Another file of the snapshot."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            ValueError: the name is not a plain one.
        """
        if not FILE_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!a} is no name of a file")


@frozen
class Header:
    """What a snapshot says of itself, besides the machine's state."""

    id: str
    created_ns: int
    ram: RamEntry
    base: BaseLink | None
    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            ValueError: the id is none.
        """
        if not ID.fullmatch(self.id):
            raise ValueError("no id")


def ranges(numbers: Pairs) -> Ranges:
    """Pairs as ranges of bytes."""
    both = zip(numbers[::2], numbers[1::2], strict=True)
    return tuple((first * PAGE, (first + pages) * PAGE) for first, pages in both)


def pairs(parts: Ranges) -> Pairs:
    """Ranges of bytes as pairs."""
    return tuple(number for start, end in parts for number in (start // PAGE, (end - start) // PAGE))


def pack(header: Header, state: Any) -> tuple[bytes, str]:
    """The file's content, and the digest in it.

    Args:
        header: what the snapshot says of itself.
        state: a dataclass.

    Raises:
        TypeError: the state is not what its hints say.
    """
    parts = [f'"{name}": {_dump(encode(value))}' for name, value in (("header", header), ("state", state))]
    rest = (",\n".join(parts) + "}\n").encode()
    digest = _digest(str(VERSION), __version__, rest)
    first = f'{{"format": "pvemu snapshot", "version": {VERSION}, "creator": "{__version__}", "sha256": "{digest}",\n'
    return first.encode() + rest, digest


def unpack(content: bytes, name: str) -> tuple[Header, Any, str]:
    """The header, the state as plain data, and the digest.

    Args:
        content: of the file.
        name: what messages call it.

    Raises:
        BadSnapshot: it is damaged, or of another version.
    """
    first = FIRST_LINE.match(content)
    if first is None:
        raise BadSnapshot(f"{name} is not the header of a snapshot, or is damaged")
    version, creator, digest = (group.decode() for group in first.groups())
    if int(version) != VERSION:
        raise BadSnapshot(
            f"{name} was written by pvemu {creator} in version {version} of the format; this is pvemu {__version__},"
            f" which knows version {VERSION}"
        )
    rest = content[first.end() :]
    if _digest(version, creator, rest) != digest:
        raise BadSnapshot(f"{name} is damaged: it does not have the checksum that it says it has")
    try:
        sections = json.loads(b"{" + rest)
    except (ValueError, RecursionError):
        raise BadSnapshot(f"{name} is damaged: it is no JSON") from None
    if sections.keys() != SECTIONS:
        raise BadSnapshot(f"{name} is damaged: a part of it is missing")
    return decode(Header, sections["header"], f"{name}: header"), sections["state"], digest


def _dump(plain: Any) -> str:
    return json.dumps(plain, separators=(",", ":"))


def _digest(version: str, creator: str, rest: bytes) -> str:
    digest: str = sha256(f"{version} {creator}\n".encode() + rest).hexdigest()
    return digest
