"""PV_MAILBOX."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypercalls import GuestFault
from hypercalls.fake import FakeCalls
from hypercalls.mailbox import CAPACITY, pv_mailbox

WORDS = st.integers(0, 2**64 - 1)


@given(st.lists(WORDS, max_size=20))
def test_words_come_out_in_the_order_they_went_in(words: list[int]) -> None:
    fakes = FakeCalls(0)
    for word in words:
        assert fakes.wrmsr(pv_mailbox, word) is None
    assert fakes.mailbox == b"".join(word.to_bytes(8, "little") for word in words)
    assert [fakes.rdmsr(pv_mailbox) for _ in words] == words


def test_an_empty_one_faults() -> None:
    fakes = FakeCalls(0)
    for _ in range(2):
        with pytest.raises(GuestFault):
            fakes.rdmsr(pv_mailbox)


@pytest.mark.parametrize("size", range(1, 17))
def test_the_last_word_is_filled_up_with_zeroes(size: int) -> None:
    fakes = FakeCalls(0)
    fakes.mailbox += b"\xff" * size
    words = [fakes.rdmsr(pv_mailbox) for _ in range(-(-size // 8))]
    data = b"".join(word.to_bytes(8, "little") for word in words if word is not None)
    assert data == (b"\xff" * size).ljust(len(words) * 8, b"\0")
    assert not fakes.mailbox


def test_it_takes_no_more_memory_of_the_host_than_it_may() -> None:
    fakes = FakeCalls(0)
    fakes.mailbox += bytes(CAPACITY - 8)
    for word in (1, 2, 3):
        fakes.wrmsr(pv_mailbox, word)
        assert len(fakes.mailbox) == CAPACITY
    assert fakes.mailbox[-24:] == b"".join(word.to_bytes(8, "little") for word in (1, 2, 3))
