"""Initramfs files of any compression, expanded on the host: the guest only has to unpack a cpio archive."""

from __future__ import annotations

import os
from pathlib import Path

from emu.cache import Cache, content_key
from emu.errors import BadImage
from emu.images.cpio import archive_end, is_cpio
from emu.loader.decompress import decompress, identify
from emu.loader.kernel import map_file

__all__ = ["load_initramfs"]

KIND = "initramfs"
FORMAT = b"expanded initramfs 1"
EXPANDED_MAX = 4 << 30
ALIGN = 4


def load_initramfs(path: Path | str, cache: Cache) -> memoryview:
    """Read an initramfs; what is compressed in it comes out expanded.

    Archives put one behind the other, some of them compressed, as distributions do with early microcode, stay
    several archives: Linux unpacks them in turn.

    Args:
        path: a cpio archive, plain or compressed by gzip, xz, zstd, lz4, bzip2, lzma or lzo, or several of them.
        cache: keeps the expanded form for the next time.

    Raises:
        BadImage: missing, damaged, truncated, or not an initramfs.
    """
    packed = map_file(path)
    name = os.path.basename(path)
    if is_cpio(packed):
        end = _skip_padding(packed, archive_end(packed, 0, name))
        if end == len(packed):
            return packed
    key = content_key(FORMAT, packed)
    found = cache.find(KIND, key)
    if found is None:
        expanded = _expand(packed, name)
        found = cache.store(KIND, key, lambda handle: handle.writelines(expanded))
    return map_file(found)


def _expand(packed: memoryview, name: str) -> list[bytes | memoryview]:
    pieces: list[bytes | memoryview] = []
    position = total = 0
    while (position := _skip_padding(packed, position)) < len(packed):
        rest = packed[position:]
        if is_cpio(rest):
            taken = archive_end(rest, 0, name)
            piece: bytes | memoryview = rest[:taken]
        elif identify(rest):
            piece, taken = decompress(rest, EXPANDED_MAX - total, name)
            _check_archives(memoryview(piece), name)
        else:
            where = f" (unknown data at {position:#x})" if position else ": neither a cpio archive nor compressed"
            raise BadImage(f"{name} is not an initramfs{where}")
        pieces += [piece, bytes(-len(piece) % ALIGN)]
        total += len(piece)
        position += taken
    if not pieces:
        raise BadImage(f"{name} is not an initramfs: it holds only zeroes")
    return pieces


def _check_archives(expanded: memoryview, name: str) -> None:
    position = 0
    while position < len(expanded):
        if not is_cpio(expanded[position : position + 6]):
            raise BadImage(f"{name} is not an initramfs: what is compressed in it is no cpio archive")
        position = _skip_padding(expanded, archive_end(expanded, position, name))


def _skip_padding(data: memoryview, position: int) -> int:
    """Zeroes may stand between archives; stepped over in large strides."""
    while position < len(data) and data[position] == 0:
        chunk = bytes(data[position : position + 4096])
        position += len(chunk) - len(chunk.lstrip(b"\0"))
    return position
