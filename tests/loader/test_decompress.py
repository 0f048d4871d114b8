"""Streams of each compression: whole, with something behind, damaged."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import zlib

import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.errors import BadImage
from emu.loader.decompress import decompress, identify, peek
from emu.loader.lzo import decompress_lzo1x
from tests.loader.fakes import lz4_legacy

TEXT = b"abc" * 100 + b"some text, some more text"
LZO = bytes.fromhex(  # TEXT, by lzop -c
    "894c5a4f000d0a1a0a10102030094001050300000100000000000000000000000000109400c400000145"
    "0000002838ad7c2a0461626361626361200005080008736f6d6520746578742c208801066d6f7265207465787411000000000000"
)
STREAMS = {
    "gzip": gzip.compress(TEXT, mtime=0),
    "xz": lzma.compress(TEXT),
    "lzma": lzma.compress(TEXT, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress(TEXT),
    "zstd": zstandard.compress(TEXT),
    "lz4": lz4.frame.compress(TEXT),
    "lz4 legacy": lz4_legacy(TEXT),
    "lzo": LZO,
}
LIMIT = 1 << 20


@pytest.mark.parametrize("name", STREAMS)
def test_stream_is_expanded_and_what_follows_is_left_alone(name: str) -> None:
    stream = STREAMS[name]
    assert identify(stream) == name
    expanded = decompress(stream + bytes(4) + b"0707", LIMIT, "it")
    assert expanded.data == TEXT
    assert expanded.consumed == len(stream)


@pytest.mark.parametrize("name", STREAMS)
def test_truncated_stream_is_refused(name: str) -> None:
    for size in range(10, len(STREAMS[name]) - 1):
        try:
            data = decompress(STREAMS[name][:size], LIMIT, "it").data
        except BadImage:
            continue
        assert name == "lz4 legacy" and data == b""  # cut inside the first block's size: no block at all


@pytest.mark.parametrize("name", STREAMS)
def test_output_is_limited(name: str) -> None:
    with pytest.raises(BadImage, match="more than 0 MiB"):
        decompress(STREAMS[name], 100, "it")


def test_a_decompression_bomb_is_noticed_before_it_fills_memory() -> None:
    with pytest.raises(BadImage, match="more than 1 MiB"):
        decompress(zlib.compress(bytes(200 << 20), wbits=31), LIMIT, "it")


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in ("lzo", "lz4 legacy")])
def test_peek_gives_the_beginning_only(name: str) -> None:
    assert peek(STREAMS[name], 10) == TEXT[:10]


@settings(max_examples=300)
@given(
    stream=st.sampled_from(sorted(STREAMS.values())),
    at=st.integers(0, 400),
    value=st.integers(0, 255),
    cut=st.integers(0),
)
def test_damage_gives_bytes_or_one_line(stream: bytes, at: int, value: int, cut: int) -> None:
    damaged = bytearray(stream)
    damaged[at % len(damaged)] = value
    try:
        decompress(bytes(damaged[: len(damaged) - cut % 20]), LIMIT, "it")
    except BadImage as error:
        assert "\n" not in str(error)


@settings(max_examples=500)
@given(st.binary(min_size=1, max_size=200))
def test_random_lzo_streams_end_in_order(stream: bytes) -> None:
    with contextlib.suppress(ValueError, IndexError):
        assert isinstance(decompress_lzo1x(stream, 1 << 16), bytes)


def test_lzo_repeats_a_pattern_that_overlaps_itself() -> None:
    # 20: three literals "abc" (17 + 3); 0x20 ...: a match of 2 + 31 + 5 bytes, 3 back; end marker.
    stream = bytes((20,)) + b"abc" + bytes((0x20, 5, 2 << 2, 0)) + bytes((0x11, 0, 0))
    assert decompress_lzo1x(stream, 1000) == (b"abc" * 20)[:41]
