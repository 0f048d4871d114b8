"""Every message goes through the codec, and comes out as it was."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from inspect import getmembers
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import BadSnapshot
from emu.process import messages as m
from emu.snapshot.codec import decode, encode

CLASSES = [kind for _, kind in getmembers(m, is_dataclass)]
ASKED = get_args(get_type_hints(m.Request)["body"])
ANSWERED = get_args(get_type_hints(m.Reply)["body"])
PARTS = m.Request, m.Reply, m.Network, m.Description, m.Diagnosis, m.LogLine, m.ExitStats   # of others


def there_and_back(message: m.Request | m.Reply) -> m.Request | m.Reply:
    return decode(type(message), json.loads(json.dumps(encode(message))))


@given(st.data())
@pytest.mark.parametrize("kind", ASKED, ids=lambda kind: kind.__name__)
def test_every_request_comes_through(kind: type, data: st.DataObject) -> None:
    request = m.Request(data.draw(st.integers(0, 1 << 62)), data.draw(st.from_type(kind)))
    assert there_and_back(request) == request


@given(st.data())
@pytest.mark.parametrize("kind", ANSWERED, ids=lambda kind: kind.__name__)
def test_every_reply_comes_through(kind: type, data: st.DataObject) -> None:
    reply = m.Reply(data.draw(st.integers(0, 1 << 62)), data.draw(st.from_type(kind)))
    assert there_and_back(reply) == reply


def test_every_message_is_something_that_one_of_the_two_says() -> None:
    assert set(CLASSES) == {*ASKED, *ANSWERED, *PARTS}
    assert {kind.__name__ for kind in CLASSES} - {"ExitStats"} == set(m.__all__) - {"AHEAD"}


def test_a_request_is_no_reply() -> None:
    with pytest.raises(BadSnapshot):
        decode(m.Reply, encode(m.Request(1, m.Stats())))
    with pytest.raises(TypeError):
        encode(m.Request(1, m.Done()))       # type: ignore[arg-type]
