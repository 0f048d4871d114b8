"""The "newc" cpio archive, the form of every initramfs (Linux, Documentation/driver-api/early-userspace/
buffer-format.rst; cpio(5))."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from devices.frozen import frozen
from emu.errors import BadImage

__all__ = ["Entry", "archive_end", "is_cpio", "read_archive", "write_archive"]

MAGIC = b"070701"
MAGIC_CHECKSUM = b"070702"
HEADER_SIZE = 110
FIELDS = 13
TRAILER = "TRAILER!!!"
FIELD_MAX = 0xFFFFFFFF
NAME_MAX = 4096  # Linux' PATH_MAX, the final NUL included: it skips longer names without a word


@frozen
class Entry:
    """One file. `mode` has the type bits; `mtime` is in seconds since 1970.

    Entries with the same `link_group`, a positive number, are hard links to each other: the data is that of the last.
    `device` is (major, minor) of a device node. `data` of a symbolic link is where it leads.
    """

    name: str
    mode: int
    data: bytes | memoryview = b""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    device: tuple[int, int] = (0, 0)
    link_group: int = 0


def is_cpio(data: bytes | memoryview) -> bool:
    """Whether a newc archive starts here."""
    return bytes(data[:6]) in (MAGIC, MAGIC_CHECKSUM)


def write_archive(entries: Iterable[Entry], output: BinaryIO) -> None:
    """Write entries, in the order given, and the trailer.

    Linux makes files as it reads them, so a directory has to come before what it contains.

    Raises:
        BadImage: a file is too large for the format, or its name too long for Linux.
    """
    listed = list(entries)
    links: dict[int, int] = {}
    for entry in listed:
        links[entry.link_group] = links.get(entry.link_group, 0) + 1
    inodes = {group: inode for inode, group in enumerate(links, start=1)}
    left = dict(links)
    for number, entry in enumerate(listed, start=len(links) + 1):
        group = entry.link_group
        if not group:
            _write_entry(entry, number, 1, entry.data, output)
            continue
        # All links of a group share an inode number, and only the last carries the data, as gen_init_cpio writes them.
        left[group] -= 1
        _write_entry(entry, inodes[group], links[group], b"" if left[group] else entry.data, output)
    _write_entry(Entry(TRAILER, 0), 0, 1, b"", output)


def _write_entry(entry: Entry, inode: int, links: int, data: bytes | memoryview, output: BinaryIO) -> None:
    name = entry.name.encode("utf-8", "surrogateescape") + b"\0"
    if len(name) > NAME_MAX:
        raise BadImage(f"the name {entry.name[:40]}... is too long for an initramfs")
    if len(data) > FIELD_MAX:
        raise BadImage(f"{entry.name} is too large for an initramfs (4 GiB)")
    numbers = (
        *(inode, entry.mode, entry.uid, entry.gid, links, min(max(entry.mtime, 0), FIELD_MAX), len(data)),
        *(0, 0, *entry.device, len(name), 0),
    )
    output.write(MAGIC + b"".join(b"%08X" % number for number in numbers))
    output.write(name + bytes(-(HEADER_SIZE + len(name)) % 4))
    output.write(data)
    output.write(bytes(-len(data) % 4))


def read_archive(data: bytes | memoryview, what: str = "the archive") -> Iterator[Entry]:
    """Yield the entries of the archive that starts at the beginning of `data`, up to its trailer.

    Args:
        what: names the archive in error messages.

    Raises:
        BadImage: damaged or truncated.
    """
    view = memoryview(data)
    for name, fields, start, stop in _walk(view, 0, what):
        inode, mode, uid, gid, links, mtime = fields[:6]
        group = inode + 1 if links > 1 and not stat.S_ISDIR(mode) else 0
        device = (fields[9], fields[10])
        yield Entry(name, mode, bytes(view[start:stop]), uid, gid, mtime, device, group)


def archive_end(data: memoryview, start: int, what: str) -> int:
    """Check the archive that starts at offset `start`, and return the offset behind its trailer.

    Raises:
        BadImage: damaged or truncated.
    """
    end = start
    for *_, end in _walk(data, start, what, with_trailer=True):  # noqa: B007 - the last one is what is wanted
        pass
    return end


def _walk(
    data: memoryview, start: int, what: str, with_trailer: bool = False
) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """(name, the 13 header fields, offsets of the data's start and end) for each entry."""
    position = start
    while True:
        if position + HEADER_SIZE > len(data):
            raise BadImage(f"{what} is a truncated cpio archive")
        if not is_cpio(data[position : position + 6]):
            raise BadImage(f"{what} is a damaged cpio archive (no header at {position:#x})")
        fields = _fields(data[position + 6 : position + HEADER_SIZE], what)
        size, name_size = fields[6], fields[11]
        name_start = position + HEADER_SIZE
        data_start = start + _align(name_start - start + name_size)
        data_end = data_start + size
        if data_end > len(data) or name_size == 0:
            raise BadImage(f"{what} is a truncated cpio archive")
        name = bytes(data[name_start : name_start + name_size - 1]).decode("utf-8", "surrogateescape")
        if name == TRAILER:
            if with_trailer:
                yield name, fields, data_start, data_end
            return
        yield name, fields, data_start, data_end
        position = start + _align(data_end - start)


def _fields(text: memoryview, what: str) -> tuple[int, ...]:
    try:
        return struct.unpack(f">{FIELDS}I", bytes.fromhex(bytes(text).decode("ascii")))
    except (ValueError, struct.error):
        raise BadImage(f"{what} is a damaged cpio archive (a header is not hexadecimal)") from None


def _align(offset: int) -> int:
    return (offset + 3) & ~3
