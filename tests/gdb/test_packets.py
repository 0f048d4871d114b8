"""Packets: any content survives, and nothing that comes in does harm."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.gdb.packets import PACKET_SIZE, PacketReader, Signal, frame, unescape


def read(*pieces: bytes) -> list[bytes | Signal]:
    reader = PacketReader()
    return [each for piece in pieces for each in reader.feed(piece)]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.lists(st.binary(max_size=300), max_size=4), st.lists(st.integers(0, 1 << 16), max_size=6))
def test_what_is_framed_is_read_however_it_is_cut(contents: list[bytes], places: list[int]) -> None:
    stream = b"".join(frame(content) for content in contents)
    packets = read(*cut(stream, places))
    assert [unescape(packet) for packet in packets if isinstance(packet, bytes)] == contents
    assert len(packets) == len(contents)


@given(st.binary(max_size=400), st.binary(max_size=20))
def test_a_packet_behind_any_rubbish_is_read(rubbish: bytes, content: bytes) -> None:
    """What the rubbish has begun swallows at most one packet; so the second is read."""
    packets = read(rubbish, frame(content), frame(content))
    assert packets[-1] == frame(content)[1:-3]


@given(st.binary(max_size=100), st.integers(1, 255))
def test_a_wrong_checksum_is_told(content: bytes, difference: int) -> None:
    packet = frame(content)
    checksum = int(packet[-2:], 16) ^ difference
    assert read(packet[:-2] + b"%02x" % checksum) == [Signal.BROKEN]


@pytest.mark.parametrize("checksum", [b"zz", b"+5", b" 5", b"0x", b"\xff\xff"])
def test_a_checksum_that_is_no_number_is_told(checksum: bytes) -> None:
    assert read(b"$#" + checksum) == [Signal.BROKEN]


def test_the_signs_between_packets_are_told_and_others_are_not() -> None:
    assert read(b"+-\x03\n!" + frame(b"g") + b"\x03") == [
        Signal.ACK, Signal.NACK, Signal.INTERRUPT, b"g", Signal.INTERRUPT,
    ]  # fmt: skip


def test_a_packet_that_is_too_long_is_dropped_and_takes_no_memory() -> None:
    reader = PacketReader()
    assert list(reader.feed(b"$" + b"a" * (PACKET_SIZE * 3))) == []
    assert len(reader._content or b"") == PACKET_SIZE
    assert list(reader.feed(b"#00" + frame(b"g"))) == [Signal.BROKEN, b"g"]


def test_the_documentations_example() -> None:
    assert frame(b"OK") == b"$OK#9a"
    assert frame(b"a}b") == b"$a}]b#" + b"%02x" % (sum(b"a}]b") & 0xFF)
    assert unescape(b"a}") == b"a"
