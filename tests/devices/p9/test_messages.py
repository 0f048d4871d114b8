"""Encoding and decoding: what goes in comes out, and nothing else does."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.p9 import messages as m
from devices.p9.codec import HEADER, Malformed

KINDS = {
    "B": st.integers(0, 0xFF),
    "H": st.integers(0, 0xFFFF),
    "I": st.integers(0, 0xFFFF_FFFF),
    "Q": st.integers(0, (1 << 64) - 1),
    "13s": st.binary(min_size=13, max_size=13),
    "string": st.binary(max_size=40),
    "strings": st.lists(st.binary(max_size=20), max_size=16).map(tuple),
    "qids": st.lists(st.binary(min_size=13, max_size=13), max_size=16).map(tuple),
}


@st.composite
def frames(draw: st.DrawFn) -> tuple[int, Any]:
    """A type and a message of it."""
    type_ = draw(st.sampled_from(sorted(m.MESSAGES)))
    message = m.MESSAGES[type_]
    hints = get_type_hints(message, include_extras=True)
    return type_, message(*(draw(KINDS[hints[name].__metadata__[0]]) for name in message._fields))


@settings(max_examples=60, deadline=None)
@given(frames(), st.integers(0, 0xFFFF), st.binary(max_size=5))
def test_every_message_comes_out_as_it_went_in(frame: tuple[int, Any], tag: int, behind: bytes) -> None:
    type_, message = frame
    encoded = m.encode(type_, tag, message)
    assert HEADER.unpack_from(encoded) == (len(encoded), type_, tag)
    assert m.decode(type_, encoded + behind) == message


@settings(max_examples=60, deadline=None)
@given(frames(), st.data())
def test_a_frame_cut_short_is_malformed(frame: tuple[int, Any], data: st.DataObject) -> None:
    type_, message = frame
    encoded = m.encode(type_, 0, message)
    if len(encoded) > HEADER.size:
        cut = data.draw(st.integers(HEADER.size, len(encoded) - 1))
        with pytest.raises(Malformed):
            m.decode(type_, encoded[:cut])


def test_a_walk_is_laid_out_as_linux_client_does() -> None:
    assert m.encode(110, 0x1234, m.Twalk(1, 2, (b"ab", b"c"))) == bytes.fromhex(
        "18000000 6e 3412 01000000 02000000 0200 0200 6162 0100 63".replace(" ", "")
    )


def test_more_than_sixteen_names_are_malformed() -> None:
    with pytest.raises(Malformed):
        m.decode(110, m.encode(110, 0, m.Twalk(1, 2, (b"a",) * 17)))


def test_a_reply_has_its_request_type_plus_one() -> None:
    assert all(m.MESSAGES[type_ + 1] is reply for type_, (_, reply) in m.REQUESTS.items())
    assert len(m.REQUESTS) == 28
