"""The end of what a console showed, for any number of readers, each at a place of its own."""

from __future__ import annotations

import threading

from devices.frozen import frozen

__all__ = ["Piece", "Place", "Scrollback"]

KEPT = 1 << 20                          # bytes
REPLAY = 128 << 10                      # for a reader that begins, or was too slow for what is kept


@frozen
class Place:
    """Where a reader is.

    Attributes:
        life: of the machine; another one after a restore.
        position: bytes of that life before it.
    """

    life: int
    position: int


@frozen
class Piece:
    """What comes next for a reader.

    Attributes:
        is_new: it does not go on from where the reader was, whose screen is to be cleared.
        missed: bytes that the reader will never see.
        old: if it is new, how many bytes from here on were there already.
        data: the bytes.
        end: where the reader is then.
    """

    is_new: bool
    missed: int
    old: int
    data: bytes
    end: Place


class Scrollback:
    """Bounded; one thread writes, others read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data = bytearray()
        self._end = 0                   # position behind it
        self._life = 0

    def feed(self, position: int, data: bytes) -> None:
        """More has come.

        Args:
            position: bytes there were before; if some of them were not given, what is kept does not go on to there.
            data: the bytes.
        """
        with self._lock:
            if position != self._end:
                self._data.clear()
            self._data += data
            self._end = position + len(data)
            if len(self._data) > 2 * KEPT:      # seldom, since what is left is moved
                del self._data[:-KEPT]

    def restart(self) -> None:
        """Another machine's console comes from now on."""
        with self._lock:
            self._data.clear()
            self._end = 0
            self._life += 1

    def next(self, place: Place | None, most: int) -> Piece | None:
        """What comes next, at most so many bytes; None if there is nothing new.

        Args:
            place: where the reader is, None at its beginning.
            most: bytes; at least one.
        """
        with self._lock:
            start = self._end - len(self._data)
            if place is not None and place.life == self._life and start <= place.position:
                return self._piece(place.position, False, 0, most)
            is_same = place is not None and place.life == self._life
            begin = self._replay(start)
            return self._piece(begin, True, begin - place.position if place is not None and is_same else 0, most)

    def _piece(self, begin: int, is_new: bool, missed: int, most: int) -> Piece | None:
        at = begin - (self._end - len(self._data))
        data = bytes(self._data[at : at + most])
        if not data and not is_new:
            return None
        return Piece(is_new, missed, self._end - begin, data, Place(self._life, begin + len(data)))

    def _replay(self, start: int) -> int:
        """Where to begin: at the beginning, or with a line near to the end, which breaks no character in two."""
        if start == 0 and len(self._data) <= REPLAY:
            return 0
        at = max(len(self._data) - REPLAY, 0)
        line = self._data.find(b"\n", at) + 1
        return start + (line or at)
