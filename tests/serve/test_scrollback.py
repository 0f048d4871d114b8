"""What readers of a console's end see, wherever they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emu.serve.scrollback import KEPT, REPLAY, Place, Scrollback


def all_of(scrollback: Scrollback, place: Place | None, most: int = 1000) -> tuple[bytes, Place | None]:
    """What a reader gets until there is no more."""
    data = b""
    while piece := scrollback.next(place, most):
        assert not (piece.is_new and data)
        data, place = data + piece.data, piece.end
    return data, place


@given(st.lists(st.binary(max_size=50)), st.integers(1, 60))
def test_every_reader_gets_all_in_order(parts: list[bytes], most: int) -> None:
    scrollback, early, place = Scrollback(), b"", None
    for part in parts:
        scrollback.feed(len(early), part)
        more, place = all_of(scrollback, place, most)
        early += more
    assert early == all_of(scrollback, None)[0] == b"".join(parts)


def test_the_first_piece_clears_the_screen_and_says_what_is_old() -> None:
    scrollback = Scrollback()
    empty = scrollback.next(None, 10)
    assert empty is not None and (empty.is_new, empty.old, empty.data) == (True, 0, b"")
    assert scrollback.next(empty.end, 10) is None
    scrollback.feed(0, b"old")
    piece = scrollback.next(None, 2)
    assert piece is not None and (piece.is_new, piece.missed, piece.old, piece.data) == (True, 0, 3, b"ol")
    scrollback.feed(3, b"new")
    rest = scrollback.next(piece.end, 10)
    assert rest is not None and (rest.is_new, rest.data) == (False, b"dnew")


def test_who_is_too_slow_goes_on_near_the_end_with_a_whole_line() -> None:
    scrollback, line = Scrollback(), b"x" * 99 + b"\n"
    first = scrollback.next(None, 10)
    assert first is not None
    for number in range(3 * KEPT // len(line)):
        scrollback.feed(number * len(line), line)
    piece = scrollback.next(first.end, KEPT)
    assert piece is not None and piece.is_new and piece.data.startswith(line)
    assert REPLAY - len(line) <= len(piece.data) <= REPLAY
    assert piece.missed + len(piece.data) == piece.end.position == number * len(line) + len(line)


def test_without_lines_the_end_is_the_end_all_the_same() -> None:
    scrollback = Scrollback()
    scrollback.feed(0, b"x" * (4 * KEPT))
    piece = scrollback.next(None, 4 * KEPT)
    assert piece is not None and len(piece.data) == REPLAY


def test_what_the_machine_left_out_is_missed() -> None:
    scrollback = Scrollback()
    scrollback.feed(0, b"before")
    _, place = all_of(scrollback, None)
    scrollback.feed(1000, b"after")
    piece = scrollback.next(place, 10)
    assert piece is not None and (piece.is_new, piece.missed, piece.data) == (True, 994, b"after")


def test_after_a_restart_all_is_new_and_nothing_missed() -> None:
    scrollback = Scrollback()
    scrollback.feed(0, b"one life")
    _, place = all_of(scrollback, None)
    scrollback.restart()
    scrollback.feed(0, b"another life")
    piece = scrollback.next(place, 100)
    assert piece is not None and (piece.is_new, piece.missed, piece.data) == (True, 0, b"another life")
