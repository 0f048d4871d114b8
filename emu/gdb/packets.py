"""Packets of gdb's remote serial protocol (Debugging with GDB, appendix E.1): framing, escapes, checksums."""

from __future__ import annotations

import enum
from collections.abc import Iterator

__all__ = ["PACKET_SIZE", "Packet", "PacketReader", "Signal", "frame", "unescape"]

PACKET_SIZE = 0x4000                    # bytes of a packet's content, escaped, that are taken

START, END, ESCAPE, RUN = b"$#}*"
ESCAPED = 0x20                          # what an escaped byte is XORed with
INTERRUPT, ACK, NACK = b"\x03+-"
HEX = frozenset(b"0123456789abcdefABCDEF")


class Signal(enum.Enum):
    """What comes besides packets."""

    INTERRUPT = enum.auto()
    ACK = enum.auto()
    NACK = enum.auto()
    BROKEN = enum.auto()                # a packet that was too long, or whose checksum is wrong


Packet = bytes
"""A packet's content, still escaped: some fields are binary, and their lengths count the bytes they stand for."""


def frame(content: bytes) -> bytes:
    """A whole packet with that content, which is escaped here."""
    escaped = bytearray()
    for byte in content:
        if byte in (START, END, ESCAPE, RUN):
            escaped += bytes((ESCAPE, byte ^ ESCAPED))
        else:
            escaped.append(byte)
    return b"$%b#%02x" % (bytes(escaped), sum(escaped) & 0xFF)


def unescape(content: bytes) -> bytes:
    """What binary content stands for; an escape at the very end stands for nothing."""
    first, *others = content.split(bytes((ESCAPE,)))
    return first + b"".join(bytes((other[0] ^ ESCAPED,)) + other[1:] for other in others if other)


class PacketReader:
    """Makes packets of a stream of bytes, which may be cut anywhere and hold anything."""

    def __init__(self) -> None:
        self._content: bytearray | None = None      # of the packet under way
        self._checksum: bytearray | None = None     # its digits, once the content is there
        self._is_broken = False

    def feed(self, data: bytes) -> Iterator[Packet | Signal]:
        """What is complete with these bytes, in order."""
        for byte in data:
            if self._checksum is not None:
                self._checksum.append(byte)
                if len(self._checksum) == 2:
                    yield self._finished()
            elif byte == START:                     # also inside a packet: its end was lost
                self._content, self._is_broken = bytearray(), False
            elif self._content is None:
                if byte in (INTERRUPT, ACK, NACK):
                    yield {INTERRUPT: Signal.INTERRUPT, ACK: Signal.ACK, NACK: Signal.NACK}[byte]
            elif byte == END:
                self._checksum = bytearray()
            elif len(self._content) < PACKET_SIZE:
                self._content.append(byte)
            else:
                self._is_broken = True

    def _finished(self) -> Packet | Signal:
        content, digits, is_broken = self._content, self._checksum, self._is_broken
        self._content = self._checksum = None
        assert content is not None and digits is not None
        if is_broken or not HEX.issuperset(digits) or int(digits, 16) != sum(content) & 0xFF:
            return Signal.BROKEN
        return bytes(content)
