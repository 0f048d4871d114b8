"""lzop files, the rarest of Linux' compressions, in plain Python: slow, but needed once a kernel.

The container is read as lib/decompress_unlzo.c of Linux does, the LZO1X stream in it by Linux'
Documentation/staging/lzo.rst.
"""

from __future__ import annotations

import struct
import zlib

from emu.errors import BadImage

__all__ = ["decompress_lzo1x", "decompress_lzop"]

MAGIC_SIZE = 9
VERSION_WITH_LEVEL = 0x0940
FLAG_FILTER = 0x800
FLAG_ADLER32_EXPANDED = 0x1
CHECKSUMS_EXPANDED = (0x1, 0x100)  # Adler-32 and CRC-32 of the block's data
CHECKSUMS_PACKED = (0x2, 0x200)  # and of its compressed form, present only if that is the shorter one
BLOCK_MAX = 64 << 20

AFTER_RUN = 4  # the state behind a literal run; 0 to 3 is how many literals followed the last match
FAR_END = 16384


def decompress_lzop(data: memoryview, limit: int, what: str) -> tuple[bytes, int]:
    """Expand an lzop file.

    Args:
        data: starts with lzop's magic number; what follows the file is left alone.
        limit: most bytes that may come out.
        what: names the input in error messages.

    Returns:
        The content, and how many bytes of `data` it took.

    Raises:
        BadImage: damaged, truncated or too large.
    """
    pieces: list[bytes] = []
    total = 0
    try:
        flags, position = _skip_header(data)
        while True:
            (size,) = struct.unpack_from(">I", data, position)
            position += 4
            if size == 0:
                return b"".join(pieces), position
            total += size
            if size > BLOCK_MAX or total > limit:
                raise BadImage(f"the lzo data of {what} is damaged, or expands to more than {limit >> 20} MiB")
            piece, position = _block(data, position, size, flags)
            pieces.append(piece)
    except (struct.error, IndexError):
        raise BadImage(f"the lzo data of {what} is truncated") from None
    except ValueError as error:
        raise BadImage(f"the lzo data of {what} is damaged ({error})") from None


def _skip_header(data: memoryview) -> tuple[int, int]:
    """(flags, offset of the first block)."""
    (version,) = struct.unpack_from(">H", data, MAGIC_SIZE)
    newer = version >= VERSION_WITH_LEVEL
    position = MAGIC_SIZE + (8 if newer else 7)  # versions of program, library and format; method; level
    (flags,) = struct.unpack_from(">I", data, position)
    position += 8 if flags & FLAG_FILTER else 4
    position += 12 if newer else 8  # mode and time
    return flags, position + 1 + data[position] + 4  # name, checksum of the header


def _block(data: memoryview, position: int, size: int, flags: int) -> tuple[bytes, int]:
    (packed_size,) = struct.unpack_from(">I", data, position)
    (checksum,) = struct.unpack_from(">I", data, position + 4)
    position += 4 + 4 * sum(bool(flags & flag) for flag in CHECKSUMS_EXPANDED)
    if packed_size < size:
        position += 4 * sum(bool(flags & flag) for flag in CHECKSUMS_PACKED)
    packed = bytes(data[position : position + packed_size])
    if len(packed) < packed_size:
        raise IndexError
    piece = decompress_lzo1x(packed, size) if packed_size < size else packed
    if len(piece) != size or (flags & FLAG_ADLER32_EXPANDED and zlib.adler32(piece) != checksum):
        raise ValueError("a block has a wrong checksum or size")
    return piece, position + packed_size


def decompress_lzo1x(source: bytes, limit: int) -> bytes:
    """Expand one LZO1X stream.

    Args:
        source: the stream, its end marker included.
        limit: most bytes that may come out.

    Raises:
        ValueError: damaged. IndexError: truncated.
    """
    out = bytearray()
    position = state = 0
    if source[0] > 17:
        # The first byte may stand for literals: 18 to 20 as behind a match, above that as a run.
        count = source[0] - 17
        out += source[1 : 1 + count]
        position, state = 1 + count, min(count, AFTER_RUN)
    while True:
        code = source[position]
        position += 1
        if code < 16 and state == 0:
            count, position = _length(source, position, code, 15)
            out += source[position : position + count + 3]
            position, state = position + count + 3, AFTER_RUN
        else:
            size, distance, state, position = _match(source, position, code, state)
            if distance == FAR_END and code & 0xF0 == 0x10:
                return bytes(out)
            if distance > len(out):
                raise ValueError("a match reaches before the start")
            _copy(out, distance, size)
            out += source[position : position + state]
            position += state
        if len(out) > limit:
            raise ValueError("more data than announced")


def _match(source: bytes, position: int, code: int, state: int) -> tuple[int, int, int, int]:
    """(length, distance, literals that follow, position behind the instruction)."""
    if code >= 64:
        size = (code >> 5) + 1
        return size, (source[position] << 3) + (code >> 2 & 7) + 1, code & 3, position + 1
    if code < 16:
        size, base = (3, 2049) if state == AFTER_RUN else (2, 1)
        return size, (source[position] << 2) + (code >> 2) + base, code & 3, position + 1
    if code >= 32:
        extra, position = _length(source, position, code & 31, 31)
        base = 1
    else:
        extra, position = _length(source, position, code & 7, 7)
        base = FAR_END + ((code & 8) << 11)
    word = source[position] | source[position + 1] << 8
    return extra + 2, base + (word >> 2), word & 3, position + 2


def _length(source: bytes, position: int, short: int, base: int) -> tuple[int, int]:
    """A length: in the instruction itself, or, if that is zero, as zero bytes of 255 each and a last byte."""
    if short:
        return short, position
    length = base
    while source[position] == 0:
        length += 255
        position += 1
    return length + source[position], position + 1


def _copy(out: bytearray, distance: int, size: int) -> None:
    start = len(out) - distance
    if distance >= size:
        out += out[start : start + size]
    else:  # the copy reads what it has just written: a repeating pattern
        out += (out[start:] * (size // distance + 1))[:size]
