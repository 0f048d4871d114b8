"""The log of a test: what was done on which machine, when, within what, and how long it took."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic

__all__ = ["Entry", "Log", "printable"]

_depth: ContextVar[int] = ContextVar("depth", default=0)     # of the thread; `Fleet.wait_all` hands it on


@dataclass(frozen=True)
class Entry:
    """A line.

    Attributes:
        seconds: from the log's beginning.
        depth: how many sections it lies within.
        machine: the name of one, or nothing.
        text: of one line.
    """

    seconds: float
    depth: int
    machine: str
    text: str

    def __str__(self) -> str:
        who = f"{self.machine}: " if self.machine else ""
        return f"{self.seconds:8.2f}  {'  ' * self.depth}{who}{self.text}"


class Log:
    """A log; several threads may write to it.

    Args:
        sink: called with each line as it comes.
    """

    def __init__(self, sink: Callable[[str], object]) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._started = monotonic()
        self._is_closed = False
        self.entries: list[Entry] = []

    @property
    def seconds(self) -> float:
        """How long ago it began."""
        return monotonic() - self._started

    def note(self, text: str, machine: str = "") -> None:
        """Add a line.

        Args:
            text: shown without what a terminal would obey.
            machine: the name of the one that it is about.
        """
        with self._lock:
            if self._is_closed:
                return
            entry = Entry(self.seconds, _depth.get(), machine, printable(text))
            self.entries.append(entry)
            self._sink(str(entry))

    def close(self) -> None:
        """Take no more lines: what threads still say is of no interest when the machines are gone."""
        with self._lock:
            self._is_closed = True

    @contextmanager
    def section(self, text: str, machine: str = "") -> Iterator[None]:
        """Log what is done inside, and that and when it ended."""
        self.note(text, machine)
        started = monotonic()
        token = _depth.set(_depth.get() + 1)
        outcome = "failed"
        try:
            yield
            outcome = "done"
        finally:
            self.note(f"{outcome} in {monotonic() - started:.2f} s", machine)
            _depth.reset(token)


def printable(text: str) -> str:
    """A text as one line, without what a terminal would obey."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
