"""How 9P lays out a message: fixed numbers, and strings and lists of variable length between them.

Numbers are little-endian; a string is its length in 16 bits and its bytes, of no particular encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

__all__ = [
    "HEADER", "QID", "U8", "U16", "U32", "U64", "Codec", "Malformed", "Message", "Qid", "Qids", "String", "Strings",
]

HEADER = struct.Struct("<IBH")          # size of the whole message, type, tag
HEADER_SIZE = HEADER.size
QID = struct.Struct("<BIQ")             # type, version, path
MOST_NAMES = 16                         # in one Twalk (P9_MAXWELEM)

U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
Qid = Annotated[bytes, "13s"]
String = Annotated[bytes, "string"]
Strings = Annotated[tuple[bytes, ...], "strings"]
Qids = Annotated[tuple[bytes, ...], "qids"]

Message = Any
"""A named tuple whose fields are annotated with the kinds above."""


class Malformed(ValueError):
    """Bytes that are no message of the type they claim to be."""


_LENGTH = struct.Struct("<H")


def _decode_string(frame: bytes, offset: int) -> tuple[bytes, int]:
    (length,) = _LENGTH.unpack_from(frame, offset)
    end = offset + 2 + length
    if end > len(frame):
        raise Malformed(f"string of {length} bytes at {offset} of {len(frame)}")
    return frame[offset + 2 : end], end


def _decode_strings(frame: bytes, offset: int) -> tuple[tuple[bytes, ...], int]:
    (count,) = _LENGTH.unpack_from(frame, offset)
    if count > MOST_NAMES:
        raise Malformed(f"{count} names")
    offset += 2
    strings = []
    for _ in range(count):
        string, offset = _decode_string(frame, offset)
        strings.append(string)
    return tuple(strings), offset


def _decode_qids(frame: bytes, offset: int) -> tuple[tuple[bytes, ...], int]:
    (count,) = _LENGTH.unpack_from(frame, offset)
    end = offset + 2 + count * QID.size
    if end > len(frame):
        raise Malformed(f"{count} qids at {offset} of {len(frame)}")
    return tuple(frame[at : at + QID.size] for at in range(offset + 2, end, QID.size)), end


def _encode_string(value: bytes) -> bytes:
    return _LENGTH.pack(len(value)) + value


def _encode_strings(values: tuple[bytes, ...]) -> bytes:
    return _LENGTH.pack(len(values)) + b"".join(map(_encode_string, values))


def _encode_qids(values: tuple[bytes, ...]) -> bytes:
    return _LENGTH.pack(len(values)) + b"".join(values)


Decoder = Callable[[bytes, int], tuple[Any, int]]
VARIABLE: dict[str, tuple[Decoder, Callable[[Any], bytes]]] = {
    "string": (_decode_string, _encode_string),
    "strings": (_decode_strings, _encode_strings),
    "qids": (_decode_qids, _encode_qids),
}


class Codec:
    """How one class of message is laid out: runs of fixed fields, and fields of variable length between them."""

    def __init__(self, message: type[Any]) -> None:
        self.message = message
        self._make = message._make
        self._parts: list[tuple[struct.Struct, int] | str] = []     # fixed fields and how many; or a variable one
        run = ""
        hints = get_type_hints(message, include_extras=True)
        for name in message._fields:
            (kind,) = hints[name].__metadata__
            if kind in VARIABLE:
                self._close(run)
                self._parts.append(kind)
                run = ""
            else:
                run += kind
        self._close(run)
        # Most messages, and the frequent ones, are numbers only: one look at the layout does.
        self._fixed = struct.Struct("<" + run) if (len(run) and len(self._parts) == 1) or not self._parts else None
        self._whole = struct.Struct(HEADER.format + run)

    def _close(self, run: str) -> None:
        if run:
            layout = struct.Struct("<" + run)
            self._parts.append((layout, len(layout.unpack(bytes(layout.size)))))

    def decode(self, frame: bytes) -> Message:
        """The message in a frame that begins with its header; what follows it is not looked at.

        Raises:
            Malformed: the frame is too short for it.
        """
        try:
            if self._fixed is not None:
                return self._make(self._fixed.unpack_from(frame, HEADER_SIZE))
            return self._make(self._decode_parts(frame))
        except struct.error as error:
            raise Malformed(f"{self.message.__name__}: {error}") from None

    def _decode_parts(self, frame: bytes) -> list[Any]:
        values: list[Any] = []
        offset = HEADER_SIZE
        for part in self._parts:
            if isinstance(part, str):
                value, offset = VARIABLE[part][0](frame, offset)
                values.append(value)
            else:
                values += part[0].unpack_from(frame, offset)
                offset += part[0].size
        return values

    def encode(self, type_: int, tag: int, message: Message, extra: int = 0) -> bytes:
        """The frame of a message, whose size counts `extra` more bytes that the caller puts behind it.

        Raises:
            struct.error: a value does not fit its field.
        """
        if self._fixed is not None:
            return self._whole.pack(self._whole.size + extra, type_, tag, *message)
        body, at = b"", 0
        for part in self._parts:
            if isinstance(part, str):
                body += VARIABLE[part][1](message[at])
                at += 1
            else:
                body += part[0].pack(*message[at : at + part[1]])
                at += part[1]
        return HEADER.pack(HEADER_SIZE + len(body) + extra, type_, tag) + body
