"""The compressions that Linux uses for its kernels and initramfs files, all expanded on the host.

Formats are told apart by their first bytes, as Linux does (lib/decompress.c). Each decoder is imported only when it
is needed: their imports would cost more than a whole warm boot's loading.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from emu.errors import BadImage

__all__ = ["Expanded", "decompress", "identify", "peek"]

LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
LZ4_LEGACY_BLOCK = 8 << 20
LZ4_LEGACY_BOUND = LZ4_LEGACY_BLOCK + LZ4_LEGACY_BLOCK // 255 + 16  # lz4.h, LZ4_COMPRESSBOUND

MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (LZ4_LEGACY_MAGIC, "lz4 legacy"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"BZh", "bzip2"),
    (b"\x5d\0\0", "lzma"),
    (b"\x89LZO\0\r\n\x1a\n", "lzo"),
)

ZSTD_WINDOW_MAX = 1 << 30
FEED = 64 << 10  # small, so that a decompression bomb is noticed early


class Expanded(NamedTuple):
    """What came out, and how many bytes of the input it took."""

    data: bytes
    consumed: int


def identify(data: bytes | memoryview) -> str | None:
    """Name the compression that `data` starts with, None if it is none of Linux'."""
    head = bytes(data[:9])
    return next((name for magic, name in MAGICS if head.startswith(magic)), None)


def decompress(data: bytes | memoryview, limit: int, what: str) -> Expanded:
    """Expand the one compressed stream at the start of `data`.

    Args:
        data: starts with a magic that `identify` knows; what follows the stream is left alone.
        limit: most bytes that may come out.
        what: names the input in error messages.

    Raises:
        BadImage: damaged, truncated, too large, or of a compression that is not supported.
    """
    name = identify(data)
    if name is None:
        raise BadImage(f"{what} is not compressed in a way that Linux knows")
    if name == "lzo":
        from emu.loader.lzo import decompress_lzop

        return Expanded(*decompress_lzop(memoryview(data), limit, what))
    if name == "lz4 legacy":
        return _lz4_legacy(memoryview(data), limit, what)
    make, errors = _stream_decoder(name)
    try:
        return _feed(make(), memoryview(data), limit, f"the {name} data of {what}")
    except errors as error:
        raise BadImage(f"the {name} data of {what} is damaged ({_one_line(error)})") from None


def peek(data: bytes | memoryview, size: int) -> bytes:
    """Expand only the beginning of a compressed stream.

    Returns:
        At most `size` bytes; fewer if the stream is short, damaged, or of a kind that is not read in pieces.
    """
    name = identify(data)
    if name is None or name in ("lzo", "lz4 legacy"):
        return b""
    make, errors = _stream_decoder(name)
    decoder, out = make(), b""
    for offset in range(0, len(data), FEED):
        if len(out) >= size or decoder.eof:
            break
        try:
            out += decoder.decompress(data[offset : offset + FEED])
        except errors:
            break
    return out[:size]


def _stream_decoder(name: str) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """A maker of incremental decoders (decompress, eof, unused_data), and the errors that damaged input raises."""
    if name == "gzip":
        import zlib

        return lambda: zlib.decompressobj(16 + zlib.MAX_WBITS), (zlib.error,)
    if name in ("xz", "lzma"):
        import lzma

        form = lzma.FORMAT_XZ if name == "xz" else lzma.FORMAT_ALONE
        return lambda: lzma.LZMADecompressor(form), (lzma.LZMAError,)
    if name == "bzip2":
        import bz2

        return bz2.BZ2Decompressor, (OSError, ValueError)
    if name == "zstd":
        import zstandard

        decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)
        return decoder.decompressobj, (zstandard.ZstdError,)
    import lz4.frame

    return lz4.frame.LZ4FrameDecompressor, (RuntimeError,)


def _feed(decoder: Any, data: memoryview, limit: int, what: str) -> Expanded:
    pieces: list[bytes] = []
    total = offset = 0
    while not decoder.eof:
        if offset >= len(data):
            raise BadImage(f"{what} is truncated")
        piece = decoder.decompress(data[offset : offset + FEED])
        offset = min(offset + FEED, len(data))
        total += len(piece)
        _check_limit(total, limit, what)
        pieces.append(piece)
    return Expanded(b"".join(pieces), offset - len(decoder.unused_data or b""))


def _lz4_legacy(data: memoryview, limit: int, what: str) -> Expanded:
    """`lz4 -l`: a magic number, then blocks, each with its compressed size and at most 8 MiB expanded."""
    import lz4.block

    pieces: list[bytes] = []
    total, offset = 0, len(LZ4_LEGACY_MAGIC)
    while offset + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, offset)
        if data[offset : offset + 4] == LZ4_LEGACY_MAGIC:  # files put one behind the other
            offset += 4
            continue
        if size == 0 or size > LZ4_LEGACY_BOUND:  # padding, or another archive: not a block of ours
            break
        if offset + 4 + size > len(data):
            raise BadImage(f"the lz4 data of {what} is truncated")
        try:
            piece = lz4.block.decompress(data[offset + 4 : offset + 4 + size], uncompressed_size=LZ4_LEGACY_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise BadImage(f"the lz4 data of {what} is damaged ({_one_line(error)})") from None
        offset += 4 + size
        total += len(piece)
        _check_limit(total, limit, f"the lz4 data of {what}")
        pieces.append(piece)
    return Expanded(b"".join(pieces), offset)


def _check_limit(total: int, limit: int, what: str) -> None:
    if total > limit:
        raise BadImage(f"{what} expands to more than {limit >> 20} MiB")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
